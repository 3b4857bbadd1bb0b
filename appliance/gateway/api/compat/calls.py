"""Shared code of the routes of OpenAI's and Anthropic's APIs.

Each request creates a prediction, which is cancelled when the client disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
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
    OutputRemoved,
)
from appliance.domain.prediction import Prediction, Status
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests
from appliance.gateway.api.errors import ANTHROPIC, CompatError, compat_response
from appliance.gateway.api.replicate.streams import HEADERS
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.engine import Engine
from appliance.protocols import media, serializers
from appliance.protocols.compat_types import CompatRequest
from appliance.runners import kinds_with_operation, operations

#: A comment is sent after this many seconds without an event in a stream.
IDLE: Final = 10.0
#: A stream starts after at most this many seconds, even without output, because proxies time out after a
#: minute. An error before the start of the stream has its own HTTP status.
PATIENCE: Final = 40.0
#: nginx's status for a client that closed the connection.
GONE: Final = 499
_LONG: Final = 3600.0  # seconds; the wait is repeated

#: Tasks that cancel predictions; asyncio itself keeps only weak references to them.
_cancelling: Final[set[asyncio.Task[None]]] = set()

T = TypeVar("T")
Body = TypeVar("Body", bound=msgspec.Struct)


class Disconnected(Exception):
    """The client has closed the connection."""


class ApiFormat(NamedTuple):
    """The stream format of one API."""

    write: Callable[[Any], bytes]  # returns the bytes of one item of the stream
    error: Callable[[CompatError, int], bytes]  # returns the bytes of an error after a number of items
    last: bytes = b""  # bytes that end the stream
    idle: bytes = serializers.HEARTBEAT  # bytes that keep the connection open
    content_type: str = "text/event-stream"


def frame(item: Any) -> bytes:
    """Return a server-sent event without a name."""
    return b"data: " + msgspec.json.encode(item) + b"\n\n"


def named_frame(item: Any) -> bytes:
    """Return a server-sent event that is named after the type of ``item``."""
    return f"event: {item['type']}\n".encode() + frame(item)


CHUNKS: Final = ApiFormat(frame, lambda error, _: frame(error.openai()), last=b"data: [DONE]\n\n")
EVENTS: Final = ApiFormat(
    named_frame, lambda error, number: named_frame(msgspec.to_builtins(error.event(number)))
)
MESSAGES: Final = ApiFormat(named_frame, lambda error, _: named_frame(msgspec.to_builtins(error.anthropic())))
#: OpenAI's streams of audio and of transcripts: as ``EVENTS``, without names of events.
DATA: Final = ApiFormat(frame, lambda error, number: frame(error.event(number)))


async def find_caller(request: Request, scope: Scope, *, creates: bool = False) -> Token:
    """Return the caller's token as ``requests.caller`` does. Anthropic's clients send it in ``x-api-key``."""
    key = request.headers.get("x-api-key")
    header = f"Bearer {key}" if key is not None and request.url.path.startswith(ANTHROPIC) else None
    return await requests.caller(request, scope, creates=creates, authorization=header)


async def parse(request: Request, type: type[Body]) -> Body:
    """Return the JSON object in the request as a struct of ``compat_types``.

    Raises:
        InvalidInput: names the missing fields, or else every field that is unknown or wrong.
    """
    given = await requests.body(request)
    check_required(given, type)
    return requests.convert(given, type)


def find_model(
    request: Request, name: str, caller: Token, kinds: Collection[str], operation: str | None = None
) -> ServedVersion:
    """Return the newest version of the model ``name``.

    Raises:
        ModelNotFound: there is no such model, or the model has no version yet.
        BadRequest: the kind of the model is not one of ``kinds``, or it does not support ``operation``.
    """
    try:
        entry = services_of(request).catalogue.by_compat_name(name, caller.access)
    except InvalidVersion as error:
        raise ModelNotFound(name) from error
    if entry.kind not in kinds:
        answering = " or ".join(sorted(kinds)) or "none"
        raise BadRequest(
            f"The model `{name}` is of kind {entry.kind}; this route needs a model of kind {answering}."
        )
    refusal = None if operation is None else entry.model.options.refusal(operation)
    if refusal is not None:
        raise BadRequest(f"The model `{name}` {refusal}.")
    return entry


def list_models(request: Request, caller: Token, kinds: Collection[str]) -> list[tuple[str, ServedVersion]]:
    """Return the newest version of each model of these kinds, under its name and each of its aliases."""
    catalogue = services_of(request).catalogue
    visible = [card for card in catalogue.cards.values() if card.visible(caller.access)]
    latest = [(card, catalogue.latest(card.name)) for card in visible]
    return [
        (name, entry)
        for card, entry in latest
        if entry is not None and entry.kind in kinds
        for name in (card.name, *card.short_names)
    ]


async def run_operation(
    request: Request,
    operation: str,
    format: ApiFormat,
    type: type[CompatRequest],
    *,
    streams: bool = True,
) -> Response:
    """Run the request body with the model's runner and return the response of the runner.

    Only the fields of ``type`` are checked here; the runner checks the others.
    """
    caller = await find_caller(request, Scope.RUN, creates=True)
    given = await operation_body(request, type)
    if not streams:
        given.pop("stream", None)
    return await respond(request, await submit_operation(request, caller, given, operation), format)


async def operation_body(request: Request, type: type[CompatRequest]) -> dict[str, Any]:
    """Return the request body, with the fields of ``type`` checked."""
    given = await requests.body(request)
    check_required(given, type)
    properties, _ = requests.schema(type)
    input_schema.check({key: given[key] for key in properties if key in given}, properties)
    return given


async def submit_operation(
    request: Request, caller: Token, given: dict[str, Any], operation: str
) -> Prediction:
    """Create the prediction of an operation, with the request body ``given`` as its input."""
    entry = find_model(request, given["model"], caller, kinds_with_operation(operation))
    return await _submit(request, caller, entry, given, operation)


async def respond(request: Request, record: Prediction, format: ApiFormat) -> Response:
    """Return the response of an operation; if the request asks for a stream, at its first event."""
    headers = id_headers(record)
    try:
        if operations.streams(record.input):
            return await stream(request, record, format)
        ended = await _wait_until_ended(request, record)
    except Disconnected:
        return Response(status_code=GONE)
    if ended.status is not Status.SUCCEEDED:
        return compat_response(_error_of(ended), request.url.path, headers)
    return Response(serializers.encode(ended.output), 200, headers, "application/json")


async def stream_translated(
    request: Request,
    caller: Token,
    entry: ServedVersion,
    input: dict[str, Any],
    operation: str,
    format: ApiFormat,
) -> Response:
    """Run a prediction of one of ``operations.TRANSLATED``, and return its output, a stream."""
    record = await _submit(request, caller, entry, input, operation)
    try:
        return await stream(request, record, format)
    except Disconnected:
        return Response(status_code=GONE)


async def _submit(
    request: Request, caller: Token, entry: ServedVersion, input: dict[str, Any], operation: str | None = None
) -> Prediction:
    services = services_of(request)
    services.erasures.refuse_new_data(caller.owner)
    record = await services.engine.submit(
        entry,
        input,
        owner=caller.owner,
        parent=caller.prediction,
        operation=operation,
        token=caller.id,
        access=caller.access,
        trace=requests.trace(request),
    )
    requests.warn_of_budgets(request, record)
    return record


async def predict(
    request: Request, caller: Token, entry: ServedVersion, input: dict[str, Any]
) -> Prediction | Response:
    """Run a prediction. Return its record if it succeeded, else the error response.

    Raises:
        OutputRemoved: the output of the prediction was deleted meanwhile.
    """
    record = await _submit(request, caller, entry, input)
    try:
        ended = await _wait_until_ended(request, record)
    except Disconnected:
        return Response(status_code=GONE)
    if ended.status is not Status.SUCCEEDED:  # the input is the likely cause of a failure
        return compat_response(
            CompatError.of_record(ended, otherwise=400), request.url.path, id_headers(record)
        )
    if ended.data_removed:
        raise OutputRemoved
    return ended


def id_headers(record: Prediction) -> dict[str, str]:
    """Return headers with the id of the prediction, which clients log as the id of their request."""
    return {"x-request-id": record.id, "request-id": record.id}


async def _wait_until_ended(request: Request, record: Prediction) -> Prediction:
    """Wait for the end of the prediction and return its record.

    Raises:
        Disconnected: the client disconnected, and the prediction is being cancelled.
    """
    engine = services_of(request).engine
    ended: Prediction | None = None
    try:
        while ended is None or not ended.status.terminal:
            ended = await until_disconnect(request, engine.wait(record.id, _LONG))
            if ended is None:  # deleted with its version
                raise NotFound
    finally:
        if ended is None or not ended.status.terminal:
            _cancel(record, engine)
    return ended


def _cancel(record: Prediction, engine: Engine) -> None:
    """Cancel a prediction in the background, after its client disconnected."""
    task = asyncio.get_running_loop().create_task(_cancelled(record, engine))
    _cancelling.add(task)
    task.add_done_callback(_cancelling.discard)


async def _cancelled(record: Prediction, engine: Engine) -> None:
    with contextlib.suppress(NotFound):  # deleted with its version
        await engine.cancel(record.id, record.owner)


async def stream(
    request: Request, record: Prediction, format: ApiFormat, *, after: int = 0, cancels: bool = True
) -> Response:
    """Return a stream, or an error response if the prediction fails before any output.

    The stream has the items of the output after the first ``after``. If ``cancels``, the prediction is
    cancelled when the client disconnects.

    Raises:
        Disconnected: the client disconnected before the first item.
    """
    headers = id_headers(record)
    engine = services_of(request).engine
    seen = engine.follow(record, after, idle=IDLE)
    deadline = time.monotonic() + PATIENCE - IDLE
    try:
        first = await until_disconnect(request, anext(seen))
        while first is None and time.monotonic() < deadline:
            first = await until_disconnect(request, anext(seen))
    except BaseException:
        if cancels:
            _cancel(record, engine)
        raise
    if isinstance(first, Prediction) and first.status is not Status.SUCCEEDED and not after:
        return compat_response(_error_of(first), request.url.path, headers)
    events = _events(first, seen, format, after)
    if cancels:
        events = _canceling(record, events, engine)
    return StreamingResponse(events, 200, {**HEADERS, **headers}, format.content_type)


async def _events(
    first: Any, seen: AsyncIterator[Any], format: ApiFormat, count: int
) -> AsyncGenerator[bytes]:
    """Yield ``first`` and what follows; ``count`` is the number of items before it."""
    broken = False
    while True:
        match first:
            case None:
                yield format.idle
            case Prediction():
                if first.status is not Status.SUCCEEDED and not broken:
                    yield format.error(_error_of(first), count)
                yield format.last
                return
            case _:
                count += len(first)
                broken = "error" in first[-1][1] or first[-1][1].get("type") == "error"
                yield b"".join(format.write(item) for _, item in first)
        first = await anext(seen)


async def _canceling(
    record: Prediction, events: AsyncGenerator[bytes], engine: Engine
) -> AsyncGenerator[bytes]:
    """Yield ``events``; cancel the prediction if the client does not read them to the end."""
    ended = False
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                yield event
        ended = True
    finally:
        if not ended:
            _cancel(record, engine)


def _error_of(record: Prediction) -> CompatError:
    """Return the error of an operation that did not succeed.

    An error response of the model has its own HTTP status. Other failures have status 400 if the request has
    URLs of media, because fetching these may have failed, and otherwise 500.
    """
    media_urls = next(media.urls(record.input), None) is not None
    return CompatError.of_record(record, otherwise=400 if media_urls else 500)


def check_required(given: dict[str, Any], type: type[msgspec.Struct]) -> None:
    """Check that a request has the required fields of ``type``.

    Raises:
        InvalidInput: a field is missing. The clients of these APIs read its name in ``param``.
    """
    _, required = requests.schema(type)
    missing = [key for key in required if given.get(key) is None]
    if missing:
        raise InvalidInput([FieldProblem("required", key, f"{key} is required") for key in missing])


def invalid(field: str, why: str) -> InvalidInput:
    return InvalidInput([FieldProblem("invalid", field, why)])


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``, which is cancelled when the client disconnects.

    Raises:
        Disconnected: the client disconnected.
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
