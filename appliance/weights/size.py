"""Computes the size of weights from the sizes of files and the headers of safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import WeightsError
from appliance.domain.weight_size import WeightSize

#: Suffixes of weight files.
_SUFFIXES: Final = (".safetensors", ".gguf", ".bin", ".onnx", ".pt", ".pth", ".ckpt", ".npz")
_LONGEST_HEADER: Final = 100 * 1024**2  # bytes; the format's own limit


def weight_size_of(path: Path) -> WeightSize:
    """Return the size of the weights in a folder or file; 0 bytes if the path does not exist.

    If a folder has the weights in several formats or variants, only the files that are loaded count.

    Raises:
        WeightsError: a file is damaged.
    """
    files = [path] if path.is_file() else list(_loaded(path))
    counts = [_parameters(file) for file in files]
    known = [count for count in counts if count is not None]
    parameters = sum(known) if files and len(known) == len(files) else None
    return WeightSize(sum(file.stat().st_size for file in files), parameters)


def _loaded(folder: Path) -> Iterator[Path]:
    """Yield the weight files that runners load: in each folder the newest formats, without variants."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
    for inner in sorted({file.parent for file in files}):
        here = [file for file in files if file.parent == inner]
        formats = {file.suffix for file in here}
        if ".safetensors" in formats:  # files of other formats have the same weights, except ONNX files
            formats = {".safetensors", ".onnx"} & formats
        names = {file.name for file in here}
        for file in here:
            if file.suffix in formats and not _is_variant(file, names):
                yield file


def _is_variant(file: Path, names: Iterable[str]) -> bool:
    """Return whether the file is like ``model.fp16.safetensors`` next to ``model.safetensors``."""
    stem, _, variant = file.stem.rpartition(".")
    return bool(stem) and bool(variant) and f"{stem}{file.suffix}" in names


def _parameters(file: Path) -> int | None:
    """Return the number of parameters in a safetensors file; None for other or damaged files.

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
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        if any(not str(tensor["dtype"]).startswith(("F", "BF")) for tensor in tensors):
            return None  # probably quantized: one number in the file packs several parameters
        return sum(int(math.prod(tensor["shape"])) for tensor in tensors)
    except RecursionError as error:
        raise WeightsError(
            f"{file} is damaged: its header is nested too deeply; download it again"
        ) from error
    except (OSError, ValueError, AttributeError, KeyError, TypeError):  # loading it raises the error
        return None
