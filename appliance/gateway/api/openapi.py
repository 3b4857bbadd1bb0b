"""The OpenAPI document of Replicate's HTTP API, in OpenAPI 3.2, which is the first with the method QUERY."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from appliance import __version__
from appliance.protocols import request_types, response_types

Schema = dict[str, Any]

_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_TEXT: Final[Schema] = {"type": "string"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}

_REASONS: Final = {
    400: "The request is malformed, or not possible in the current state",
    401: "The request has no valid token",
    403: "The token does not permit this",
    404: "The object does not exist, or belongs to another account",
    413: "The body is too large",
    422: "The request is not valid; invalid_fields names each wrong field",
    500: "The appliance failed to respond; the reason is in its log",
    429: "Too many requests, or too many queued predictions",
    503: "The model needs more memory than the machine has, or the appliance is stopping",
}
_SHAPES: Final = {422: "InvalidInput", 429: "Throttled"}

#: name -> (place, schema, description)
_PARAMETERS: Final[dict[str, tuple[str, Schema, str]]] = {
    "cursor": ("query", _TEXT, "Where the page begins; part of the URLs next and previous of a page"),
    "created_after": ("query", _TIME, "Only predictions created at this time or later"),
    "created_before": ("query", _TIME, "Only predictions created before this time"),
    "source": (
        "query",
        {"type": "string", "enum": ["api", "web"]},
        "Only predictions created through the API, or on the web pages",
    ),
    "parent": ("query", _TEXT, "Only predictions that the prediction with this id created while it ran"),
    "sort_by": (
        "query",
        {"type": "string", "enum": ["model_created_at", "latest_version_created_at"]},
        "The time to sort by",
    ),
    "sort_direction": (
        "query",
        {"type": "string", "enum": ["asc", "desc"]},
        "asc: oldest first; desc: newest first",
    ),
    "limit": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 50, "default": 20},
        "Maximum number of results",
    ),
    "Prefer": (
        "header",
        _TEXT,
        "wait=n: respond when the prediction ends, or after n seconds; wait is wait=60, the maximum",
    ),
    "Cancel-After": (
        "header",
        _TEXT,
        "Cancel the prediction after this time, at least 5 s: 30s, 5m, 1h30m45s",
    ),
}
_CREATES: Final = ("Prefer", "Cancel-After")
_LISTS: Final = ("cursor", "created_after", "created_before", "source", "parent")
_REQUIRED: Final[dict[str, tuple[Schema, str]]] = {
    "query": (_TEXT, "Words to search for; a result has all of them"),
    "owner": (_TEXT, "Account that owns the file"),
    "expiry": ({"type": "integer"}, "Unix time in seconds until which the URL is valid"),
    "signature": (_TEXT, "HMAC-SHA256 of owner, id and expiry, in base64"),
}


class Operation(NamedTuple):
    """A row of ``OPERATIONS``."""

    method: str
    path: str
    id: str
    summary: str
    responses: dict[int, str | None]  # status -> component, media type, or None for an empty body
    body: str | None = None  # component
    parameters: Sequence[str] = ()
    required: Sequence[str] = ()  # query parameters
    errors: Sequence[int] = (401, 403, 404, 422, 429)


_MADE: Final[dict[int, str | None]] = {201: "Prediction", 202: "Prediction"}
_MODEL: Final = "/models/{owner}/{name}"
_VERSION: Final = f"{_MODEL}/versions/{{id}}"
_DEPLOYMENT: Final = "/deployments/{owner}/{name}"
_RUN: Final = (400, 401, 403, 404, 413, 422, 429, 503)
_READ: Final = (401, 403, 404, 429)
_CHANGE: Final = (400, 401, 403, 404, 413, 422, 429)

OPERATIONS: Final = (
    Operation("get", "/account", "account.get", "Get the account of the token", {200: "Account"},
              errors=_READ),
    Operation("get", "/builds", "builds.list", "List your unfinished builds, oldest first",
              {200: "BuildPage"}, errors=_READ),
    Operation("post", "/builds/{id}/cancel", "builds.cancel", "Cancel a build", {200: "Build"},
              errors=_READ),
    Operation("get", "/builds/{id}", "builds.get", "Get a build of a version", {200: "Build"},
              errors=_READ),
    Operation("get", "/collections", "collections.list", "List collections of models",
              {200: "CollectionPage"},
              errors=_READ),
    Operation("get", "/collections/{slug}", "collections.get", "Get a collection", {200: "CollectionDetail"},
              errors=_READ),
    Operation("get", "/deployments", "deployments.list", "List your deployments", {200: "DeploymentPage"},
              errors=_READ),
    Operation("post", "/deployments", "deployments.create", "Create a deployment", {200: "Deployment"},
              "DeploymentRequest", errors=_CHANGE),
    Operation("get", _DEPLOYMENT, "deployments.get", "Get a deployment", {200: "Deployment"}, errors=_READ),
    Operation("patch", _DEPLOYMENT, "deployments.update", "Create a new release of a deployment",
              {200: "Deployment"}, "DeploymentUpdateRequest", errors=_CHANGE),
    Operation("delete", _DEPLOYMENT, "deployments.delete",
              "Delete a deployment that is offline and was not used recently",
              {204: None}, errors=_CHANGE),
    Operation("post", f"{_DEPLOYMENT}/predictions", "deployments.predictions.create",
              "Create a prediction with a deployment", _MADE, "PredictionRequest", _CREATES, errors=_RUN),
    Operation("get", "/files", "files.list", "List your uploads", {200: "FilePage"}, None, ("cursor",),
              errors=_READ),
    Operation("post", "/files", "files.create", "Upload a file", {201: "File"}, "FileRequest",
              errors=_CHANGE),
    Operation("get", "/files/{id}", "files.get", "Get the metadata of an upload", {200: "File"},
              errors=_READ),
    Operation("delete", "/files/{id}", "files.delete", "Delete an upload", {204: None}, errors=_READ),
    Operation("get", "/files/{id}/download", "files.download", "Download an upload with a signed URL",
              {200: "*/*"}, None, (), ("owner", "expiry", "signature"), (404,)),
    Operation("get", "/hardware", "hardware.list", "List the kinds of devices of this machine",
              {200: "Hardware"}, errors=_READ),
    Operation("get", "/models", "models.list", "List public models", {200: "ModelPage"}, None,
              ("cursor", "sort_by", "sort_direction"), (), (401, 403, 404, 422, 429)),
    Operation("post", "/models", "models.create",
              "Create a model; its versions come from trainings and builds",
              {201: "Model"}, "ModelRequest", errors=_CHANGE),
    Operation("query", "/models", "models.search", "Search public models", {200: "ModelPage"},
              "text/plain", ("cursor",), errors=(400, 401, 403, 404, 413, 429)),
    Operation("get", _MODEL, "models.get", "Get a model", {200: "Model"}, errors=_READ),
    Operation("patch", _MODEL, "models.update", "Change the description and links of a model", {200: "Model"},
              "ModelUpdateRequest", errors=_CHANGE),
    Operation("delete", _MODEL, "models.delete", "Delete a private model without versions", {204: None},
              errors=_CHANGE),
    Operation("get", f"{_MODEL}/examples", "models.examples.list",
              "List the example predictions of a model", {200: "PredictionPage"}, errors=_READ),
    Operation("post", f"{_MODEL}/predictions", "models.predictions.create",
              "Create a prediction with a model's newest version", _MADE, "PredictionRequest", _CREATES,
              errors=_RUN),
    Operation("get", f"{_MODEL}/readme", "models.readme.get", "Get a model's readme, in Markdown",
              {200: "text/plain"}, errors=_READ),
    Operation("get", f"{_MODEL}/versions", "models.versions.list", "List a model's versions, newest first",
              {200: "VersionPage"}, errors=_READ),
    Operation("post", f"{_MODEL}/versions", "models.versions.create",
              "Build a version from the Cog project in an uploaded archive", {202: "Build"}, "VersionRequest",
              errors=_CHANGE),
    Operation("get", _VERSION, "models.versions.get", "Get a version", {200: "Version"}, errors=_READ),
    Operation("delete", _VERSION, "models.versions.delete",
              "Delete a version of a private model, with its predictions", {202: None}, errors=_CHANGE),
    Operation("post", f"{_VERSION}/trainings", "trainings.create", "Train a new version", {201: "Training"},
              "TrainingRequest", ("Cancel-After",), errors=_RUN),
    Operation("get", "/predictions", "predictions.list", "List your predictions, newest first",
              {200: "PredictionPage"}, None, _LISTS),
    Operation("post", "/predictions", "predictions.create", "Create a prediction", _MADE,
              "VersionPredictionRequest", _CREATES, errors=_RUN),
    Operation("get", "/predictions/{id}", "predictions.get", "Get a prediction", {200: "Prediction"},
              errors=_READ),
    Operation("post", "/predictions/{id}/cancel", "predictions.cancel", "Cancel a prediction",
              {200: "Prediction"}, errors=_READ),
    Operation("get", "/search", "search", "Search models and collections", {200: "SearchResults"}, None,
              ("limit",),
              ("query",), (400, 401, 403, 422, 429, 500)),
    Operation("get", "/trainings", "trainings.list", "List your trainings, newest first",
              {200: "TrainingPage"},
              None, _LISTS),
    Operation("get", "/trainings/{id}", "trainings.get", "Get a training", {200: "Training"}, errors=_READ),
    Operation("post", "/trainings/{id}/cancel", "trainings.cancel", "Cancel a training", {200: "Training"},
              errors=_READ),
    Operation("get", "/webhooks/default/secret", "webhooks.default.secret.get",
              "Get the key that signs your webhooks", {200: "WebhookSecret"}, errors=_READ),
)  # fmt: skip
#: Operations that need no token: a search finds only what is public, and a download URL is signed.
OPEN: Final = frozenset({"search", "files.download"})


def document() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Appliance",
            "version": __version__,
            "summary": "Open-weights models on a machine of your own, on Replicate's HTTP API",
        },
        "servers": [{"url": "/v1"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _components(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _components() -> dict[str, Schema]:
    """Return the schemas of the bodies. ``PredictionResponse`` becomes the component ``Prediction``."""
    _, generated = msgspec.json.schema_components(
        request_types.REQUESTS + response_types.RESPONSES, ref_template="#/components/schemas/{name}"
    )
    for schema in generated.values():
        del schema["title"]
    components: dict[str, Schema] = msgspec.json.decode(
        re.sub(rb'(?<=\w)Response"', b'"', msgspec.json.encode(generated))
    )
    return components


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _described(operation: Operation) -> dict[str, Any]:
    responses = {
        str(status): _response(status, shape, operation) for status, shape in operation.responses.items()
    }
    responses |= {str(status): _error(status) for status in operation.errors}
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.id.split(".")[0]],
        "responses": responses,
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in _PARAMETER.findall(operation.path)
    ]
    for name in operation.required:
        schema, text = _REQUIRED[name]
        parameters.append(
            {"name": name, "in": "query", "required": True, "schema": schema, "description": text}
        )
    for name in operation.parameters:
        place, schema, text = _PARAMETERS[name]
        parameters.append({"name": name, "in": place, "schema": schema, "description": text})
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _body(operation.body)}
    if operation.id in OPEN:
        described["security"] = []
    return described


def _body(shape: str) -> dict[str, Any]:
    if "/" in shape:
        return {kind: {"schema": _TEXT} for kind in (shape, _JSON)}
    return {"multipart/form-data" if shape == "FileRequest" else _JSON: {"schema": _ref(shape)}}


def _response(status: int, shape: str | None, operation: Operation) -> dict[str, Any]:
    waited = operation.responses is _MADE
    text = {200: "OK", 201: "Created", 202: "Accepted", 204: "Deleted"}[status]
    if waited:
        text = {
            201: "Created; with Prefer: wait, the prediction has ended",
            202: "Created, but the prediction did not end within the wait",
        }[status]
    if shape is None:
        return {"description": text}
    if "/" in shape:
        return {"description": text, "content": {shape: {"schema": _TEXT}}}
    schema = {"type": "array", "items": _ref(shape)} if shape == "Hardware" else _ref(shape)
    described: dict[str, Any] = {"description": text, "content": {_JSON: {"schema": schema}}}
    if operation.responses is _MADE:
        described["headers"] = {
            **_header("Location", "URL of the prediction"),
            **_header("Preference-Applied", "The wait that was applied"),
        }
    return described


def _error(status: int) -> dict[str, Any]:
    shape = _ref(_SHAPES.get(status, "Problem"))
    if status == 422:  # the error for a version that does not exist names no field
        shape = {"anyOf": [shape, _ref("Problem")]}
    described = {"description": _REASONS[status], "content": {_PROBLEM: {"schema": shape}}}
    return {**described, "headers": _header("Retry-After", "Seconds")} if status == 429 else described


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"schema": _TEXT, "description": description}}
