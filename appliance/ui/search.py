"""Search in short texts that tolerates typos and knows synonyms of the kinds of models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from appliance.ui.languages import gettext, translatable

#: Words for which the models of a kind are found, besides their own names and descriptions.
KIND_WORDS: Final = {
    "vllm": "language llm chat text writing write assistant answer conversation gpt completion summarize",
    "diffusers": "image picture photo draw drawing paint painting art illustration text-to-image generate "
    "music sound audio",
    "whisper": "speech audio voice transcribe transcript dictation speech-to-text stt asr subtitles",
    "piper": "speech audio voice speak talk read aloud text-to-speech tts spoken",
    "kokoro": "speech audio voice speak talk read aloud text-to-speech tts spoken",
    "embeddings": "embedding vector search similarity compare semantic rag retrieval",
    "transformers": "task pipeline classification detection segmentation music sound audio",
    "onnx": "vision image detection segmentation depth background",
    "ocr": "text recognition read scan document letters image picture",
    "vad": "speech voice activity silence detection audio",
    "diarization": "speech voice audio speaker diarization who speaks when",
    "cog": "custom code project container",
    "echo": "test trial echo",
}
#: Names of the kinds that people choose from.
KIND_NAMES: Final = {
    "vllm": translatable("Text"),
    "diffusers": translatable("Images"),
    "whisper": translatable("Speech to text"),
    "piper": translatable("Text to speech"),
    "kokoro": translatable("Text to speech (Kokoro)"),
    "embeddings": translatable("Embeddings"),
    "transformers": translatable("Tasks"),
    "onnx": translatable("ONNX"),
    "ocr": translatable("Text in images"),
    "vad": translatable("Voice activity"),
    "diarization": translatable("Speaker diarization"),
    "cog": translatable("Cog projects"),
    "echo": translatable("Test models"),
}

_WORD: Final = re.compile(r"\w+")
_LEFT_OUT: Final = frozenset("a an and for from in into of on or that the to with model models".split())  # noqa: SIM905
_ENDINGS: Final = re.compile(r"(?<=\w{4})(?:ing|ions?|es?|s|ed|ers?)$")


def kind_name(kind: str) -> str:
    """Return the name of a kind of models in the language of the page."""
    return gettext(KIND_NAMES[kind]) if kind in KIND_NAMES else kind


class Findable(NamedTuple):
    """Something that can be found. A match in the title counts most, one in the text least."""

    title: str
    words: str = ""  # synonyms
    text: str = ""
    value: Any = None  # what the caller wants back


def find(query: str, items: Iterable[Findable]) -> list[Findable]:
    """Return the items that have all words of ``query``, best first; all items for an empty query.

    A word also matches the beginning or the inside of a longer word, and a word with a typo.
    """
    asked = words(query)
    asked = [word for word in asked if word not in _LEFT_OUT] or asked
    scored = [(score, item) for item in items if (score := _score(asked, item)) > 0]
    return [item for _, item in sorted(scored, key=lambda pair: -pair[0])]


def words(text: str) -> list[str]:
    return [word for part in _WORD.findall(text.casefold()) for word in part.split("_") if word]


def _score(asked: Sequence[str], item: Findable) -> float:
    if not asked:
        return 1.0
    fields = ((3.0, _words(item.title)), (2.0, _words(item.words)), (1.0, _words(item.text)))
    scores = [
        max((weight * _match(word, each) for weight, found in fields for each in found), default=0.0)
        for word in asked
    ]
    return sum(scores) if all(scores) else 0.0


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    return frozenset(words(text))


@lru_cache(maxsize=65536)
def _match(asked: str, word: str) -> float:
    """Return how well ``word`` matches: 1 if both are the same, 0 if they are too different."""
    if asked == word:
        return 1.0
    if word.startswith(asked):
        return 0.9
    if _ENDINGS.sub("", asked) == _ENDINGS.sub("", word):
        return 0.85
    if len(asked) >= 3 and asked in word:
        return 0.7
    most = 0 if len(asked) < 4 else 1 if len(asked) < 8 else 2  # typos
    if not most or asked[0].isdigit():
        return 0.0
    # An unfinished word with a typo matches the beginning of a longer word.
    lengths = {len(word), *(range(len(asked) - 1, len(asked) + 2) if len(word) > len(asked) else ())}
    typos = min(_distance(asked, word[:length], most) for length in lengths)
    return 0.6 - 0.1 * typos if typos <= most else 0.0


def _distance(a: str, b: str, most: int) -> int:
    """Return the number of inserted, deleted, replaced and swapped letters; more than ``most`` is inexact."""
    if abs(len(a) - len(b)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        last, before, row = before, row, [i]
        for j, other in enumerate(b, 1):
            steps = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                steps = min(steps, last[j - 2] + 1)
            row.append(steps)
        if min(row) > most:
            return most + 1
    return row[-1]
