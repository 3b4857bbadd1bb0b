"""Computes the size of weights from the sizes of files and the headers of safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import WeightsError
from appliance.domain.weight_size import WeightSize
from appliance.weights import selection

#: Suffixes of weight files.
_SUFFIXES: Final = (".safetensors", ".gguf", ".bin", ".onnx", ".pt", ".pth", ".ckpt", ".npz")
#: Types of tensors besides weights, such as positions and masks.
_INDEXES: Final = frozenset({"I64", "BOOL"})
_LONGEST_HEADER: Final = 100 * 1024**2  # bytes; the format's own limit


def weight_size_of(path: Path, variant: str | None = None) -> WeightSize:
    """Return the size of the weights in a folder or file; 0 bytes if the path does not exist.

    If a folder has the weights in several formats or variants, only the files that are loaded count.

    Raises:
        WeightsError: a file is damaged.
    """
    files = [path] if path.is_file() else _loaded(path, variant)
    headers = [_header(file) for file in files]
    counts = [_parameters(header) for header in headers]
    known = [count for count in counts if count is not None]
    parameters = sum(known) if files and len(known) == len(files) else None
    quantized = parameters is None and any(_is_quantized(header) for header in headers)
    return WeightSize(sum(file.stat().st_size for file in files), parameters, quantized)


def embedding_parameters(folder: Path) -> int:
    """Return the number of parameters of a language model's input embeddings; 0 if it is unknown."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        text = config.get("text_config", config)  # of a model that accepts images
        return int(text["vocab_size"]) * int(text["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # loading it raises
        return 0


def total_size(sizes: Iterable[WeightSize]) -> WeightSize:
    """Return the size of several weights together."""
    listed = list(sizes)
    counts = [each.parameters for each in listed]
    known = [count for count in counts if count is not None]
    return WeightSize(
        sum(each.stored for each in listed),
        sum(known) if len(known) == len(counts) else None,
        any(each.quantized for each in listed),
    )


def _loaded(folder: Path, variant: str | None) -> list[Path]:
    """Return the weight files that runners load."""
    files = [file for file in folder.rglob("*") if file.suffix in _SUFFIXES and file.is_file()]
    formats: dict[Path, set[str]] = {}
    for file in files:
        formats.setdefault(file.parent, set()).add(file.suffix)
    pipeline = _components(folder)
    # Files of other formats beside safetensors have the same weights, except ONNX files of other models.
    beside = {".safetensors", ".onnx"} if pipeline is None else {".safetensors"}
    names = [
        file.relative_to(folder).as_posix()
        for file in files
        if ".safetensors" not in formats[file.parent] or file.suffix in beside
    ]
    patterns = [f"*{suffix}" for suffix in _SUFFIXES]
    chosen = selection.weight_files(names, patterns, variant=variant, pipeline=pipeline)
    return [folder / name for name in chosen]


def _components(folder: Path) -> frozenset[str] | None:
    """Return the components of the pipeline in a folder; None if it has none, or its index is damaged."""
    try:
        index = json.loads((folder / selection.PIPELINE).read_bytes())
    except (OSError, ValueError, RecursionError):  # loading it raises the error
        return None
    return selection.components(index) if isinstance(index, dict) else None


def _header(file: Path) -> dict[str, Any] | None:
    """Return the tensors in the header of a safetensors file; None for other or damaged files.

    Raises:
        WeightsError: the header is nested too deeply to be parsed.
    """
    if file.suffix != ".safetensors":
        return None
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            header: dict[str, Any] = json.loads(stream.read(length))
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    except RecursionError as error:
        raise WeightsError(
            f"{file} is damaged: its header is nested too deeply; download it again"
        ) from error
    except (OSError, ValueError, AttributeError):  # loading it raises the error
        return None


def _parameters(header: dict[str, Any] | None) -> int | None:
    """Return the number of parameters of the tensors in ``header``; None if it is unknown."""
    if header is None:
        return None
    try:
        tensors = header.values()
        if any(not _is_float(tensor["dtype"]) for tensor in tensors):
            return None  # probably quantized: one number in the file packs several parameters
        return sum(int(math.prod(tensor["shape"])) for tensor in tensors)
    except (ValueError, KeyError, TypeError):  # loading it raises the error
        return None


def _is_quantized(header: dict[str, Any] | None) -> bool:
    """Return whether a tensor has packed integers or floats of 8 or fewer bits, as of AWQ, GPTQ and FP8."""
    dtypes = {str(tensor.get("dtype")) for tensor in (header or {}).values() if isinstance(tensor, dict)}
    return any(not _is_float(dtype) and dtype not in _INDEXES for dtype in dtypes)


def _is_float(dtype: object) -> bool:
    return dtype in {"F64", "F32", "F16", "BF16"}
