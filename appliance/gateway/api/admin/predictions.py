"""Routes for predictions and trainings with details for operators.

An admin token sees the predictions of all owners, any other token those of its own owner.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.domain import usage
from appliance.domain.access import UNRESTRICTED, Right
from appliance.domain.errors import (
    Conflict,
    FieldProblem,
    InvalidInput,
    InvalidVersion,
    PermissionDenied,
)
from appliance.domain.prediction import Prediction, Status
from appliance.domain.token import Scope, Token
from appliance.gateway.api import audit, paging, requests, responses
from appliance.gateway.api.admin import predictions_export
from appliance.gateway.api.admin.tokens import token_names
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion
from appliance.protocols import serializers
from appliance.protocols.admin_types import AdminPredictionResponse, DeliveryResponse, Preview
from appliance.protocols.preview import preview
from appliance.store import Cursor, Delivery, Filter

_LONGEST_SEARCH: Final = 200  # characters


async def list_predictions(request: Request) -> Response:
    """``GET /admin/predictions``: newest first, without the fields that may be long.

    ``limit`` is the size of a page, a hundred by default. ``model``, ``status``, ``owner``,
    ``token`` (its id), ``type`` (``prediction``, ``training``), ``slower_than`` (such as ``2s``, from
    creation to end) and the filters of ``GET /v1/predictions`` narrow the list. So does ``search``, a text in
    ids, inputs, outputs and errors. One search looks at the 10,000 newest predictions that match the filters;
    ``next`` goes on with older ones.
    """
    caller = await _caller(request, Scope.READ)
    return await paging.of_predictions(
        request,
        _owner(request, caller),
        partial(_list_item, await token_names(request, caller)),
        size=requests.limit(request, paging.PAGE, paging.PAGE),
        search=_search(request),
        **_filters(request),
    )


async def get_predictions_csv(request: Request) -> Response:
    """``GET /admin/predictions.csv``: all predictions that match the filters, a line for each."""
    items = await _all_items(request)
    return _download(predictions_export.csv_lines(items), "predictions.csv", "text/csv; charset=utf-8")


async def get_predictions_jsonl(request: Request) -> Response:
    """``GET /admin/predictions.jsonl``: all predictions that match the filters, with inputs and outputs."""
    items = await _all_items(request)
    return _download(predictions_export.json_lines(items), "predictions.jsonl", "application/jsonl")


def _download(lines: AsyncIterator[bytes], name: str, kind: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines, 200, headers, kind)


async def _all_items(request: Request) -> AsyncIterator[AdminPredictionResponse]:
    """Check the request, and return an iterator over the predictions that match it, newest first."""
    caller = await _caller(request, Scope.READ)
    owner, search, base = _owner(request, caller), _search(request), requests.base_url(request)
    filters = paging.narrowed_by(request, _filters(request))
    names = await token_names(request, caller)

    async def items() -> AsyncIterator[AdminPredictionResponse]:
        cursor: Cursor | None = None
        while True:
            if search is None:
                engine = services_of(request).engine
                found = [*await engine.list(owner, cursor=cursor, limit=paging.PAGE, **filters)]
                stopped = Cursor(found[-1].created_at, found[-1].id) if len(found) == paging.PAGE else None
            else:
                found, stopped = await paging.searched(request, owner, search, cursor, paging.PAGE, filters)
            for record in found:
                yield _item(names, record, base)
            if stopped is None:
                return
            cursor = stopped

    return items()


def _filters(request: Request) -> Filter:
    status = requests.one_of(request, "status", tuple(Status))
    type = requests.one_of(request, "type", ("prediction", "training"))
    return {
        "model": request.query_params.get("model"),
        "token": request.query_params.get("token"),
        "status": None if status is None else Status(status),
        "training": None if type is None else type == "training",
        "slower_than": requests.duration(request, "slower_than"),
    }


def _search(request: Request) -> str | None:
    """Return the text to search for; None if there is none.

    Raises:
        InvalidInput: the text is too long.
    """
    text = request.query_params.get("search", "").strip()
    if len(text) > _LONGEST_SEARCH:
        described = f"Must be at most {_LONGEST_SEARCH} characters long"
        raise InvalidInput([FieldProblem("string_lte", "search", described)])
    return text or None


async def get_prediction(request: Request) -> Response:
    caller = await _caller(request, Scope.READ)
    record = await services_of(request).engine.get(request.path_params["id"], _all_of(caller))
    return await _response(record, request, caller)


async def cancel_history_item(request: Request) -> Response:
    """``POST /admin/predictions/{id}/cancel``: no effect on a prediction that has ended."""
    caller = await _caller(request, Scope.RUN)
    record = await services_of(request).engine.cancel(request.path_params["id"], _changeable_by(caller))
    audit.describe(request, before={"owner": record.owner})
    return await _response(record, request, caller)


async def delete_history_item(request: Request) -> Response:
    """``DELETE /admin/predictions/{id}``: delete input, output, logs and files, and keep the record."""
    caller = await _caller(request, Scope.RUN)
    services = services_of(request)
    record = await services.engine.get(request.path_params["id"], _changeable_by(caller))
    if not record.status.terminal:
        raise Conflict(f"The prediction {record.id} has not ended: cancel it first.")
    await services.retention.remove(record.id, audit.event(request, before={"owner": record.owner}))
    return Response(status_code=204)


async def _caller(request: Request, scope: Scope) -> Token:
    """Return the token of a request.

    Raises:
        PermissionDenied: it is that of a running prediction, whose code must not read its owner's inputs.
    """
    caller = await requests.caller(request, scope)
    if caller.prediction is not None:
        raise PermissionDenied("The token of a running prediction is not for /admin/predictions.")
    return caller


async def _response(record: Prediction, request: Request, caller: Token) -> Response:
    services = services_of(request)
    base = requests.base_url(request)
    deliveries = await services.store.deliveries(record.id)
    entry = _served(record, services.catalogue)
    prices = services.config.prices
    examples = await services.store.registry.examples()
    cost = usage.total([usage.of(record)], prices.per_second).cost if record.status.terminal else None
    item = _item(await token_names(request, caller), record, base)
    item.parts = await services.engine.children_of(record)
    item.timeline = serializers.timeline(record, time.time())
    item.model_state = None if entry is None else services.engine.residency(entry).value
    item.newest_version = entry is not None and entry == services.catalogue.latest(entry.name)
    item.example = record.id in examples.get(record.model, ())
    item.deliveries = [_delivery(delivery) for delivery in deliveries]
    item.cost = None if cost is None else float(cost)
    item.currency = None if cost is None else prices.currency
    return responses.json(item, base=base)


def _served(record: Prediction, catalogue: Catalogue) -> ServedVersion | None:
    """Return the served version that the prediction ran on; None if it is no longer served."""
    try:
        return catalogue.by_version(record.version, UNRESTRICTED)
    except InvalidVersion:
        return None


def _all_of(caller: Token) -> str | None:
    """Return the only owner whose predictions the caller may see, or None if the caller may see all."""
    return None if caller.sees_all else caller.owner


def _changeable_by(caller: Token) -> str | None:
    """Return the only owner whose predictions the caller may change, or None if it may change all."""
    return None if caller.sees_all and Right.OPERATE in caller.access.rights else caller.owner


def _owner(request: Request, caller: Token) -> str | None:
    """Return the owner in the query parameter ``owner``, by default the only one that the caller may see.

    Raises:
        PermissionDenied: the caller may not see the predictions of that owner.
    """
    asked = request.query_params.get("owner")
    if caller.sees_all or asked is None:
        return asked if caller.sees_all else caller.owner
    if asked != caller.owner:
        raise PermissionDenied(
            f'This token has the scope "{caller.scope}"; predictions of other owners need "{Scope.ADMIN}".'
        )
    return asked


def _item(token_names: dict[str, str], record: Prediction, base: str) -> AdminPredictionResponse:
    return AdminPredictionResponse(
        **msgspec.structs.asdict(serializers.prediction_or_training(record, base)),
        type="prediction" if record.destination is None else "training",
        owner=record.owner,
        token=record.token,
        token_name=token_names.get(record.token or ""),
        hardware=record.hardware,
        attempts=record.attempt,
    )


def _list_item(token_names: dict[str, str], record: Prediction, base: str) -> AdminPredictionResponse:
    item = _item(token_names, record, base)
    output = None if item.output is UNSET else item.output
    item.preview = Preview(input=preview(item.input), output=preview(output))
    item.input = item.output = item.logs = UNSET
    return item


def _delivery(delivery: Delivery) -> DeliveryResponse:
    ended = delivery.ended_at
    return DeliveryResponse(
        id=delivery.id,
        event="completed",
        state="pending" if ended is None else "delivered" if delivery.problem is None else "given up",
        attempts=delivery.attempts + (ended is not None),
        due_at=serializers.timestamp(delivery.due_at) if ended is None else None,
        ended_at=None if ended is None else serializers.timestamp(ended),
        problem=delivery.problem,
    )


ROUTES: Final = (
    Route("/admin/predictions", list_predictions, methods=["GET"]),
    Route("/admin/predictions.csv", get_predictions_csv, methods=["GET"]),
    Route("/admin/predictions.jsonl", get_predictions_jsonl, methods=["GET"]),
    Route("/admin/predictions/{id}", get_prediction, methods=["GET"]),
    Route("/admin/predictions/{id}", delete_history_item, methods=["DELETE"]),
    Route("/admin/predictions/{id}/cancel", cancel_history_item, methods=["POST"]),
)
