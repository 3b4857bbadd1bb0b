"""Routes for the conversations of the chat page. No account can read those of another."""

from __future__ import annotations

import re
import time
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.conversation import (
    MAX_COUNT,
    MAX_SIZE,
    MAX_TOTAL_SIZE,
    Conversation,
    ConversationSummary,
    new_conversation,
)
from appliance.domain.errors import (
    BodyTooLarge,
    Conflict,
    FieldProblem,
    InvalidInput,
    NotFound,
    PermissionDenied,
)
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers
from appliance.protocols.conversation_types import (
    ConversationRequest,
    ConversationResponse,
    ConversationSummaryResponse,
    ConversationUpdateRequest,
)
from appliance.runners import operations
from appliance.store import ConversationWrite

_PLACE: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)  # messages of msgspec

T = TypeVar("T", bound=ConversationRequest)


async def list_conversations(request: Request) -> Response:
    """``GET /admin/conversations``: those of the caller's account, the last changed first."""
    caller = await _caller(request, Scope.READ)
    found = await services_of(request).store.conversations.list(caller.owner)
    return responses.json(serializers.page([_summary(each) for each in found]))


async def create_conversation(request: Request) -> Response:
    caller = await _caller(request, Scope.RUN)
    given = await _parse(request, ConversationRequest)
    made = new_conversation(caller.owner, given.title, given.model, given.content, time.time())
    services_of(request).erasures.refuse_new_data(caller.owner)
    _check(await services_of(request).store.conversations.add(made), made.id)
    return responses.json(_summary(made), 201)


async def get_conversation(request: Request) -> Response:
    return responses.json(_response(await _find(request, await _caller(request, Scope.READ))))


async def replace_conversation(request: Request) -> Response:
    """``PUT /admin/conversations/{id}``: ``revision`` must be that of the stored conversation.

    With another revision, it is accepted only if it equals the stored one: a browser sends a change again if
    it did not get the response.
    """
    caller = await _caller(request, Scope.RUN)
    given = await _parse(request, ConversationUpdateRequest)
    stored = await _find(request, caller)
    changed = msgspec.structs.replace(
        stored,
        title=given.title,
        model=given.model,
        updated_at=time.time(),
        revision=given.revision + 1,
        content=given.content,
    )
    services_of(request).erasures.refuse_new_data(caller.owner)
    result = await services_of(request).store.conversations.replace(changed)
    if result is ConversationWrite.CHANGED:
        stored = await _find(request, caller)
        if (stored.title, stored.model, stored.content) == (given.title, given.model, given.content):
            return responses.json(_summary(stored))
    _check(result, stored.id)
    return responses.json(_summary(changed))


async def delete_conversation(request: Request) -> Response:
    """``DELETE /admin/conversations/{id}``: also deletes input and output of its answers' predictions."""
    caller = await _caller(request, Scope.RUN)
    found = await _find(request, caller)
    await services_of(request).store.conversations.remove(found.id, caller.owner)
    for message in found.content.messages:
        if message.prediction is not None:
            await _remove_prediction(request, message.prediction, caller.owner)
    return Response(status_code=204)


async def _remove_prediction(request: Request, id: str, owner: str) -> None:
    """Delete input and output of the prediction of an answer, if it is one of this owner.

    A prediction that still runs is cancelled first.
    """
    services = services_of(request)
    try:
        record = await services.engine.get(id, owner)
    except NotFound:
        return
    if record.operation != operations.CHAT:
        return
    if not record.status.terminal:
        await services.engine.cancel(id, owner)
    await services.retention.remove(id)


async def _caller(request: Request, scope: Scope) -> Token:
    """Return the caller's token.

    Raises:
        PermissionDenied: the caller is a running prediction, whose code must not read its owner's chats.
    """
    caller = await requests.caller(request, scope)
    if caller.prediction is not None:
        raise PermissionDenied("Running predictions cannot read or change conversations: use another token.")
    return caller


async def _find(request: Request, caller: Token) -> Conversation:
    found = await services_of(request).store.conversations.get(request.path_params["id"], caller.owner)
    if found is None:
        raise NotFound("There is no such conversation: it was deleted, or it belongs to another account.")
    return found


async def _parse(request: Request, type: type[T]) -> T:
    """Return the body as a struct of ``conversation_types``.

    Raises:
        InvalidInput: names the first field that is wrong.
        BodyTooLarge: the conversation is over ``MAX_SIZE``, or the body is over ``limits.body``.
    """
    given = await requests.body(request)
    try:
        found = msgspec.convert(given, type, strict=False)
    except msgspec.ValidationError as error:
        match = _PLACE.fullmatch(str(error))
        description, field = (match[1], match[2]) if match else (str(error), "")
        raise InvalidInput([FieldProblem("invalid", field, description)]) from error
    size = len(msgspec.msgpack.encode(found.content))
    if size > MAX_SIZE:
        raise BodyTooLarge(
            f"A conversation can have at most {MAX_SIZE / 2**20:.0f} MiB, and this one has "
            f"{size / 2**20:.1f} MiB: begin a new conversation"
        )
    return found


def _check(result: ConversationWrite, id: str) -> None:
    """Raise the error for a conversation that was not stored.

    Raises:
        NotFound: the conversation was deleted.
        Conflict: the conversation was changed, or the account has reached a limit.
    """
    match result:
        case ConversationWrite.MISSING:
            raise NotFound(f"The conversation {id} was deleted.")
        case ConversationWrite.CHANGED:
            raise Conflict(f"The conversation {id} was changed elsewhere: get it, and send the change again.")
        case ConversationWrite.TOO_MANY:
            raise Conflict(
                f"This account has {MAX_COUNT:,} conversations, which is the maximum: delete old ones."
            )
        case ConversationWrite.TOO_LARGE:
            raise Conflict(
                f"The conversations of this account would have more than {MAX_TOTAL_SIZE // 2**20} MiB, "
                "which is the maximum: delete old ones."
            )


def _summary(found: ConversationSummary) -> ConversationSummaryResponse:
    return ConversationSummaryResponse(
        id=found.id,
        title=found.title,
        model=found.model,
        created_at=serializers.timestamp(found.created_at),
        updated_at=serializers.timestamp(found.updated_at),
        revision=found.revision,
    )


def _response(found: Conversation) -> ConversationResponse:
    return ConversationResponse(
        **msgspec.structs.asdict(_summary(found)),
        settings=found.content.settings,
        messages=found.content.messages,
        leaf=found.content.leaf,
    )


_CONVERSATION: Final = "/admin/conversations/{id}"
ROUTES: Final = (
    Route("/admin/conversations", list_conversations, methods=["GET"]),
    Route("/admin/conversations", create_conversation, methods=["POST"]),
    Route(_CONVERSATION, get_conversation, methods=["GET"]),
    Route(_CONVERSATION, replace_conversation, methods=["PUT"]),
    Route(_CONVERSATION, delete_conversation, methods=["DELETE"]),
)
