"""What all routes of OpenAI's and Anthropic's APIs have in common.

A call is a prediction that ends with its client: who hangs up has cancelled it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from appliance.domain import input_schema
from appliance.domain.errors import (
    BadRequest,
    FieldProblem,
    InvalidInput,
    InvalidVersion,
    ModelNotFound,
    NotFound,
)
from appliance.domain.prediction import Prediction, Status
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests
from appliance.gateway.api.errors import ANTHROPIC, Refusal, refused
from appliance.gateway.api.replicate.streams import HEADERS
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Entry
from appliance.protocols import media, serializers
from appliance.runners import kinds_with_operation, operations

#: Seconds of silence after which a comment is sent in a stream.
IDLE: Final = 10.0
#: A stream begins at the latest after so many seconds, though nothing has been said in it: proxies give up
#: after a minute. Before that a refusal can still have a status of its own.
PATIENCE: Final = 40.0
#: What a client is told that is not there any more; the status is nginx's.
_GONE: Final = 499
_LONG: Final = 3600.0  # seconds; waits are repeated

T = TypeVar("T")


class Disconnected(Exception):
    """The client has gone."""


class ApiFormat(NamedTuple):
    """How one API writes its streams."""

    named: bool  # whether an event carries the type of its object
    last: bytes  # what ends the stream
    error: Callable[[Refusal, int], dict[str, Any]]  # an event that says what went wrong, and its number


CHUNKS: Final = ApiFormat(named=False, last=b"data: [DONE]\n\n", error=lambda refusal, _: refusal.openai())
EVENTS: Final = ApiFormat(named=True, last=b"", error=Refusal.event)
MESSAGES: Final = ApiFormat(named=True, last=b"", error=lambda refusal, _: refusal.anthropic())


class Calls:
    """Makes predictions of calls, and answers of predictions."""

    def __init__(self, services: Services) -> None:
        """``services`` is what it works with."""
        self._services = services
        self._cancelling: set[asyncio.Task[None]] = set()

    async def caller(self, request: Request, scope: Scope, *, creates: bool = False) -> Token:
        """Who calls, as ``requests.caller``; Anthropic's clients send the token in a header of their own."""
        key = request.headers.get("x-api-key")
        header = f"Bearer {key}" if key is not None and request.url.path.startswith(ANTHROPIC) else None
        return await requests.caller(request, self._services, scope, creates=creates, authorization=header)

    async def body(self, request: Request, *required: str) -> dict[str, Any]:
        """The JSON object in the request, which must have these keys and a model.

        Raises:
            InvalidInput: one is missing, or the model is not named by a string.
        """
        given = await requests.body(request, self._services.config.limits.body)
        return checked(given, *required)

    def entry(self, name: str, caller: Token, kinds: Collection[str]) -> Entry:
        """The model that is called so, which must be of one of these kinds.

        Raises:
            ModelNotFound: there is none, or it has no version yet.
            BadRequest: it is of another kind.
        """
        try:
            entry = self._services.catalogue.by_spec(name, caller.owner)
        except InvalidVersion as error:
            raise ModelNotFound(name) from error
        if entry.kind not in kinds:
            answering = " or ".join(sorted(kinds)) or "none"
            raise BadRequest(
                f"The model `{name}` is of the kind {entry.kind}; models of the kind {answering} answer here."
            )
        return entry

    async def operate(
        self, request: Request, operation: str, format: ApiFormat, *required: str, streams: bool = True
    ) -> Response:
        """Answer a request with what the model's own runner answers to the same body."""
        caller = await self.caller(request, Scope.RUN, creates=True)
        given = await self.body(request, *required)
        kinds = kinds_with_operation(operation)
        entry = self.entry(given["model"], caller, kinds)
        if not streams:
            given.pop("stream", None)
        engine = self._services.engine
        record = await engine.submit(
            entry,
            given,
            owner=caller.owner,
            parent=caller.prediction,
            operation=operation,
            token=caller.id,
            trace=requests.trace(request, self._services),
        )
        told = self.told(record)
        try:
            if operations.streams(given):
                return await self._stream(request, record, format, told)
            ended = await self.ended(request, record)
        except Disconnected:
            return Response(status_code=_GONE)
        if ended.status is not Status.SUCCEEDED:
            return refused(_refusal(ended), request.url.path, told)
        return Response(serializers.encode(ended.output), 200, told, "application/json")

    async def predicted(
        self, request: Request, caller: Token, entry: Entry, input: dict[str, Any]
    ) -> Prediction | Response:
        """A prediction of the model's own that has succeeded, or what its client is told instead."""
        record = await self._services.engine.submit(
            entry,
            input,
            owner=caller.owner,
            parent=caller.prediction,
            token=caller.id,
            trace=requests.trace(request, self._services),
        )
        try:
            ended = await self.ended(request, record)
        except Disconnected:
            return Response(status_code=_GONE)
        if ended.status is not Status.SUCCEEDED:  # a runner that runs fails for what it is given
            return refused(Refusal.of_record(ended, otherwise=400), request.url.path, self.told(record))
        return ended

    def told(self, record: Prediction) -> dict[str, str]:
        """The headers that name the prediction; the clients show them as the id of the request."""
        return {"x-request-id": record.id, "request-id": record.id}

    async def ended(self, request: Request, record: Prediction) -> Prediction:
        """The terminal record.

        Raises:
            Disconnected: the client has gone, and the prediction is being cancelled.
        """
        ended: Prediction | None = None
        try:
            while ended is None or not ended.status.terminal:
                ended = await attended(request, self._services.engine.wait(record.id, _LONG))
                if ended is None:  # removed with its version
                    raise NotFound
        finally:
            if ended is None or not ended.status.terminal:
                self.cancel(record)
        return ended

    def cancel(self, record: Prediction) -> None:
        """Cancel a prediction whose client has gone; nobody waits for that."""
        task = asyncio.get_running_loop().create_task(self._cancelled(record))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _cancelled(self, record: Prediction) -> None:
        with contextlib.suppress(NotFound):  # removed with its version
            await self._services.engine.cancel(record.id, record.owner)

    async def _stream(
        self, request: Request, record: Prediction, format: ApiFormat, told: dict[str, str]
    ) -> Response:
        """A stream, or the refusal if nothing comes of it.

        Raises:
            Disconnected: see ``ended``.
        """
        seen = self._services.engine.follow(record, idle=IDLE)
        deadline = time.monotonic() + PATIENCE - IDLE
        try:
            first = await attended(request, anext(seen))
            while first is None and time.monotonic() < deadline:
                first = await attended(request, anext(seen))
        except BaseException:
            self.cancel(record)
            raise
        if isinstance(first, Prediction) and first.status is not Status.SUCCEEDED:
            return refused(_refusal(first), request.url.path, told)
        events = self._events(record, first, seen, format)
        return StreamingResponse(events, 200, {**HEADERS, **told}, "text/event-stream")

    async def _events(
        self, record: Prediction, first: Any, seen: AsyncIterator[Any], format: ApiFormat
    ) -> AsyncIterator[bytes]:
        ended = False
        count, broken = 0, False
        try:
            while not ended:
                match first:
                    case None:
                        yield serializers.HEARTBEAT
                    case Prediction():
                        ended = True
                        if first.status is not Status.SUCCEEDED and not broken:
                            yield frame(format.error(_refusal(first), count), named=format.named)
                        yield format.last
                    case _:
                        count += len(first)
                        broken = "error" in first[-1][1] or first[-1][1].get("type") == "error"
                        yield b"".join(frame(item, named=format.named) for _, item in first)
                if not ended:
                    first = await anext(seen)
        finally:
            if not ended:
                self.cancel(record)


def _refusal(record: Prediction) -> Refusal:
    """How an operation ended that did not succeed.

    What the model refuses says so itself. What fails beside that is not the caller's fault, unless it has
    pointed to pictures: those may be what could not be had.
    """
    pictures = next(media.addresses(record.input), None) is not None
    return Refusal.of_record(record, otherwise=400 if pictures else 500)


def checked(given: dict[str, Any], *required: str) -> dict[str, Any]:
    """``given``, which must have these keys and a model.

    Raises:
        InvalidInput: one is missing, or the model is not named by a string.
    """
    missing = [key for key in ("model", *required) if given.get(key) is None]
    if missing:
        raise InvalidInput([FieldProblem("required", key, f"{key} is required") for key in missing])
    input_schema.check(
        {key: given[key] for key in ("model", "stream") if key in given},
        {"model": {"type": "string"}, "stream": {"type": "boolean"}},
    )
    return given


def frame(item: Any, *, named: bool) -> bytes:
    """One server-sent event."""
    name = f"event: {item['type']}\n".encode() if named else b""
    return name + b"data: " + msgspec.json.encode(item) + b"\n\n"


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is given up when the client goes away.

    Raises:
        Disconnected: it has.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
