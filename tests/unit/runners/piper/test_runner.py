"""The parts of the Piper runner that need no voice; tests/integration/test_speech.py runs a real voice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance import weights
from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput, PredictionFailed
from appliance.runners.piper import voices
from appliance.runners.piper.options import PiperModel
from appliance.runners.piper.runner import PiperRunner, _pieces, _speaker


def voice_with(speakers: int, **names: int) -> Any:
    return SimpleNamespace(config=SimpleNamespace(num_speakers=speakers, speaker_id_map=names))


def test_a_speaker_is_chosen_by_name_or_number() -> None:
    voice = voice_with(3, anna=0, ben=2)
    assert [_speaker(voice, requested) for requested in (None, "ben", "1")] == [None, 2, 1]
    for requested in ("3", "carl", "-1", ""):
        with pytest.raises(PredictionFailed, match=r"^input\.speaker: there is no speaker .* anna, ben$"):
            _speaker(voice, requested)
    with pytest.raises(PredictionFailed, match="this voice has only one speaker"):
        _speaker(voice_with(1), "0")


def test_long_sentences_are_split_between_words() -> None:
    short, word = list("hello"), [*"abcdefghi", " "]
    assert _pieces([short, [" "], []]) == [short]
    pieces = _pieces([word * 100])
    assert [phoneme for piece in pieces for phoneme in piece] == word * 100
    assert all(len(piece) <= 400 for piece in pieces)
    assert all(piece[0] == " " for piece in pieces[1:]), "no word is broken"
    assert [len(piece) for piece in _pieces([["a"] * 1000])] == [400, 400, 200]


def test_the_interface_lists_the_voices_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.onnx", "b.onnx.json", "deep/a.onnx", "card.txt"):
        (tmp_path / name).touch()
    model = {
        "name": "test/voices", "kind": "piper", "source": {"path": str(tmp_path)},
        "options": {"voices": {"alloy": "a"}},
    }  # fmt: skip
    given = PiperModel.model_validate(model, context={"folder": tmp_path})
    found = weights.complete_options(tmp_path, given)
    interface = PiperRunner.interface(found.options.model_dump(mode="json"))
    assert interface.components["voice"]["enum"] == ["a", "b", "alloy"]
    assert input_schema.validate(interface, {"text": "Hi"})["voice"] == "a"
    with pytest.raises(InvalidInput, match='voice must be one of the following: "a", "b", "alloy"'):
        input_schema.validate(interface, {"text": "Hi", "voice": "nobody"})


def test_any_voice_name_is_valid_before_the_weights_are_downloaded() -> None:
    interface = PiperRunner.interface({"voices": {}, "found": []})
    assert input_schema.validate(interface, {"text": "Hi", "voice": "a"})["voice"] == "a"
    assert "voice" not in input_schema.validate(interface, {"text": "Hi"})


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"input\.text: String length"):
        input_schema.validate(PiperRunner.interface({"voices": {}}), {"text": ""})


def test_a_file_of_weights_is_one_voice(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    assert voices.found(tmp_path / "a.onnx") == ("a",)
    assert voices.found(tmp_path / "none") == ()
