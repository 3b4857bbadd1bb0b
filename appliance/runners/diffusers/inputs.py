"""Inputs of image, video and audio models, derived from the pipeline's arguments, and the size of outputs.

Inputs have the names of those of image models on Replicate, if there are any; otherwise diffusers' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from appliance.domain.errors import PredictionFailed
from appliance.domain.interface import Interface
from appliance.runners import audio
from appliance.runners.diffusers.pipeline import (
    FRAME_CONDITIONS,
    MULTI_IMAGE_ARGUMENTS,
    Argument,
    ControlNetPipelines,
    Pipeline,
    PipelineCall,
)
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.schemas import boolean, choice, integer, number, string

#: Aspect ratio -> width and height at 1024 x 1024 pixels, as in FLUX models.
RATIOS: Final = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
_RATIO_SIDE: Final = 1024
CUSTOM: Final = "custom"
#: Maximum number of images in the input ``image_input``.
MOST_IMAGES: Final = 10
#: Values of the input ``mask_repaints``.
WHITE: Final = "white"
TRANSPARENT: Final = "transparent"
OWN_SCHEDULER: Final = "default"
#: Replicate's name of a scheduler -> diffusers' class, and settings that replace those of the weights.
SCHEDULERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DPMSolverMultistep": ("DPMSolverMultistepScheduler", {}),
    "HeunDiscrete": ("HeunDiscreteScheduler", {}),
    "KarrasDPM": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "K_EULER_ANCESTRAL": ("EulerAncestralDiscreteScheduler", {}),
    "K_EULER": ("EulerDiscreteScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPCMultistep": ("UniPCMultistepScheduler", {}),
}
#: Name of an input of other image models -> its name here.
_ALIASES: Final = {
    "guidance": "guidance_scale",
    "images": "image_input",
    "input_image": "image",
    "input_images": "image_input",
    "mask_image": "mask",
    "num_images": "num_outputs",
    "steps": "num_inference_steps",
    "strength": "prompt_strength",
    "frame_rate": "fps",
    "frames_per_second": "fps",
    "seconds_total": "duration",
    "cfg_scale": "guidance_scale",
}
#: Longest audio that a prediction may request, in seconds; most models have a lower limit of their own.
_MAX_SECONDS: Final = 600
_FRAMES_PER_SECOND: Final = 16
#: Number of frames of pipelines whose argument has no default.
_FRAMES: Final = {"LTX2Pipeline": 121, "LTX2ConditionPipeline": 121}
_LARGEST_SEED: Final = 2**53 - 1  # JSON readers in other languages round larger integers
#: Arguments that are no inputs of their own: other inputs set them, or they make no sense in an API.
_NO_INPUTS: Final = frozenset(
    {
        *("prompt", "negative_prompt", "image", "mask_image", "width", "height", "strength", "generator"),
        *("num_inference_steps", "guidance_scale", "num_images_per_prompt", "num_videos_per_prompt"),
        *("num_frames", "frame_rate", "fps", "output_type", "return_dict", "callback_steps"),
        *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3", "padding_mask_crop"),
        "last_image",
        "video",  # a list of frames
        "ip_adapter_image",  # an input only of models with an IP-Adapter
        "num_waveforms_per_prompt",
    }
)


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


def interface(options: Mapping[str, Any]) -> Interface:
    pipeline = msgspec.convert(options["pipeline"], Pipeline)
    arguments = pipeline.call.arguments
    inputs: dict[str, dict[str, Any]] = {
        **_prompts(pipeline),
        **_images(pipeline),
        **_sizes(pipeline, options),
        **_amount(pipeline, options),
        **_steps(pipeline, options),
        **_other_arguments(pipeline.call),
        **_controls(options),
        **_format(pipeline.output),
    }
    if pipeline.safety_checker:
        inputs["disable_safety_checker"] = boolean(
            "Also return images that the safety checker flags", default=False
        )
    # The argument `image` has the default None even in classes that need an image.
    image_needed = "image" in arguments and pipeline.with_image is None
    aliases = {**_ALIASES, **_control_aliases(options)}
    required = ["prompt"] if "prompt" in arguments else []
    if image_needed and (not required or arguments["image"].required):
        required.append("image")
    return interface_of(
        inputs,
        {"type": "array", "items": FILE} if pipeline.output == "images" else FILE,
        required=tuple(required),
        aliases={alias: name for alias, name in aliases.items() if name in inputs and alias not in inputs},
    )


def _prompts(pipeline: Pipeline) -> dict[str, Any]:
    inputs = {
        "prompt": string("Description of the output"),
        "negative_prompt": string("Description of what to avoid", default=""),
    }
    if pipeline.output == "audio":
        inputs |= {
            "lyrics": string("Text to sing", default=""),
            "vocal_language": string("Language of the lyrics, as a code", default="en"),
            "transcription": string("Text to speak, for models that speak"),
        }
    return {name: schema for name, schema in inputs.items() if name in pipeline.call.arguments}


def _images(pipeline: Pipeline) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if pipeline.call.name in MULTI_IMAGE_ARGUMENTS:
        inputs["image"] = {**FILE, "description": "Image to edit; comes before those of image_input"}
        inputs["image_input"] = {
            "type": "array",
            "items": FILE,
            "description": f"Images to edit or combine, at most {MOST_IMAGES}, in the order in which the "
            "prompt refers to them",
        }
    elif "image" in pipeline.call.arguments or pipeline.with_image is not None:
        inputs["image"] = {**FILE, "description": "Image to start from"}
    if pipeline.with_mask is not None or "mask_image" in pipeline.call.arguments:
        inputs["mask"] = {**FILE, "description": "Mask of the image: white is repainted, black is kept"}
        inputs["mask_repaints"] = choice(
            f"Part of the mask that is repainted: {WHITE} pixels, or {TRANSPARENT} pixels as in OpenAI's API",
            [WHITE, TRANSPARENT],
            default=WHITE,
        )
    calls = [
        call
        for call in (pipeline.call, pipeline.with_image, pipeline.with_mask)
        if call is not None and call.name not in FRAME_CONDITIONS
    ]
    if has_last_image(pipeline):
        inputs["last_image"] = {**FILE, "description": "Image to end with; needs image"}
    if any("strength" in call.arguments for call in calls):
        inputs["prompt_strength"] = number(
            "Strength of the change to the image; 1 keeps nothing of it", default=0.8, ge=0, le=1
        )
    return inputs


def _sizes(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    if not {"width", "height"} <= pipeline.call.arguments.keys():
        return {}
    width, height = default_size(pipeline, options)
    smallest, largest = pipeline.multiple, options["max_side"]
    source = "from the image, or " if pipeline.output == "images" and pipeline.with_image else ""
    return {
        "aspect_ratio": choice(
            f"Aspect ratio of the output; {CUSTOM}: width and height decide",
            [CUSTOM, *RATIOS],
            default=CUSTOM,
        ),
        "width": integer(f"Width in pixels. Default: {source}{width}", ge=smallest, le=largest),
        "height": integer(f"Height in pixels. Default: {source}{height}", ge=smallest, le=largest),
        "size": string(
            "Width and height in pixels, such as 1024x1024; overrides the other inputs",
            pattern=r"^\d{1,5}x\d{1,5}$",
        ),
        "megapixels": choice(
            "0.25 halves both sides, unless size, width or height is given", ["1", "0.25"], default="1"
        ),
    }


def _amount(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs for the number of images, or for the length of a video or of audio."""
    match pipeline.output:
        case "images":
            return _count(options)
        case "video":
            return _video(pipeline)
        case "audio":
            return _seconds(pipeline)


def _seconds(pipeline: Pipeline) -> dict[str, Any]:
    """Return the input for the length of audio. The model itself checks its maximum."""
    assert pipeline.call.duration is not None, "pipelines for audio have a duration"
    usual = pipeline.call.arguments[pipeline.call.duration].default
    ending = "" if usual is not None else ". Default: the model's own"
    return {
        "duration": number(f"Length of the output in seconds{ending}", default=usual, ge=0.1, le=_MAX_SECONDS)
    }


def _count(options: Mapping[str, Any]) -> dict[str, Any]:
    most = options["max_outputs"]
    return {"num_outputs": integer("Number of images; each has the next seed", default=1, ge=1, le=most)}


def _video(pipeline: Pipeline) -> dict[str, Any]:
    arguments = pipeline.call.arguments
    usual = _FRAMES.get(pipeline.call.name, _FRAMES_PER_SECOND)
    frames = arguments["num_frames"].default or usual
    rate = arguments.get("frame_rate") or arguments.get("fps") or Argument()
    fps = int(rate.default or _FRAMES_PER_SECOND)
    return {
        "num_frames": integer("Number of frames", default=frames, ge=1, le=1000),
        "fps": integer("Frames per second", default=fps, ge=1, le=120),
    }


def _steps(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = pipeline.call.arguments
    inputs: dict[str, Any] = {}
    if "num_inference_steps" in arguments:
        usual = arguments["num_inference_steps"].default
        if usual is None and pipeline.output != "audio":
            usual = 50
        inputs["num_inference_steps"] = integer(
            "Denoising steps: more steps take longer and show more detail"
            + ("" if usual is not None else ". Default: the model's own"),
            default=options["num_inference_steps"] or usual,
            ge=1,
            le=500,
        )
    if "guidance_scale" in arguments:
        scale = options["guidance_scale"]
        if scale is None:
            scale = arguments["guidance_scale"].default or 0.0
        inputs["guidance_scale"] = number(
            "How closely the output follows the prompt", default=scale, ge=0, le=50
        )
    if pipeline.exchangeable:
        description = f"Scheduler of the denoising; {OWN_SCHEDULER}: the model's own"
        inputs["scheduler"] = choice(description, [OWN_SCHEDULER, *SCHEDULERS], default=OWN_SCHEDULER)
    inputs["seed"] = integer("Equal seeds give equal outputs. Default: random", ge=0, le=_LARGEST_SEED)
    return inputs


def _other_arguments(call: PipelineCall) -> dict[str, Any]:
    """Return schemas for further arguments that are images, numbers, texts or booleans."""
    inputs: dict[str, Any] = {}
    for name, argument in call.arguments.items():
        if argument.type is None or name in {
            *_NO_INPUTS,
            call.duration,
            MULTI_IMAGE_ARGUMENTS.get(call.name),
        }:
            continue
        described = f"{name} of diffusers' {call.name}"
        if argument.type == "image":
            inputs[name] = {**FILE, "description": f"Image: {described}"}
        else:
            default = {} if argument.default is None else {"default": argument.default}
            inputs[name] = {"type": argument.type, **default, "description": described}
    return inputs


def _controls(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of the ControlNets and of the IP-Adapter."""
    inputs: dict[str, Any] = {}
    for name in options.get("controlnets", {}):
        control = control_inputs(name)
        described = f"the ControlNet {name}"
        inputs[control.image] = {**FILE, "description": f"Control image; without it, {described} is not used"}
        inputs[control.scale] = number(f"Conditioning scale of {described}", default=1.0, ge=0, le=4)
        inputs[control.start] = number(
            f"Fraction of the steps at which {described} starts", default=0.0, ge=0, le=1
        )
        inputs[control.end] = number(
            f"Fraction of the steps at which {described} stops", default=1.0, ge=0, le=1
        )
    if options.get("ip_adapter"):
        inputs["ip_adapter_image"] = {**FILE, "description": "Image that acts like a part of the prompt"}
        inputs["ip_adapter_scale"] = number("Scale of the IP-Adapter", default=1.0, ge=0, le=4)
    return inputs


class ControlInputs(NamedTuple):
    """Names of the inputs of one ControlNet."""

    image: str
    scale: str
    start: str
    end: str


def control_inputs(name: str) -> ControlInputs:
    suffixes = ("image", "conditioning_scale", "start", "end")
    return ControlInputs(*(f"controlnet_{name}_{suffix}" for suffix in suffixes))


def _control_aliases(options: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers' names of the inputs of the only ControlNet; empty if there are several."""
    names = list(options.get("controlnets", {}))
    if len(names) != 1:
        return {}
    guidance = ("control_guidance_start", "control_guidance_end")
    aliases = ("control_image", "controlnet_conditioning_scale", *guidance)
    return dict(zip(aliases, control_inputs(names[0]), strict=True))


def _format(output: str) -> dict[str, Any]:
    described = "Format of the files"
    if output == "audio":
        return {"output_format": choice("Format of the file", audio.WITH_HEADER, default="wav")}
    if output == "video":
        return {"output_format": choice(described, ["mp4", "gif"], default="mp4")}
    quality = "Quality of webp and jpg files; png files are lossless"
    return {
        "output_format": choice(described, ["webp", "jpg", "png"], default="webp"),
        "output_quality": integer(quality, default=80, ge=0, le=100),
    }


def has_last_image(pipeline: Pipeline) -> bool:
    """Return whether the pipeline can end a video with an image."""
    calls = [call for call in (pipeline.call, pipeline.with_image) if call is not None]
    return any(call.name in FRAME_CONDITIONS or "last_image" in call.arguments for call in calls)


def other_images(call: PipelineCall) -> list[str]:
    """Return the names of image inputs besides ``image`` and ``mask``, such as control images."""
    return [name for name, schema in _other_arguments(call).items() if schema.get("format") == "uri"]


def call_for(
    pipeline: Pipeline, *, image: bool, mask: bool, controlnet_pipelines: ControlNetPipelines | None = None
) -> PipelineCall:
    """Return the pipeline class for a prediction; ``image`` and ``mask``: whether its input has them.

    ``controlnet_pipelines`` are those of the model, if the input has control images.

    Raises:
        PredictionFailed: the input has a mask but no image, or an image that the ControlNets do not support.
    """
    if pipeline.call.name in MULTI_IMAGE_ARGUMENTS:
        return pipeline.call
    if mask and not image:
        raise PredictionFailed("input.mask: a mask needs an image; set input.image too")
    if controlnet_pipelines is not None:
        call = (
            controlnet_pipelines.with_mask
            if mask
            else controlnet_pipelines.with_image
            if image
            else controlnet_pipelines.call
        )
        if call is None:
            name = "mask" if mask else "image"
            raise PredictionFailed(
                f"input.{name}: {pipeline.call.name} does not support it together with a ControlNet: remove "
                f"input.{name}, or the control images"
            )
        return call
    if mask and "mask_image" not in pipeline.call.arguments:
        assert pipeline.with_mask is not None, "otherwise the interface has no mask"
        return pipeline.with_mask
    if image and "image" not in pipeline.call.arguments:
        assert pipeline.with_image is not None, "otherwise the interface has no image"
        return pipeline.with_image
    return pipeline.call


def default_size(pipeline: Pipeline, options: Mapping[str, Any]) -> Size:
    return Size(options["width"] or pipeline.width, options["height"] or pipeline.height)


def size(
    input: Mapping[str, Any], pipeline: Pipeline, options: Mapping[str, Any], image: Size | None
) -> Size:
    """Return the size of the output. ``image`` is the size of the input image, if there is one.

    Both sides are multiples of ``pipeline.multiple`` and at most the option ``max_side``.

    Raises:
        PredictionFailed: a side in ``input["size"]`` is too small or too large.
    """
    usual = default_size(pipeline, options)
    multiple, largest = pipeline.multiple, options["max_side"]
    scale = 0.5 if input.get("megapixels") == "0.25" else 1.0
    if input.get("size"):
        width, height = map(int, input["size"].split("x"))
        if not multiple <= min(width, height) <= max(width, height) <= largest:
            raise PredictionFailed(f"input.size: both sides must be from {multiple} to {largest} pixels")
    elif input.get("width") or input.get("height"):
        width, height = input.get("width") or usual.width, input.get("height") or usual.height
    elif input.get("aspect_ratio", CUSTOM) != CUSTOM:
        scale *= (usual.width * usual.height) ** 0.5 / _RATIO_SIDE
        across, down = RATIOS[input["aspect_ratio"]]
        return _fitted(across * scale, down * scale, multiple, largest)
    elif image is not None:
        # Large photos are scaled down to as many pixels as the model was trained on.
        scale *= min(1.0, (usual.width * usual.height / (image.width * image.height)) ** 0.5)
        width, height = round(image.width * scale), round(image.height * scale)
    else:
        width, height = round(usual.width * scale), round(usual.height * scale)
    return _fitted(width, height, multiple, largest, down=True)


def _fitted(width: float, height: float, multiple: int, largest: int, *, down: bool = False) -> Size:
    """Round both sides to the nearest multiple, or ``down``, from ``multiple`` to ``largest`` pixels."""
    most = max(multiple, largest // multiple * multiple)
    sides = (int(side // multiple if down else round(side / multiple)) * multiple for side in (width, height))
    return Size(*(min(max(side, multiple), most) for side in sides))
