"""Pictures and videos, made by diffusers: any pipeline that ``DiffusionPipeline.from_pretrained`` loads.

One prediction at a time, several pictures of it together. Classes that begin with an image, or repaint a
part of one, share the weights that are loaded. On a CPU everything here has run but offloading; on a GPU
nothing has yet.
"""

from __future__ import annotations

import asyncio
import functools
import random
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import msgspec

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import images, threads, torch_offload
from appliance.runners.base import LoadSpec
from appliance.runners.diffusers import inputs
from appliance.runners.diffusers.inputs import Size
from appliance.runners.diffusers.pipeline import Pipeline, PipelineCall

if TYPE_CHECKING:
    from PIL.Image import Image

_CAUSE_LENGTH: Final = 600  # characters of a foreign error's text that are shown
_FORMATS: Final = {"webp": "WEBP", "jpg": "JPEG", "png": "PNG"}
#: What diffusers, transformers and safetensors raise about weights and inputs that do not fit.
_FOREIGN: Final = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
)
#: Words in their errors -> what to change.
_HINTS: Final = (
    ("out of memory", "ask for fewer or smaller outputs, or raise the model's memory in models.yaml"),
    ("variant=", "set variant in its options to the one that the weights have"),
    ("safetensors", "the weights must be whole safetensors files; fetch them again"),
)


class _Canceled(Exception):
    """Raised in the computing thread, between two steps."""


class _Request(NamedTuple):
    """One prediction, ready to be computed."""

    call: PipelineCall
    input: dict[str, Any]
    size: Size | None  # None where the pipeline takes none
    image: Image | None
    mask: Image | None
    seed: int


class _Made(NamedTuple):
    """The result: images, or the frames of one video."""

    pictures: list[Image]
    held_back: int  # pictures that the safety checker took away


class DiffusersRunner:
    """Options: those of ``config.DescribedDiffusersOptions``."""

    kind: ClassVar[str] = "diffusers"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._pipeline = msgspec.convert(spec.options["pipeline"], Pipeline)
        self._pipes: dict[str, Any] = {}  # by the name of the class; all share their weights
        self._dtype: Any
        self._scheduler: Any  # the weights' own
        self._one_at_a_time = asyncio.Lock()

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of the pipeline that the options describe."""
        return inputs.interface(options)

    async def setup(self) -> None:
        """Load the model."""
        weights = Path(self._spec.weights or "")
        if not self._spec.weights or not weights.is_dir():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        try:
            await asyncio.to_thread(self._load, weights)
        except LoadFailed:
            raise
        except _FOREIGN as error:
            raise LoadFailed(
                f"diffusers cannot load {self._spec.model} from {weights}: {_describe(error)}"
            ) from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        asked = await asyncio.to_thread(self._asked, job.input)
        yield Log(f"Using seed: {asked.seed}\n")
        if asked.size is not None:
            yield Log(f"Size: {asked.size.width} x {asked.size.height}\n")
        async with self._one_at_a_time:
            made = await threads.interruptible(functools.partial(self._compute, asked))
        if made.held_back:
            yield Log(
                f"The safety checker held back {made.held_back} of {asked.input['num_outputs']} pictures\n"
            )
        if not made.pictures:
            raise PredictionFailed(
                "NSFW content detected. Try running it again, or try a different prompt; "
                "disable_safety_checker gives back what was made."
            )
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._pipeline.makes == "video":
            file = await asyncio.to_thread(_write_video, made.pictures, asked.input, folder)
            yield Metric("video_duration_seconds", round(len(made.pictures) / asked.input["fps"], 3))
            yield Output([file], append=False)
        else:
            files = await asyncio.to_thread(_write_pictures, made.pictures, asked.input, folder)
            yield Metric("image_count", len(files))
            yield Output([files], append=False)

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that this model supports; empty where sleeping would free nothing.

        A pipeline with the option ``offload`` moves its weights by itself, so it cannot sleep.
        """
        return torch_offload.levels(self._spec) if self._spec.options["offload"] == "none" else ()

    async def sleep(self, level: int) -> int:
        """Move the weights to main memory and free the device.

        All pipelines share the weights of the first, so moving the first moves all.
        """
        return await asyncio.to_thread(torch_offload.fall_asleep, list(self._pipes.values())[:1])

    async def wake(self) -> None:
        """Move the weights back to the device."""
        await asyncio.to_thread(torch_offload.wake, list(self._pipes.values())[:1], "cuda")

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    # -- loading

    def _load(self, weights: Path) -> None:
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        logging.disable_default_handler()  # its warnings, of prompts that are cut say, belong to predictions
        logging.enable_propagation()
        options, on_cpu = self._spec.options, self._spec.device == "cpu"
        torch.set_num_threads(self._spec.threads)
        if on_cpu and (options["dtype"] == "float16" or options["offload"] != "none"):
            raise LoadFailed(
                f"model {self._spec.model}: dtype float16 and offload are for GPUs, and it runs on a CPU; "
                "change them in its options in models.yaml"
            )
        name = ("float32" if on_cpu else "bfloat16") if options["dtype"] == "auto" else options["dtype"]
        self._dtype = getattr(torch, name)
        pipe = DiffusionPipeline.from_pretrained(
            weights,
            dtype=self._dtype,
            variant=options["variant"],
            use_safetensors=True,  # others are programs
            local_files_only=True,
            trust_remote_code=False,
        )
        for lora, path in options["loras"].items():
            self._add_lora(pipe, lora, Path(path))
        if options["vae_tiling"]:
            pipe.vae.enable_tiling()
        if options["offload"] == "model":
            pipe.enable_model_cpu_offload()
        elif options["offload"] == "sequential":
            pipe.enable_sequential_cpu_offload()
        elif not on_cpu:
            pipe.to("cuda")
        self._scheduler = pipe.scheduler
        self._pipes[type(pipe).__name__] = pipe

    def _add_lora(self, pipe: Any, name: str, path: Path) -> None:
        if not path.exists():
            raise LoadFailed(
                f"model {self._spec.model}: there is nothing at {path}; correct options.loras.{name}"
            )
        file = {"weight_name": path.name} if path.is_file() else {}
        pipe.load_lora_weights(
            path.parent if file else path,
            adapter_name=name,
            local_files_only=True,
            use_safetensors=True,
            **file,
        )

    def _pipe(self, name: str) -> Any:
        """The pipeline of this class, over the weights that are loaded."""
        if name not in self._pipes:
            import diffusers

            first = next(iter(self._pipes.values()))
            # Without its dtype it would make all shared weights float32.
            self._pipes[name] = getattr(diffusers, name).from_pipe(first, dtype=self._dtype)
        return self._pipes[name]

    # -- computing

    def _asked(self, input: dict[str, Any]) -> _Request:
        image, mask = (_opened(name, input.get(name)) for name in ("image", "mask"))
        call = inputs.chosen(self._pipeline, image=image is not None, mask=mask is not None)
        size = None
        if "aspect_ratio" in input:
            given = None if image is None else Size(*image.size)
            size = inputs.size(input, self._pipeline, self._spec.options, given)
            image, mask = (_covering(each, size) if each is not None else None for each in (image, mask))
        further = {name: _opened(name, input.get(name)) for name in inputs.further_pictures(call)}
        seed = input.get("seed")
        if seed is None:
            seed = random.SystemRandom().randrange(2**32)
        return _Request(call, {**input, **further}, size, image, mask, seed)

    def _compute(self, asked: _Request, stop: threading.Event) -> _Made:
        """In a thread of its own.

        Raises:
            PredictionFailed: the pipeline does not take what was given.
        """
        pipe = self._pipe(asked.call.name)
        checker = getattr(pipe, "safety_checker", None)
        try:
            self._choose_lora(pipe, asked.input)
            pipe.scheduler = self._watched(asked.input, stop)
            if checker is not None and asked.input["disable_safety_checker"]:
                pipe.safety_checker = None
            result = pipe(**self._arguments(asked))
        except _FOREIGN as error:
            raise PredictionFailed(f"the pipeline refused this prediction: {_describe(error)}") from error
        finally:
            if checker is not None:
                pipe.safety_checker = checker
            if self._spec.options["offload"] != "none":
                pipe.maybe_free_model_hooks()
        if self._pipeline.makes == "video":
            return _Made(list(result.frames[0]), 0)
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(result.images)
        kept = [picture for picture, bad in zip(result.images, flagged, strict=True) if not bad]
        return _Made(kept, len(result.images) - len(kept))

    def _choose_lora(self, pipe: Any, input: dict[str, Any]) -> None:
        if "lora" not in input:
            return
        if input["lora"] == inputs.NO_LORA:
            pipe.disable_lora()
        else:
            pipe.enable_lora()
            pipe.set_adapters([input["lora"]], [input["lora_scale"]])

    def _watched(self, input: dict[str, Any], stop: threading.Event) -> Any:
        """A fresh scheduler, of the class that was asked for, whose steps hear of a cancel.

        Every pipeline calls ``step``, while not every one has a callback.
        """
        import diffusers

        own = self._scheduler
        name: str = type(own).__name__
        told: dict[str, Any] = {}
        asked = input.get("scheduler", inputs.OWN_SCHEDULER)
        if asked != inputs.OWN_SCHEDULER:
            name, told = inputs.SCHEDULERS[asked]
        scheduler = getattr(diffusers, name).from_config(own.config, **told)
        original = scheduler.step

        @functools.wraps(original)  # pipelines look at its signature
        def step(*arguments: Any, **keywords: Any) -> Any:
            if stop.is_set():
                raise _Canceled
            return original(*arguments, **keywords)

        scheduler.step = step
        return scheduler

    def _arguments(self, asked: _Request) -> dict[str, Any]:
        """Return the arguments for the pipeline's call."""
        import torch

        input, count = asked.input, asked.input.get("num_outputs", 1)
        generators = [torch.Generator("cpu").manual_seed(asked.seed + at) for at in range(count)]
        told: dict[str, Any] = {
            **input,
            "image": asked.image,
            "mask_image": asked.mask,
            "strength": input.get("prompt_strength"),
            "num_images_per_prompt": count,
            "frame_rate": input.get("fps"),
            "generator": generators if count > 1 else generators[0],
            "output_type": "pil",
            "width": asked.size.width if asked.size is not None else None,
            "height": asked.size.height if asked.size is not None else None,
        }
        known = asked.call.arguments
        return {name: value for name, value in told.items() if name in known and value is not None}


def _opened(name: str, path: str | None) -> Image | None:
    """The picture in a file.

    Raises:
        PredictionFailed: it holds none.
    """
    if path is None:
        return None
    picture = images.read(Path(path), name)
    return picture.convert("L") if name == "mask" else picture


def _covering(picture: Image, size: Size) -> Image:
    """The picture scaled and cut to ``size``, from its middle."""
    from PIL import ImageOps

    return ImageOps.fit(picture, size)


def _write_pictures(pictures: list[Image], input: dict[str, Any], folder: Path) -> list[Path]:
    suffix, files = input["output_format"], []
    for number, picture in enumerate(pictures):
        file = folder / f"out-{number}.{suffix}"
        picture.save(
            file, _FORMATS[suffix], **({} if suffix == "png" else {"quality": input["output_quality"]})
        )
        files.append(file)
    return files


def _write_video(frames: list[Image], input: dict[str, Any], folder: Path) -> Path:
    """One file with all frames: H.264 that every browser plays, or an animated GIF."""
    rate, suffix = input["fps"], input["output_format"]
    file = folder / f"output.{suffix}"
    if suffix == "gif":
        duration = round(1000 / rate)  # milliseconds
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=duration, loop=0)
        return file
    import av

    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file


def _describe(error: BaseException) -> str:
    """Return a library's error on one short line, with advice where there is any."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > _CAUSE_LENGTH:
        text = text[:_CAUSE_LENGTH] + " ..."
    hints = [hint for words, hint in _HINTS if words in text]
    return "; ".join([text.rstrip("."), *hints])
