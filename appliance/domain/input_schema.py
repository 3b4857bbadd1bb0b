"""Validate the input of a prediction against its model's interface, and make the model's OpenAPI document.

The rules and error messages are those of Replicate's API: strings are never converted to numbers, unknown
keys of ``input`` are dropped, and ``null`` for an optional key counts as an absent key.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from appliance.domain.errors import FieldProblem, InvalidInput
from appliance.domain.interface import REF

if TYPE_CHECKING:
    from appliance.domain.interface import Interface

#: Schema key of a string input that also accepts a list of strings.
LIST_TOO: Final = "x-appliance-list"
_SCHEMES: Final = ("http", "https", "data")  # of URLs that input files are fetched from
#: A dollar sign, or an escaped character or character class, in which a dollar sign is only a character.
_DOLLAR: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
_LARGEST: Final = 2**63 - 1  # limit of numbers without declared bounds: msgpack has 64 bits


def validate(interface: Interface, input: Any) -> dict[str, Any]:
    """Return the input for the model: aliases replaced by names, unknown keys dropped, defaults added.

    Raises:
        InvalidInput: a key is missing or has a wrong value; lists all such keys, as the caller wrote them.
    """
    if not isinstance(input, dict):
        raise InvalidInput([_wrong_type("input", "object", input)])
    if interface.verbatim:
        return _encodable(input)
    by_name = _by_name(interface, input)
    validated: dict[str, Any] = {}
    problems: list[FieldProblem] = []
    for name, schema, required, default in interface.declared_inputs:
        spelled, value = by_name.get(name, (name, None))
        if value is None and not (required and name in by_name):
            if required:
                problems.append(FieldProblem("required", "input", f"{name} is required"))
            elif default is not None:
                validated[name] = default
            continue
        found = list(_problems(value, schema, f"input.{spelled}"))
        problems += found
        if not found:
            validated[name] = _as_declared(value, schema)
    if problems:
        raise InvalidInput(problems)
    return _encodable(validated)


def _encodable(input: dict[str, Any]) -> dict[str, Any]:
    """Return ``input`` unchanged.

    Raises:
        InvalidInput: an integer anywhere in ``input`` does not fit in 64 bits, so msgpack cannot encode it.
    """
    try:
        msgspec.msgpack.encode(input)
    except OverflowError as error:
        raise InvalidInput([FieldProblem("number_lte", "input", "Integers must fit in 64 bits")]) from error
    return input


#: Keywords of a JSON schema that restrict nothing.
_ANNOTATIONS: Final = {"title", "description", "default", "deprecated", "examples"}


def check(body: dict[str, Any], properties: dict[str, dict[str, Any]], required: Sequence[str] = ()) -> None:
    """Check the body of a request; ``null`` for an optional key counts as an absent key.

    Raises:
        InvalidInput: a key is missing, unknown or has a wrong value; the error lists all such keys.
    """
    missing = (key for key in required if body.get(key) is None)
    problems = [FieldProblem("required", "", f"{key} is required") for key in missing]
    for key, value in body.items():
        if key not in properties:
            message = f"Additional property {key} is not allowed"
            problems.append(FieldProblem("additional_property_not_allowed", "", message))
        elif value is not None and properties[key].keys() - _ANNOTATIONS:  # other schemas allow every value
            problems += _problems(value, properties[key], key)
    if problems:
        raise InvalidInput(problems)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    return next(_problems(value, schema, ""), None) is None


def _by_name(interface: Interface, input: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    """Map names of inputs to pairs: the name or alias that the caller wrote, and the value."""
    found = {key: (key, value) for key, value in input.items()}
    for alias, name in interface.aliases.items():
        if input.get(alias) is not None and input.get(name) is None:
            found[name] = alias, input[alias]
    return found


def _as_declared(value: Any, schema: dict[str, Any]) -> Any:
    """Convert a number to the declared type: JSON does not distinguish 4 from 4.0."""
    match schema.get("type"):
        case "integer":
            return int(value)
        case "number":
            return float(value)
    return value


def _problems(value: Any, schema: dict[str, Any], field: str) -> Iterator[FieldProblem]:
    if "anyOf" in schema:
        yield from _problems_of_any(value, schema["anyOf"], field)
        return
    kind = schema.get("type")
    if kind == "string" and schema.get(LIST_TOO) and isinstance(value, list):
        schema, kind = {"type": "array", "items": {"type": "string"}}, "array"
    if kind is not None and not _is(value, kind):
        yield _wrong_type(field, kind, value)
        return
    if "enum" in schema and value not in schema["enum"]:
        choices = ", ".join(f'"{each}"' if isinstance(each, str) else str(each) for each in schema["enum"])
        name = field.removeprefix("input.")
        yield FieldProblem("enum", field, f"{name} must be one of the following: {choices}")
    match value:
        case str():
            yield from _text_problems(value, schema, field)
        case list():
            for index, item in enumerate(value):
                yield from _problems(item, schema.get("items", {}), f"{field}.{index}")
        case int() | float() if not isinstance(value, bool):
            yield from _number_problems(value, schema, field)


def _problems_of_any(value: Any, variants: Sequence[dict[str, Any]], field: str) -> Iterator[FieldProblem]:
    """Yield the problems with the best-matching variant of ``anyOf``: that with the fewest problems."""
    fitting = [variant for variant in variants if "type" not in variant or _is(value, variant["type"])]
    if not fitting:
        yield _wrong_type(field, " or ".join(variant["type"] for variant in variants), value)
        return
    found = [list(_problems(value, variant, field)) for variant in fitting]
    yield from min(found, key=len)


def non_finite(value: object) -> str | None:
    """Return the path of the first infinite or NaN number in a JSON value; None if all are finite."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, float) and not math.isfinite(inner):
            return path
        items = (
            inner if isinstance(inner, dict) else dict(enumerate(inner)) if isinstance(inner, list) else {}
        )
        waiting += reversed([(f"{path}.{key}".lstrip("."), each) for key, each in items.items()])
    return None


def _number_problems(
    value: int | float,  # noqa: PYI041  # mypy would otherwise treat every value as a float
    schema: dict[str, Any],
    field: str,
) -> Iterator[FieldProblem]:
    if isinstance(value, float) and not math.isfinite(value):
        yield FieldProblem("number", field, "Must be a finite number")
        return
    smallest, largest = schema.get("minimum", -_LARGEST), schema.get("maximum", _LARGEST)
    if value < smallest:
        yield FieldProblem("number_gte", field, f"Must be greater than or equal to {_shown(smallest)}")
    if value > largest:
        yield FieldProblem("number_lte", field, f"Must be less than or equal to {_shown(largest)}")


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _text_problems(value: str, schema: dict[str, Any], field: str) -> Iterator[FieldProblem]:
    shortest, longest, pattern = (schema.get(key) for key in ("minLength", "maxLength", "pattern"))
    if shortest is not None and len(value) < shortest:
        yield FieldProblem("string_gte", field, f"String length must be greater than or equal to {shortest}")
    if longest is not None and len(value) > longest:
        yield FieldProblem("string_lte", field, f"String length must be less than or equal to {longest}")
    if pattern is not None and _compiled(pattern).search(value) is None:
        yield FieldProblem("pattern", field, f"Does not match pattern '{pattern}'")
    if schema.get("format") == "uri" and not _is_uri(value):
        yield FieldProblem("format", field, "Does not match format 'uri'")


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of a JSON schema.

    ``$`` matches only at the end of the text, as in ECMAScript and Rust, not also before a last line feed.
    """
    compiled = re.compile(pattern)
    if compiled.flags & re.MULTILINE:
        return compiled
    return re.compile(_DOLLAR.sub(lambda match: r"\Z" if match[0] == "$" else match[0], pattern))


def _is_uri(value: str) -> bool:
    try:
        return urlsplit(value).scheme in _SCHEMES
    except ValueError:  # for example, a bracket without an IPv6 address
        return False


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "integer":
            return (isinstance(value, int) and not isinstance(value, bool)) or (
                isinstance(value, float) and value.is_integer()
            )
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "null":
            return value is None
    raise ValueError(f"the interface of a model declares the unknown type {kind!r}")


def type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _wrong_type(field: str, expected: str, value: Any) -> FieldProblem:
    return FieldProblem(
        "invalid_type", field, f"Invalid type. Expected: {expected}, given: {type_name(value)}"
    )


# -- the OpenAPI document ----------------------------------------------------------------------------------


def document(interface: Interface) -> dict[str, Any]:
    """Return the OpenAPI document of a model version, in the form that Cog writes."""
    schemas = {"Input": interface.input, "Output": {"title": "Output", **interface.output}}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0", **interface.info},
        "paths": {
            "/health-check": {"get": _operation("Healthcheck", "healthcheck_health_check_get", {"200": {}})},
            "/predictions": {
                "post": {
                    **_operation(
                        "Predict",
                        "predict_predictions_post",
                        {"200": _ref("PredictionResponse"), "422": _ref("HTTPValidationError")},
                    ),
                    "description": "Run a single prediction on the model",
                    "requestBody": {"content": {"application/json": {"schema": _ref("PredictionRequest")}}},
                }
            },
        },
        "components": {"schemas": {**schemas, **interface.components, **_common_components()}},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF + name}


def _operation(summary: str, identifier: str, schemas: dict[str, Any]) -> dict[str, Any]:
    names = {"200": "Successful Response", "422": "Validation Error"}
    return {
        "summary": summary,
        "operationId": identifier,
        "responses": {
            code: {"description": names[code], "content": {"application/json": {"schema": schema}}}
            for code, schema in schemas.items()
        },
    }


def _field(title: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "title": title, **more}


def _object(title: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "title": title, "properties": properties, **more}


def _common_components() -> dict[str, Any]:
    times = {
        name: _field(name.replace("_", " ").title(), format="date-time")
        for name in ("created_at", "started_at", "completed_at")
    }
    statuses = ["starting", "processing", "succeeded", "canceled", "failed"]
    return {
        "Status": _field("Status", enum=statuses, description="An enumeration."),
        "PredictionRequest": _object(
            "PredictionRequest",
            {"id": _field("Id"), "input": _ref("Input"), "created_at": times["created_at"]},
        ),
        "PredictionResponse": _object(
            "PredictionResponse",
            {
                "id": _field("Id"),
                "input": _ref("Input"),
                "output": _ref("Output"),
                "logs": _field("Logs", default=""),
                "error": _field("Error"),
                "status": _ref("Status"),
                "metrics": {"type": "object", "title": "Metrics"},
                "version": _field("Version"),
                **times,
            },
        ),
        "HTTPValidationError": _object(
            "HTTPValidationError",
            {"detail": {"type": "array", "title": "Detail", "items": _ref("ValidationError")}},
        ),
        "ValidationError": _object(
            "ValidationError",
            {
                "loc": {
                    "type": "array",
                    "title": "Location",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": _field("Message"),
                "type": _field("Error Type"),
            },
            required=["loc", "msg", "type"],
        ),
    }
