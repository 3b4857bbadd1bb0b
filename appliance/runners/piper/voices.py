"""Finds the Piper voices in a folder of weights."""

from __future__ import annotations

from pathlib import Path


def voice_files(weights: Path) -> list[Path]:
    """Return the voice files sorted by the voice's name; ``weights`` is a folder, or the only voice file."""
    return [weights] if weights.is_file() else sorted(weights.rglob("*.onnx"), key=lambda file: file.stem)


def found(weights: Path) -> tuple[str, ...]:
    """Return the sorted names of the voices; empty before the weights are downloaded."""
    return tuple(file.stem for file in voice_files(weights))
