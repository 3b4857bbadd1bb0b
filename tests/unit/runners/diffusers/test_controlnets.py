from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.config import HubSource
from appliance.runners.adapters import with_downloads
from appliance.runners.diffusers import pipeline
from appliance.runners.diffusers.options import DiffusersModel

CANNY = {"hub": "a/canny", "revision": "main"}
ADAPTER = {
    "weights": {"hub": "a/ip", "revision": "main", "file": "ip.safetensors"},
    "image_encoder": {"path": "/srv/encoder"},
}


def model(**options: Any) -> DiffusersModel:
    return DiffusersModel.model_validate(
        {"name": "a/b", "kind": "diffusers", "source": {"path": "/srv/b"}, "options": options}
    )


def test_components_are_downloaded_like_the_weights() -> None:
    found = list(with_downloads([model(controlnets={"canny": CANNY}, ip_adapter=ADAPTER)]))
    names = [
        "a/b",
        "options.controlnets.canny",
        "options.ip_adapter.weights",
        "options.ip_adapter.image_encoder",
    ]
    assert [each.name for each in found] == [names[0], *(f"a/b, {key}" for key in names[1:])]
    assert found[1].source == HubSource(hub="a/canny", revision="main")
    assert list(with_downloads([model()])) == [model()]


def test_the_version_of_a_model_without_components_stays_the_same() -> None:
    assert not {"controlnets", "ip_adapter"} & model().options.model_dump().keys()


def test_components_cannot_be_offloaded() -> None:
    for options in ({"controlnets": {"canny": CANNY}}, {"ip_adapter": ADAPTER}):
        ((key, message),) = model(offload="model", **options).conflicts()
        assert key == "options.offload"
        assert "set offload to none" in message
    assert list(model(offload="model").conflicts()) == []


@pytest.mark.parametrize("name", ["", "Canny", "canny-edges", "_canny", "c" * 41])
def test_names_of_controlnets_are_parts_of_names_of_inputs(name: str) -> None:
    with pytest.raises(ValidationError, match="controlnets"):
        model(controlnets={name: CANNY})


def test_classes_with_controlnets(tmp_path: Path) -> None:
    found = pipeline.controlnet_pipelines("StableDiffusionXLPipeline")
    assert found is not None
    assert found.controlnet == "ControlNetModel"
    assert found.call.name == "StableDiffusionXLControlNetPipeline"
    assert found.with_image is not None
    assert "control_image" in found.with_image.arguments
    assert found.with_mask is not None
    assert {"control_image", "mask_image"} <= found.with_mask.arguments.keys()
    for name in pipeline._CONTROLNETS:
        assert (
            pipeline.controlnet_pipelines(pipeline._tables()["AUTO_TEXT2IMAGE_PIPELINES_MAPPING"][name])
            is not None
        )
    assert pipeline.controlnet_pipelines("Flux2Pipeline") is None
