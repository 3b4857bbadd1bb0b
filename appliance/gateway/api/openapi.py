"""The OpenAPI document of the API, in OpenAPI 3.2, which is the first version with the method QUERY."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from appliance import __version__
from appliance.domain import usage
from appliance.domain.prediction import Status
from appliance.gateway.api.openapi_operations import ANY_JSON, CREATED, OPEN, OPERATIONS, Operation
from appliance.protocols import (
    account_types,
    adding_types,
    admin_types,
    audit_types,
    compat_types,
    config_types,
    conversation_types,
    limit_types,
    node_types,
    request_types,
    response_types,
)

Schema = dict[str, Any]

_BODIES: Final = (
    *request_types.REQUESTS,
    *response_types.RESPONSES,
    *account_types.RESPONSES,
    *admin_types.RESPONSES,
    *audit_types.RESPONSES,
    *limit_types.RESPONSES,
    *node_types.RESPONSES,
    *adding_types.REQUESTS,
    *adding_types.RESPONSES,
    *conversation_types.REQUESTS,
    *conversation_types.RESPONSES,
    *config_types.REQUESTS,
    *config_types.RESPONSES,
    *compat_types.REQUESTS,
    *compat_types.RESPONSES,
)
#: Requests that are forms, not JSON.
_FORMS: Final = {"FileRequest", "ImageEditRequest", "TranscriptionRequest"}

_PROBLEM: Final = "application/problem+json"
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_TEXT: Final[Schema] = {"type": "string"}
_DAY: Final[Schema] = {"type": "string", "format": "date"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}

_REASONS: Final = {
    400: "The request is malformed, or not possible in the current state",
    401: "The request has no valid token",
    402: "A budget in models.yaml is spent until its day or month ends",
    403: "The token does not permit this",
    404: "The object does not exist, or belongs to another account",
    409: "models.yaml, the source or the conversation does not permit it in its current state, "
    "or the data of the account is being erased",
    413: "The body is too large",
    422: "The request is not valid; invalid_fields names each wrong field",
    500: "The appliance failed to respond; the reason is in its log",
    429: "Too many requests, or too many queued or unfinished predictions",
    502: "The identity provider does not answer, or not as expected",
    503: "The model needs more memory than the machine has, or the appliance is stopping",
}
_SHAPES: Final = {402: "Throttled", 422: "InvalidInput", 429: "Throttled"}

#: name, or name:maximum -> (place, schema, description)
_PARAMETERS: Final[dict[str, tuple[str, Schema, str]]] = {
    "file": ("query", _TEXT, "Name of a config file; by default models.yaml"),
    "cursor": ("query", _TEXT, "Where the page begins; part of the URLs next and previous of a page"),
    "who": ("query", _TEXT, "Only records of this account, id of a token, or IP address"),
    "action": ("query", _TEXT, "Only this action, such as token.create, or token for all on tokens"),
    "object": ("query", _TEXT, "Only records whose object contains this text"),
    "since": ("query", _TIME, "Only records since this time"),
    "until": ("query", _TIME, "Only records before this time"),
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
    "limit:100": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "Maximum number of results",
    ),
    "limit:1000": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
        "Maximum number of results",
    ),
    "points": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 720, "default": 720},
        "Maximum number of samples: with fewer than 720, neighbours are merged",
    ),
    "lines": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 2000, "default": 200},
        "Maximum number of lines of each instance",
    ),
    "stream": ("query", {"type": "string", "enum": ["true", "false"]}, "Respond with the stream of events"),
    "starting_after": ("query", {"type": "integer"}, "Only events after the one with this sequence_number"),
    "order": ("query", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}, "desc: last first"),
    "after": ("query", _TEXT, "Only results after the one with this id"),
    "after_id": ("query", _TEXT, "Only results after the one with this id"),
    "before_id": ("query", _TEXT, "Only results before the one with this id"),
    "model": ("query", _TEXT, "Only predictions of this model: owner/name"),
    "status": (
        "query",
        {"type": "string", "enum": [status.value for status in Status]},
        "Only predictions with this status",
    ),
    "owner": ("query", _TEXT, "Only predictions of this account"),
    "token": ("query", _TEXT, "Only predictions that the token with this id created"),
    "slower_than": (
        "query",
        _TEXT,
        "Only predictions that took longer than this from creation to end: a duration such as 2s, or seconds",
    ),
    "type": (
        "query",
        {"type": "string", "enum": ["prediction", "training"]},
        "Only predictions, or only trainings",
    ),
    "search": (
        "query",
        {"type": "string", "maxLength": 200},
        "Text in the id, input, output or error; one page searches 10,000 predictions, `next` searches on",
    ),
    "query": ("query", _TEXT, "Word to search for; a few wrong letters are allowed"),
    "prune": ("query", {"type": "boolean"}, "Whether to delete the weights that only this model uses"),
    "from": ("query", _DAY, "First day, in UTC"),
    "to": ("query", _DAY, "Last day, in UTC"),
    "by": ("query", _TEXT, f"Keys to group by, with commas between: {', '.join(usage.KEYS)}"),
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
_REQUIRED: Final[dict[str, tuple[Schema, str]]] = {
    "query": (_TEXT, "Words to search for; a result has all of them"),
    "owner": (_TEXT, "Account that owns the file"),
    "expiry": ({"type": "integer"}, "Unix time in seconds until which the URL is valid"),
    "signature": (_TEXT, "HMAC-SHA256 of owner, id and expiry, in base64"),
}


def document(prefix: str = "") -> dict[str, Any]:
    """Return the OpenAPI document. ``prefix`` is the path of ``server.public_url``."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, prefix)
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Appliance",
            "version": __version__,
            "summary": "Open-weights models on a machine of your own, on Replicate's HTTP API",
        },
        "servers": [{"url": f"{prefix}/v1"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _components(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _components() -> dict[str, Schema]:
    """Return the schemas of the bodies. ``PredictionResponse`` becomes the component ``Prediction``."""
    _, generated = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    for schema in generated.values():
        del schema["title"]
    components: dict[str, Schema] = msgspec.json.decode(
        re.sub(rb'(?<=\w)Response"', b'"', msgspec.json.encode(generated))
    )
    return components


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _described(operation: Operation, prefix: str) -> dict[str, Any]:
    responses = {
        str(status): _response(status, shape, operation) for status, shape in operation.responses.items()
    }
    responses |= {str(status): _error(status, operation.error) for status in operation.errors}
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
        parameters.append(
            {"name": name.partition(":")[0], "in": place, "schema": schema, "description": text}
        )
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _body(operation.body)}
    if operation.id in OPEN:
        described["security"] = []
    if operation.server != "/v1":
        described["servers"] = [{"url": prefix + operation.server}]
    return described


def _body(shape: str) -> dict[str, Any]:
    if "/" in shape:
        return {kind: {"schema": _TEXT} for kind in (shape, ANY_JSON)}
    return {"multipart/form-data" if shape in _FORMS else ANY_JSON: {"schema": _ref(shape)}}


def _response(status: int, shape: str | None, operation: Operation) -> dict[str, Any]:
    waited = operation.responses is CREATED
    text = {200: "OK", 201: "Created", 202: "Accepted", 204: "Done", 503: "Not ready"}[status]
    if waited:
        text = {
            201: "Created; with Prefer: wait, the prediction has ended",
            202: "Created, but the prediction did not end within the wait",
        }[status]
    if shape is None:
        return {"description": text}
    if "/" in shape:
        content = {} if shape == ANY_JSON else _TEXT
        return {"description": text, "content": {shape: {"schema": content}}}
    schema = {"type": "array", "items": _ref(shape)} if shape == "Hardware" else _ref(shape)
    described: dict[str, Any] = {"description": text, "content": {ANY_JSON: {"schema": schema}}}
    if operation.responses is CREATED:
        described["headers"] = {
            **_header("Location", "URL of the prediction"),
            **_header("Preference-Applied", "The wait that was applied"),
        }
    return described


def _error(status: int, component: str) -> dict[str, Any]:
    if component:
        content = {ANY_JSON: {"schema": _ref(component)}}
        return {"description": _REASONS[status], "content": content}
    shape = _ref(_SHAPES.get(status, "Problem"))
    if status == 422:  # the error for a version that does not exist names no field
        shape = {"anyOf": [shape, _ref("Problem")]}
    described = {"description": _REASONS[status], "content": {_PROBLEM: {"schema": shape}}}
    return {**described, "headers": _header("Retry-After", "Seconds")} if status in {402, 429} else described


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"schema": _TEXT, "description": description}}
