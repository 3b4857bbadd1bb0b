"""The voices in the weights of a Piper model, which its inputs name."""

from __future__ import annotations

from pathlib import Path


def found(folder: Path) -> tuple[str, ...]:
    """The names of the voices in a folder, or of the one file ``folder``; none where nothing is there yet."""
    if folder.is_file():
        return (folder.stem,)
    return tuple(sorted(file.stem for file in folder.rglob("*.onnx")))
