from __future__ import annotations

from pathlib import Path

import pytest

from appliance import weights
from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput
from appliance.runners.kokoro import files
from appliance.runners.kokoro.files import VoiceFile
from appliance.runners.kokoro.options import KokoroModel
from appliance.runners.kokoro.runner import KokoroRunner
from tests.support.tiny_kokoro import VOCABULARY, write_hub_folder, write_release_folder


def test_files_of_the_hub_repository(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path)
    (folder / "onnx" / "model_fp16.onnx").touch()
    assert files.model_file(folder) == folder / "onnx" / "model.onnx"
    assert files.vocabulary(folder) == VOCABULARY
    assert files.voice_names(folder) == ("af_alloy", "af_bella", "bm_george"), "Japanese is not supported"


def test_files_of_the_release_of_kokoro_onnx(tmp_path: Path) -> None:
    folder = write_release_folder(tmp_path)
    assert files.model_file(folder) == folder / "kokoro-v1.0.onnx"
    assert files.vocabulary(folder) == VOCABULARY
    assert files.voice_files(folder)["bm_george"] == VoiceFile(folder / "voices-v1.0.bin", "bm_george")


def test_errors_name_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        files.model_file(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no \.onnx file"):
        files.model_file(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"several \.onnx files \(a\.onnx, b\.onnx\)"):
        files.model_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no vocabulary; add tokenizer\.json"):
        files.vocabulary(tmp_path)
    assert files.voice_names(tmp_path / "none") == ()


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", '{"vocab": []}', '{"model": 1}', '{"vocab": {"a": "b"}}']
)
def test_a_damaged_vocabulary_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="vocabulary"):
        files.vocabulary(tmp_path)


def test_the_interface_lists_the_voices_of_the_weights(tmp_path: Path) -> None:
    folder = write_hub_folder(tmp_path)
    model = {
        "name": "test/kokoro", "kind": "kokoro", "source": {"path": str(folder)},
        "options": {"voices": {"alloy": "af_alloy"}},
    }  # fmt: skip
    found = weights.complete_options(tmp_path, KokoroModel.model_validate(model, context={"folder": folder}))
    interface = KokoroRunner.interface(found.options.model_dump(mode="json"))
    assert interface.components["voice"]["enum"] == ["af_alloy", "af_bella", "bm_george", "alloy"]
    given = input_schema.validate(interface, {"text": "Hi"})
    assert (given["voice"], given["speed"], given["output_format"]) == ("af_bella", 1.0, "wav")
    with pytest.raises(InvalidInput, match="voice must be one of the following"):
        input_schema.validate(interface, {"text": "Hi", "voice": "jf_alpha"})


def test_any_voice_name_is_valid_before_the_weights_are_downloaded() -> None:
    interface = KokoroRunner.interface({"voices": {}, "found": []})
    assert input_schema.validate(interface, {"text": "Hi", "voice": "a"})["voice"] == "a"
    assert "voice" not in input_schema.validate(interface, {"text": "Hi"})
    with pytest.raises(InvalidInput, match=r"input\.text: String length"):
        input_schema.validate(interface, {"text": ""})


def test_the_default_voice() -> None:
    assert files.default_voice(("af_alloy", "af_bella")) == "af_bella"
    assert files.default_voice(("bf_emma", "bm_george")) == "bf_emma"
