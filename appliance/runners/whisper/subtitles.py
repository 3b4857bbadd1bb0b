"""Writes transcript segments as subtitles.

A segment is a mapping with ``start`` and ``end``, in seconds from the beginning of the audio, and ``text``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def srt(segments: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"{number}\n{_cue(segment, ',')}" for number, segment in enumerate(segments, 1))


def vtt(segments: Sequence[Mapping[str, Any]]) -> str:
    return "WEBVTT\n\n" + "".join(_cue(segment, ".") for segment in segments)


def _cue(segment: Mapping[str, Any], point: str) -> str:
    # An arrow or an empty line in the text would begin another cue.
    text = " ".join(segment["text"].split()).replace("-->", "->")
    return f"{time(segment['start'], point)} --> {time(segment['end'], point)}\n{text}\n\n"


def time(seconds: float, point: str = ".") -> str:
    """Return the time as ``HH:MM:SS.mmm``, with ``point`` before the milliseconds."""
    ms = round(max(0.0, seconds) * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
