"""The schemas of the served OpenAPI document: those of responses are generated from their structs."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from appliance.protocols import request_types, response_types

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


def _generated() -> dict[str, Schema]:
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
    "FileRequest": thing(
        {"content": {"type": "string", "contentMediaType": "application/octet-stream"}},
        {
            "filename": {"type": "string", "maxLength": 255},
            "type": said(_TEXT, "Media type"),
            "metadata": said(_ANY_OBJECT, "Kept with the file"),
        },
    ),
    **_generated(),
}
