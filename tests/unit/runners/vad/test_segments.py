"""Segments of speech from probabilities. A frame is one second."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.runners.vad.segments import find_segments

PLAIN: dict[str, Any] = {"threshold": 0.5, "min_speech": 0, "min_silence": 1, "padding": 0}


def found(probabilities: list[float], **more: Any) -> list[tuple[float, float]]:
    segments = find_segments(probabilities, 1.0, float(len(probabilities)), **PLAIN | more)
    return [(each.start, each.end) for each in segments]


def test_a_segment_is_where_the_probability_is_high() -> None:
    assert found([0, 0.9, 0.8, 0, 0, 0.6, 0]) == [(1, 3), (5, 6)]
    assert found([0.9, 0.9]) == [(0, 2)]
    assert found([0, 0.1]) == []
    assert found([]) == []


def test_a_segment_continues_until_the_probability_is_clearly_lower() -> None:
    assert found([0.9, 0.4, 0.9, 0.3, 0]) == [(0, 3)]
    assert found([0.4, 0.4, 0.9]) == [(2, 3)]


def test_a_short_silence_does_not_end_a_segment() -> None:
    assert found([0.9, 0, 0.9, 0, 0, 0.9], min_silence=2) == [(0, 3), (5, 6)]
    assert found([0.9, 0, 0.9, 0], min_silence=5) == [(0, 3)], "a silence at the end is not speech"


def test_a_short_segment_is_dropped() -> None:
    assert found([0.9, 0, 0.9, 0.9, 0], min_speech=2) == [(2, 4)]


def test_padding_takes_no_time_of_another_segment() -> None:
    assert found([0, 0.9, 0, 0.9, 0, 0], padding=0.25) == [(0.75, 2.25), (2.75, 4.25)]
    assert found([0, 0.9, 0, 0.9, 0, 0], padding=9) == [(0, 2.5), (2.5, 6)]


@given(
    st.lists(st.floats(0, 1), max_size=60),
    st.floats(0.02, 1),
    st.floats(0, 5),
    st.floats(0, 5),
    st.floats(0, 3),
)
def test_segments_are_in_the_audio_and_in_order(
    probabilities: list[float], threshold: float, min_speech: float, min_silence: float, padding: float
) -> None:
    segments = found(
        probabilities, threshold=threshold, min_speech=min_speech, min_silence=min_silence, padding=padding
    )
    times = [time for segment in segments for time in segment]
    assert times == sorted(times)
    assert all(0 <= time <= len(probabilities) for time in times)
    assert all(end - start >= min_speech - 1e-9 for start, end in segments)
    assert bool(segments) <= any(each >= threshold for each in probabilities)


@pytest.mark.parametrize("threshold", [0.02, 1.0])
def test_the_extremes_of_the_threshold(threshold: float) -> None:
    assert found([1, 0, 1], threshold=threshold) == [(0, 1), (2, 3)]
