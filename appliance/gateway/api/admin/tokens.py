"""Routes for API tokens. The command `appliance token` does the same on the server."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Final

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import access, token
from appliance.domain.errors import FieldProblem, InvalidInput, NotFound
from appliance.domain.token import Scope, Token
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers
from appliance.protocols.account_types import TokenResponse
from appliance.protocols.request_types import TokenRequest

LONGEST_NAME: Final = 100  # characters

_OWNER: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")


async def list_tokens(request: Request) -> Response:
    """``GET /admin/tokens``: all tokens, also revoked ones, oldest first."""
    await requests.caller(request, Scope.ADMIN)
    return responses.json(
        serializers.page([_response(known) for known in await services_of(request).store.list_tokens()])
    )


async def create_token(request: Request) -> Response:
    """``POST /admin/tokens``: only this response contains the secret, as ``token``."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, TokenRequest)
    owner = services.config.server.account if given.owner is None else given.owner
    secret = token.new_token()
    networks = given.networks
    made = Token(
        id=token.new_id(),
        name=given.name,
        owner=owner,
        digest=token.digest(secret),
        created_at=time.time(),
        scope=Scope.RUN if given.scope is None else Scope(given.scope),
        description=given.description or "",
        expires_at=_time("expires_at", given.expires_at),
        networks=None if networks is None else tuple(access.network(each) or each for each in networks),
        models=given.models,
    )
    if problems := [*_problems(made.name, owner), *token.limits_problems(made)]:
        raise InvalidInput(problems)
    await services.store.add_token(made, audit.event(request, object=made.id, after=token.recorded(made)))
    return responses.json(_response(made, secret), 201)


async def revoke_token(request: Request) -> Response:
    """``DELETE /admin/tokens/{id}``: requests with the token fail from now on."""
    await requests.caller(request, Scope.ADMIN)
    revoked = await services_of(request).store.revoke_token(request.path_params["id"], audit.event(request))
    if revoked is None:
        raise NotFound
    services_of(request).auth.forget(revoked.id)
    return responses.json(_response(revoked))


async def token_names(request: Request, caller: Token) -> dict[str, str]:
    """Return the names of the tokens that ``caller`` may see, by id."""
    store = services_of(request).store
    names = [(each.id, each.name, each.owner) for each in await store.list_tokens()]
    names += [(each.token_id, f"{each.name} (UI)", each.name) for each in await store.users.all()]
    return {id: name for id, name, owner in names if caller.sees_all or owner == caller.owner}


def _problems(name: str, owner: str) -> list[FieldProblem]:
    problems = []
    if not (name.strip() and len(name) <= LONGEST_NAME and name.isprintable()):
        text = f"Give the token a name of 1 to {LONGEST_NAME} characters, without control characters"
        problems.append(FieldProblem("format", "name", text))
    if not (len(owner) <= LONGEST_NAME and _OWNER.fullmatch(owner)):
        text = 'Must have only lowercase letters, digits, and "-" or "_" between them'
        problems.append(FieldProblem("format", "owner", text))
    return problems


def _shown_time(at: float | None) -> str | None:
    return None if at is None else serializers.timestamp(at)


def _time(field: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        described = "Does not match format 'date-time', such as 2030-01-31T12:00:00Z"
        raise InvalidInput([FieldProblem("format", field, described)]) from error


def _response(known: Token, secret: str | UnsetType = UNSET) -> TokenResponse:
    return TokenResponse(
        id=known.id,
        name=known.name,
        owner=known.owner,
        scope=known.scope,
        created_at=serializers.timestamp(known.created_at),
        revoked_at=_shown_time(known.revoked_at),
        state=known.state(time.time()),
        description=known.description,
        expires_at=_shown_time(known.expires_at),
        networks=None if known.networks is None else list(known.networks),
        models=None if known.models is None else list(known.models),
        last_used_at=_shown_time(known.last_used_at),
        last_used_from=known.last_used_from,
        token=secret,
    )


ROUTES: Final = (
    Route("/admin/tokens", list_tokens, methods=["GET"]),
    Route("/admin/tokens", create_token, methods=["POST"]),
    Route("/admin/tokens/{id}", revoke_token, methods=["DELETE"]),
)
