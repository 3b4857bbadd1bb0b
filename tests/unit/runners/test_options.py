"""The paths in the options of a model, which are copied to the node that loads the model."""

from __future__ import annotations

from pathlib import Path

from appliance.runners.diffusers.options import DescribedDiffusersOptions
from appliance.runners.vllm.options import VllmOptions
from appliance.runners.whisper.options import WhisperOptions


def test_only_options_that_are_declared_as_paths_count() -> None:
    assert WhisperOptions(speaker_encoder=Path("/models/ecapa.onnx")).paths() == [Path("/models/ecapa.onnx")]
    assert VllmOptions.model_construct(chat_template="/tmp").paths() == []


def test_the_extra_weights_of_diffusers_count() -> None:
    options = DescribedDiffusersOptions.model_construct(
        loras={"style": Path("/models/style.safetensors")},
        pipeline={"call": {"name": "x", "file": "/tmp"}},
        extra_weight_paths={"options.ip_adapter": "/home/weights/ip"},
    )
    assert options.paths() == [Path("/models/style.safetensors"), Path("/home/weights/ip")]
