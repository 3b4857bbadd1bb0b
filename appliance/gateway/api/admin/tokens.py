"""API tokens: list, create, revoke. The command `appliance token` does the same without a token."""

from __future__ import annotations

import re
import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import token
from appliance.domain.errors import FieldProblem, InvalidInput, NotFound
from appliance.domain.token import Scope, Token
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers

LONGEST_NAME: Final = 100  # characters

_OWNER: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")


async def list_tokens(request: Request) -> Response:
    """``GET /admin/tokens``: every token, revoked ones too, oldest first; secrets are not kept."""
    await requests.caller(request, Scope.ADMIN)
    return responses.json(
        serializers.page([_shown(known) for known in await services_of(request).store.list_tokens()])
    )


async def create_token(request: Request) -> Response:
    """``POST /admin/tokens``: the answer holds the secret, as ``token``; it cannot be had again."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    given = await requests.body(request)
    requests.check_keys(given, required=("name",), optional=("scope", "owner"))
    values = {"scope": Scope.RUN.value, "owner": services.config.server.account, **given}
    if problems := _problems(values):
        raise InvalidInput(problems)
    secret = token.new_token()
    made = Token(
        id=token.new_id(),
        name=values["name"],
        owner=values["owner"],
        digest=token.digest(secret),
        created_at=time.time(),
        scope=Scope(values["scope"]),
    )
    await services.store.add_token(made)
    return responses.json({**_shown(made), "token": secret}, 201)


async def revoke_token(request: Request) -> Response:
    """``DELETE /admin/tokens/{id}``: it is refused within a second; revoking again changes nothing."""
    await requests.caller(request, Scope.ADMIN)
    revoked = await services_of(request).store.revoke_token(request.path_params["id"])
    if revoked is None:
        raise NotFound
    return responses.json(_shown(revoked))


async def token_names(request: Request, caller: Token) -> dict[str, str]:
    """Return the names of the tokens that ``caller`` may see, by id."""
    known = await services_of(request).store.list_tokens()
    return {each.id: each.name for each in known if caller.may(Scope.ADMIN) or each.owner == caller.owner}


def _problems(values: dict[str, Any]) -> list[FieldProblem]:
    problems = []
    name, owner, scope = (values[key] for key in ("name", "owner", "scope"))
    if not (isinstance(name, str) and name.strip() and len(name) <= LONGEST_NAME and name.isprintable()):
        text = f"Must be 1 to {LONGEST_NAME} characters that can be printed"
        problems.append(FieldProblem("format", "name", text))
    if not (isinstance(owner, str) and len(owner) <= LONGEST_NAME and _OWNER.fullmatch(owner)):
        text = 'Must be of lowercase letters, digits and inner "-" or "_"'
        problems.append(FieldProblem("format", "owner", text))
    if scope not in tuple(Scope):
        choices = ", ".join(f'"{choice}"' for choice in Scope)
        problems.append(FieldProblem("enum", "scope", f"scope must be one of the following: {choices}"))
    return problems


def _shown(known: Token) -> dict[str, Any]:
    return {
        "id": known.id,
        "name": known.name,
        "owner": known.owner,
        "scope": known.scope.value,
        "created_at": serializers.timestamp(known.created_at),
        "revoked_at": None if known.revoked_at is None else serializers.timestamp(known.revoked_at),
    }


ROUTES: Final = (
    Route("/admin/tokens", list_tokens, methods=["GET"]),
    Route("/admin/tokens", create_token, methods=["POST"]),
    Route("/admin/tokens/{id}", revoke_token, methods=["DELETE"]),
)
