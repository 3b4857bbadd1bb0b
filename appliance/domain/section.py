"""What every section of models.yaml has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from appliance.domain.values import bytes_of


class Section(BaseModel):
    """Frozen, no unknown keys, and no guessing: the text "1" is not the number 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def subsection(default: Section, description: str) -> Any:
    """A field that is a section with nothing required; in the file it may be empty, which reads as null."""

    def or_null(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "null"}]

    return Field(default=default, description=description, json_schema_extra=or_null)


def size(default: str, description: str) -> Any:
    """A field of type ``Bytes`` whose schema shows the default as people write it."""
    return Field(default=bytes_of(default), description=description, json_schema_extra={"default": default})
