from __future__ import annotations

import pytest

from appliance.runners.whisper.subtitles import srt, time, vtt

SEGMENTS = [
    {"start": 0.0, "end": 2.5, "text": " Hello there."},
    {"start": 2.5, "end": 3661.0005, "text": " And\n\nbye --> now."},
]


def test_subrip() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:02,500\nHello there.\n\n"
        "2\n00:00:02,500 --> 01:01:01,000\nAnd bye -> now.\n\n"
    )


def test_webvtt() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nHello there.\n\n"
        "00:00:02.500 --> 01:01:01.000\nAnd bye -> now.\n\n"
    )


def test_nothing_said() -> None:
    assert (srt([]), vtt([])) == ("", "WEBVTT\n\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (-1, "00:00:00.000"), (360_000, "100:00:00.000")],
)
def test_times(seconds: float, text: str) -> None:
    assert time(seconds) == text
