"""The OpenAPI document of the HTTP API, one line an operation. OpenAPI 3.2 knows the method QUERY."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from appliance import __version__
from appliance.gateway.api.schemas import COMPONENTS, Schema, one_of, ref

_JSON: Final = "application/json"
_PROBLEM: Final = "application/problem+json"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_TEXT: Final[Schema] = {"type": "string"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}

_REASONS: Final = {
    400: "Not possible, or not understood",
    401: "No token, or not a valid one",
    403: "The token may not do this",
    404: "There is no such thing, or it is not yours",
    413: "Too large",
    422: "Something in the request is wrong; invalid_fields says what",
    500: "The appliance failed; its log says why",
    429: "Too many requests, or too many predictions wait",
    503: "The model needs more memory than there is, or the appliance is stopping",
}
_SHAPES: Final = {422: "InvalidInput", 429: "Throttled"}

#: name -> (where it is, schema, what it says)
_PARAMETERS: Final[dict[str, tuple[str, Schema, str]]] = {
    "cursor": ("query", _TEXT, "Where the page begins; taken from next or previous"),
    "created_after": ("query", _TIME, "Only those made then or later"),
    "created_before": ("query", _TIME, "Only those made before"),
    "source": ("query", one_of("api", "web"), "Only those made this way"),
    "parent": ("query", _TEXT, "Only those that this prediction has asked for"),
    "sort_by": ("query", one_of("model_created_at", "latest_version_created_at"), "What the order goes by"),
    "sort_direction": ("query", one_of("asc", "desc"), "Oldest or newest first"),
    "limit": ("query", {"type": "integer", "minimum": 1, "maximum": 50, "default": 20}, "How many, at most"),
    "Prefer": ("header", _TEXT, "wait, or wait=n: answer when it is over, or after n seconds up to 60"),
    "Cancel-After": ("header", _TEXT, "End it after this time, at least 5 s: 30s, 5m, 1h30m45s"),
}
_CREATES: Final = ("Prefer", "Cancel-After")
_LISTS: Final = ("cursor", "created_after", "created_before", "source", "parent")
_REQUIRED: Final[dict[str, tuple[Schema, str]]] = {
    "query": (_TEXT, "Words that are all found in what is said of a model"),
    "owner": (_TEXT, "Account of the file"),
    "expiry": ({"type": "integer"}, "Unix seconds until which the address is valid"),
    "signature": (_TEXT, "HMAC-SHA256 of owner, id and expiry, in base64"),
}


class Operation(NamedTuple):
    """One line of the table below."""

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
    Operation("get", "/account", "account.get", "The account of the token", {200: "Account"}, errors=_READ),
    Operation("get", "/builds", "builds.list", "Your builds that are under way, oldest first",
              {200: "BuildPage"}, errors=_READ),
    Operation("post", "/builds/{id}/cancel", "builds.cancel", "Cancel a build", {200: "Build"},
              errors=_READ),
    Operation("get", "/builds/{id}", "builds.get", "A project on its way to be a version", {200: "Build"},
              errors=_READ),
    Operation("get", "/collections", "collections.list", "Collections of models", {200: "CollectionPage"},
              errors=_READ),
    Operation("get", "/collections/{slug}", "collections.get", "A collection", {200: "CollectionDetail"},
              errors=_READ),
    Operation("get", "/deployments", "deployments.list", "Your deployments", {200: "DeploymentPage"},
              errors=_READ),
    Operation("post", "/deployments", "deployments.create", "Make a deployment", {200: "Deployment"},
              "DeploymentRequest", errors=_CHANGE),
    Operation("get", _DEPLOYMENT, "deployments.get", "A deployment", {200: "Deployment"}, errors=_READ),
    Operation("patch", _DEPLOYMENT, "deployments.update", "Make a further release of a deployment",
              {200: "Deployment"}, "DeploymentUpdateRequest", errors=_CHANGE),
    Operation("delete", _DEPLOYMENT, "deployments.delete", "Delete a deployment that is offline and unused",
              {204: None}, errors=_CHANGE),
    Operation("post", f"{_DEPLOYMENT}/predictions", "deployments.predictions.create",
              "Make a prediction through a deployment", _MADE, "PredictionRequest", _CREATES, errors=_RUN),
    Operation("get", "/files", "files.list", "Your uploads", {200: "FilePage"}, None, ("cursor",),
              errors=_READ),
    Operation("post", "/files", "files.create", "Upload a file", {201: "File"}, "FileRequest",
              errors=_CHANGE),
    Operation("get", "/files/{id}", "files.get", "What is known of an upload", {200: "File"}, errors=_READ),
    Operation("delete", "/files/{id}", "files.delete", "Delete an upload", {204: None}, errors=_READ),
    Operation("get", "/files/{id}/download", "files.download", "An upload's bytes, with a signature",
              {200: "*/*"}, None, (), ("owner", "expiry", "signature"), (404,)),
    Operation("get", "/hardware", "hardware.list", "The kinds of devices of this machine",
              {200: "Hardware"}, errors=_READ),
    Operation("get", "/models", "models.list", "Public models", {200: "ModelPage"}, None,
              ("cursor", "sort_by", "sort_direction"), (), (401, 403, 404, 422, 429)),
    Operation("post", "/models", "models.create", "Make a model, which gets versions from trainings",
              {201: "Model"}, "ModelRequest", errors=_CHANGE),
    Operation("query", "/models", "models.search", "Public models that a text may mean", {200: "ModelPage"},
              "text/plain", ("cursor",), errors=(400, 401, 403, 404, 413, 429)),
    Operation("get", _MODEL, "models.get", "A model", {200: "Model"}, errors=_READ),
    Operation("patch", _MODEL, "models.update", "Change what is said of a model", {200: "Model"},
              "ModelUpdateRequest", errors=_CHANGE),
    Operation("delete", _MODEL, "models.delete", "Delete a private model without versions", {204: None},
              errors=_CHANGE),
    Operation("get", f"{_MODEL}/examples", "models.examples.list",
              "Predictions that show what a model can do", {200: "PredictionPage"}, errors=_READ),
    Operation("post", f"{_MODEL}/predictions", "models.predictions.create",
              "Make a prediction with a model's newest version", _MADE, "PredictionRequest", _CREATES,
              errors=_RUN),
    Operation("get", f"{_MODEL}/readme", "models.readme.get", "A model's readme, in Markdown",
              {200: "text/plain"}, errors=_READ),
    Operation("get", f"{_MODEL}/versions", "models.versions.list", "A model's versions, newest first",
              {200: "VersionPage"}, errors=_READ),
    Operation("post", f"{_MODEL}/versions", "models.versions.create",
              "Make a version of the Cog project in an uploaded archive", {202: "Build"}, "VersionRequest",
              errors=_CHANGE),
    Operation("get", _VERSION, "models.versions.get", "A version", {200: "Version"}, errors=_READ),
    Operation("delete", _VERSION, "models.versions.delete",
              "Delete a version of a private model, with its predictions", {202: None}, errors=_CHANGE),
    Operation("post", f"{_VERSION}/trainings", "trainings.create", "Train a new version", {201: "Training"},
              "TrainingRequest", ("Cancel-After",), errors=_RUN),
    Operation("get", "/predictions", "predictions.list", "Your predictions, newest first",
              {200: "PredictionPage"}, None, _LISTS),
    Operation("post", "/predictions", "predictions.create", "Make a prediction", _MADE,
              "VersionPredictionRequest", _CREATES, errors=_RUN),
    Operation("get", "/predictions/{id}", "predictions.get", "A prediction", {200: "Prediction"},
              errors=_READ),
    Operation("post", "/predictions/{id}/cancel", "predictions.cancel", "Cancel a prediction",
              {200: "Prediction"}, errors=_READ),
    Operation("get", "/search", "search", "Models and collections", {200: "SearchResults"}, None, ("limit",),
              ("query",), (400, 401, 403, 422, 429, 500)),
    Operation("get", "/trainings", "trainings.list", "Your trainings, newest first", {200: "TrainingPage"},
              None, _LISTS),
    Operation("get", "/trainings/{id}", "trainings.get", "A training", {200: "Training"}, errors=_READ),
    Operation("post", "/trainings/{id}/cancel", "trainings.cancel", "Cancel a training", {200: "Training"},
              errors=_READ),
    Operation("get", "/webhooks/default/secret", "webhooks.default.secret.get",
              "The key that webhooks are signed with", {200: "WebhookSecret"}, errors=_READ),
)  # fmt: skip
#: Operations that need no token: a search tells what is public, a download is signed.
OPEN: Final = frozenset({"search", "files.download"})


def document() -> dict[str, Any]:
    """The whole document."""
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
            "schemas": COMPONENTS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


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
    return {"multipart/form-data" if shape == "FileRequest" else _JSON: {"schema": ref(shape)}}


def _response(status: int, shape: str | None, operation: Operation) -> dict[str, Any]:
    waited = operation.responses is _MADE
    text = {200: "OK", 201: "Made", 202: "Accepted", 204: "Done"}[status]
    if waited:
        text = {
            201: "Made, and over if it was waited for",
            202: "Made, but not over in the time it was waited",
        }[status]
    if shape is None:
        return {"description": text}
    if "/" in shape:
        return {"description": text, "content": {shape: {"schema": _TEXT}}}
    schema = {"type": "array", "items": ref(shape)} if shape == "Hardware" else ref(shape)
    described: dict[str, Any] = {"description": text, "content": {_JSON: {"schema": schema}}}
    if operation.responses is _MADE:
        described["headers"] = {
            **_header("Location", "Address of the prediction"),
            **_header("Preference-Applied", "The wait that was honoured"),
        }
    return described


def _error(status: int) -> dict[str, Any]:
    shape = ref(_SHAPES.get(status, "Problem"))
    if status == 422:  # a version that does not exist has no field
        shape = {"anyOf": [shape, ref("Problem")]}
    described = {"description": _REASONS[status], "content": {_PROBLEM: {"schema": shape}}}
    return {**described, "headers": _header("Retry-After", "Seconds")} if status == 429 else described


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"schema": _TEXT, "description": description}}
