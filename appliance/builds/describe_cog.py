"""Script that writes the input and output schemas of a Cog project to a file, as JSON.

The Python of the project's environment runs it, in the folder of the project, so it imports nothing from the
appliance. Arguments: a handler, such as ``predict.py:Predictor``, and the file. Text that the project prints
goes to the log of the build.

The schemas are those of ``cog build`` (https://github.com/replicate/cog, architecture/02-schema.md), but made
from the loaded module instead of the source text. One difference: ``seed: int = Input(default=None)`` is not
required. ``cog build`` marks it as required, but the runtime of Cog accepts predictions without it, and many
published projects rely on that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
import types
import typing
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SCALARS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
OBJECT: Schema = {"type": "object"}
FILE: Schema = {"type": "string", "format": "uri"}
SECRET: Schema = {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}
NONE = type(None)
NOTHING = inspect.Parameter.empty


def main(handler: str) -> dict[str, Any]:
    """Return the handler's interface, and the number of predictions that it runs at the same time."""
    warnings.simplefilter("ignore")
    file, _, name = handler.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    import cog  # type: ignore[import-not-found]  # only in the environment of the project
    from cog import _inspector

    with_default = record_defaults(cog)
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    if not hasattr(module, name):
        raise ValueError(f"{file} has no {name}: correct run, predict or train in cog.yaml")
    found = method = getattr(module, name)
    if inspect.isclass(found):
        if hasattr(found, "setup"):
            _inspector._validate_setup(_inspector._unwrap(found.setup))  # noqa: SLF001 - nothing is public
        chosen, _ = _inspector._selected_predict_method(found, name)  # noqa: SLF001 - as above
        method = getattr(found, chosen)
    _inspector._find_coders(module)  # noqa: SLF001 - as above
    function = _inspector._unwrap(method)  # noqa: SLF001 - as above
    return {
        "interface": Describing(cog, with_default).interface(function, bound=inspect.isclass(found)),
        "concurrency": int(getattr(method, "__cog_concurrent_max__", 1)),
    }


def record_defaults(cog: Any) -> list[Any]:
    """Patch ``cog.Input`` to append each field with an explicit default to a list, and return this list.

    The fields themselves do not distinguish ``Input(default=None)`` from ``Input()``.
    """
    with_default: list[Any] = []
    original = cog.Input

    def recorded(*arguments: Any, **options: Any) -> Any:
        field = original(*arguments, **options)
        if arguments or "default" in options:
            with_default.append(field)
        return field

    cog.Input = sys.modules["cog.input"].Input = recorded  # type: ignore[attr-defined]  # the module exists
    return with_default


class Describing:
    """Makes JSON Schemas from the type annotations of a handler."""

    def __init__(self, cog: Any, with_default: list[Any]) -> None:
        """``with_default`` is the result of ``record_defaults``."""
        self._cog = cog
        self._with_default = with_default
        self._components: dict[str, Schema] = {}

    def interface(self, function: Any, *, bound: bool) -> dict[str, Any]:
        """Return the schemas of ``function``; if ``bound``, its first parameter is ``self``."""
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[bound:]
        properties: dict[str, Schema] = {}
        required = []
        for order, parameter in enumerate(parameters):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ValueError(f"{function.__name__}() must name each input: replace *{parameter.name}")
            if parameter.name not in hints:
                raise ValueError(f"the input {parameter.name} has no type annotation")
            described, needed = self._input(parameter, hints[parameter.name])
            properties[parameter.name] = {**described, "x-order": order}
            required += [parameter.name] * needed
        if hints.get("return", NONE) is NONE:
            raise ValueError(f"{function.__name__}() must have a return type annotation")
        schema: Schema = {"type": "object", "title": "Input", "properties": properties}
        return {
            "input": {**schema, "required": required} if required else schema,
            "output": {"title": "Output", **self._output(hints["return"], ())},
            "components": self._components,
        }

    # -- inputs

    def _input(self, parameter: inspect.Parameter, hint: Any) -> tuple[Schema, bool]:
        """Return the schema of one input, and whether the input is required."""
        name, default = parameter.name, parameter.default
        field = default if isinstance(default, self._cog.input.FieldInfo) else self._cog.input.FieldInfo()
        if field is default:
            explicit = field.default is not None or any(each is field for each in self._with_default)
            default = field.default if explicit else NOTHING
        try:
            kind, nullable = self._input_type(hint)
            self._check(field, kind)
        except ValueError as error:
            raise ValueError(f"the input {name}: {error}") from error
        nullable = nullable or (default is None and bool(kind.get("x-cog-secret")))
        choices = field.choices or kind.pop("enum", None)
        schema = self._choices(name, choices, kind) if choices else {**kind, "title": titled(name)}
        if default is not NOTHING and (default is not None or nullable):
            shown = plain(default)
            schema |= {} if shown is NOTHING else {"default": shown}
        attributes = {
            "nullable": nullable or None,
            "description": field.description,
            "minimum": field.ge,
            "maximum": field.le,
            "minLength": field.min_length,
            "maxLength": field.max_length,
            "pattern": field.regex,
            "deprecated": field.deprecated or None,
            "x-cog-accept": getattr(field, "accept", None),
        }
        schema |= {key: value for key, value in attributes.items() if value is not None}
        return schema, default is NOTHING and (not nullable or "anyOf" in kind)

    def _input_type(self, hint: Any) -> tuple[Schema, bool]:
        """Return the schema of the type of an input, and whether it may be None."""
        hint, opaque = self._unwrapped(hint)
        kinds, nullable = alternatives(hint)
        if opaque:
            return opaque_schema(kinds[0] if len(kinds) == 1 else Any), nullable
        if len(kinds) == 1:
            return self._value(kinds[0]), nullable
        variants = [self._value(kind) for kind in kinds]
        if any("format" in variant or "format" in variant.get("items", ()) for variant in variants):
            raise ValueError("Path, File and Secret cannot be one of several types")
        null = {"nullable": True} if nullable else {}
        return {"anyOf": [{**variant, **null} for variant in variants]}, nullable

    def _value(self, hint: Any, *, inside: bool = False) -> Schema:
        """Return the schema of a type that is not a union. ``inside`` a list, another list is an error."""
        hint, opaque = self._unwrapped(hint)
        if opaque:
            return opaque_schema(hint)
        if list in (hint, typing.get_origin(hint)):
            if inside:
                raise ValueError("a list of lists is not supported")
            (item,) = typing.get_args(hint) or (Any,)
            if is_union(item):
                raise ValueError("a list of several types is not supported")
            return {"type": "array", "items": self._value(item, inside=True)}
        if hint is Any or is_dict(hint):
            return dict(OBJECT)
        return self._scalar(hint)

    def _scalar(self, hint: Any) -> Schema:
        if typing.get_origin(hint) is typing.Literal:
            values = typing.get_args(hint)
            kinds = {SCALARS.get(type(value)) for value in values}
            if kinds not in ({"string"}, {"integer"}):
                raise ValueError("the values of a Literal must be all str, or all int")
            return {"type": kinds.pop(), "enum": list(values)}
        if inspect.isclass(hint) and hint in SCALARS:
            return {"type": SCALARS[hint]}
        if hint is self._cog.Secret:
            return dict(SECRET)
        if hint is self._cog.File or (inspect.isclass(hint) and issubclass(hint, os.PathLike)):
            return dict(FILE)
        if self._cog.coder.Coder.lookup(hint) is not None:
            return dict(OBJECT)
        raise ValueError(
            f"the type {getattr(hint, '__name__', hint)} is not supported; "
            "Annotated[..., cog.Opaque] passes it as a JSON object"
        )

    def _unwrapped(self, hint: Any) -> tuple[Any, bool]:
        """Return the type inside ``Annotated``, and whether its metadata has ``cog.Opaque``."""
        opaque = False
        while typing.get_origin(hint) is typing.Annotated:
            hint, *metadata = typing.get_args(hint)
            opaque = opaque or any(each is self._cog.Opaque for each in metadata)
        return hint, opaque

    def _check(self, field: Any, kind: Schema) -> None:
        """Raise ``ValueError`` if the field has an attribute that inputs of this type do not support."""
        rules = (field.ge, field.le, field.min_length, field.max_length, field.regex, field.choices)
        if "anyOf" in kind and any(rule is not None for rule in rules):
            raise ValueError("choices and bounds are not supported for an input of several types")
        is_file = "uri" in (kind.get("format"), kind.get("items", {}).get("format"))
        if getattr(field, "accept", None) is not None and not is_file:
            raise ValueError("accept is only for Path and File")

    def _choices(self, name: str, choices: Any, kind: Schema) -> Schema:
        """Add an enumeration of the choices to the components, and return a reference to it."""
        self._components[name] = {
            "title": name,
            "type": kind.get("items", kind)["type"],
            "enum": [plain(choice) for choice in choices],
            "description": "An enumeration.",
        }
        return {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}

    # -- output

    def _output(self, hint: Any, within: tuple[Any, ...]) -> Schema:
        """Return the schema of an output; ``within`` are the enclosing classes, to end a recursion."""
        hint, opaque = self._unwrapped(hint)
        if is_union(hint):
            raise ValueError("the type of an output must be one type, neither Optional nor a union")
        if opaque:
            return opaque_schema(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if list in (hint, origin):
            return {"type": "array", "items": self._output(arguments[0] if arguments else Any, within)}
        if origin is dict and arguments:
            return {"type": "object", "additionalProperties": self._output(arguments[1], within)}
        if origin in (Iterator, AsyncIterator):
            items = self._output(arguments[0], within)
            return {"type": "array", "items": items, "x-cog-array-type": "iterator"}
        if origin in (self._cog.ConcatenateIterator, self._cog.AsyncConcatenateIterator):
            if arguments != (str,):
                raise ValueError("a ConcatenateIterator must yield str")
            display = {"x-cog-array-type": "iterator", "x-cog-array-display": "concatenate"}
            return {"type": "array", "items": {"type": "string"}, **display}
        fields = self._fields(hint)
        if fields is not None and hint not in within:
            return self._object(hint, fields, within)
        if hint is Any or fields is not None or is_dict(hint):
            return dict(OBJECT)
        return self._scalar(hint)

    def _fields(self, hint: Any) -> dict[str, bool | None] | None:
        """Return the fields of a class, and whether each is required; None if it is not a class with fields.

        A field with the value None is required unless its type is optional.
        """
        if is_typed_dict(hint):
            return {name: name in hint.__required_keys__ for name in hint.__annotations__}
        if not inspect.isclass(hint):
            return None
        if hasattr(hint, "model_fields"):  # pydantic 2
            return {name: None if field.is_required() else False for name, field in hint.model_fields.items()}
        if hasattr(hint, "__fields__"):  # pydantic 1
            return {name: None if field.required else False for name, field in hint.__fields__.items()}
        if dataclasses.is_dataclass(hint):
            unset = dataclasses.MISSING
            return {
                field.name: None if field.default is unset and field.default_factory is unset else False
                for field in dataclasses.fields(hint)
            }
        if issubclass(hint, self._cog.BaseModel):
            return {name: False if hasattr(hint, name) else None for name in typing.get_type_hints(hint)}
        return None

    def _object(self, hint: Any, fields: dict[str, bool | None], within: tuple[Any, ...]) -> Schema:
        hints = typing.get_type_hints(hint, include_extras=True)
        properties: dict[str, Schema] = {}
        required = []
        for name, needed in fields.items():
            kind, is_required = hints[name], needed
            while typing.get_origin(kind) in QUALIFIERS:  # of a key of a TypedDict
                is_required = QUALIFIERS[typing.get_origin(kind)]
                (kind,) = typing.get_args(kind)
            kind, opaque = self._unwrapped(kind)
            members, nullable = alternatives(kind)
            if len(members) != 1:
                raise ValueError(f"the field {name} of {hint.__name__} must not be of one of several types")
            described = opaque_schema(members[0]) if opaque else self._output(members[0], (*within, hint))
            properties[name] = {**described, "title": titled(name)}
            if nullable:
                properties[name]["nullable"] = True
            if is_required or (is_required is None and not nullable):
                required.append(name)
        schema: Schema = {"type": "object", "properties": properties}
        return {**schema, "required": required} if required else schema


def qualifiers() -> dict[Any, bool]:
    """Return ``Required`` and ``NotRequired`` of TypedDict keys, and whether each means required.

    They are in ``typing`` since Python 3.11, and else in ``typing_extensions``.
    """
    found = {}
    for module in ("typing", "typing_extensions"):
        imported = importlib.import_module(module) if importlib.util.find_spec(module) else None
        for name, needed in (("Required", True), ("NotRequired", False)):
            if hasattr(imported, name):
                found[getattr(imported, name)] = needed
    return found


QUALIFIERS = qualifiers()


def titled(name: str) -> str:
    """Return the title that Cog makes from the name of an input or a field."""
    return " ".join(word[:1].upper() + word[1:] for word in name.split("_"))


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def alternatives(hint: Any) -> tuple[list[Any], bool]:
    """Return the types that ``hint`` allows without None, and whether None is one of them."""
    members = typing.get_args(hint) if is_union(hint) else (hint,)
    kinds = [member for member in members if member is not NONE]
    return kinds, len(kinds) < len(members)


def is_typed_dict(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, dict) and hasattr(hint, "__required_keys__")


def is_dict(hint: Any) -> bool:
    return dict in (hint, typing.get_origin(hint)) or is_typed_dict(hint)


def opaque_schema(hint: Any) -> Schema:
    """Return the schema of an opaque value, which Cog does not check: an object or a list of objects."""
    is_list = list in (hint, typing.get_origin(hint))
    return {"type": "array", "items": dict(OBJECT)} if is_list else dict(OBJECT)


def plain(value: Any) -> Any:
    """Return a default or a choice as a JSON value; ``NOTHING`` for NaN and infinite numbers."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return NOTHING
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(sys.argv[1])), encoding="utf-8")
    with contextlib.suppress(Exception):  # the project may have replaced the streams
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # skips the project's threads and exit handlers
