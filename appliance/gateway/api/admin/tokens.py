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
from appliance.gateway.api.services import Services
from appliance.protocols import serializers

LONGEST_NAME: Final = 100  # characters

_OWNER: Final = re.compile(r"[a-z0-9]([a-z0-9_-]*[a-z0-9])?")


class Tokens:
    """Everything here is for administrators."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/admin/tokens", self.list, methods=["GET"]),
            Route("/admin/tokens", self.create, methods=["POST"]),
            Route("/admin/tokens/{id}", self.revoke, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """``GET /admin/tokens``: every token, revoked ones too, oldest first; secrets are not kept."""
        await requests.caller(request, self._services, Scope.ADMIN)
        return responses.json(
            serializers.page([_shown(known) for known in await self._services.store.list_tokens()])
        )

    async def create(self, request: Request) -> Response:
        """``POST /admin/tokens``: the answer holds the secret, as ``token``; it cannot be had again."""
        await requests.caller(request, self._services, Scope.ADMIN)
        given = await requests.body(request, self._services.config.limits.body)
        requests.check_keys(given, required=("name",), optional=("scope", "owner"))
        values = {"scope": Scope.RUN.value, "owner": self._services.config.server.account, **given}
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
        await self._services.store.add_token(made)
        return responses.json({**_shown(made), "token": secret}, 201)

    async def revoke(self, request: Request) -> Response:
        """``DELETE /admin/tokens/{id}``: it is refused within a second; revoking again changes nothing."""
        await requests.caller(request, self._services, Scope.ADMIN)
        revoked = await self._services.store.revoke_token(request.path_params["id"])
        if revoked is None:
            raise NotFound
        return responses.json(_shown(revoked))


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
