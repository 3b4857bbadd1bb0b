"""The inputs and the output of a model, as JSON Schema."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, NamedTuple

import msgspec

#: Prefix of references to the schemas in ``components``.
REF: Final = "#/components/schemas/"
#: Schema key of a string input whose lines may be HTTP URLs of files. The runner gets the list of its lines,
#: each an object with the key ``text`` and, if the line is a URL, the key ``file``, the path of the file.
FILE_LINES: Final = "x-appliance-file-lines"


class DeclaredInput(NamedTuple):
    """An input of a model."""

    name: str
    schema: dict[str, Any]  # with its reference resolved
    required: bool
    default: Any  # None for none: Cog ignores a default of null


class Interface(msgspec.Struct, frozen=True, dict=True):
    """Inputs and output of a model, as JSON Schema in the form of Cog's OpenAPI documents.

    ``input`` is the schema ``Input``, whose properties have ``x-order``, and ``output`` the schema
    ``Output``. ``components`` has the enumerations that ``input`` refers to by name. ``aliases`` maps
    alternative names of inputs to the names in ``input``. With ``verbatim`` every JSON object is a valid
    input, and only the runner checks it. ``info`` has further fields of the document's ``info``.
    """

    input: dict[str, Any]
    output: dict[str, Any]
    components: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    verbatim: bool = False
    info: dict[str, Any] = {}

    @property
    def iterates(self) -> bool:
        """Whether the output is an iterator's: a list that grows while the model runs."""
        return self.output.get("x-cog-array-type") == "iterator"

    @cached_property
    def file_inputs(self) -> list[str]:
        """Names of the inputs that are files, or texts with URLs of files."""
        properties = self.input["properties"].items()
        return [name for name, schema in properties if schema.get(FILE_LINES) or _is_file(schema)]

    @cached_property
    def file_lines(self) -> list[str]:
        """Names of the inputs that are texts with URLs of files."""
        return [name for name, schema in self.input["properties"].items() if schema.get(FILE_LINES)]

    @cached_property
    def secret_inputs(self) -> list[str]:
        """Names of the inputs whose values only the model may read."""
        return [name for name, schema in self.input["properties"].items() if schema.get("x-cog-secret")]

    @cached_property
    def declared_inputs(self) -> list[DeclaredInput]:
        required = self.input.get("required", ())
        resolved = {
            name: _resolved(schema, self.components) for name, schema in self.input["properties"].items()
        }
        return [
            DeclaredInput(name, schema, name in required, schema.get("default"))
            for name, schema in resolved.items()
        ]

    @property
    def makes_files(self) -> bool:
        return _may_be_file(self.output)


def _resolved(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an input with its ``$ref`` resolved; Cog refers to enumerations by ``$ref``."""
    for each in schema.get("allOf", ()):
        if "$ref" in each:
            schema = {**components[each["$ref"].removeprefix(REF)], **schema}
    return schema


def _is_file(schema: dict[str, Any]) -> bool:
    if schema.get("type") == "array":
        return _is_file(schema.get("items", {}))
    return schema.get("type") == "string" and schema.get("format") == "uri"


def _may_be_file(schema: dict[str, Any]) -> bool:
    """Return whether a value of this schema may contain a file; an object without declared properties may."""
    match schema.get("type"):
        case "string":
            return schema.get("format") == "uri"
        case "array":
            return _may_be_file(schema.get("items", {}))
        case "object" if "properties" in schema:
            return any(_may_be_file(inner) for inner in schema["properties"].values())
        case "integer" | "number" | "boolean":
            return False
    return True
