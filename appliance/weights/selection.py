"""Chooses the weight files of a repository or folder that a model loads.

Repositories often have the same weights several times: in 16 and 32 bits (variants), in several formats, or
as one checkpoint beside the folders of a pipeline. Estimates and downloads use the files chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

#: File that names the components of a diffusers pipeline; each is loaded from the folder of its name.
PIPELINE: Final = "model_index.json"
#: Folders that usually have the same weights in other formats. They count only if there are no other weights.
OTHER_FORMATS: Final = ("original/*", "onnx/*", "openvino/*")
#: Weights for Mistral's own library. Other libraries load the files beside them.
_CONSOLIDATED: Final = re.compile(r"consolidated[.-]")
#: Weights for transformers. The files beside them are for the library of the model's authors:
#: https://huggingface.co/sesame/csm-1b/tree/main
_FOR_TRANSFORMERS: Final = "transformers"
_SHARD: Final = re.compile(r"-\d+-of-\d+")
_VARIANT: Final = re.compile(r"\.([A-Za-z]\w*)$")


class _Name(NamedTuple):
    """The parts of a name such as ``model.fp16-00001-of-00002.safetensors``."""

    stem: str  # model
    variant: str | None  # fp16
    suffix: str  # .safetensors


def components(index: Mapping[str, Any]) -> frozenset[str]:
    """Return the components of a pipeline from the content of its ``model_index.json``."""
    return frozenset(
        name
        for name, value in index.items()
        if isinstance(value, list | tuple) and len(value) == 2 and value[1] is not None
    )


def weight_files(
    names: Iterable[str],
    patterns: Collection[str],
    *,
    variant: str | None = None,
    pipeline: Collection[str] | None = None,
) -> list[str]:
    """Return the weight files to download and load, sorted.

    Args:
        names: all files of the source, as paths in it.
        patterns: of the weight files of the model's kind.
        variant: the variant to load, such as ``fp16``. Components without it are loaded without a variant.
        pipeline: components of a diffusers pipeline; None for other models.
    """
    found = sorted(name for name in names if any(fnmatch(name, each) for each in patterns))
    usual = [name for name in found if not in_other_format(name)]
    by_folder: dict[str, list[str]] = {}
    for name in usual or found:
        folder = str(PurePosixPath(name).parent)
        if pipeline is None or folder in pipeline:
            by_folder.setdefault(folder, []).append(name)
    return [name for inner in by_folder.values() for name in _of_folder(inner, variant)]


def in_other_format(name: str) -> bool:
    return any(fnmatch(name, each) for each in OTHER_FORMATS)


def variants(names: Iterable[str]) -> set[str]:
    """Return the variants of which there are weight files among ``names``."""
    return {found for name in names if (found := _parts(name).variant) is not None}


def _of_folder(names: list[str], variant: str | None) -> list[str]:
    parts = {name: _parts(name) for name in names}
    stems = {(each.stem, each.suffix, each.variant) for each in parts.values()}
    chosen = []
    for name, each in parts.items():
        if variant is not None and (each.stem, each.suffix, variant) in stems:
            wanted = each.variant == variant
        else:  # a variant without its plain file is the only copy of its weights, or just a name with a dot
            wanted = each.variant is None or (each.stem, each.suffix, None) not in stems
        if wanted:
            chosen.append(name)
    if named := [name for name in chosen if parts[name].stem == _FOR_TRANSFORMERS]:
        return named
    others = [name for name in chosen if not _CONSOLIDATED.match(PurePosixPath(name).name)]
    return others if any(PurePosixPath(name).name.startswith("model") for name in others) else chosen


def _parts(name: str) -> _Name:
    path = PurePosixPath(name)
    stem = _SHARD.sub("", path.stem)
    if found := _VARIANT.search(stem):
        return _Name(stem[: found.start()], found[1], path.suffix)
    return _Name(stem, None, path.suffix)
