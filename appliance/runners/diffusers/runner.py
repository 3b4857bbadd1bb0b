"""Images, videos and audio, computed by any pipeline that diffusers' ``DiffusionPipeline`` loads.

The images of a prediction are computed together. So are those of several predictions that wait, if only their
prompts, images and seeds differ, with the pipelines in ``pipeline.BATCHED``. Pipelines that start from an
image or repaint a part of it share the loaded weights. Tested on a CPU, without offloading; not on a GPU.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures, images
from appliance.runners.base import LoadSpec
from appliance.runners.batches import Batches
from appliance.runners.diffusers import adapters, controlnets, inputs, output_files, quantization
from appliance.runners.diffusers.adapters import PipelineAdapters
from appliance.runners.diffusers.controlnets import LIBRARY_ERRORS
from appliance.runners.diffusers.inputs import Size
from appliance.runners.diffusers.pipeline import (
    BATCHED,
    FRAME_CONDITIONS,
    MULTI_IMAGE_ARGUMENTS,
    ControlNetPipelines,
    Pipeline,
    PipelineCall,
)
from appliance.runners.torch_runner import GPU, TorchRunner

if TYPE_CHECKING:
    from PIL.Image import Image

#: Phrase in these errors -> advice.
_HINTS: Final = (
    ("out of memory", "ask for fewer or smaller outputs, or raise the model's memory in models.yaml"),
    ("variant=", "set variant in its options to the one that the weights have"),
    ("safetensors", "the weights must be complete safetensors files; download them again"),
)


#: Inputs that may differ between the predictions of a batch.
_OWN_INPUTS: Final = frozenset(
    {"prompt", "negative_prompt", "image", "mask", "seed", "num_outputs", "output_format", "output_quality"}
)


class _Canceled(Exception):
    """Raised by the scheduler in the computing thread, at the first step after a cancel."""


class _Request(NamedTuple):
    """The complete input of one prediction."""

    call: PipelineCall
    input: dict[str, Any]
    size: Size | None  # None if the pipeline has no argument for it
    image: Image | None
    mask: Image | None
    last_image: Image | None  # to end a video with
    control: dict[str, Image]  # control images, by the name of the ControlNet
    #: Input images of a pipeline in ``MULTI_IMAGE_ARGUMENTS``; ``image`` is None then.
    input_images: list[Image]
    seed: int
    adapter: str | None  # path of the adapter that the model itself is
    context: Context  # of the prediction; text that is printed in it goes to the log of the prediction
    stop: threading.Event  # set when the prediction is canceled

    @property
    def image_count(self) -> int:
        """Number of images."""
        return int(self.input.get("num_outputs", 1))

    @property
    def batch_key(self) -> Hashable:
        """A key that is equal for predictions that can share a batch."""
        others = (*inputs.other_images(self.call), "ip_adapter_image")
        if self.call.name not in BATCHED or any(self.input.get(name) for name in others):
            return object()
        shared = {name: value for name, value in self.input.items() if name not in _OWN_INPUTS}
        given = [None if each is None else each.size for each in (self.image, self.mask)]
        return self.call.name, self.size, *given, self.adapter, json.dumps(shared, sort_keys=True)


class _Logs:
    """A text stream that writes to the logs of several predictions."""

    encoding = "utf-8"

    def __init__(self, contexts: Iterable[Context]) -> None:
        self._contexts = list(contexts)

    def write(self, text: str) -> None:
        for context in self._contexts:
            context.run(sys.stderr.write, text)

    def flush(self) -> None:
        """Do nothing: logs are not buffered."""


class _Result(NamedTuple):
    images: list[Image]  # or the frames of a video
    flagged: int  # number of images that the safety checker removed
    sound: output_files.Audio | None = None  # of a video, or the audio of a pipeline for audio


class DiffusersRunner(TorchRunner):
    """Runs models of kind `diffusers`; the options are those of ``DescribedDiffusersOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._pipeline = msgspec.convert(spec.options["pipeline"], Pipeline)
        with_controlnets = spec.options.get("controlnet_pipelines")
        self._controlnet_pipelines = (
            msgspec.convert(with_controlnets, ControlNetPipelines) if with_controlnets else None
        )
        self._controlnets: dict[str, Any] = {}  # by name
        #: By the name of the class and the names of its ControlNets; all share the weights.
        self._pipes: dict[tuple[str, ...], Any] = {}
        self._dtype: Any
        self._scheduler: Any  # the weights' own
        self._adapters = PipelineAdapters(spec.model)
        most = spec.options.get("max_batch") or spec.options["max_outputs"]
        self._batches: Batches[_Request, _Result] = Batches(
            self._compute, most=most, key=lambda each: each.batch_key, size=lambda each: each.image_count
        )

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return inputs.interface(options)

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        try:
            await asyncio.to_thread(self._load, weights)
        except LoadFailed:
            raise
        except LIBRARY_ERRORS as error:
            raise LoadFailed(
                f"diffusers cannot load model {self._spec.model} from {weights}: {_describe(error)}"
            ) from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        request = await asyncio.to_thread(self._request, job)
        yield Log(f"Using seed: {request.seed}\n")
        if request.size is not None:
            yield Log(f"Size: {request.size.width} x {request.size.height}\n")
        result = await self._batches.result(request, on_cancel=request.stop.set)
        if result.flagged:
            yield Log(f"The safety checker removed {result.flagged} of {request.image_count} images\n")
        if result.sound is None and not result.images:
            raise PredictionFailed(
                "NSFW content detected. Try running it again, or try a different prompt; "
                "disable_safety_checker returns flagged images too."
            )
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._pipeline.output == "audio":
            assert result.sound is not None
            file = await asyncio.to_thread(output_files.write_audio, result.sound, request.input, folder)
            yield Metric("audio_duration", round(result.sound.seconds, 3))
            yield Output([file], append=False)
        elif self._pipeline.output == "video":
            file = await asyncio.to_thread(
                output_files.write_video, result.images, result.sound, request.input, folder
            )
            yield Metric("video_duration_seconds", round(len(result.images) / request.input["fps"], 3))
            yield Output([file], append=False)
        else:
            files = await asyncio.to_thread(output_files.write_images, result.images, request.input, folder)
            yield Metric("image_count", len(files))
            yield Output([files], append=False)

    @property
    def _has_ip_adapter(self) -> bool:
        return bool(self._spec.options.get("ip_adapter"))

    def _load(self, weights: Path) -> None:
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        # torchsde warns at each step of Stable Audio that a time was rounded.
        warnings.filterwarnings("ignore", message="Should have t[ab]", category=UserWarning)
        # Warnings, such as those about truncated prompts, go to the prediction's log.
        logging.disable_default_handler()
        logging.enable_propagation()
        options, on_cpu = self._spec.options, self._spec.device == "cpu"
        torch.set_num_threads(self._spec.threads)
        if on_cpu and (options["dtype"] == "float16" or options["offload"] != "none"):
            raise LoadFailed(
                f"model {self._spec.model}: dtype float16 and offload need a GPU, but the model runs on a "
                "CPU; change them in its options in models.yaml"
            )
        name = ("float32" if on_cpu else "bfloat16") if options["dtype"] == "auto" else options["dtype"]
        self._dtype = getattr(torch, name)
        quantized = quantization.components(self._spec.model, weights, options, self._dtype)
        encoder = controlnets.load_image_encoder(self._spec.model, options, self._dtype)
        pipe = DiffusionPipeline.from_pretrained(
            weights,
            **quantized,
            **encoder,
            dtype=self._dtype,
            variant=options["variant"],
            use_safetensors=True,  # other formats can contain code
            local_files_only=True,
            trust_remote_code=False,
        )
        for lora, path in options["loras"].items():
            if not Path(path).exists():
                raise LoadFailed(
                    f"model {self._spec.model}: options.loras.{lora} is {path}, which does not exist; "
                    "correct it"
                )
        controlnets.load_ip_adapter(self._spec.model, options, pipe)
        self._controlnets = controlnets.load_controlnets(self._spec.model, options, self._dtype)
        if options["vae_tiling"]:
            pipe.vae.enable_tiling()
        if options["offload"] == "model":
            pipe.enable_model_cpu_offload()
        elif options["offload"] == "sequential":
            pipe.enable_sequential_cpu_offload()
        elif not on_cpu:
            self._models += [pipe, *self._controlnets.values()]  # the other pipelines share the weights
            for loaded in self._models:
                loaded.to(GPU)
        self._scheduler = pipe.scheduler
        self._pipes[type(pipe).__name__,] = pipe

    def _pipe(self, name: str, controlnets: Iterable[str] = ()) -> Any:
        """Return the pipeline of the class ``name`` with these ControlNets. All share the loaded weights."""
        key = (name, *controlnets)
        if key not in self._pipes:
            import diffusers

            first = next(iter(self._pipes.values()))
            chosen = [self._controlnets[each] for each in controlnets]
            more = {"controlnet": chosen[0] if len(chosen) == 1 else chosen} if chosen else {}
            # Without dtype, from_pipe would convert the shared weights to float32.
            self._pipes[key] = getattr(diffusers, name).from_pipe(first, dtype=self._dtype, **more)
        return self._pipes[key]

    def _request(self, job: Job) -> _Request:
        """Read the input's images, and choose the pipeline class, the size and the seed."""
        from PIL import ImageOps

        input = job.input
        image, mask = _read("image", input.get("image")), _read_mask(input)
        last_image = _read("last_image", input.get("last_image"))
        if last_image is not None and image is None:
            raise PredictionFailed("input.last_image needs an image to start from; set input.image too")
        named = {name: inputs.control_inputs(name).image for name in self._controlnets}
        control = {name: read for name, key in named.items() if (read := _read(key, input.get(key)))}
        call = inputs.call_for(
            self._pipeline,
            image=image is not None,
            mask=mask is not None,
            controlnet_pipelines=self._controlnet_pipelines if control else None,
        )
        input_images = []
        if call.name in MULTI_IMAGE_ARGUMENTS:
            input_images, image = _read_several(image, input.get("image_input") or []), None
        size = None
        if "aspect_ratio" in input:
            first = image if image is not None else next(iter([*input_images, *control.values()]), None)
            image_size = None if first is None else Size(*first.size)
            size = inputs.size(input, self._pipeline, self._spec.options, image_size)
            image, mask, last_image = (
                None if each is None else ImageOps.fit(each, size) for each in (image, mask, last_image)
            )
            control = {name: ImageOps.fit(each, size) for name, each in control.items()}
        names = [*inputs.other_images(call), *(["ip_adapter_image"] if self._has_ip_adapter else [])]
        others = {name: _read(name, input.get(name)) for name in names}
        seed = input.get("seed")
        if seed is None:
            seed = random.SystemRandom().randrange(2**32)
        return _Request(
            call=call,
            input={**input, **others},
            size=size,
            image=image,
            mask=mask,
            last_image=last_image,
            control=control,
            input_images=input_images,
            seed=seed,
            adapter=job.adapter,
            context=copy_context(),
            stop=threading.Event(),
        )

    def _compute(self, requests: list[_Request]) -> list[_Result]:
        """Run the pipeline for requests with the same ``batch_key``. Blocks: the caller uses a thread.

        Raises:
            PredictionFailed: the pipeline raised an error.
        """
        request = requests[0]
        pipe = self._pipe(request.call.name, request.control)
        checker = getattr(pipe, "safety_checker", None)
        try:
            self._adapters.choose(pipe, adapters.chosen(request.adapter, request.input))
            pipe.scheduler = self._stoppable_scheduler(request.input, [each.stop for each in requests])
            if self._has_ip_adapter:
                given = request.input["ip_adapter_image"] is not None
                pipe.set_ip_adapter_scale(request.input["ip_adapter_scale"] if given else 0.0)
            if len(requests) > 1:
                pipe.set_progress_bar_config(file=_Logs(each.context for each in requests))
            if checker is not None and request.input["disable_safety_checker"]:
                pipe.safety_checker = None
            result = pipe(**self._arguments(requests))
        except LIBRARY_ERRORS as error:
            raise PredictionFailed(f"the pipeline refused this prediction: {_describe(error)}") from error
        finally:
            pipe.set_progress_bar_config()
            if checker is not None:
                pipe.safety_checker = checker
            if self._spec.options["offload"] != "none":
                pipe.maybe_free_model_hooks()
        if self._pipeline.output == "audio":
            return [_Result([], 0, output_files.audio_of(result, pipe))]
        if self._pipeline.output == "video":
            return [_Result(list(result.frames[0]), 0, output_files.sound_track_of(result, pipe))]
        flags = getattr(result, "nsfw_content_detected", None) or [False] * len(result.images)
        made = iter(zip(result.images, flags, strict=True))
        results = []
        for each in requests:
            own = list(itertools.islice(made, each.image_count))
            kept = [image for image, flagged in own if not flagged]
            results.append(_Result(kept, len(own) - len(kept)))
        return results

    def _stoppable_scheduler(self, input: dict[str, Any], stops: Sequence[threading.Event]) -> Any:
        """Return a new scheduler of the requested class.

        Its steps raise ``_Canceled`` once all ``stops`` are set.

        This stops every pipeline, even one without a callback for the end of a step.
        """
        import diffusers

        own = self._scheduler
        settings: dict[str, Any] = {}
        name: str = type(own).__name__
        requested = input.get("scheduler", inputs.OWN_SCHEDULER)
        if requested != inputs.OWN_SCHEDULER:
            name, settings = inputs.SCHEDULERS[requested]
        scheduler_class = getattr(diffusers, name)
        scheduler = scheduler_class.from_config(own.config, **settings)

        @functools.wraps(scheduler_class.step)  # pipelines inspect its signature
        def step(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if all(stop.is_set() for stop in stops):
                raise _Canceled
            return scheduler_class.step(self, *arguments, **keywords)

        # A class, because LTX-2 copies the scheduler for the sound: the copy of an instance attribute would
        # still call the method of the original.
        scheduler.__class__ = type(name, (scheduler_class,), {"step": step})
        return scheduler

    def _arguments(self, requests: list[_Request]) -> dict[str, Any]:
        """Return the arguments of the pipeline. Each of several images has its own prompt and input image.

        With ``num_images_per_prompt`` some pipelines would not start each image from its own seed.
        """
        import torch

        request = requests[0]
        input, count = request.input, request.image_count
        width, height = request.size or (None, None)
        generators = [
            torch.Generator("cpu").manual_seed(each.seed + number)
            for each in requests
            for number in range(each.image_count)
        ]
        arguments: dict[str, Any] = {
            **input,
            "image": request.image,
            "mask_image": request.mask,
            "last_image": request.last_image,
            "strength": input.get("prompt_strength"),
            "num_images_per_prompt": count,
            "frame_rate": input.get("fps"),
            "generator": generators if len(generators) > 1 else generators[0],
            "output_type": "np" if self._pipeline.output == "audio" else "pil",
            **({name: input.get("duration")} if (name := request.call.duration) is not None else {}),
            "width": width,
            "height": height,
        }
        if self._pipeline.output == "audio" and not input.get("negative_prompt"):
            arguments["negative_prompt"] = None  # Stable Audio encodes an empty text, other than none
        if self._has_ip_adapter and input["ip_adapter_image"] is None:
            from PIL import Image

            arguments["ip_adapter_image"] = Image.new("RGB", (64, 64))  # required, but its scale is 0
        if len(generators) > 1 and request.call.name in BATCHED and not self._has_ip_adapter:
            each_image = [each for each in requests for _ in range(each.image_count)]
            arguments |= {
                "prompt": [each.input["prompt"] for each in each_image],
                "negative_prompt": [each.input.get("negative_prompt", "") for each in each_image],
                "image": None if request.image is None else [each.image for each in each_image],
                "mask_image": None if request.mask is None else [each.mask for each in each_image],
                "num_images_per_prompt": 1,
            }
        if request.call.name in FRAME_CONDITIONS:
            arguments |= _conditions(request)
        if request.control:
            arguments |= _control_arguments(request)
        if request.input_images:
            arguments[MULTI_IMAGE_ARGUMENTS[request.call.name]] = request.input_images
        known = request.call.arguments
        return {name: value for name, value in arguments.items() if name in known and value is not None}


def _read(name: str, path: str | None) -> Image | None:
    """Read the image of the input ``name``; None without a path.

    Raises:
        PredictionFailed: the file is not an image.
    """
    if path is None:
        return None
    return images.read(Path(path), name)


def _conditions(request: _Request) -> dict[str, Any]:
    """Return the arguments of a pipeline in ``FRAME_CONDITIONS`` for the first and last frame."""
    import diffusers

    module = sys.modules[getattr(diffusers, request.call.name).__module__]
    condition = FRAME_CONDITIONS[request.call.name]
    condition_class = getattr(module, condition.name)
    last = -1 if condition.latent else request.input["num_frames"] - 1
    frames = ((0, request.image), (last, request.last_image))
    found = [
        condition_class(**{condition.image: image, condition.position: index})
        for index, image in frames
        if image is not None
    ]
    return {"image": None, "strength": None, "conditions": found}


def _control_arguments(request: _Request) -> dict[str, Any]:
    """Return the arguments for the ControlNets: values for one ControlNet, lists for several."""
    names = [inputs.control_inputs(name) for name in request.control]
    # Pipelines that start from an image have both arguments.
    image = "control_image" if "control_image" in request.call.arguments else "image"
    arguments: dict[str, list[Any]] = {
        image: list(request.control.values()),
        "controlnet_conditioning_scale": [request.input[each.scale] for each in names],
        "control_guidance_start": [request.input[each.start] for each in names],
        "control_guidance_end": [request.input[each.end] for each in names],
    }
    return {key: values[0] if len(values) == 1 else values for key, values in arguments.items()}


def _read_several(first: Image | None, paths: Sequence[str]) -> list[Image]:
    """Return ``first``, if there is one, and the images of the input ``image_input``.

    Raises:
        PredictionFailed: a file is not an image, or there are too many.
    """
    if len(paths) > inputs.MOST_IMAGES:
        raise PredictionFailed(
            f"input.image_input has {len(paths)} images: send at most {inputs.MOST_IMAGES}"
        )
    read = [images.read(Path(path), f"image_input.{number}") for number, path in enumerate(paths)]
    return read if first is None else [first, *read]


def _read_mask(input: Mapping[str, Any]) -> Image | None:
    """Read the input ``mask``: white where to repaint; None without a mask."""
    path = input.get("mask")
    if path is not None and input.get("mask_repaints") == inputs.TRANSPARENT:
        return images.read_transparency(Path(path), "mask")
    mask = _read("mask", path)
    return None if mask is None else mask.convert("L")


def _describe(error: BaseException) -> str:
    """Return a library's error on one short line, with advice."""
    return failures.summary(" ".join(str(error).split()) or type(error).__name__, _HINTS)
