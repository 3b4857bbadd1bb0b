"""Split the phonemes of a text into chunks that Kokoro computes one at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

#: Maximum number of phonemes in a chunk. The model accepts 510. Its authors say that voices rush above 400
#: and are weak below 20: https://huggingface.co/hexgrad/Kokoro-82M/blob/main/VOICES.md
LONGEST: Final = 400
#: Short sentences are joined up to this number of phonemes.
USUAL: Final = 200
_CLAUSE_MARKS: Final = (", ", "; ", ": ")
_ELLIPSIS: Final = re.compile(r"(?<=\w)(\.{2,}|…)(?=\s+\S)")


def speakable(text: str) -> str:
    """Replace each ellipsis between two words with a comma, and NUL characters with spaces.

    espeak-ng would join the words around an ellipsis, and refuses NUL characters.
    """
    return _ELLIPSIS.sub(",", text.replace("\0", " "))


def known(sentences: Sequence[Sequence[str]], vocabulary: Collection[str]) -> list[str]:
    """Return the phonemes of each sentence that ``vocabulary`` has, without sentences that have no sound.

    Piper's phonemizer splits each character from its accent. Only c with a cedilla is one phoneme.
    """
    joined = ("".join(sentence).replace("c\N{COMBINING CEDILLA}", "ç") for sentence in sentences)
    kept = ("".join(phoneme for phoneme in sentence if phoneme in vocabulary).strip() for sentence in joined)
    return [sentence for sentence in kept if any(phoneme.isalpha() for phoneme in sentence)]


def parts(sentences: Sequence[str]) -> list[str]:
    """Return the phonemes of the chunks: short sentences are joined, long ones are split between words."""
    found: list[str] = []
    for sentence in sentences:
        for piece in _pieces(sentence):
            if found and len(found[-1]) + 1 + len(piece) <= USUAL:
                found[-1] += f" {piece}"
            else:
                found.append(piece)
    return found


def _pieces(sentence: str) -> Iterator[str]:
    """Split a sentence after a punctuation mark, or else between words, or else anywhere."""
    while len(sentence) > LONGEST:
        head = sentence[: LONGEST + 1]
        cut = max(head.rfind(mark) for mark in _CLAUSE_MARKS) + 1
        if cut <= LONGEST // 2:
            cut = head.rfind(" ")
        if cut <= 0:
            cut = LONGEST
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    yield sentence
