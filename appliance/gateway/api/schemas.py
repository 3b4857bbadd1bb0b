"""The schemas of the served OpenAPI document: those of responses are generated from their structs."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from appliance.domain.prediction import WEBHOOK_EVENTS
from appliance.protocols import response_types

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_ADDRESS: Final[Schema] = {"type": "string", "format": "uri"}
_NUMBER: Final[Schema] = {"type": "integer"}
_ANY_OBJECT: Final[Schema] = {"type": "object"}


def ref(name: str) -> Schema:
    """A reference to one of ``COMPONENTS``."""
    return {"$ref": f"#/components/schemas/{name}"}


def said(schema: Schema, description: str) -> Schema:
    """``schema`` with a description."""
    return {**schema, "description": description}


def nullable(schema: Schema) -> Schema:
    """``schema`` or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def several(items: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    """One of a few texts."""
    return {"type": "string", "enum": list(values)}


def thing(
    required: dict[str, Schema], optional: dict[str, Schema] | None = None, *, open: bool = True
) -> Schema:
    """An object with these properties; an ``open`` one may have others."""
    whole: Schema = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        whole["required"] = list(required)
    return whole if open else {**whole, "additionalProperties": False}


_PROBLEM: Final[dict[str, Schema]] = {"detail": said(_TEXT, "What is wrong, for people")}
_PROBLEM_MORE: Final[dict[str, Schema]] = {
    "title": _TEXT,
    "status": _NUMBER,
    "type": _TEXT,
    "instance": _TEXT,
}

_WEBHOOK: Final[dict[str, Schema]] = {
    "webhook": said(_ADDRESS, "Where events are posted, signed"),
    "webhook_events_filter": said(several(one_of(*WEBHOOK_EVENTS)), "Which events; all when absent"),
}
_INPUT: Final[dict[str, Schema]] = {
    "input": said(_ANY_OBJECT, "The model's inputs; files are http, https or data URLs")
}
_IGNORED: Final[dict[str, Schema]] = {
    "stream": said({"type": "boolean", "deprecated": True}, "Without effect: all can be streamed"),
    "webhook_completed": said({"deprecated": True}, "Without effect"),
}
_MODEL_WORDS: Final[dict[str, Schema]] = {
    "description": nullable(_TEXT),
    "github_url": nullable(_TEXT),
    "paper_url": nullable(_TEXT),
    "license_url": nullable(_TEXT),
}
_NAME: Final[Schema] = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", "maxLength": 100}
_RELEASE: Final[dict[str, Schema]] = {
    "model": said(_TEXT, "owner/name"),
    "version": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "hardware": said({"type": "string", "minLength": 1}, "A SKU of GET /hardware"),
    "min_instances": {"type": "integer", "minimum": 0, "maximum": 5},
    "max_instances": {"type": "integer", "minimum": 0, "maximum": 20},
}


def _generated() -> dict[str, Schema]:
    """The schemas of the responses. ``PredictionResponse`` becomes the component ``Prediction``."""
    _, generated = msgspec.json.schema_components(
        response_types.RESPONSES, ref_template="#/components/schemas/{name}"
    )
    for schema in generated.values():
        del schema["title"]
    components: dict[str, Schema] = msgspec.json.decode(
        re.sub(rb'(?<=\w)Response"', b'"', msgspec.json.encode(generated))
    )
    return components


COMPONENTS: Final[dict[str, Schema]] = {
    "Problem": thing(_PROBLEM, _PROBLEM_MORE),
    "InvalidInput": thing(
        {
            **_PROBLEM,
            "invalid_fields": several(
                thing(
                    {
                        "type": _TEXT,
                        "field": said(_TEXT, "Dotted, from the body's root"),
                        "description": _TEXT,
                    }
                )
            ),
        },
        _PROBLEM_MORE,
    ),
    "Throttled": thing({**_PROBLEM, "retry_after": said(_NUMBER, "Seconds")}, _PROBLEM_MORE),
    "ModelCreation": thing(
        {"owner": _NAME, "name": _NAME, "visibility": one_of("public", "private"), "hardware": _TEXT},
        {**_MODEL_WORDS, "cover_image_url": nullable(_TEXT)},
        open=False,
    ),
    "ModelUpdate": thing(
        {},
        {**_MODEL_WORDS, "readme": nullable(_TEXT), "weights_url": nullable(_TEXT)},
        open=False,
    ),
    "PredictionCreation": thing(_INPUT, {**_WEBHOOK, **_IGNORED}, open=False),
    "VersionPredictionCreation": thing(
        {"version": said(_TEXT, "owner/name, owner/name:version, or a version id"), **_INPUT},
        {**_WEBHOOK, **_IGNORED},
        open=False,
    ),
    "TrainingCreation": thing(
        {"destination": said(_TEXT, "owner/name of a model of yours"), **_INPUT},
        {**_WEBHOOK, **_IGNORED, "version": said(_TEXT, "Without effect: it is in the address")},
        open=False,
    ),
    "DeploymentCreation": thing({"name": _NAME, **_RELEASE}, open=False),
    "DeploymentUpdate": thing({}, _RELEASE, open=False),
    "VersionCreation": thing(
        {"source": said(_TEXT, "urls.get of an upload: a tar archive of the project, compressed or not")},
        {"memory": said({"anyOf": [_NUMBER, _TEXT]}, "Bytes to reserve for it, or text such as 4GiB")},
        open=False,
    ),
    "FileCreation": thing(
        {"content": {"type": "string", "contentMediaType": "application/octet-stream"}},
        {
            "filename": {"type": "string", "maxLength": 255},
            "type": said(_TEXT, "Media type"),
            "metadata": said(_ANY_OBJECT, "Kept with the file"),
        },
    ),
    **_generated(),
}
