"""Convert a model's input schema to form fields, and the values of form fields to an input."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from appliance.domain.errors import FieldProblem, InvalidInput
from appliance.domain.input_schema import non_finite

_UNFOLDED: Final = 4  # number of optional fields, except files, that a form shows at first
_FEW: Final = 2  # this many further fields, or fewer, are shown too
_MAX_STEPS: Final = 1000  # most steps that a slider may have
_LONG_TEXTS: Final = ("prompt", "text", "document", "lyrics", "message", "context")


class Widget(StrEnum):
    """The kinds of form controls."""

    LINE = "line"
    TEXT = "text"  # several lines
    SECRET = "secret"  # noqa: S105 - the name of a widget
    CHOICE = "choice"
    SWITCH = "switch"
    NUMBER = "number"
    SLIDER = "slider"
    FILE = "file"
    FILES = "files"
    LIST = "list"  # a value on each line
    JSON = "json"


class FormField(msgspec.Struct, frozen=True, kw_only=True):
    """A form field for one input of a model."""

    name: str
    title: str
    widget: Widget
    description: str = ""
    default: Any = None
    required: bool = False
    integer: bool = False
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[Any, ...] = ()
    items: str = "string"  # type of the items of a list
    text: bool = False  # whether a value that is not JSON is sent as text
    folded: bool = False  # whether the form hides it under "more inputs"

    def from_widget(self, given: Any) -> Any:
        """Convert the widget's value to the type that the model expects; return None for an empty widget.

        Raises:
            InvalidInput: the value cannot be converted to that type.
        """
        if given is None or given == [] or (given == "" and self.default in (None, "")):
            return None
        match self.widget:
            case Widget.SLIDER | Widget.NUMBER:
                return self._number(given)
            case Widget.LIST:
                lines = [line for line in str(given).replace("\r\n", "\n").split("\n") if line.strip()]
                return [self._item(line) for line in lines] or None
            case Widget.JSON:
                return self._json(given)
        return given

    def to_widget(self, value: Any) -> Any:
        if value is None:
            return None
        match self.widget:
            case Widget.LIST if isinstance(value, list):
                return "\n".join(str(item) for item in value)
            case Widget.JSON if not (self.text and isinstance(value, str)):
                return json.dumps(value, indent=2, ensure_ascii=False)
            case Widget.LINE | Widget.TEXT if isinstance(value, list):
                return json.dumps(value, ensure_ascii=False)
        return value

    def _number(self, given: Any) -> float:
        try:
            number = int(given) if self.integer else float(given)
            if not math.isfinite(number):
                raise ValueError(f"{number} is not finite")
            return number
        except (ValueError, OverflowError) as error:
            wanted = "a whole number" if self.integer else "a number"
            raise InvalidInput([FieldProblem("invalid_type", self.name, f"must be {wanted}")]) from error

    def _item(self, line: str) -> Any:
        if self.items == "string":
            return line
        return self._json(line)

    def _json(self, text: Any) -> Any:
        try:
            value = json.loads(text)
            if non_finite(value) is not None:
                raise ValueError("all numbers must be finite")
            return value
        except (ValueError, TypeError, RecursionError) as error:
            if self.text:
                return text
            raise InvalidInput([FieldProblem("invalid_type", self.name, f"must be JSON: {error}")]) from error


def fields(document: Mapping[str, Any]) -> tuple[FormField, ...]:
    """Return the form fields of a version in their ``x-order``; ``document`` is its OpenAPI document."""
    schemas = document["components"]["schemas"]
    schema = schemas["Input"]
    required = set(schema.get("required", ()))
    found = [
        _field(name, _resolved(declared, schemas), required=name in required)
        for name, declared in sorted(
            schema.get("properties", {}).items(), key=lambda pair: pair[1].get("x-order", len(schemas) + 1000)
        )
    ]
    plain = [field for field in found if field.widget not in {Widget.FILE, Widget.FILES}]
    further = [field.name for field in plain if not field.required]
    hidden = set(further[_UNFOLDED:]) if len(further) > _UNFOLDED + _FEW else set()
    return tuple(msgspec.structs.replace(field, folded=field.name in hidden) for field in found)


def read_input(fields: Iterable[FormField], values: Sequence[Any]) -> dict[str, Any]:
    """Return the input of a prediction from the widgets' ``values``, without values equal to their default.

    Raises:
        InvalidInput: lists all fields with invalid values.
    """
    found: dict[str, Any] = {}
    problems: list[FieldProblem] = []
    for field, given in zip(fields, values, strict=True):
        try:
            value = field.from_widget(given)
        except InvalidInput as error:
            problems += error.problems
            continue
        if value is None or (not field.required and value == field.default):
            continue
        if field.widget is Widget.SWITCH and value is False and field.default is None and not field.required:
            continue
        found[field.name] = value
    if problems:
        raise InvalidInput(problems)
    return found


def _resolved(schema: dict[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an input with references merged in; with several types, it has no ``type``."""
    for part in schema.get("allOf", ()):
        schema = {**schemas.get(str(part.get("$ref", "")).rpartition("/")[2], part), **schema}
    parts = [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]
    if len(parts) == 1:
        return {**_resolved(parts[0], schemas), **{key: schema[key] for key in schema if key != "anyOf"}}
    if "$ref" in schema:
        return {**schemas.get(schema["$ref"].rpartition("/")[2], {}), **schema}
    return schema


def _field(name: str, schema: dict[str, Any], *, required: bool) -> FormField:
    minimum, maximum = schema.get("minimum"), schema.get("maximum")
    widget, items = _widget(name, schema)
    integer = schema.get("type") == "integer"
    step: float | None = None
    if widget is Widget.SLIDER and minimum is not None and maximum is not None:
        step = 1 if integer else _step(maximum - minimum)
        if (maximum - minimum) / step > _MAX_STEPS or schema.get("default") is None:
            widget = Widget.NUMBER
    return FormField(
        name=name,
        title=_title(name, schema.get("title")),
        widget=widget,
        description=schema.get("description") or "",
        default=schema.get("default"),
        required=required,
        integer=integer,
        minimum=minimum,
        maximum=maximum,
        step=step,
        choices=tuple(schema.get("enum", ())),
        items=items,
        text=any(part.get("type") == "string" for part in schema.get("anyOf", ())),
    )


def _widget(name: str, schema: dict[str, Any]) -> tuple[Widget, str]:
    """Return the widget for an input, and the type of the items if the input is a list."""
    kind = schema.get("type")
    if "enum" in schema:
        return Widget.CHOICE, "string"
    match kind:
        case "boolean":
            return Widget.SWITCH, "string"
        case "integer" | "number":
            bounded = schema.get("minimum") is not None and schema.get("maximum") is not None
            return (Widget.SLIDER if bounded else Widget.NUMBER), "string"
        case "array":
            items = schema.get("items", {})
            if items.get("format") == "uri":
                return Widget.FILES, "string"
            simple = items.get("type") in {"string", "integer", "number"}
            return (Widget.LIST, items["type"]) if simple else (Widget.JSON, "string")
        case "string" if schema.get("format") == "uri":
            return Widget.FILE, "string"
        case "string" if schema.get("format") == "password" or schema.get("x-cog-secret"):
            return Widget.SECRET, "string"
        case "string":
            return (Widget.TEXT if any(word in name for word in _LONG_TEXTS) else Widget.LINE), "string"
    return Widget.JSON, "string"


def _step(width: float) -> float:
    return next((step for step in (0.01, 0.1) if width <= _MAX_STEPS * step), 1.0)


def _title(name: str, given: str | None) -> str:
    """Return the title of a field. Cog gives an input with choices its own name as the title."""
    return given if given and given != name else name.replace("_", " ").title()
