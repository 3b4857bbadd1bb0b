"""Adds speaker labels to the segments of a transcript."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from appliance.runners import speakers
from appliance.runners.schemas import boolean, integer
from appliance.runners.speakers import Turn

#: The inputs of a model with a voice encoder, besides those of any Whisper model.
INPUTS: Final[dict[str, dict[str, Any]]] = {
    "diarize": boolean("Add a speaker label, such as SPEAKER_00, to each segment", default=False),
    "num_speakers": integer(
        "Number of speakers; used with diarize. Default: estimated from the audio", ge=1, le=50
    ),
}


def label_speakers(
    segments: Sequence[Mapping[str, Any]], turns: Sequence[Turn], *, words: bool
) -> list[dict[str, Any]]:
    """Return the segments with the key ``speaker``, cut where the speaker changes between two words.

    ``words``: keep the words of the segments, also with ``speaker``.
    """
    parts = [part for segment in segments for part in _parts(segment, turns, words=words)]
    return [{**part, "id": number} for number, part in enumerate(parts)]


def _parts(segment: Mapping[str, Any], turns: Sequence[Turn], *, words: bool) -> Iterator[dict[str, Any]]:
    rest = {key: value for key, value in segment.items() if key != "words"}
    spoken = [(speakers.speaker_at(each["start"], each["end"], turns), each) for each in segment["words"]]
    changes = [
        (speaker, [word for _, word in run]) for speaker, run in groupby(spoken, key=lambda pair: pair[0])
    ]
    if len(changes) < 2:
        speaker = changes[0][0] if changes else speakers.speaker_at(segment["start"], segment["end"], turns)
        yield {**rest, **_speaker(speaker), **_words(segment["words"], speaker, kept=words)}
        return
    for speaker, said in changes:
        times = {"start": said[0]["start"], "end": said[-1]["end"]}
        text = "".join(word["word"] for word in said)
        yield {
            **rest,
            **times,
            "text": text,
            "tokens": [],  # faster-whisper does not say which tokens a word consists of
            **_speaker(speaker),
            **_words(said, speaker, kept=words),
        }


def _speaker(speaker: int | None) -> dict[str, str]:
    return {} if speaker is None else {"speaker": speakers.name(speaker)}


def _words(said: Sequence[Mapping[str, Any]], speaker: int | None, *, kept: bool) -> dict[str, Any]:
    return {"words": [{**word, **_speaker(speaker)} for word in said]} if kept else {}
