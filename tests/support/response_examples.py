"""Complete bodies of responses from the fields that a test is about."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T", bound=msgspec.Struct)


def completed(type: type[T], fields: dict[str, Any]) -> T:
    """Return a response with these ``fields``, named as in JSON; other required fields are empty or null."""
    return msgspec.convert(_completed(inspect.type_info(type), fields), type)


def _completed(type: inspect.Type, value: Any) -> Any:
    match type:
        case inspect.Metadata():
            return _completed(type.type, value)
        case inspect.StructType() if isinstance(value, dict):
            made = dict(value)
            for field in type.fields:
                if field.encode_name in value:
                    made[field.encode_name] = _completed(field.type, value[field.encode_name])
                elif field.required:
                    made[field.encode_name] = _empty(field.type)
            return made
        case inspect.ListType() | inspect.VarTupleType() if isinstance(value, list | tuple):
            return [_completed(type.item_type, item) for item in value]
        case inspect.UnionType() if value is not None:
            structs = [each for each in type.types if not isinstance(each, inspect.NoneType)]
            return _completed(structs[0], value)
    return value


def _empty(type: inspect.Type) -> Any:
    match type:
        case inspect.Metadata():
            return _empty(type.type)
        case inspect.UnionType():
            optional = any(isinstance(each, inspect.NoneType) for each in type.types)
            return None if optional else _empty(type.types[0])
        case inspect.StructType():
            return _completed(type, {})
        case inspect.EnumType():
            return next(iter(type.cls)).value
        case inspect.LiteralType():
            return type.values[0]
        case inspect.ListType() | inspect.VarTupleType():
            return []
        case inspect.DictType():
            return {}
    return {inspect.BoolType: False, inspect.IntType: 0, inspect.FloatType: 0.0}.get(type.__class__, "")
