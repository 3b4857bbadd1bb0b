"""Who speaks when, from the embeddings of windows of speech."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.runners import speakers
from appliance.runners.speakers import Span, Turn


def embeddings(found: list[Span], voices: list[tuple[float, int]]) -> np.ndarray:
    """The embeddings of windows; ``voices`` are the end of each turn, and who speaks until then."""
    noise = np.random.default_rng(0)
    made = []
    for window in found:
        middle = (window.start + window.end) / 2
        voice = next(voice for end, voice in voices if middle < end)
        embedding = np.eye(16)[voice] + 0.08 * noise.standard_normal(16)
        made.append(embedding / np.linalg.norm(embedding))
    return np.array(made, np.float32)


def test_windows_cover_the_speech() -> None:
    speech = [Span(0, 1), Span(2, 6.1), Span(7, 8.6)]
    found = speakers.windows(speech)
    assert found[0] == Span(0, 1)
    assert found[-1] == Span(7, 8.6)
    inside = [each for each in found if 2 <= each.start < 7]
    assert inside[0].start == 2
    assert inside[-1].end == 6.1
    assert all(each.end - each.start == pytest.approx(1.6) for each in inside)
    day = speakers.windows([Span(0, 24 * 3600.0)])
    assert len(day) <= 24 * 3600 / 1.6 + 1


def test_turns_are_numbered_in_the_order_of_their_beginning() -> None:
    speech = [Span(0, 5), Span(6, 11), Span(11.2, 15), Span(18, 20)]
    found = speakers.windows(speech)
    voices = [(5.5, 3), (11.1, 1), (16.0, 3), (20.0, 1)]
    made = speakers.turns(speech, found, embeddings(found, voices), None)
    assert made == [Turn(0, 5, 0), Turn(6, 11, 1), Turn(11.2, 15, 0), Turn(18, 20, 1)]
    assert speakers.name(1) == "SPEAKER_01"


def test_the_speaker_may_change_without_a_pause() -> None:
    speech = [Span(0, 10)]
    found = speakers.windows(speech)
    first, second = speakers.turns(speech, found, embeddings(found, [(6, 0), (10, 1)]), None)
    assert (first.start, second.end) == (0, 10)
    assert first.end == second.start == pytest.approx(6, abs=0.4)
    assert (first.speaker, second.speaker) == (0, 1)


def test_short_pauses_and_short_sounds_of_others_do_not_end_a_turn() -> None:
    speech = [Span(0, 5), Span(5.3, 9), Span(9.2, 9.6), Span(9.8, 14)]
    found = speakers.windows(speech)
    made = speakers.turns(speech, found, embeddings(found, [(9.1, 0), (9.7, 1), (14, 0)]), None)
    assert made == [Turn(0, 14, 0)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_number_of_speakers_may_be_given(count: int) -> None:
    speech = [Span(10 * number, 10 * number + 8) for number in range(3)]
    found = speakers.windows(speech)
    made = speakers.turns(speech, found, embeddings(found, [(9, 0), (19, 1), (29, 2)]), count)
    assert len({turn.speaker for turn in made}) == count


def test_more_speakers_than_there_is_speech_for() -> None:
    speech = [Span(0, 3)]
    found = speakers.windows(speech)
    made = speakers.turns(speech, found, embeddings(found, [(3, 0)]), 20)
    assert {turn.speaker for turn in made} <= {0, 1}
    assert speakers.turns([Span(0, 0.4)], [Span(0, 0.4)], np.ones((1, 16)) / 4, None) == [Turn(0, 0.4, 0)]
    assert speakers.turns([], [], np.zeros((0, 16)), None) == []


def test_who_speaks_at_a_time() -> None:
    turns = [Turn(0, 4, 0), Turn(4, 6, 1), Turn(9, 12, 0)]
    assert speakers.speaker_at(3.5, 4.2, turns) == 0
    assert speakers.speaker_at(3.9, 4.2, turns) == 1
    assert speakers.speaker_at(6.5, 7, turns) == 1
    assert speakers.speaker_at(8.5, 8.9, turns) == 0
    assert speakers.speaker_at(1, 2, []) is None
