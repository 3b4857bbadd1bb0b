"""Routes for versions of models."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import BadRequest, NotFound
from appliance.domain.token import Scope, Token
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.replicate.models import require_own
from appliance.gateway.api.services import Services, services_of
from appliance.gateway.catalogue.catalogue import ModelCard
from appliance.protocols import serializers


async def list_versions(request: Request) -> Response:
    """``GET /models/{owner}/{name}/versions``: also versions that are no longer served."""
    services = services_of(request)
    card, _ = await _card(request, Scope.READ)
    latest = services.catalogue.latest(card.name)
    rows = await services.store.versions(card.name)
    # The served version comes first, even if an older models.yaml was restored.
    rows = sorted(rows, key=lambda row: latest is None or row.id != latest.version)
    return responses.json(
        serializers.page([serializers.version(row.id, row.created_at, row.document) for row in rows])
    )


async def get_version(request: Request) -> Response:
    card, _ = await _card(request, Scope.READ)
    row = await services_of(request).store.version(request.path_params["id"], card.name)
    if row is None:
        raise NotFound
    return responses.json(serializers.version(row.id, row.created_at, row.document))


async def delete_version(request: Request) -> Response:
    """``DELETE /models/{owner}/{name}/versions/{id}``: also deletes the predictions of the version."""
    card, caller = await _card(request, Scope.RUN)
    services = services_of(request)
    version = request.path_params["id"]
    if await services.store.version(version, card.name) is None:
        raise NotFound
    require_own(card, caller)
    if card.visibility != "private":
        raise BadRequest(f"Model {card.name} is public; only versions of private models can be deleted.")
    await _check_unused(version, services)
    gone = [entry for entry in services.catalogue.served(card.name) if entry.version == version]
    for entry in gone:
        services.catalogue.remove_version(entry)
        if entry.kind == "cog":  # a Cog model is loaded for one version only
            await services.engine.unload(entry)
    removed = await services.store.remove_version(version, card.name, audit.event(request))
    await services.files.remove_outputs(removed)
    await services.trainings.remove(version)
    for entry in gone:
        if entry.adapter is None:
            await services.builds.remove(entry)
    return Response(status_code=202)


async def _check_unused(version: str, services: Services) -> None:
    """Raise ``BadRequest`` if a deployment, a trained version or a prediction uses this version."""
    registry = services.store.registry
    for release in await registry.deployments():
        if release.version == version:
            raise BadRequest(
                f"Version {version} is used by the deployment {release.deployment}; "
                "change or delete the deployment first."
            )
    for adapter in await registry.adapters():
        if adapter.base_version == version:
            raise BadRequest(
                f"Version {adapter.version} of {adapter.model} was trained on version {version}; "
                "delete it first."
            )
    if services.engine.uses(version):
        raise BadRequest(f"Version {version} has unfinished predictions; cancel them first.")


async def _card(request: Request, scope: Scope) -> tuple[ModelCard, Token]:
    caller = await requests.caller(request, scope)
    return services_of(request).catalogue.card(requests.model_name(request), caller.access), caller


_VERSIONS: Final = "/v1/models/{owner}/{name}/versions"
ROUTES: Final = (
    Route(_VERSIONS, list_versions, methods=["GET"]),
    Route(f"{_VERSIONS}/{{id}}", get_version, methods=["GET"]),
    Route(f"{_VERSIONS}/{{id}}", delete_version, methods=["DELETE"]),
)
