"""Builds a model's interface from the schemas of its inputs, in the form of Cog's OpenAPI documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from appliance.domain.interface import Interface

#: The schema of a file input or output.
FILE: Final[dict[str, Any]] = {"type": "string", "format": "uri"}


def interface_of(
    inputs: Mapping[str, dict[str, Any]],
    output: dict[str, Any],
    *,
    required: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
) -> Interface:
    """Return a model's interface. Inputs keep their order; as in Cog, every ``enum`` becomes a component."""
    properties: dict[str, dict[str, Any]] = {}
    components: dict[str, dict[str, Any]] = {}
    for order, (name, schema) in enumerate(inputs.items()):
        title = name.replace("_", " ").title()
        if "enum" in schema:
            choice = {key: schema[key] for key in ("type", "enum")}
            components[name] = {**choice, "title": name, "description": "An enumeration."}
            rest = {key: value for key, value in schema.items() if key not in choice}
            properties[name] = {"allOf": [{"$ref": f"#/components/schemas/{name}"}], **rest, "x-order": order}
        else:
            properties[name] = {**schema, "title": title, "x-order": order}
    return Interface(
        input={
            "type": "object",
            "title": "Input",
            "properties": properties,
            **({"required": list(required)} if required else {}),
        },
        output={"title": "Output", **output},
        components=components,
        aliases=dict(aliases or {}),
    )
