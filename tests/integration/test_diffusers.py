"""The diffusers runner on random weights: see ``tests.support.random_pipelines`` for what that can show."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import diffusers
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput, LoadFailed, PredictionFailed
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.adapters import interface_with
from appliance.runners.base import LoadSpec
from appliance.runners.diffusers import pipeline
from appliance.runners.diffusers.options import DiffusersModel, DiffusersOptions
from appliance.runners.diffusers.runner import DiffusersRunner
from tests.support import random_pipelines
from tests.support.appliance_process import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),  # of the libraries
]


def spec_of(weights: Path, **options: Any) -> LoadSpec:
    described = msgspec.to_builtins(pipeline.read(weights))
    return LoadSpec(
        model="test/random",
        version="0" * 64,
        kind="diffusers",
        options=DiffusersOptions(**options).model_dump(mode="json") | {"pipeline": described},
        weights=str(weights),
        device="cpu",
        memory=1,
        threads=1,  # more would spin while they wait for a CPU that other tests use
        concurrency=1,
        cache="/nowhere",
    )


#: A model whose predictions may name adapters; here they are paths, as from the gateway.
WITH_ADAPTERS = DiffusersModel.model_validate(
    {"name": "a/a", "kind": "diffusers", "source": {"path": "/"}, "adapter_sources": ["hub:a/*"]}
)


class Loaded:
    """One loaded pipeline, and a folder for what it makes."""

    def __init__(self, spec: LoadSpec, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        self.runner = DiffusersRunner(spec)
        self.logs = ""
        self.metrics: dict[str, Any] = {}
        self._count = 0

    async def run(self, **input: Any) -> Any:
        """What a prediction with this input gives. Paths are files that were fetched already."""
        self._count += 1
        files: dict[str, Any] = {name: str(value) for name, value in input.items() if isinstance(value, Path)}
        addresses: dict[str, Any] = dict.fromkeys(files, "data:,")
        for name, value in input.items():
            if isinstance(value, list):
                files[name], addresses[name] = [str(each) for each in value], ["data:,"] * len(value)
        interface = interface_with(self.runner.interface(self.spec.options), WITH_ADAPTERS)
        validated = input_schema.validate(interface, {**input, **addresses}) | files
        self.logs, found = "", None
        job = Job(f"prediction-{self._count}", 1, validated, folder=str(self.folder / str(self._count)))
        async for event in self.runner.run(job):
            match event:
                case Output([found]):
                    pass
                case Log(text):
                    self.logs += text
                case Metric(name, value):
                    self.metrics[name] = value
        return found


Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    async def make(build: Callable[[Path], Path], **options: Any) -> Loaded:
        loaded = Loaded(spec_of(build(tmp_path / "weights"), **options), tmp_path / "made")
        await loaded.runner.setup()
        return loaded

    return make


def pixels(file: Path) -> Any:
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB"), dtype=np.int16)


def looks(file: Path) -> tuple[str | None, tuple[int, int], int]:
    """Format, size and number of frames of an image."""
    with Image.open(file) as opened:
        return opened.format, opened.size, getattr(opened, "n_frames", 1)


async def test_images_of_every_size_and_format(load: Load) -> None:
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=2)
    (usual,) = await loaded.run(prompt="x")
    assert looks(usual) == ("WEBP", (32, 32), 1)
    assert "Using seed: " in loaded.logs
    (wide,) = await loaded.run(prompt="x", width=64, height=40, output_format="png")
    assert looks(wide) == ("PNG", (64, 40), 1)
    (ratio,) = await loaded.run(prompt="x", aspect_ratio="2:3", output_format="jpg", output_quality=10)
    assert looks(ratio) == ("JPEG", (24, 40), 1)
    several = await loaded.run(prompt="x", size="48x48", num_outputs=3)
    assert [file.name for file in several] == ["out-0.webp", "out-1.webp", "out-2.webp"]
    assert loaded.metrics["image_count"] == 3
    assert {looks(file) for file in several} == {("WEBP", (48, 48), 1)}


async def test_l4_a_seed_is_an_image(load: Load) -> None:
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=2)
    lossless = {"prompt": "x", "output_format": "png"}
    (first,) = await loaded.run(seed=7, **lossless)
    (again,) = await loaded.run(seed=7, **lossless)
    (other,) = await loaded.run(seed=8, **lossless)
    assert (pixels(first) == pixels(again)).all()
    assert (pixels(first) != pixels(other)).any()
    both = await loaded.run(seed=7, num_outputs=2, **lossless)  # of seeds that follow each other
    for file, alone in zip(both, (first, other), strict=True):
        assert abs(pixels(file) - pixels(alone)).max() <= 2
    for scheduler in ("K_EULER", "KarrasDPM", "HeunDiscrete", "PNDM", "UniPCMultistep"):
        (drawn,) = await loaded.run(seed=7, scheduler=scheduler, **lossless)
        assert (pixels(drawn) != pixels(first)).any(), scheduler


async def test_an_image_to_begin_with_and_a_mask(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=4)
    given, mask = tmp_path / "given.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 32), (200, 30, 30)).save(given)
    Image.new("L", (64, 32), 0).save(mask)
    (near,) = await loaded.run(prompt="x", image=given, prompt_strength=0.3, seed=1, output_format="png")
    assert looks(near)[1] == (40, 16)  # of as many pixels as it was made for
    (explicit,) = await loaded.run(prompt="x", image=given, width=64, height=32)
    assert looks(explicit)[1] == (64, 32)
    (kept,) = await loaded.run(
        prompt="x", image=given, mask=mask, prompt_strength=0.9, seed=1, width=64, height=32,
        output_format="png",
    )  # fmt: skip
    (painted,) = await loaded.run(
        prompt="x", image=given, mask=_white(tmp_path), prompt_strength=0.9, seed=1, width=64, height=32,
        output_format="png",
    )  # fmt: skip
    assert (pixels(kept) != pixels(painted)).any()
    with pytest.raises(PredictionFailed, match="a mask needs an image"):
        await loaded.run(prompt="x", mask=mask)


async def test_a_transparent_mask_repaints_what_is_transparent(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=4)
    given, grey, clear = (tmp_path / name for name in ("given.png", "grey.png", "clear.png"))
    Image.new("RGB", (32, 32), (200, 30, 30)).save(given)
    white = Image.new("L", (32, 32), 0)
    white.paste(255, (0, 0, 16, 32))
    white.save(grey)
    transparent = Image.new("RGBA", (32, 32), (255, 255, 255, 255))  # its colours do not matter
    transparent.paste((0, 0, 0, 0), (0, 0, 16, 32))
    transparent.save(clear)
    asked = {"prompt": "x", "image": given, "prompt_strength": 0.9, "seed": 1, "output_format": "png"}
    (expected,) = await loaded.run(mask=grey, **asked)
    (found,) = await loaded.run(mask=clear, mask_repaints="transparent", **asked)
    (other,) = await loaded.run(mask=clear, **asked)
    assert (pixels(found) == pixels(expected)).all()
    assert (pixels(found) != pixels(other)).any()
    with pytest.raises(PredictionFailed, match=r"input\.mask: this image has no transparency"):
        await loaded.run(mask=grey, mask_repaints="transparent", **asked)


def _white(folder: Path) -> Path:
    file = folder / "white.png"
    Image.new("L", (64, 32), 255).save(file)
    return file


async def test_the_safety_checker_holds_back_what_it_flags(load: Load) -> None:
    loaded = await load(random_pipelines.checked, num_inference_steps=1)
    with pytest.raises(PredictionFailed, match="NSFW content detected"):
        await loaded.run(prompt="x", num_outputs=2)
    assert "removed 2 of 2" in loaded.logs
    assert len(await loaded.run(prompt="x", num_outputs=2, disable_safety_checker=True)) == 2
    with pytest.raises(PredictionFailed, match="NSFW content detected"):  # that was for once
        await loaded.run(prompt="x")


async def test_an_image_controls_what_is_made(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.controlled, num_inference_steps=2)
    files = [tmp_path / "dark.png", tmp_path / "bright.png"]
    for file, brightness in zip(files, (0, 255), strict=True):
        Image.new("RGB", (32, 32), (brightness, 255, 0)).save(file)
    asked = {"prompt": "x", "seed": 1, "output_format": "png"}
    (dark,), (bright,), (again,) = [await loaded.run(image=file, **asked) for file in (*files, files[0])]
    assert (pixels(dark) != pixels(bright)).any()
    assert (pixels(dark) == pixels(again)).all()


async def test_a_corrupt_image_is_refused_and_the_model_goes_on(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=2)
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no image")
    Image.effect_noise((64, 64), 50).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(PredictionFailed, match="this is not an image"):
        await loaded.run(prompt="x", image=text)
    with pytest.raises(PredictionFailed, match="this image is damaged"):
        await loaded.run(prompt="x", image=cut)
    with pytest.raises(PredictionFailed, match="size: both sides must be from 8 to 2048 pixels"):
        await loaded.run(prompt="x", size="9000x9000")
    with pytest.raises(PredictionFailed, match="the pipeline refused this prediction"):
        await loaded.run(prompt="x", image=_white(tmp_path), prompt_strength=0.0)
    assert len(await loaded.run(prompt="x")) == 1


def lora(file: Path, seed: int, width: int = 32) -> Path:
    """Write LoRA weights for one layer of the tiny Stable Diffusion."""
    torch.manual_seed(seed)
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = torch.randn(4, width), 9 * torch.randn(width, 4)
    save_file({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, file)
    return file


async def test_adapters_change_the_picture(load: Load, tmp_path: Path) -> None:
    first, second = (str(lora(tmp_path / f"{seed}.safetensors", seed)) for seed in (1, 2))
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=2)
    asked = {"prompt": "x", "seed": 3, "output_format": "png"}

    async def picture(**more: Any) -> Any:
        (image,) = await loaded.run(**asked, **more)
        return pixels(image)

    without = await picture()
    with_first, with_second = await picture(lora_weights=first), await picture(lora_weights=second)
    with_both = await picture(lora_weights=first, extra_lora=second)
    different = [without, with_first, with_second, with_both]
    for at, one in enumerate(different):
        assert all((one != other).any() for other in different[:at])
    assert abs(without - await picture(lora_weights=first, lora_scale=0.0)).max() <= 1
    assert (with_first == await picture(lora_weights=first, extra_lora=second, extra_lora_scale=0.0)).all()
    assert (without == await picture()).all()


async def test_an_adapter_that_does_not_fit_fails_alone(load: Load, tmp_path: Path) -> None:
    fitting, foreign = (str(lora(tmp_path / f"{width}.safetensors", 1, width=width)) for width in (32, 48))
    other = tmp_path / "other.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(4, 8)}, other)
    loaded = await load(random_pipelines.stable_diffusion, num_inference_steps=2)
    asked = {"prompt": "x", "seed": 3, "output_format": "png"}
    (without,) = await loaded.run(**asked)
    for _ in range(2):
        with pytest.raises(
            PredictionFailed, match=r"48.safetensors does not fit test/random: .*size mismatch"
        ):
            await loaded.run(lora_weights=foreign, **asked)
        with pytest.raises(PredictionFailed, match=r"other.safetensors does not fit test/random: "):
            await loaded.run(lora_weights=str(other), **asked)
    (again,) = await loaded.run(**asked)
    (with_it,) = await loaded.run(lora_weights=fitting, **asked)
    assert (pixels(without) == pixels(again)).all()
    assert (pixels(without) != pixels(with_it)).any()


async def test_a_large_image_is_canceled_within_a_step(load: Load) -> None:
    loaded = await load(random_pipelines.flux)
    (large,) = await loaded.run(prompt="a", num_inference_steps=1, aspect_ratio="16:9")
    assert looks(large)[1] == (1344, 768)
    (quarter,) = await loaded.run(prompt="a", num_inference_steps=1, megapixels="0.25")
    assert looks(quarter)[1] == (512, 512)
    steps = late = 0
    watched = loaded.runner._stoppable_scheduler

    def counted(input: dict[str, Any], stops: list[threading.Event]) -> Any:
        scheduler = watched(input, stops)
        original = scheduler.step

        def step(*given: Any, **named: Any) -> Any:
            nonlocal steps, late
            steps += 1
            late += stops[0].is_set()
            return original(*given, **named)

        scheduler.step = step
        return scheduler

    loaded.runner._stoppable_scheduler = counted
    running = asyncio.ensure_future(loaded.run(prompt="a", num_inference_steps=500))
    await until(lambda: steps >= 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert late <= 1, "the first step that hears of it is the last one"
    assert steps < 500
    assert len(await loaded.run(prompt="a", num_inference_steps=1, size="64x64")) == 1


async def test_several_images_are_edited_together(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.flux_2_klein, num_inference_steps=2)
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (96, 64), (200, 30, 30)).save(red)
    Image.new("RGB", (64, 64), (30, 30, 200)).save(blue)

    async def made(**input: Any) -> Any:
        (image,) = await loaded.run(prompt="x", seed=1, output_format="png", **input)
        return pixels(image)

    without = await made(width=96, height=64)
    one = await made(image=red)
    assert one.shape == (64, 96, 3), "the size of the first image"
    assert (one == await made(image_input=[red])).all()
    both, swapped = await made(image_input=[red, blue]), await made(image_input=[blue, red], size="96x64")
    assert both.shape == one.shape
    different = [without, one, both, swapped]
    for at, image in enumerate(different):
        assert all((image != other).any() for other in different[:at])
    assert (both == await made(image=red, image_input=[blue])).all()
    with pytest.raises(PredictionFailed, match=r"input\.image_input has 11 images: send at most 10"):
        await loaded.run(prompt="x", image_input=[red] * 11)
    (tmp_path / "text").write_text("no image")
    with pytest.raises(PredictionFailed, match=r"input\.image_input\.1: this is not an image"):
        await loaded.run(prompt="x", image_input=[red, tmp_path / "text"])


async def test_videos(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.ltx_video)
    asked = {"prompt": "a", "num_inference_steps": 2, "num_frames": 9, "width": 64, "height": 32, "fps": 12}
    film = await loaded.run(**asked)
    with av.open(str(film)) as opened:
        stream = opened.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 32)
        assert stream.average_rate == 12
        assert len(list(opened.decode(video=0))) == 9
    assert loaded.metrics["video_duration_seconds"] == 0.75
    assert looks(await loaded.run(output_format="gif", **asked)) == ("GIF", (64, 32), 9)
    begin = tmp_path / "begin.png"
    Image.new("RGB", (64, 32), (10, 200, 30)).save(begin)
    with av.open(str(await loaded.run(image=begin, **asked))) as opened:
        assert len(list(opened.decode(video=0))) == 9


@pytest.mark.parametrize(
    "build", [random_pipelines.wan_image_to_video, random_pipelines.ltx_video_with_conditions]
)
async def test_a_video_between_two_images(load: Load, tmp_path: Path, build: Callable[[Path], Path]) -> None:
    loaded = await load(build)
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (80, 32), (200, 30, 30)).save(red)
    Image.new("RGB", (64, 64), (30, 30, 200)).save(blue)
    asked = {"prompt": "a", "seed": 1, "num_inference_steps": 2, "num_frames": 9, "size": "64x32", "fps": 8}
    alone = film(await loaded.run(image=red, **asked))
    to_blue = film(await loaded.run(image=red, last_image=blue, **asked))
    to_red = film(await loaded.run(image=red, last_image=red, **asked))
    assert alone.shape == to_blue.shape == (9, 32, 64, 3)
    for one, other in ((alone, to_blue), (alone, to_red), (to_blue, to_red)):
        assert (one != other).any()
    with pytest.raises((PredictionFailed, InvalidInput), match="image"):
        await loaded.run(last_image=blue, **asked)


def film(file: Path) -> Any:
    """Return the frames of a video."""
    with av.open(str(file)) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    return np.stack(frames).astype(np.int16)


async def test_a_video_with_sound(load: Load, tmp_path: Path) -> None:
    loaded = await load(random_pipelines.ltx_2)
    assert loaded.runner.interface(loaded.spec.options).input["properties"]["num_frames"]["default"] == 121
    # The numbers of the blocks that the defaults change are those of the large model.
    asked = {"prompt": "a", "seed": 1, "num_inference_steps": 2, "size": "64x32", "num_frames": 17, "fps": 8}
    asked |= {"stg_scale": 0.0, "audio_stg_scale": 0.0}
    file = await loaded.run(**asked)
    with av.open(str(file)) as opened:
        (sound,) = opened.streams.audio
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 16000, 2)
        samples = np.concatenate([frame.to_ndarray() for frame in opened.decode(audio=0)], axis=1)
    assert abs(samples.shape[1] / 16000 - 17 / 8) < 0.2
    assert samples.std() > 0
    assert film(file).shape == (17, 32, 64, 3)
    assert loaded.metrics["video_duration_seconds"] == 2.125
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (64, 32), (200, 30, 30)).save(red)
    Image.new("RGB", (64, 32), (30, 30, 200)).save(blue)
    begun = film(await loaded.run(image=red, **asked))
    to_blue = film(await loaded.run(image=red, last_image=blue, **asked))
    assert (film(file) != begun).any()
    assert (begun != to_blue).any()
    assert looks(await loaded.run(output_format="gif", **asked)) == ("GIF", (64, 32), 17)


async def test_weights_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    good = random_pipelines.stable_diffusion(tmp_path / "good")

    async def refusal(damage: Callable[[Path], object], **options: Any) -> str:
        weights = tmp_path / "bad"
        shutil.rmtree(weights, ignore_errors=True)
        shutil.copytree(good, weights)
        spec = spec_of(weights, **options)
        damage(weights)
        with pytest.raises(LoadFailed) as refused:
            await DiffusersRunner(spec).setup()
        return str(refused.value)

    unet = "unet/diffusion_pytorch_model.safetensors"
    assert "appliance pull" in await refusal(shutil.rmtree)
    assert "unet" in await refusal(lambda weights: (weights / unet).unlink())
    assert "download them again" in await refusal(lambda weights: (weights / unet).write_bytes(b"\0" * 100))
    assert "dtype float16" in await refusal(lambda _: None, dtype="float16")
    assert "variant" in await refusal(lambda _: None, variant="fp16")
    assert "options.loras.gone" in await refusal(
        lambda _: None, loras={"gone": tmp_path / "gone.safetensors"}
    )


def test_what_the_source_says_is_what_python_sees() -> None:
    """The gateway reads signatures in diffusers' source; here they are held against the imported classes."""
    compared = untold = 0
    for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline", "LTXPipeline"):
        for found in (pipeline._call(name), pipeline._related(name, pipeline._WITH_IMAGE)):
            if found is None:
                continue
            signature = inspect.signature(getattr(diffusers, found.name).__call__)
            real = {
                name: parameter
                for name, parameter in signature.parameters.items()
                if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            }
            assert [*found.arguments] == [*real], found.name
            for key, argument in found.arguments.items():
                default = real[key].default
                assert argument.required == (default is inspect.Parameter.empty), (found.name, key)
                if isinstance(default, int | float | str):
                    compared += 1
                    untold += argument.default is None  # it is the name of a constant, or is computed
                    assert argument.default in {default, None}, (found.name, key)
    assert compared > 50
    assert untold < compared / 50


async def test_a_gguf_file_stays_quantized(load: Load, tmp_path: Path) -> None:
    weights = random_pipelines.flux(tmp_path / "plain")
    file = gguf_of(weights / "transformer", tmp_path / "transformer.gguf")
    asked = {"prompt": "x", "seed": 3, "num_inference_steps": 2, "size": "32x32", "output_format": "png"}
    plain = await load(random_pipelines.flux)
    (without,) = await plain.run(**asked)
    quantized = await load(lambda _: weights, gguf={"transformer": file})
    (with_it,) = await quantized.run(**asked)
    (pipe,) = quantized.runner._pipes.values()
    assert "GGUFLinear" in {type(module).__name__ for module in pipe.transformer.modules()}
    assert abs(pixels(without) - pixels(with_it)).max() <= 8, "8 bits a weight change little"
    reason = await refusal_of(load, weights, gguf={"transformer": tmp_path / "gone.gguf"})
    assert "options.gguf.transformer: " in reason
    assert "gone.gguf does not exist; correct it" in reason


async def refusal_of(load: Load, weights: Path, **options: Any) -> str:
    with pytest.raises(LoadFailed) as caught:
        await load(lambda _: weights, **options)
    return caught.value.detail


def gguf_of(component: Path, file: Path) -> Path:
    """Write the weights of a component with 8 bits a weight where the format allows."""
    import gguf

    writer = gguf.GGUFWriter(file, "flux")
    eight = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in load_file(component / "diffusion_pytorch_model.safetensors").items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(values, eight), raw_dtype=eight)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
