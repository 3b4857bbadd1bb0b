"""Spoken text with its times, in the formats of subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Cue(NamedTuple):
    """The text between two times, in seconds from the beginning."""

    start: float
    end: float
    text: str


def srt(cues: Sequence[Cue]) -> str:
    """SubRip: numbered cues, with hours in every time and a comma before the milliseconds."""
    return "".join(
        f"{number}\n{time(cue.start, ',')} --> {time(cue.end, ',')}\n{_safe(cue.text)}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Sequence[Cue]) -> str:
    """WebVTT, as browsers read it."""
    body = "".join(f"{time(cue.start)} --> {time(cue.end)}\n{_safe(cue.text)}\n\n" for cue in cues)
    return f"WEBVTT\n\n{body}"


def time(seconds: float, point: str = ".") -> str:
    """``HH:MM:SS.mmm``, with ``point`` before the milliseconds."""
    whole = round(max(0.0, seconds) * 1000)
    return (
        f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"
    )


def _safe(text: str) -> str:
    """An arrow, or an empty line, in a text would begin another cue."""
    return " ".join(text.split()).replace("-->", "->")
