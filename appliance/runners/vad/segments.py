"""Turns the probabilities of speech into segments with times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

#: A segment ends where the probability falls below the threshold by this much, as in Silero VAD itself.
_MARGIN: Final = 0.15


class Segment(NamedTuple):
    """A part of the audio with speech. Times are in seconds."""

    start: float
    end: float


def find_segments(
    probabilities: Sequence[float],
    frame: float,
    total: float,
    *,
    threshold: float,
    min_speech: float,
    min_silence: float,
    padding: float,
) -> list[Segment]:
    """Return the segments in their order. All times are in seconds.

    Args:
        probabilities: of speech in each frame.
        frame: length of a frame.
        total: length of the audio.
        threshold: a segment begins with a frame of at least this probability.
        min_speech: shorter segments are dropped.
        min_silence: a segment continues after a shorter silence.
        padding: is added before and after each segment. If the silence between two segments is too
            short for both paddings, each gets half of it.
    """
    low = max(threshold - _MARGIN, 0.01)
    found: list[Segment] = []
    start: float | None = None
    silence: float | None = None  # its beginning
    for number, probability in enumerate(probabilities):
        now = number * frame
        if probability >= threshold:
            start = now if start is None else start
            silence = None
        elif start is not None and probability < low:
            silence = now if silence is None else silence
            if now + frame - silence >= min_silence:
                found.append(Segment(start, silence))
                start = silence = None
    if start is not None:
        found.append(Segment(start, total if silence is None else silence))
    return _padded([each for each in found if each.end - each.start >= min_speech], total, padding)


def _padded(segments: list[Segment], total: float, padding: float) -> list[Segment]:
    padded: list[Segment] = []
    for at, segment in enumerate(segments):
        before = segment.start if at == 0 else (segment.start - segments[at - 1].end) / 2
        last = at == len(segments) - 1
        after = total - segment.end if last else (segments[at + 1].start - segment.end) / 2
        padded.append(
            Segment(segment.start - min(padding, before), segment.end + min(padding, max(after, 0)))
        )
    return padded
