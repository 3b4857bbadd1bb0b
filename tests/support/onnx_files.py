"""Writes small ONNX files, in protobuf's wire format: the package `onnx` is not installed.

The numbers of the fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FLOAT, UINT8, INT64, FLOAT16 = 1, 2, 7, 10
_TYPES = {"float32": FLOAT, "uint8": UINT8, "int64": INT64, "float16": FLOAT16}


class Node(NamedTuple):
    """One operation: its attributes are numbers, texts or lists of integers."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any] = {}


class Tensor(NamedTuple):
    """An input or output; a text in the shape is the name of an axis of any length."""

    name: str
    shape: Sequence[int | str]
    type: int = FLOAT


def write_onnx(
    path: Path,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    nodes: Sequence[Node],
    constants: Mapping[str, np.ndarray] = {},
    metadata: Mapping[str, str] = {},
) -> Path:
    graph = b"".join(_field(1, _node(node)) for node in nodes) + _field(2, "graph")
    graph += b"".join(_field(5, _constant(name, values)) for name, values in constants.items())
    graph += b"".join(_field(11, _declared(each)) for each in inputs)
    graph += b"".join(_field(12, _declared(each)) for each in outputs)
    model = _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17))
    model += b"".join(_field(14, _field(1, key) + _field(2, value)) for key, value in metadata.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    return path


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, value: float | str | bytes) -> bytes:
    match value:
        case int():
            return _varint(number << 3) + _varint(value)
        case float():
            return _varint(number << 3 | 5) + struct.pack("<f", value)
        case str():
            value = value.encode()
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _node(node: Node) -> bytes:
    parts = b"".join(_field(1, name) for name in node.inputs)
    parts += b"".join(_field(2, name) for name in node.outputs)
    return (
        parts
        + _field(4, node.op)
        + b"".join(_field(5, _attribute(*each)) for each in node.attributes.items())
    )


def _attribute(name: str, value: Any) -> bytes:
    match value:
        case float():
            rest = _field(2, value) + _field(20, 1)
        case int():
            rest = _field(3, value) + _field(20, 2)
        case str():
            rest = _field(4, value) + _field(20, 3)
        case _:
            rest = b"".join(_field(8, each) for each in value) + _field(20, 7)
    return _field(1, name) + rest


def _constant(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, _TYPES[values.dtype.name]) + _field(8, name) + _field(9, values.tobytes())


def _declared(tensor: Tensor) -> bytes:
    axes = b"".join(_field(1, _field(2 if isinstance(axis, str) else 1, axis)) for axis in tensor.shape)
    return _field(1, tensor.name) + _field(2, _field(1, _field(1, tensor.type) + _field(2, axes)))
