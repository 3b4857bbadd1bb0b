"""Segments of a transcript, with the names of their speakers."""

from __future__ import annotations

from typing import Any

from appliance.runners.speakers import Turn
from appliance.runners.whisper import speaker_labels

TURNS = [Turn(0, 2, 0), Turn(2, 4, 1)]


def segment(number: int, *words: tuple[str, float]) -> dict[str, Any]:
    said = [{"word": word, "start": at, "end": at + 0.4, "probability": 0.9} for word, at in words]
    text = "".join(word for word, _ in words)
    return {
        "id": number,
        "start": words[0][1],
        "end": words[-1][1] + 0.4,
        "text": text,
        "tokens": [1],
        "words": said,
    }


def test_a_segment_is_cut_where_the_speaker_changes() -> None:
    given = [
        segment(0, (" Is", 0.1), (" it?", 0.5)),
        segment(1, (" Yes.", 1.2), (" No.", 2.1), (" Oh.", 2.5)),
    ]
    found = speaker_labels.label_speakers(given, TURNS, words=False)
    assert [(each["id"], each["text"], each["speaker"]) for each in found] == [
        (0, " Is it?", "SPEAKER_00"),
        (1, " Yes.", "SPEAKER_00"),
        (2, " No. Oh.", "SPEAKER_01"),
    ]
    assert [(each["start"], each["end"]) for each in found] == [(0.1, 0.9), (1.2, 1.6), (2.1, 2.9)]
    assert [each["tokens"] for each in found] == [[1], [], []]
    assert all("words" not in each for each in found)


def test_words_are_kept_if_they_are_asked_for() -> None:
    (found,) = speaker_labels.label_speakers([segment(0, (" Is", 2.1), (" it?", 2.6))], TURNS, words=True)
    assert [(word["word"], word["speaker"]) for word in found["words"]] == [
        (" Is", "SPEAKER_01"),
        (" it?", "SPEAKER_01"),
    ]


def test_without_speech_there_is_no_speaker() -> None:
    (found,) = speaker_labels.label_speakers([segment(0, (" Hm", 2.1))], [], words=True)
    assert "speaker" not in found
    (silent,) = speaker_labels.label_speakers([{**segment(3, (" x", 0.5)), "words": []}], TURNS, words=False)
    assert (silent["id"], silent["speaker"]) == (0, "SPEAKER_00")
