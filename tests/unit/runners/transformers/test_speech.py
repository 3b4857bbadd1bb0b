"""CSM: what the weights' config.json determines, and where its speech ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.transformers.options import TransformersOptions
from appliance.runners.transformers.runner import TransformersRunner
from appliance.runners.transformers.speech import until_end

VOICE = {"reference_audio", "reference_text", "max_duration", "temperature", "seed"}


def completed(folder: Path, task: str = "text-to-speech") -> TransformersOptions:
    return TransformersOptions.model_validate({"task": task}).completed(folder)


def inputs(options: TransformersOptions) -> set[str]:
    interface = TransformersRunner.interface(options.model_dump(mode="json"))
    return set(interface.input["properties"])


def test_only_models_that_can_clone_a_voice_have_inputs_for_it(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "csm"}))
    assert inputs(completed(tmp_path)) == {"text", "output_format"} | VOICE
    assert not inputs(completed(tmp_path, "text-to-audio")) & {"reference_audio", "reference_text"}
    config.write_text(json.dumps({"model_type": "vits"}))
    assert inputs(completed(tmp_path)) == {"text", "output_format"}


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "[" * 99_999])
def test_an_unknown_model_has_no_inputs_for_a_voice(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert inputs(completed(tmp_path)) == {"text", "output_format"}


def test_the_memory_estimate_includes_the_codec(tmp_path: Path) -> None:
    weights = WeightSize(stored=4 * GIB, parameters=GIB)
    without = completed(tmp_path).footprint(weights, "cuda")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "csm"}))
    assert completed(tmp_path).footprint(weights, "cuda") == without + 3 * GIB
    assert without == completed(tmp_path, "fill-mask").footprint(weights, "cuda")


def test_the_version_does_not_depend_on_the_type_that_is_found(tmp_path: Path) -> None:
    options = completed(tmp_path)
    assert "model_type" in options.UNVERSIONED
    assert "max_batch" in options.UNVERSIONED


def test_speech_ends_at_the_first_frame_of_end_tokens() -> None:
    frames = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 0, 3], [4, 5, 6]])
    assert until_end(frames, 0).tolist() == [[1, 2, 3], [0, 2, 3]]
    assert until_end(frames[:2], 0).tolist() == frames[:2].tolist()
    assert until_end(frames[2:], 0).tolist() == []
