"""Routes for builds of versions from uploaded Cog projects.

A build runs code with the rights of the appliance, so only administrators may start one.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.access import Right
from appliance.domain.errors import FieldProblem, HeadRunsNoModels, InvalidInput, PermissionDenied
from appliance.domain.file import File
from appliance.domain.token import Scope, Token
from appliance.domain.values import Bytes
from appliance.gateway.api import requests, responses
from appliance.gateway.api.replicate.models import require_own
from appliance.gateway.api.services import services_of
from appliance.gateway.files.file_store import FileStore
from appliance.machine.hardware import LET_HEAD_RUN, NO_MODELS
from appliance.protocols import serializers
from appliance.protocols.request_types import VersionRequest

_UPLOAD: Final = re.compile(r"(?:/v1)*/files/([a-z0-9]+)/?")
_MEMORY: Final[TypeAdapter[int]] = TypeAdapter(Bytes)


async def create_version(request: Request) -> Response:
    """``POST /models/{owner}/{name}/versions``: build the Cog project in an uploaded archive."""
    services = services_of(request)
    caller = await requests.caller(request, Scope.ADMIN, right=Right.PUSH)
    given = await requests.parse(request, VersionRequest)
    card = require_own(services.catalogue.card(requests.model_name(request), caller.access), caller)
    if not services.config.code.cog:
        raise PermissionDenied(
            "Cog projects are programs that run with the rights of the appliance, "
            "and models.yaml does not permit it: set code.cog to true there."
        )
    if not services.devices.hardware.runs_models:
        raise HeadRunsNoModels(
            f"Cog projects run only on the head of the cluster, {NO_MODELS}: {LET_HEAD_RUN}."
        )
    source = await _upload(given.source, caller, services.files)
    services.erasures.refuse_new_data(caller.owner)
    build = await services.builds.start(card.name, source, _memory(given.memory))
    base = requests.base_url(request)
    return responses.json(serializers.build(build, base), 202, {"Location": f"{base}/v1/builds/{build.id}"})


async def get_build(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    build = await services_of(request).builds.get(request.path_params["id"], caller.owner)
    return responses.json(serializers.build(build, requests.base_url(request)))


async def list_builds(request: Request) -> Response:
    """``GET /builds``: the unfinished builds of the caller's account, oldest first."""
    caller = await requests.caller(request, Scope.READ)
    base = requests.base_url(request)
    under_way = services_of(request).builds.under_way(caller.owner)
    return responses.json(serializers.page([serializers.build(build, base) for build in under_way]))


async def cancel_build(request: Request) -> Response:
    """``POST /builds/{id}/cancel``: responds once all processes of the build have ended."""
    caller = await requests.caller(request, Scope.ADMIN, right=Right.PUSH)
    build = await services_of(request).builds.cancel(request.path_params["id"], caller.owner)
    return responses.json(serializers.build(build, requests.base_url(request)))


async def _upload(url: str, caller: Token, files: FileStore) -> File:
    """Return the upload whose ``urls.get`` is ``url``.

    Raises:
        InvalidInput: the caller has no such upload.
    """
    match = _UPLOAD.fullmatch(urlsplit(url).path)
    file = None if match is None else await files.upload(match[1], caller.owner)
    if file is None:
        problem = "Must be urls.get of an upload of yours: a tar archive, compressed or not"
        raise InvalidInput([FieldProblem("not_found", "source", problem)])
    return file


def _memory(given: int | str | None) -> int | None:
    """Parse the field ``memory`` of a request, as bytes.

    Raises:
        InvalidInput: ``given`` is not a size.
    """
    try:
        return None if given is None else _MEMORY.validate_python(given)
    except ValidationError as error:
        problem = f"Must be bytes, or text such as 4GiB: {error.errors()[0]['msg']}"
        raise InvalidInput([FieldProblem("invalid_type", "memory", problem)]) from error


ROUTES: Final = (
    Route("/v1/models/{owner}/{name}/versions", create_version, methods=["POST"]),
    Route("/v1/builds", list_builds, methods=["GET"]),
    Route("/v1/builds/{id}", get_build, methods=["GET"]),
    Route("/v1/builds/{id}/cancel", cancel_build, methods=["POST"]),
)
