"""Inputs of image and video models, which follow from the pipeline, and sizes. Pure.

Names are those of the image models on Replicate; what else the pipeline's own
signature takes follows under the names it has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from appliance.domain.errors import PredictionFailed
from appliance.domain.interface import Interface
from appliance.runners.diffusers.pipeline import Argument, Pipeline, PipelineCall
from appliance.runners.interfaces import FILE, interface_of

#: Width and height of each aspect ratio for a model made for 1024 x 1024, as FLUX models have them.
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
NO_LORA: Final = "none"
OWN_SCHEDULER: Final = "default"
#: What schedulers are called on Replicate -> class of diffusers, and its settings beside the weights' own.
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
#: What clients of other image models call an input -> its name here.
_OTHER_NAMES: Final = {
    "guidance": "guidance_scale",
    "input_image": "image",
    "mask_image": "mask",
    "num_images": "num_outputs",
    "steps": "num_inference_steps",
    "strength": "prompt_strength",
    "frame_rate": "fps",
    "frames_per_second": "fps",
}
_FRAMES_PER_SECOND: Final = 16
_LARGEST_SEED: Final = 2**53 - 1  # what every JSON reader takes for the same number
#: Arguments that our own inputs stand for, or that no caller of an API could give a sense to.
_OURS: Final = frozenset(
    {
        *("prompt", "negative_prompt", "image", "mask_image", "width", "height", "strength", "generator"),
        *("num_inference_steps", "guidance_scale", "num_images_per_prompt", "num_videos_per_prompt"),
        *("num_frames", "frame_rate", "fps", "output_type", "return_dict", "callback_steps"),
        *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3", "padding_mask_crop"),
        "ip_adapter_image",  # there is no IP adapter
    }
)


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def interface(options: Mapping[str, Any]) -> Interface:
    """Inputs and output of a pipeline with these options, its description among them."""
    pipeline = msgspec.convert(options["pipeline"], Pipeline)
    video = pipeline.makes == "video"
    required: list[str] = []
    inputs: dict[str, dict[str, Any]] = {
        **_words(pipeline, required),
        **_pictures(pipeline, required),
        **_sizes(pipeline, options),
        **(_moving(pipeline) if video else _count(options)),
        **_steps(pipeline, options),
        **_further(pipeline.call),
        **_format(video=video),
    }
    if pipeline.safety_checker:
        inputs["disable_safety_checker"] = {
            "type": "boolean",
            "default": False,
            "description": "Give back pictures that the safety checker would hold back",
        }
    return interface_of(
        inputs,
        FILE if video else {"type": "array", "items": FILE},
        required=tuple(required),
        aliases={
            alias: name for alias, name in _OTHER_NAMES.items() if name in inputs and alias not in inputs
        },
    )


def _choice(values: list[str], default: str, description: str) -> dict[str, Any]:
    return {"type": "string", "enum": values, "default": default, "description": description}


def _words(pipeline: Pipeline, required: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    arguments = pipeline.call.arguments
    if "prompt" in arguments:
        found["prompt"] = {"type": "string", "description": "What to make"}
        required.append("prompt")
    if "negative_prompt" in arguments:
        found["negative_prompt"] = {"type": "string", "default": "", "description": "What to stay away from"}
    return found


def _pictures(pipeline: Pipeline, required: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    image = pipeline.call.arguments.get("image")
    if image is not None or pipeline.with_image is not None:
        found["image"] = {**FILE, "description": "Picture to begin with"}
        # Classes that cannot do without say so by a default of None all the same.
        if image is not None and pipeline.with_image is None and "prompt" not in pipeline.call.arguments:
            required.append("image")
    if pipeline.with_mask is not None or "mask_image" in pipeline.call.arguments:
        found["mask"] = {**FILE, "description": "What of the image is repainted: white is, black stays"}
    if any(call is not None and "strength" in call.arguments for call in calls(pipeline)):
        found["prompt_strength"] = {
            "type": "number",
            "default": 0.8,
            "minimum": 0,
            "maximum": 1,
            "description": "How much of the image may change; 1 leaves nothing of it",
        }
    return found


def _sizes(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    if not {"width", "height"} <= pipeline.call.arguments.keys():
        return {}
    usual = own_size(pipeline, options)
    side = {"type": "integer", "minimum": pipeline.multiple, "maximum": options["max_side"]}
    default = "that of the image, or" if pipeline.makes == "images" and pipeline.with_image else ""
    return {
        "aspect_ratio": _choice(
            [CUSTOM, *RATIOS], CUSTOM, f"Shape of the output; {CUSTOM} leaves it to width and height"
        ),
        "width": {**side, "description": f"Pixels. Default: {default} {usual.width}".replace("  ", " ")},
        "height": {**side, "description": f"Pixels. Default: {default} {usual.height}".replace("  ", " ")},
        "size": {
            "type": "string",
            "pattern": r"^\d{1,5}x\d{1,5}$",
            "description": "Width and height in one, such as 1024x1024; goes before the others",
        },
        "megapixels": _choice(
            ["1", "0.25"], "1", "0.25 halves both sides, where neither width and height nor size are given"
        ),
    }


def _count(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_outputs": {
            "type": "integer",
            "default": 1,
            "minimum": 1,
            "maximum": options["max_outputs"],
            "description": "Pictures to make, of seeds that follow each other",
        }
    }


def _moving(pipeline: Pipeline) -> dict[str, Any]:
    arguments = pipeline.call.arguments
    rate = arguments.get("frame_rate") or arguments.get("fps") or Argument()
    return {
        "num_frames": {
            "type": "integer",
            "default": arguments["num_frames"].default or _FRAMES_PER_SECOND,
            "minimum": 1,
            "maximum": 1000,
            "description": "Frames to make",
        },
        "fps": {
            "type": "integer",
            "default": int(rate.default or _FRAMES_PER_SECOND),
            "minimum": 1,
            "maximum": 120,
            "description": "Frames a second",
        },
    }


def _steps(pipeline: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = pipeline.call.arguments
    found: dict[str, Any] = {}
    if "num_inference_steps" in arguments:
        found["num_inference_steps"] = {
            "type": "integer",
            "default": options["num_inference_steps"] or int(arguments["num_inference_steps"].default or 50),
            "minimum": 1,
            "maximum": 500,
            "description": "Steps from noise to the output: more take longer, and show more detail",
        }
    if "guidance_scale" in arguments:
        own = arguments["guidance_scale"].default or 0.0
        found["guidance_scale"] = {
            "type": "number",
            "default": own if options["guidance_scale"] is None else options["guidance_scale"],
            "minimum": 0,
            "maximum": 50,
            "description": "How closely to follow the prompt",
        }
    if pipeline.exchangeable:
        described = f"How noise is taken away; {OWN_SCHEDULER} is the model's own way"
        found["scheduler"] = _choice([OWN_SCHEDULER, *SCHEDULERS], OWN_SCHEDULER, described)
    found["seed"] = {
        "type": "integer",
        "minimum": 0,
        "maximum": _LARGEST_SEED,
        "description": "The same one gives the same output. Default: any",
    }
    if options["loras"]:
        names = [NO_LORA, *options["loras"]]
        found["lora"] = _choice(names, NO_LORA, "LoRA weights to add to the model")
        found["lora_scale"] = {
            "type": "number",
            "default": 1.0,
            "minimum": -2,
            "maximum": 4,
            "description": "How much of them",
        }
    return found


def _further(call: PipelineCall) -> dict[str, Any]:
    """Return the pipeline's further arguments that are images, numbers, texts or booleans."""
    found: dict[str, Any] = {}
    for name, argument in call.arguments.items():
        if argument.type == "image" and name not in _OURS:
            found[name] = {
                "type": "string",
                "format": "uri",
                "description": f"Picture: {name} of {call.name}",
            }
        elif argument.type is not None and name not in _OURS:
            default = {} if argument.default is None else {"default": argument.default}
            described = f"{name} of diffusers' {call.name}"
            found[name] = {"type": argument.type, **default, "description": described}
    return found


def _format(*, video: bool) -> dict[str, Any]:
    described = "Format of the files"
    if video:
        return {"output_format": _choice(["mp4", "gif"], "mp4", described)}
    return {
        "output_format": _choice(["webp", "jpg", "png"], "webp", described),
        "output_quality": {
            "type": "integer",
            "default": 80,
            "minimum": 0,
            "maximum": 100,
            "description": "Quality of webp and jpg files; png files lose nothing",
        },
    }


def further_pictures(call: PipelineCall) -> list[str]:
    """The inputs that are pictures beside the image and the mask: to control what is made, say."""
    return [
        name for name, argument in call.arguments.items() if argument.type == "image" and name not in _OURS
    ]


def calls(pipeline: Pipeline) -> tuple[PipelineCall | None, ...]:
    """Every class that the weights can be used with."""
    return pipeline.call, pipeline.with_image, pipeline.with_mask


def chosen(pipeline: Pipeline, *, image: bool, mask: bool) -> PipelineCall:
    """The class for what was given.

    Raises:
        PredictionFailed: a mask without an image.
    """
    if mask and not image:
        raise PredictionFailed("input.mask: it says what of an image is repainted, and there is no image")
    if mask and "mask_image" not in pipeline.call.arguments:
        assert pipeline.with_mask is not None, "the interface has offered a mask"
        return pipeline.with_mask
    if image and "image" not in pipeline.call.arguments:
        assert pipeline.with_image is not None, "the interface has offered an image"
        return pipeline.with_image
    return pipeline.call


def own_size(pipeline: Pipeline, options: Mapping[str, Any]) -> Size:
    """Return the default size."""
    return Size(options["width"] or pipeline.width, options["height"] or pipeline.height)


def size(
    given: Mapping[str, Any], pipeline: Pipeline, options: Mapping[str, Any], image: Size | None
) -> Size:
    """Width and height to compute: multiples of what the pipeline can make, never over ``max_side``.

    Raises:
        PredictionFailed: ``size`` is over it, or nothing.
    """
    usual = own_size(pipeline, options)
    halved = 0.5 if given.get("megapixels") == "0.25" else 1.0
    if given.get("size"):
        width, height = map(int, given["size"].split("x"))
        if not pipeline.multiple <= min(width, height) <= max(width, height) <= options["max_side"]:
            raise PredictionFailed(
                f"input.size: both sides must be from {pipeline.multiple} to {options['max_side']} pixels"
            )
    elif given.get("width") or given.get("height"):
        width, height = given.get("width") or usual.width, given.get("height") or usual.height
    elif given.get("aspect_ratio", CUSTOM) != CUSTOM:
        scale = halved * (usual.width * usual.height) ** 0.5 / _RATIO_SIDE
        across, down = RATIOS[given["aspect_ratio"]]
        return _fitted(across * scale, down * scale, pipeline.multiple, options["max_side"])
    elif image is not None:
        # Large photographs are made smaller: the model was made for so many pixels.
        scale = halved * min(1.0, (usual.width * usual.height / (image.width * image.height)) ** 0.5)
        width, height = round(image.width * scale), round(image.height * scale)
    else:
        width, height = round(usual.width * halved), round(usual.height * halved)
    return _fitted(width, height, pipeline.multiple, options["max_side"], down=True)


def _fitted(width: float, height: float, multiple: int, largest: int, *, down: bool = False) -> Size:
    """The nearest sides that the pipeline can make, or the next smaller ones."""
    most = max(multiple, largest // multiple * multiple)
    sides = (int(side // multiple if down else round(side / multiple)) * multiple for side in (width, height))
    return Size(*(min(max(side, multiple), most) for side in sides))
