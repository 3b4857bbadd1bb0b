"""Predictions: create, get, list, cancel."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import wire
from appliance.api import answers, paging, requests, webhooks
from appliance.api.services import Services
from appliance.catalogue import Entry
from appliance.errors import FieldProblem, InvalidInput
from appliance.prediction import Prediction
from appliance.store import Cursor
from appliance.token import Scope, Token

PAGE: Final = 100
_VERSION: Final = re.compile(r"[0-9a-f]{64}")


class Predictions:
    """The routes about predictions."""

    def __init__(self, services: Services) -> None:
        """``services`` is what they work with."""
        self._services = services

    def routes(self) -> list[Route]:
        """What this resource answers, most used first."""
        return [
            Route("/v1/models/{owner}/{name}/predictions", self.create_for_model, methods=["POST"]),
            Route("/v1/predictions", self.create, methods=["POST"]),
            Route("/v1/predictions", self.list, methods=["GET"]),
            Route("/v1/predictions/{id}", self.get, methods=["GET"]),
            Route("/v1/predictions/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/models/{version}/predictions", self.create_for_version, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /predictions``: ``version`` is a version id, ``owner/name`` or ``owner/name:version``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        given = await self._body(request)
        requests.check_keys(given, required=("version", "input"))
        entry = self._services.catalogue.by_spec(requests.text(given, "version"))
        return await self._create(request, caller, entry, given)

    async def create_for_model(self, request: Request) -> Response:
        """``POST /models/{owner}/{name}/predictions``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        entry = self._services.catalogue.resolve("{owner}/{name}".format(**request.path_params))
        given = await self._body(request)
        requests.check_keys(given, required=("input",))
        return await self._create(request, caller, entry, given)

    async def create_for_version(self, request: Request) -> Response:
        """``POST /models/{version id}/predictions``, which LiteLLM makes of ``owner/name:version``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        version = request.path_params["version"]
        entry = self._services.catalogue.by_spec(version if _VERSION.fullmatch(version) else "")
        given = await self._body(request)
        requests.check_keys(given, required=("input",), optional=("version",))
        return await self._create(request, caller, entry, given)

    async def get(self, request: Request) -> Response:
        """``GET /predictions/{id}``."""
        caller = await requests.caller(request, self._services, Scope.READ)
        record = await self._services.engine.get(request.path_params["id"], caller.owner)
        return answers.json(wire.prediction(record, self._base(request)))

    async def cancel(self, request: Request) -> Response:
        """``POST /predictions/{id}/cancel``; one that is over is answered as it is."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        record = await self._services.engine.cancel(request.path_params["id"], caller.owner)
        return answers.json(wire.prediction(record, self._base(request)))

    async def list(self, request: Request) -> Response:
        """``GET /predictions``: newest first, a hundred at a time."""
        caller = await requests.caller(request, self._services, Scope.READ)
        base = self._base(request)
        given = request.query_params.get("cursor")
        cursor = paging.decode(given) if given else None
        backwards = cursor is not None and cursor.backwards
        found = [
            *await self._services.engine.list(
                caller.owner,
                cursor=cursor,
                limit=PAGE + 1,
                created_after=_instant(request, "created_after"),
                created_before=_instant(request, "created_before"),
            )
        ]
        more = len(found) > PAGE
        shown = found[-PAGE:] if backwards else found[:PAGE]
        older = more or backwards
        newer = more if backwards else cursor is not None

        def link(record: Prediction, *, back: bool) -> str:
            return paging.address(request, base, Cursor(record.created_at, record.id, back))

        return answers.json(
            wire.page(
                [wire.prediction(record, base) for record in shown],
                next=link(shown[-1], back=False) if shown and older else None,
                previous=link(shown[0], back=True) if shown and newer else None,
            )
        )

    async def _create(self, request: Request, caller: Token, entry: Entry, given: dict[str, Any]) -> Response:
        wait = requests.wait(request)
        engine = self._services.engine
        base = self._base(request)
        record = await engine.submit(
            entry,
            given["input"],
            owner=caller.owner,
            deadline=requests.deadline(request),
            webhook=webhooks.webhook(given, base, self._services),
        )
        headers = {"Location": f"{base}/v1/predictions/{record.id}"}
        if wait is None:
            return answers.json(wire.accepted(record, base), 201, headers)
        headers["Preference-Applied"] = wait.applied
        # Whoever hangs up meanwhile leaves the prediction running: only a cancel ends one.
        waited = await engine.wait(record.id, wait.patience)
        record = record if waited is None else waited
        status = 201 if record.status.terminal else 202
        return answers.json(wire.accepted(record, base), status, headers)

    async def _body(self, request: Request) -> dict[str, Any]:
        return await requests.body(request, self._services.config.limits.body)

    def _base(self, request: Request) -> str:
        return requests.origin(request, self._services)


def _instant(request: Request, key: str) -> float | None:
    """A query parameter that is a time in ISO 8601, in Unix seconds; without an offset it is UTC."""
    text = request.query_params.get(key)
    if not text:
        return None
    try:
        # A "+" that was not escaped arrives as a space.
        instant = datetime.fromisoformat(
            text.strip().replace(" +", "+").replace(" ", "+" if "T" in text else " ")
        )
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput([FieldProblem("format", key, "Does not match format 'date-time'")]) from error
