"""Routes of OpenAI's Responses API: create, read, continue, cancel and delete responses.

A response is a prediction whose operation is ``RESPONSES``. So it is stored like every prediction, for as
long as ``retention`` in models.yaml says. Its input has the whole conversation: when a request continues
another response, the input and the output of that response are put before its own input.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import BadRequest, NotFound
from appliance.domain.prediction import ID_LENGTH, Prediction, Status
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import EVENTS
from appliance.gateway.api.errors import OPENAI, CompatError
from appliance.gateway.api.services import services_of
from appliance.protocols.compat_types import (
    InputItemsResponse,
    ResponseDeletion,
    ResponseErrorDetail,
    ResponseResponse,
    ResponsesRequest,
    ResponseStatus,
)
from appliance.runners import operations
from appliance.runners.operations import RESPONSE_PREFIX

_STATUS: Final[dict[Status, ResponseStatus]] = {
    Status.STARTING: "queued",
    Status.PROCESSING: "in_progress",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELED: "cancelled",
    Status.ABORTED: "cancelled",
}
_ITEMS: Final = 20  # input items in one page, unless the request has `limit`
_MAX_ITEMS: Final = 100


async def create_response(request: Request) -> Response:
    """``POST /responses``: with ``background``, a response that is still queued, or its stream."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    given = await calls.operation_body(request, ResponsesRequest)
    if given.get("conversation") is not None:
        raise calls.invalid("conversation", "is not supported; continue a response with previous_response_id")
    background = given.get("background") is True
    if background and given.get("store") is False:
        raise calls.invalid(
            "store", "must not be false if background is true, else the response could not be read"
        )
    if given.get("previous_response_id") is not None:
        given["input"] = await _continued(request, given, caller.owner)
    record = await calls.submit_operation(request, caller, given, operations.RESPONSES)
    if not background:
        return await calls.respond(request, record, EVENTS)
    if operations.streams(given):
        return await _streamed(request, record, 0)
    return _response(record, calls.id_headers(record))


async def get_response(request: Request) -> Response:
    """``GET /responses/{id}``: with ``stream=true``, the events after number ``starting_after``."""
    caller = await calls.find_caller(request, Scope.READ)
    record = await _find(request, request.path_params["id"], caller.owner)
    if requests.one_of(request, "stream", ("true", "false")) != "true":
        return _response(record)
    if not operations.streams(record.input):
        raise BadRequest(f"The response {_id(record)} was not created with stream, so it has no events.")
    after = request.query_params.get("starting_after", "-1")
    if not (after == "-1" or (after.isascii() and after.isdecimal() and len(after) < 10)):
        raise calls.invalid("starting_after", "must be the sequence_number of an event")
    return await _streamed(request, record, int(after) + 1)


async def cancel_response(request: Request) -> Response:
    """``POST /responses/{id}/cancel``: no effect on a response that has ended."""
    caller = await calls.find_caller(request, Scope.RUN)
    record = await _find(request, request.path_params["id"], caller.owner)
    if record.input.get("background") is not True:
        raise BadRequest(
            f"The response {_id(record)} does not run in the background; close its connection to cancel it."
        )
    return _response(await services_of(request).engine.cancel(record.id, caller.owner))


async def delete_response(request: Request) -> Response:
    """``DELETE /responses/{id}``: deletes input, output and files; the prediction's status stays."""
    caller = await calls.find_caller(request, Scope.RUN)
    record = await _find(request, request.path_params["id"], caller.owner)
    if not record.status.terminal:
        raise BadRequest(f"The response {_id(record)} is still running; cancel it or wait for its end.")
    await services_of(request).retention.remove(record.id)
    return responses.json(ResponseDeletion(id=_id(record), object="response", deleted=True))


async def list_input_items(request: Request) -> Response:
    """``GET /responses/{id}/input_items``: last first, unless ``order`` is ``asc``."""
    caller = await calls.find_caller(request, Scope.READ)
    limit = requests.limit(request, _ITEMS, _MAX_ITEMS)
    ascending = requests.one_of(request, "order", ("asc", "desc")) == "asc"
    record = await _find(request, request.path_params["id"], caller.owner)
    items = _listed_items(record) if ascending else _listed_items(record)[::-1]
    after = request.query_params.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise calls.invalid("after", f"the response has no input item {after[:100]}")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return responses.json(
        InputItemsResponse(
            object="list",
            data=page,
            first_id=page[0]["id"] if page else None,
            last_id=page[-1]["id"] if page else None,
            has_more=len(items) > limit,
        )
    )


async def _continued(request: Request, given: dict[str, Any], owner: str) -> list[Any]:
    """Return the conversation up to and with the input of a request that continues a response.

    Raises:
        InvalidInput: there is no such response of this owner, or it has no output to continue.
    """
    id = given["previous_response_id"]
    try:
        record = await _find(request, id, owner)
    except NotFound as error:
        raise calls.invalid("previous_response_id", error.detail) from error
    found = response_of(record)
    if found["status"] not in {"completed", "incomplete"}:
        reason = f"the response {id} is {found['status']}; only a completed response can be continued"
        raise calls.invalid("previous_response_id", reason)
    return [*_items(record.input["input"]), *found["output"], *_items(given["input"])]


async def _find(request: Request, id: str, owner: str) -> Prediction:
    """Return the prediction of a stored response of this owner.

    Raises:
        NotFound: there is no such response, it was deleted, or its request said not to store it.
    """
    missing = NotFound(f"Response with id '{id[:100]}' not found.")
    key = id.removeprefix(RESPONSE_PREFIX)
    if len(key) != ID_LENGTH:
        raise missing
    try:
        record = await services_of(request).engine.get(key, owner)
    except NotFound as error:
        raise missing from error
    if record.operation != operations.RESPONSES or record.data_removed or record.input.get("store") is False:
        raise missing
    return record


async def _streamed(request: Request, record: Prediction, after: int) -> Response:
    try:
        return await calls.stream(request, record, EVENTS, after=after, cancels=False)
    except calls.Disconnected:
        return Response(status_code=calls.GONE)


def _response(record: Prediction, headers: dict[str, str] | None = None) -> Response:
    return responses.json(response_of(record), 200, headers)


def response_of(record: Prediction) -> dict[str, Any]:
    """Return the response object of a prediction in its present state."""
    made = _made_by_model(record)
    if record.status is Status.SUCCEEDED and made is not None:
        return made
    status, error = _STATUS[record.status], None
    if record.status is Status.FAILED:
        told = CompatError.of_record(record)
        code = "server_error" if told.status >= 500 else "invalid_prompt"
        error = ResponseErrorDetail(code=code, message=told.message)
    if made is not None:
        return {**made, "status": status, "error": msgspec.to_builtins(error)}
    asked = record.input
    found: dict[str, Any] = msgspec.to_builtins(
        ResponseResponse(
            id=_id(record),
            object="response",
            created_at=int(record.created_at),
            status=status,
            background=asked.get("background") is True,
            error=error,
            incomplete_details=None,
            instructions=asked.get("instructions"),
            max_output_tokens=asked.get("max_output_tokens"),
            metadata=asked.get("metadata") or {},
            model=asked["model"],
            output=[],
            parallel_tool_calls=asked.get("parallel_tool_calls", True),
            previous_response_id=asked.get("previous_response_id"),
            reasoning=asked.get("reasoning"),
            store=asked.get("store") is not False,
            temperature=asked.get("temperature"),
            text=asked.get("text"),
            tool_choice=asked.get("tool_choice", "auto"),
            tools=asked.get("tools") or [],
            top_p=asked.get("top_p"),
            truncation=asked.get("truncation", "disabled"),
            usage=None,
        )
    )
    return found


def _made_by_model(record: Prediction) -> dict[str, Any] | None:
    """Return the newest response object in the output, which is one or the events of a stream."""
    output = record.plain_output
    if isinstance(output, dict):
        return output if output.get("object") == "response" else None
    for event in reversed(output or []):
        found: Any = event.get("response")
        if isinstance(found, dict):
            return found
    return None


def _items(input: Any) -> list[Any]:
    """Return the field ``input`` of a request as a list of items."""
    return input if isinstance(input, list) else [{"role": "user", "content": input}]


def _listed_items(record: Prediction) -> list[dict[str, Any]]:
    """Return the input of a response, oldest item first.

    Each item has an id, and the content of each message is a list.
    """
    return [
        _listed_item(item, f"{record.id}_{number}")
        for number, item in enumerate(_items(record.input["input"]))
    ]


def _listed_item(item: Any, key: str) -> dict[str, Any]:
    if not isinstance(item, dict):  # the model has refused it
        item = {"role": "user", "content": str(item)}
    if "role" not in item:
        return {"id": f"item_{key}", **item}
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    return {"id": f"msg_{key}", "type": "message", "status": "completed", **item, "content": content}


def _id(record: Prediction) -> str:
    return RESPONSE_PREFIX + record.id


_RESPONSE: Final = f"{OPENAI}/v1/responses/{{id}}"
ROUTES: Final = (
    Route(f"{OPENAI}/v1/responses", create_response, methods=["POST"]),
    Route(_RESPONSE, get_response, methods=["GET"]),
    Route(_RESPONSE, delete_response, methods=["DELETE"]),
    Route(f"{_RESPONSE}/cancel", cancel_response, methods=["POST"]),
    Route(f"{_RESPONSE}/input_items", list_input_items, methods=["GET"]),
)
