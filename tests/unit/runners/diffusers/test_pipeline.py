from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import config as configuration
from appliance.domain.errors import WeightsError
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.gateway.catalogue.servable import servable
from appliance.runners.diffusers import pipeline
from appliance.runners.diffusers.options import DescribedDiffusersOptions
from tests.support.engine_bench import HARDWARE


def weights(folder: Path, name: Any, **components: Any) -> Path:
    """Write only the files that describe the pipeline; a component is a class name and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": name, "_diffusers_version": "0.42.1"}
    for part, (kind, config) in components.items():
        index[part] = [None, None] if kind is None else ["diffusers", kind]
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


VAE = ("AutoencoderKL", {"block_out_channels": [8, 16, 32, 64]})
STABLE_DIFFUSION = {
    "vae": VAE,
    "unet": ("UNet2DConditionModel", {"sample_size": 96}),
    "scheduler": ("PNDMScheduler", {}),
    "safety_checker": ("StableDiffusionSafetyChecker", {}),
}


def test_stable_diffusion(tmp_path: Path) -> None:
    found = pipeline.read(weights(tmp_path, "StableDiffusionPipeline", **STABLE_DIFFUSION))
    assert (found.width, found.height, found.multiple) == (768, 768, 8)
    assert (found.output, found.exchangeable, found.safety_checker) == ("images", True, True)
    assert found.with_image is not None
    assert found.with_mask is not None
    assert (found.with_image.name, found.with_mask.name) == (
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    )
    assert "mask_image" in found.with_mask.arguments
    arguments = found.call.arguments
    assert arguments["guidance_scale"] == pipeline.Argument("number", 7.5)
    assert arguments["clip_skip"] == pipeline.Argument("integer")
    assert arguments["latents"] == pipeline.Argument()


def test_videos_that_begin_and_end_with_an_image(tmp_path: Path) -> None:
    found = pipeline.read(weights(tmp_path / "ltx", "LTX2Pipeline", vae=VAE))
    assert found.output == "video"
    assert found.with_image is not None
    assert found.with_image.name in pipeline.FRAME_CONDITIONS
    wan = pipeline.read(weights(tmp_path / "wan", "WanImageToVideoPipeline", vae=("AutoencoderKLWan", {})))
    assert wan.call.arguments["last_image"].type == "image"
    assert wan.call.arguments["image"].required


def test_flux_and_a_video_pipeline(tmp_path: Path) -> None:
    flux = pipeline.read(
        weights(
            tmp_path / "flux",
            "FluxPipeline",
            vae=VAE,
            transformer=("FluxTransformer2DModel", {}),
            scheduler=("FlowMatchEulerDiscreteScheduler", {}),
            safety_checker=(None, {}),
        )
    )
    assert (flux.width, flux.height, flux.multiple) == (1024, 1024, 16)
    assert (flux.exchangeable, flux.safety_checker) == (False, False)
    video = pipeline.read(
        weights(
            tmp_path / "ltx", "LTXPipeline", transformer=("LTXVideoTransformer3DModel", {"sample_size": None})
        )
    )
    assert (video.output, video.width, video.height, video.multiple) == ("video", 704, 512, 32)
    assert video.with_image is not None
    assert video.with_image.name == "LTXImageToVideoPipeline"
    assert video.with_mask is None


def test_pipelines_for_audio(tmp_path: Path) -> None:
    audio = {"StableAudioPipeline": "audio_end_in_s", "AceStepPipeline": "audio_duration"}
    for name, argument in audio.items():
        transformer = ("Transformer", {"sample_size": 1024})
        found = pipeline.read(weights(tmp_path / name, name, transformer=transformer))
        assert (found.output, found.call.duration) == ("audio", argument)
        options = DescribedDiffusersOptions(pipeline=msgspec.to_builtins(found))
        assert options.footprint(WeightSize(), "cpu") < 4 * GIB, "audio has no pixels"
    assert pipeline.read(weights(tmp_path / "ltx", "LTXPipeline")).call.duration is None


@pytest.mark.parametrize("name", [None, "NoSuchPipeline", ["mine", "Pipeline"]])
def test_a_pipeline_that_diffusers_does_not_have(tmp_path: Path, name: Any) -> None:
    with pytest.raises(WeightsError, match="which diffusers does not have"):
        pipeline.read(weights(tmp_path, name))


def test_folders_without_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="appliance pull"):
        pipeline.read(tmp_path / "gone")
    with pytest.raises(WeightsError, match="must be a folder with this file"):
        pipeline.read(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot be used"):
        pipeline.read(tmp_path)


def test_models_get_their_pipeline_or_are_left_out(tmp_path: Path) -> None:
    weights(tmp_path / "here", "StableDiffusionPipeline", **STABLE_DIFFUSION)
    file = tmp_path / "models.yaml"
    file.write_text(
        "models:\n"
        "  - {name: test/here, kind: diffusers, source: {path: here}}\n"
        "  - {name: test/gone, kind: diffusers, source: {path: gone}}\n"
        "  - {name: test/echo, kind: echo}\n"
    )
    found = servable(configuration.load(file), tmp_path, HARDWARE, 0.0)
    assert [model.name for model in found.config.models] == ["test/here", "test/echo"]
    assert found.left_out.keys() == {"test/gone"}
    options = found.config.models[0].options
    assert isinstance(options, DescribedDiffusersOptions)
    assert options.pipeline["call"]["name"] == "StableDiffusionPipeline"
    assert options.footprint(WeightSize(), "cpu") > 4 * 768 * 768 * 4096
