"""Routes that read, check and write models.yaml and the files of models.d."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import config as configuration
from appliance.config import Report, includes, text_file, yaml_source
from appliance.config.edit import entry_lines
from appliance.config.edit_file import Edited, check, check_writable, checksum_of, with_line_ends_of
from appliance.config.redact import secret_keys
from appliance.domain.errors import BadRequest, ConfigError, Conflict, NotFound
from appliance.domain.token import Scope
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.services import Services, services_of
from appliance.protocols.admin_types import ReloadResponse
from appliance.protocols.config_types import (
    ConfigCheckRequest,
    ConfigCheckResponse,
    ConfigEntryResponse,
    ConfigFileResponse,
    ConfigProblem,
    ConfigWriteRequest,
    ConfigWriteResponse,
)


async def get_schema(request: Request) -> Response:
    """``GET /admin/config/schema``: the JSON Schema of models.yaml."""
    await requests.caller(request, Scope.ADMIN)
    return responses.json(configuration.json_schema())


async def get_file(request: Request) -> Response:
    """``GET /admin/config/file``: the text of models.yaml or, with ``file``, of a file of models.d."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    main = services.additions.file
    included = _included(main, request.query_params.get("file"))
    path = included or main
    try:
        text = await asyncio.to_thread(text_file.read, path)
    except ConfigError as error:
        raise Conflict(error.detail) from error
    return responses.json(
        ConfigFileResponse(
            file=_name(main, path),
            files=tuple(_name(main, each) for each in (main, *includes.files(main))),
            path=str(path.absolute()),
            text=text,
            checksum=checksum_of(text),
            not_writable=await asyncio.to_thread(_not_writable, path),
            secrets=await asyncio.to_thread(_secrets, text, path),
        )
    )


async def check_file(request: Request) -> Response:
    """``POST /admin/config/check``: changes nothing."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, ConfigCheckRequest)
    included = _included(services.additions.file, given.file)
    return responses.json(await asyncio.to_thread(_checked, given.text, services, included))


async def write_file(request: Request) -> Response:
    """``PUT /admin/config/file``: responds once the new text is in effect; refused texts change nothing."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, ConfigWriteRequest)
    main = services.additions.file
    included = _included(main, given.file)
    try:
        report = await services.additions.replace(given.text, given.checksum, services.configure, included)
        checksum = checksum_of(await asyncio.to_thread(text_file.read, included or main))
    except ConfigError as error:
        if error.line is None:
            raise Conflict(error.detail) from error
        raise BadRequest(f"Nothing has changed: {error.detail}") from error
    audit.describe(request, object=_name(main, included or main), after=_reload(report))
    return responses.json(ConfigWriteResponse(checksum=checksum, reload=_reload(report)))


async def get_entry(request: Request) -> Response:
    """``GET /admin/models/{owner}/{name}/entry``: the lines of a model in its config file."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    name, main = requests.model_name(request), services.additions.file

    def find() -> ConfigEntryResponse:
        path = includes.find_model(main, name) or main
        config = configuration.load(main)
        if all(each.name != name for each in config.models):
            raise NotFound(f"models.yaml has no model {name}.")
        text = text_file.read(path)
        first, last = entry_lines(text, name, str(path))
        return ConfigEntryResponse(
            model=name,
            file=_name(main, path),
            first_line=first,
            last_line=last,
            text="".join(f"{line}\n" for line in text.split("\n")[first - 1 : last]),
            collections=tuple(each.slug for each in config.collections if name in each.models),
        )

    try:
        return responses.json(await asyncio.to_thread(find))
    except ConfigError as error:
        raise Conflict(error.detail) from error


def _included(main: Path, name: str | None) -> Path | None:
    """Return the included file with a name; None for models.yaml.

    Raises:
        NotFound: no config file has this name.
    """
    if name is None or name == main.name:
        return None
    for each in includes.files(main):
        if _name(main, each) == name:
            return each
    raise NotFound(f"There is no config file {name}: name {main.name} or a file {includes.FOLDER}/*.yaml.")


def _name(main: Path, path: Path) -> str:
    return path.name if path == main else f"{includes.FOLDER}/{path.name}"


def _not_writable(path: Path) -> str | None:
    try:
        check_writable(path)
    except ConfigError as error:
        return error.message
    return None if os.access(path, os.W_OK) else "the file is read-only: correct its permissions"


def _secrets(text: str, path: Path) -> tuple[str, ...]:
    try:
        data: Any = yaml_source.parse(text, str(path)).data
    except ConfigError:
        return ()
    return tuple(dict.fromkeys(key for key, secret in secret_keys(data) if not secret.startswith("${")))


def _checked(text: str, services: Services, included: Path | None) -> ConfigCheckResponse:
    main = services.additions.file
    path = included or main
    old = text_file.read(path)
    new = with_line_ends_of(old, text)
    try:
        config = check(new, main, included)
    except ConfigError as error:
        problems = tuple(_problem(each, main) for each in error.problems)
        return ConfigCheckResponse(problems=problems, diff="", changes=None)
    changes = configuration.compare(services.reload.in_force, config)
    report = Report(
        added=changes.added,
        removed=changes.removed,
        changed=changes.changed,
        settings=changes.settings,
        needs_restart=changes.needs_restart,
    )
    return ConfigCheckResponse(problems=(), diff=Edited(config, old, new).diff(path), changes=_reload(report))


def _problem(error: ConfigError, main: Path) -> ConfigProblem:
    return ConfigProblem(
        file=None if error.file is None else _name(main, Path(error.file)),
        line=error.line,
        model=error.model,
        key=error.key,
        message=error.message,
    )


def _reload(report: Report) -> ReloadResponse:
    return msgspec.convert(report, ReloadResponse, from_attributes=True)


ROUTES: Final = (
    Route("/admin/config/schema", get_schema, methods=["GET"]),
    Route("/admin/config/file", get_file, methods=["GET"]),
    Route("/admin/config/file", write_file, methods=["PUT"]),
    Route("/admin/config/check", check_file, methods=["POST"]),
    Route("/admin/models/{owner}/{name}/entry", get_entry, methods=["GET"]),
)
