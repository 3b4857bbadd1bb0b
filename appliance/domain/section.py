"""The base class of all sections of models.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from appliance.domain.values import bytes_of


class Section(BaseModel):
    """A section of models.yaml; unknown keys are errors, and types are not converted ("1" is no number)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def subsection(default: Section, description: str) -> Any:
    """Declare an optional section as a field of another section; the file may set it to null."""

    def or_null(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "null"}]

    return Field(default=default, description=description, json_schema_extra=or_null)


def size(default: str, description: str) -> Any:
    """Declare a field of type ``Bytes``; the JSON schema shows the default as text, such as 20MiB."""
    return Field(default=bytes_of(default), description=description, json_schema_extra={"default": default})
