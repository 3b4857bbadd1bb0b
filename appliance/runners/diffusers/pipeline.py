"""Describes a folder of diffusers weights: the pipeline, its arguments and its output.

Imports neither diffusers nor torch: ``model_index.json`` names the pipeline's class, and the arguments of its
``__call__`` are read from the source of the installed diffusers package.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from appliance.domain.errors import WeightsError

INDEX: Final = "model_index.json"
_CLASS: Final = re.compile(r"^class (\w+)", re.MULTILINE)
_SCALARS: Final = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
#: Tables of diffusers' auto_pipeline.py. Pipelines for the same weights have the same key in each table.
_WITH_IMAGE: Final = ("AUTO_IMAGE2IMAGE_PIPELINES_MAPPING", "AUTO_IMAGE2VIDEO_PIPELINES_MAPPING")
_WITH_MASK: Final = ("AUTO_INPAINT_PIPELINES_MAPPING",)
_TEXT_ONLY: Final = ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", "AUTO_TEXT2VIDEO_PIPELINES_MAPPING")
#: Schedulers that can replace one another: diffusers' ``KarrasDiffusionSchedulers``.
_EXCHANGEABLE: Final = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "HeunDiscrete", "EulerAncestralDiscrete"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
        *("DEISMultistep", "UniPCMultistep"),
    )
)
#: Pipelines whose images are the same in a batch with other predictions, which a test compares. Others may
#: treat several images as inputs of one output, or let the length of one prompt change another output.
BATCHED: Final = frozenset(
    f"{name}Pipeline"
    for name in (
        *("StableDiffusion", "StableDiffusionImg2Img", "StableDiffusionInpaint"),
        *("StableDiffusionXL", "StableDiffusionXLImg2Img", "StableDiffusionXLInpaint"),
        *("StableDiffusion3", "StableDiffusion3Img2Img", "StableDiffusion3Inpaint"),
        *("Flux", "FluxImg2Img", "FluxInpaint"),
    )
)
#: Pipelines that combine several input images -> name of the argument that takes the list. Other pipelines
#: treat a list as a batch.
MULTI_IMAGE_ARGUMENTS: Final = {
    "BriaFibo2Pipeline": "image",
    "BriaFiboEditPipeline": "image",
    "Flux2Pipeline": "image",
    "Flux2KleinPipeline": "image",
    "Flux2KleinKVPipeline": "image",
    "JoyImageEditPlusPipeline": "images",
    "OmniGenPipeline": "input_images",
    "QwenImage21Pipeline": "image",
    "QwenImageEditPlusPipeline": "image",
    "ZImageOmniPipeline": "image",
}


class FrameCondition(NamedTuple):
    """The class with which a pipeline gets an image as a frame of the video, and its fields."""

    name: str  # in the pipeline's module
    image: str
    position: str  # index of the frame or, if ``latent``, of the latent frame; -1 is then the last one
    latent: bool


#: Pipelines that get images as frames of the video.
FRAME_CONDITIONS: Final = {
    "LTXConditionPipeline": FrameCondition("LTXVideoCondition", "image", "frame_index", latent=False),
    "LTX2ConditionPipeline": FrameCondition("LTX2VideoCondition", "frames", "index", latent=True),
}
#: Text-only pipeline that is not in diffusers' tables -> pipeline for the same weights that has images.
_ALSO_WITH_IMAGE: Final = {"LTX2Pipeline": "LTX2ConditionPipeline"}
#: Arguments that take an image although their annotation is a tensor.
_IMAGES: Final = frozenset({"last_image"})
#: Key of a pipeline in diffusers' tables -> class of its ControlNets. The tests run each with ControlNets.
_CONTROLNETS: Final = {
    "stable-diffusion": "ControlNetModel",
    "stable-diffusion-xl": "ControlNetModel",
    "flux": "FluxControlNetModel",
}
_IMAGE_TYPES: Final = frozenset({"PipelineImageInput", "Image"})  # in annotations
#: Arguments for the length of audio in seconds, one of which each pipeline for audio has.
_DURATIONS: Final = ("audio_end_in_s", "audio_length_in_s", "audio_duration", "audio_duration_s", "duration")
_SIDE: Final = 1024  # pixels, if neither the pipeline nor the weights have a default size


class Argument(msgspec.Struct, frozen=True):
    """One argument of a pipeline's ``__call__``."""

    type: str | None = None  # of JSON Schema, or "image"; None for types that JSON cannot express
    default: Any = None
    required: bool = False


class PipelineCall(msgspec.Struct, frozen=True):
    """A pipeline class and the arguments of its ``__call__``."""

    name: str
    arguments: dict[str, Argument]

    @property
    def duration(self) -> str | None:
        """Name of the argument for the length of audio in seconds; None: the pipeline makes no audio."""
        if "num_frames" in self.arguments:  # a video
            return None
        return next((name for name in _DURATIONS if name in self.arguments), None)


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a folder of weights on which the model's interface depends."""

    call: PipelineCall
    with_image: PipelineCall | None = None  # class for the same weights that starts from an image
    with_mask: PipelineCall | None = None  # class for the same weights that repaints a part of an image
    #: Serialized as `makes`: another name would change the digest of the options, by which the database
    #: stores measured memory.
    output: Literal["images", "video", "audio"] = msgspec.field(name="makes")
    width: int  # default size in pixels
    height: int
    multiple: int  # of which width and height must be multiples, in pixels
    exchangeable: bool = False  # whether another scheduler can replace the model's own
    safety_checker: bool = False


class ControlNetPipelines(msgspec.Struct, frozen=True, kw_only=True):
    """Pipeline classes that run the same weights together with ControlNets."""

    controlnet: str  # class of the ControlNets
    call: PipelineCall
    with_image: PipelineCall | None = None  # class that starts from an image
    with_mask: PipelineCall | None = None  # class that repaints a part of an image


def controlnet_pipelines(name: str) -> ControlNetPipelines | None:
    """Return the classes that run the weights of ``name`` with ControlNets; None if there are none."""
    keys = [key for key, found in _tables()[_TEXT_ONLY[0]].items() if found == name and key in _CONTROLNETS]
    if not keys:
        return None
    text, image, mask = (
        _tables()[table].get(f"{keys[0]}-controlnet")
        for table in (_TEXT_ONLY[0], _WITH_IMAGE[0], _WITH_MASK[0])
    )
    assert text is not None, "_CONTROLNETS has only pipelines with such a class"
    return ControlNetPipelines(
        controlnet=_CONTROLNETS[keys[0]],
        call=_call(text),
        with_image=None if image is None else _call(image),
        with_mask=None if mask is None else _call(mask),
    )


def read(folder: Path) -> Pipeline:
    """Return the description of the pipeline in ``folder``.

    Raises:
        WeightsError: the folder has no pipeline, or diffusers does not have the pipeline.
    """
    index = _json(folder / INDEX, folder)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in _classes():
        raise WeightsError(
            f"{folder / INDEX} names the pipeline {name!r}, which diffusers does not have; correct the source"
        )
    call = _call(name)
    components = {
        key: value[1] for key, value in index.items() if isinstance(value, list) and len(value) == 2
    }
    width, height, multiple = _size(folder, call, components)
    return Pipeline(
        call=call,
        with_image=_call(_ALSO_WITH_IMAGE[name]) if name in _ALSO_WITH_IMAGE else _related(name, _WITH_IMAGE),
        with_mask=_related(name, _WITH_MASK),
        output="audio" if call.duration else "video" if "num_frames" in call.arguments else "images",
        width=width,
        height=height,
        multiple=multiple,
        exchangeable=components.get("scheduler") in _EXCHANGEABLE,
        safety_checker=components.get("safety_checker") is not None,
    )


def _json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        advice = "the source of a diffusers model must be a folder with this file"
        if not folder.exists():
            advice = "run: appliance pull"
        raise WeightsError(f"{file} does not exist: {advice}") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be used: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{file} cannot be used: it must be a JSON object")
    return found


def _size(folder: Path, call: PipelineCall, components: dict[str, Any]) -> tuple[int, int, int]:
    """Return the default width and height, and the number of which both must be multiples, in pixels."""
    scale = 8
    if components.get("vae") is not None:
        channels = _json(folder / "vae" / "config.json", folder).get("block_out_channels", ())
        scale = 2 ** (len(channels) - 1) if channels else scale
    side = _SIDE
    for part in ("unet", "transformer"):
        if components.get(part) is not None:
            sample = _json(folder / part / "config.json", folder).get("sample_size")
            side = sample * scale if isinstance(sample, int) else side
    if components.get("unet") is not None:
        multiple = max(8, scale)
    else:
        multiple = 32 if "num_frames" in call.arguments else 16
    width, height = (_default(call, key) or max(side, multiple) for key in ("width", "height"))
    return width, height, multiple


def _default(call: PipelineCall, key: str) -> int | None:
    argument = call.arguments.get(key)
    return argument.default if argument is not None and isinstance(argument.default, int) else None


def _root() -> Path:
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None, "diffusers is a dependency"
    assert spec.origin is not None, "it is a package of files"
    return Path(spec.origin).parent / "pipelines"


@functools.cache
def _classes() -> dict[str, Path]:
    """Return the source file of every pipeline class of diffusers, by the name of the class."""
    files = sorted(_root().glob("**/*.py"))
    return {name: file for file in files for name in _CLASS.findall(file.read_text(encoding="utf-8"))}


@functools.cache
def _call(name: str) -> PipelineCall:
    """Return the class ``name`` with the arguments of its ``__call__``, which may be inherited."""
    tree = ast.parse(_classes()[name].read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for part in found.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__call__":
            return PipelineCall(name, _arguments(part.args))
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id in _classes():
            return PipelineCall(name, _call(base.id).arguments)
    return PipelineCall(name, {})


def _arguments(given: ast.arguments) -> dict[str, Argument]:
    names = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(names) - len(given.defaults)), *given.defaults]
    pairs = [*zip(names, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return {name.arg: _argument(name, default) for name, default in pairs if name.arg != "self"}


def _argument(name: ast.arg, default: ast.expr | None) -> Argument:
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:  # a name or a call, whose value is unknown here
        value = None
    if not isinstance(value, int | float | str | bool):
        value = None
    words = set(re.findall(r"\w+", "" if name.annotation is None else ast.unparse(name.annotation)))
    if words & _IMAGE_TYPES or name.arg in _IMAGES:
        return Argument("image", required=default is None)
    scalar = words - {"None", "Optional"}
    return Argument(_SCALARS.get(*scalar) if len(scalar) == 1 else None, value, required=default is None)


@functools.cache
def _tables() -> dict[str, dict[str, str]]:
    """Return the tables of diffusers' auto_pipeline.py: name of the table -> key -> name of the class."""
    tables: dict[str, dict[str, str]] = {}
    for node in ast.parse((_root() / "auto_pipeline.py").read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=table)], value=ast.Call(args=[ast.List(elts=rows)])):
                tables[table] = {}
                for row in rows:
                    match row:
                        case ast.Tuple(elts=[ast.Constant(value=str(key)), ast.Name(id=name)]):
                            tables[table][key] = name
    return tables


def _related(name: str, tables: tuple[str, ...]) -> PipelineCall | None:
    """Return the pipeline in ``tables`` for the same weights as the text-only pipeline ``name``."""
    for text_only in _TEXT_ONLY:
        for key, known in _tables().get(text_only, {}).items():
            found = next((_tables()[table][key] for table in tables if key in _tables().get(table, {})), None)
            if known == name and found not in {None, name}:
                return _call(str(found))
    return None
