from __future__ import annotations

import pytest

from appliance.runners.kokoro import phonemes


def test_phonemes_outside_of_the_vocabulary_are_left_out() -> None:
    sentences = [list("lə- sˈɔ̃?"), ["c", "\N{COMBINING CEDILLA}", "a"], ["-"], [".", " "], []]
    assert phonemes.known(sentences, set("ləsˈɔ\N{COMBINING TILDE}ça ?.")) == ["lə sˈɔ̃?", "ça"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait... Paris", "Wait, Paris"),
        ("Wait… Paris", "Wait, Paris"),
        ("Wait...", "Wait..."),
        ("1..2", "1..2"),
        ("One. Two.", "One. Two."),
    ],
)
def test_an_ellipsis_between_words_is_a_comma(text: str, expected: str) -> None:
    assert phonemes.speakable(text) == expected


def test_short_sentences_are_joined() -> None:
    assert phonemes.parts([]) == []
    assert phonemes.parts(["a" * 99, "b" * 100, "c"]) == ["a" * 99 + " " + "b" * 100, "c"]
    assert phonemes.parts(["a" * 100, "b" * 100]) == ["a" * 100, "b" * 100]
    assert phonemes.parts(["a" * 300, "b"]) == ["a" * 300, "b"]


def test_long_sentences_are_split_after_a_mark_or_between_words() -> None:
    words = "abcdefghi " * 60
    clause = f"{words[:299]}, {words}".strip()
    assert phonemes.parts([clause])[0] == f"{words[:299]},"
    pieces = phonemes.parts([words.strip()])
    assert " ".join(pieces) == words.strip()
    assert [len(piece) for piece in pieces] == [399, 199]
    assert [len(piece) for piece in phonemes.parts(["a" * 1000])] == [400, 400, 200]
    early = "ab, " + "c" * 500
    assert [len(piece) for piece in phonemes.parts([early])] == [3, 400, 100]
