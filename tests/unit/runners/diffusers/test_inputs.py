from __future__ import annotations

from typing import Any

import msgspec
import pytest

from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput, PredictionFailed
from appliance.domain.interface import Interface
from appliance.runners.diffusers import inputs, pipeline
from appliance.runners.diffusers.inputs import Size
from appliance.runners.diffusers.options import DiffusersOptions
from appliance.runners.diffusers.pipeline import Argument, Pipeline, PipelineCall

PROMPTS = {"prompt": Argument(), "negative_prompt": Argument(), "width": Argument(), "height": Argument()}
STEPS = {"num_inference_steps": Argument("integer", 50), "guidance_scale": Argument("number", 7.5)}
FROM_TEXT = PipelineCall(
    "FromText", {**PROMPTS, **STEPS, "eta": Argument("number", 0.0), "latents": Argument()}
)
FROM_IMAGE = PipelineCall(
    "FromImage", {**FROM_TEXT.arguments, "image": Argument(), "strength": Argument("number", 0.8)}
)
INPAINT = PipelineCall("Inpaint", {**FROM_IMAGE.arguments, "mask_image": Argument()})
LARGE = Pipeline(
    call=FROM_TEXT, with_image=FROM_IMAGE, with_mask=INPAINT, output="images", width=1024, height=1024,
    multiple=16, exchangeable=True, safety_checker=True,
)  # fmt: skip
VIDEO = Pipeline(
    call=PipelineCall(
        "Video", PROMPTS | {"num_frames": Argument("integer", 81), "frame_rate": Argument(default=25)}
    ),
    output="video", width=704, height=480, multiple=32,
)  # fmt: skip

SOUND = Pipeline(
    call=PipelineCall(
        "Sound",
        {
            **STEPS, "prompt": Argument(), "lyrics": Argument(), "shift": Argument("number", 3.0),
            "audio_length_in_s": Argument("number"), "num_waveforms_per_prompt": Argument("integer", 1),
        },
    ),
    output="audio", width=8, height=8, multiple=8,
)  # fmt: skip


def options(pipeline: Pipeline, **more: Any) -> dict[str, Any]:
    described = {"pipeline": msgspec.to_builtins(pipeline)}
    return DiffusersOptions.model_validate(more).model_dump(mode="json") | described


def interface(pipeline: Pipeline, **more: Any) -> Interface:
    return inputs.interface(options(pipeline, **more))


def size(image: Size | None = None, pipeline: Pipeline = LARGE, **given: Any) -> tuple[int, int]:
    return inputs.size(given, pipeline, options(pipeline), image)


def test_the_inputs_follow_from_the_arguments_of_the_pipeline() -> None:
    found = interface(LARGE)
    properties = found.input["properties"]
    assert min(properties, key=lambda name: properties[name]["x-order"]) == "prompt"
    assert found.input["required"] == ["prompt"]
    assert {
        "image",
        "mask",
        "prompt_strength",
        "scheduler",
        "eta",
        "disable_safety_checker",
    } <= properties.keys()
    assert not {"latents", "strength", "mask_image", "lora", "num_frames"} & properties.keys()
    assert properties["num_inference_steps"]["default"] == 50
    assert found.file_inputs == ["image", "mask"]
    assert found.output["items"]["format"] == "uri"
    for name, declared in properties.items():
        for reference in declared.get("allOf", ()):
            assert reference["$ref"] == f"#/components/schemas/{name}"
            assert declared["default"] in found.components[name]["enum"]


def test_pipelines_that_combine_images_take_a_list() -> None:
    for name, argument in pipeline.MULTI_IMAGE_ARGUMENTS.items():
        call = pipeline._call(name)
        assert argument in call.arguments, name
        found = interface(Pipeline(call=call, output="images", width=512, height=512, multiple=16))
        assert found.file_inputs[:2] == ["image", "image_input"], name
        assert found.input["properties"]["image_input"]["type"] == "array"
        assert {found.aliases[alias] for alias in ("images", "input_images")} == {"image_input"}
        assert found.aliases["input_image"] == "image"
    assert "image_input" not in interface(LARGE).input["properties"]


def test_each_controlnet_has_inputs() -> None:
    sources = {name: {"hub": "a/b", "revision": "main"} for name in ("canny", "depth_2")}
    found = interface(LARGE, controlnets=sources)
    assert found.file_inputs == ["image", "mask", "controlnet_canny_image", "controlnet_depth_2_image"]
    scale = found.input["properties"]["controlnet_depth_2_conditioning_scale"]
    assert (scale["default"], scale["minimum"]) == (1.0, 0)
    assert "control_image" not in found.aliases, "there are two"
    only = interface(LARGE, controlnets={"canny": sources["canny"]})
    assert only.aliases["control_image"] == "controlnet_canny_image"
    assert only.aliases["control_guidance_start"] == "controlnet_canny_start"


def test_an_ip_adapter_has_inputs() -> None:
    source = {"path": "/weights"}
    found = interface(LARGE, ip_adapter={"weights": source, "image_encoder": source})
    assert "ip_adapter_image" in found.file_inputs
    assert found.input["properties"]["ip_adapter_scale"]["default"] == 1.0
    assert "ip_adapter_image" not in interface(LARGE).input["properties"]


def test_a_video_may_begin_and_end_with_an_image() -> None:
    def video(name: str) -> Interface:
        related = pipeline._ALSO_WITH_IMAGE.get(name)
        described = Pipeline(
            call=pipeline._call(name), with_image=None if related is None else pipeline._call(related),
            output="video", width=64, height=64, multiple=32,
        )  # fmt: skip
        return interface(described)

    wan, ltx_2 = video("WanImageToVideoPipeline"), video("LTX2Pipeline")
    assert wan.input["required"] == ["prompt", "image"]
    assert ltx_2.input["required"] == ["prompt"]
    for found in (wan, ltx_2, video("LTXConditionPipeline")):
        assert found.file_inputs == ["image", "last_image"]
        assert "prompt_strength" not in found.input["properties"]
    assert ltx_2.input["properties"]["num_frames"]["default"] == 121
    assert "last_image" not in video("LTXPipeline").input["properties"]


def test_control_images_are_file_inputs() -> None:
    images = {"control_image": Argument("image"), "ip_adapter_image": Argument("image")}
    controlled = PipelineCall("Controlled", FROM_TEXT.arguments | images)
    found = interface(msgspec.structs.replace(LARGE, call=controlled))
    assert found.file_inputs == ["image", "mask", "control_image"]
    assert inputs.other_images(controlled) == ["control_image"]


def test_an_argument_that_a_pipeline_lacks_is_no_input() -> None:
    plain = msgspec.structs.replace(
        LARGE, with_image=None, with_mask=None, exchangeable=False, safety_checker=False
    )
    absent = {"image", "mask", "prompt_strength", "scheduler", "disable_safety_checker"}
    assert not absent & interface(plain).input["properties"].keys()
    without_prompt = msgspec.structs.replace(plain, call=PipelineCall("Dreams", STEPS))
    found = interface(without_prompt)
    assert "required" not in found.input
    assert not {"prompt", "width", "aspect_ratio"} & found.input["properties"].keys()


def test_options_are_the_defaults_of_inputs() -> None:
    found = interface(LARGE, num_inference_steps=4, guidance_scale=0, max_outputs=2)
    filled = input_schema.validate(found, {"prompt": "x"})
    assert (filled["num_inference_steps"], filled["guidance_scale"], filled["num_outputs"]) == (4, 0, 1)
    with pytest.raises(InvalidInput, match="less than or equal to 2"):
        input_schema.validate(found, {"prompt": "x", "num_outputs": 3})


def test_the_aliases_of_inputs() -> None:
    given = {"prompt": "x", "guidance": 3, "input_image": "https://a.example/b.png", "strength": 0.5}
    filled = input_schema.validate(interface(LARGE), given)
    assert (filled["guidance_scale"], filled["image"], filled["prompt_strength"]) == (
        3,
        given["input_image"],
        0.5,
    )


def test_a_video_is_one_file() -> None:
    found = interface(VIDEO)
    assert (found.output["type"], found.output["format"]) == ("string", "uri")
    filled = input_schema.validate(found, {"prompt": "x", "frame_rate": 30})
    assert (filled["num_frames"], filled["fps"], filled["output_format"]) == (81, 30, "mp4")
    assert "num_outputs" not in filled


def test_audio_is_one_file_of_a_length() -> None:
    found = interface(SOUND)
    assert (found.output["type"], found.output["format"]) == ("string", "uri")
    filled = input_schema.validate(found, {"prompt": "x", "seconds_total": 20, "cfg_scale": 3})
    assert filled == {
        "prompt": "x", "lyrics": "", "duration": 20, "num_inference_steps": 50, "guidance_scale": 3,
        "shift": 3.0, "output_format": "wav",
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="less than or equal to 600"):
        input_schema.validate(found, {"prompt": "x", "duration": 601})
    steps = {"num_inference_steps": Argument("integer"), "duration": Argument("number", 10.0)}
    usual = interface(msgspec.structs.replace(SOUND, call=PipelineCall("Sound", steps)))
    assert input_schema.validate(usual, {}) == {"duration": 10.0, "output_format": "wav"}


@pytest.mark.parametrize("ratio", inputs.RATIOS)
def test_l7_sizes_of_aspect_ratios(ratio: str) -> None:
    width, height = inputs.RATIOS[ratio]
    assert size(aspect_ratio=ratio) == (width, height)
    half = size(aspect_ratio=ratio, megapixels="0.25")
    assert all(abs(side - whole / 2) <= 8 for side, whole in zip(half, (width, height), strict=True))
    small = msgspec.structs.replace(LARGE, width=64, height=64, multiple=8)
    assert size(pipeline=small, aspect_ratio=ratio) == tuple(
        round(side / 128) * 8 for side in (width, height)
    )


def test_sizes() -> None:
    photo = Size(4000, 3000)
    assert size() == (1024, 1024)
    assert size(width=1000, height=520) == (992, 512)  # multiples of 16
    assert size(width=512) == (512, 1024)
    assert size(size="640x320", width=512, aspect_ratio="1:1") == (640, 320)
    assert size(width=512, height=768, aspect_ratio="16:9") == (512, 768)
    assert size(image=photo) == (1168, 880)  # its shape, with as many pixels as the model was made for
    assert size(image=Size(200, 100)) == (192, 96)
    assert size(image=photo, aspect_ratio="1:1") == (1024, 1024)
    with pytest.raises(PredictionFailed, match="from 16 to 2048"):
        size(size="4096x100")


def test_the_image_and_the_mask_decide_the_pipeline_class() -> None:
    def name(*, image: bool, mask: bool) -> str:
        return inputs.call_for(LARGE, image=image, mask=mask).name

    assert name(image=False, mask=False) == "FromText"
    assert name(image=True, mask=False) == "FromImage"
    assert name(image=True, mask=True) == "Inpaint"
    with pytest.raises(PredictionFailed, match="a mask needs an image"):
        name(image=False, mask=True)
    both = msgspec.structs.replace(LARGE, call=INPAINT, with_image=None, with_mask=None)
    assert inputs.call_for(both, image=True, mask=True).name == "Inpaint"
