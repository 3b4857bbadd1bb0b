"""Kind `diffusers`: predictions that wait share a batch, and each gets the picture that it gets alone."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from appliance.domain.errors import PredictionFailed
from appliance.runners.diffusers import pipeline
from appliance.runners.diffusers.options import DescribedDiffusersOptions
from tests.integration.test_diffusers import Loaded, lora, pixels, spec_of
from tests.support import random_pipelines
from tests.support.held_batches import HeldBatches

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),  # of the libraries
]

#: Largest difference of a colour, of 255, between a picture from a batch and the picture alone.
TOLERANCE = 2
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "StableDiffusion": random_pipelines.stable_diffusion,
    "StableDiffusionXL": random_pipelines.stable_diffusion_xl,
    "StableDiffusion3": random_pipelines.stable_diffusion_3,
    "Flux": random_pipelines.flux,
}
CASES = [f"{family}{variant}Pipeline" for family in FAMILIES for variant in ("", "Img2Img", "Inpaint")]


async def loaded(folder: Path, build: Callable[[Path], Path], **options: Any) -> Loaded:
    spec = spec_of(build(folder / "weights"), **{"num_inference_steps": 3, "max_batch": 8, **options})
    found = Loaded(spec, folder / "made")
    await found.runner.setup()
    return found


def asked(**more: Any) -> dict[str, Any]:
    return {"output_format": "png", "width": 32, "height": 32, **more}


def difference(found: list[Path], expected: list[Path]) -> int:
    assert len(found) == len(expected)
    return max(int(abs(pixels(a) - pixels(b)).max()) for a, b in zip(found, expected, strict=True))


def test_every_pipeline_that_shares_batches_is_compared() -> None:
    assert set(CASES) == pipeline.BATCHED


@pytest.mark.parametrize("name", CASES)
async def test_a_picture_is_the_same_in_a_batch_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    family = next(each for each in reversed(FAMILIES) if name.startswith(each))
    model = await loaded(tmp_path, FAMILIES[family])
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    Image.effect_noise((48, 48), 90).convert("RGB").save(tmp_path / "0.png")
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "1.png")

    def files(number: int) -> dict[str, Any]:
        image = {} if name == f"{family}Pipeline" else {"image": tmp_path / f"{number % 2}.png"}
        return image | ({"mask": tmp_path / "mask.png"} if "Inpaint" in name else {})

    given = [
        asked(prompt="a cat", seed=1, **files(0)),
        asked(prompt="some longer text about a dog", seed=2, **files(1)),
        asked(prompt="x", seed=5, num_outputs=2, **files(0)),
        asked(prompt="a cat", seed=8, negative_prompt="dogs", **files(1)),
    ]
    alone = [await model.run(**each) for each in given]
    held = HeldBatches(model.runner._batches, monkeypatch)
    tasks = await held.started([model.run(**each) for each in (given[0], *given)])
    assert {each.item.call.name for each in model.runner._batches._waiting} == {name}
    held.go.set()
    together = (await asyncio.gather(*tasks))[1:]
    assert held.seen == [1, 4]
    for found, expected in zip(together, alone, strict=True):
        assert difference(found, expected) <= TOLERANCE
    for at, one in enumerate(alone):
        assert all(difference(one[:1], other[:1]) > 20 for other in alone[:at])
    following = await model.run(**given[2] | {"seed": 6, "num_outputs": 1})
    assert difference(alone[2][1:], following) <= TOLERANCE, "each image has the next seed"


async def test_random_steps_use_the_seed_of_each_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await loaded(tmp_path, random_pipelines.stable_diffusion)
    adapter = str(lora(tmp_path / "1.safetensors", 1))
    given = [asked(prompt="x", seed=seed, scheduler="K_EULER_ANCESTRAL") for seed in (1, 2)]
    given += [asked(prompt=prompt, seed=1, lora_weights=adapter) for prompt in "ab"]
    given += [asked(prompt="c", seed=1), asked(prompt="c", seed=1, width=40)]
    alone = [await model.run(**each) for each in given]
    held = HeldBatches(model.runner._batches, monkeypatch)
    tasks = await held.started([model.run(**each) for each in (given[4], *given)])
    held.go.set()
    together = (await asyncio.gather(*tasks))[1:]
    assert held.seen == [1, 2, 2, 1, 1], "other settings are computed in another batch"
    assert max(map(difference, together, alone)) <= TOLERANCE


async def test_a_failed_or_cancelled_member_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await loaded(tmp_path, random_pipelines.stable_diffusion)
    given = [asked(prompt=prompt, seed=1) for prompt in ("a", "b", "bad", "c")]
    alone = [await model.run(**each) for each in given]
    held = HeldBatches(model.runner._batches, monkeypatch)
    pipe = model.runner._pipe("StableDiffusionPipeline")
    encode = pipe.encode_prompt

    def refuse(prompt: Any, *arguments: Any, **keywords: Any) -> Any:
        if "bad" in (prompt if isinstance(prompt, list) else [prompt]):
            raise ValueError("the prompt is bad")
        return encode(prompt, *arguments, **keywords)

    monkeypatch.setattr(pipe, "encode_prompt", refuse)
    tasks = await held.started([model.run(**each) for each in (given[0], *given)])
    tasks[2].cancel()
    held.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert held.seen == [1, 3, 1, 1, 1]
    assert isinstance(found[2], asyncio.CancelledError)
    assert isinstance(found[3], PredictionFailed)
    assert str(found[3]) == "the pipeline refused this prediction: the prompt is bad"
    for number in (1, 4):
        pictures = found[number]
        assert isinstance(pictures, list)
        assert difference(pictures, alone[number - 1]) <= TOLERANCE


async def test_a_batch_ends_at_the_step_after_its_last_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await loaded(tmp_path, random_pipelines.stable_diffusion)
    held = HeldBatches(model.runner._batches, monkeypatch)
    endless = [asked(prompt=prompt, seed=1, num_inference_steps=500) for prompt in "ab"]
    tasks = await held.started([model.run(**each) for each in (asked(prompt="x"), *endless)])
    finished: list[str] = []
    processor = model.runner._pipe("StableDiffusionPipeline").image_processor
    postprocess = processor.postprocess

    def counted(*given: Any, **named: Any) -> Any:
        finished.append("x")
        return postprocess(*given, **named)

    monkeypatch.setattr(processor, "postprocess", counted)
    held.go.set()
    await tasks[0]
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks[1:])
    assert finished == ["x"], "only the first prediction was decoded"
    assert model.runner._batches._batch == []


async def test_each_log_has_the_progress_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: ContextVar[io.StringIO] = ContextVar("log")
    outside = io.StringIO()

    class Stream(io.TextIOBase):
        def write(self, text: str, /) -> int:
            return current.get(outside).write(text)

    monkeypatch.setattr(sys, "stderr", Stream())
    model = await loaded(tmp_path, random_pipelines.stable_diffusion)
    logs = [io.StringIO() for _ in range(3)]

    async def logged(log: io.StringIO, prompt: str) -> None:
        current.set(log)
        await model.run(**asked(prompt=prompt))

    held = HeldBatches(model.runner._batches, monkeypatch)
    tasks = await held.started([logged(log, prompt * 60) for log, prompt in zip(logs, "abc", strict=True)])
    held.go.set()
    await asyncio.gather(*tasks)
    assert held.seen == [1, 2]
    for log, others in zip(logs, ("bc", "ac", "ab"), strict=True):
        assert "3/3" in log.getvalue()
        assert not any(other * 20 in log.getvalue() for other in others), "the prompt of another prediction"


def test_max_batch_changes_neither_the_version_nor_the_memory_by_default(tmp_path: Path) -> None:
    described = {"pipeline": {"width": 8, "height": 8, "call": {"name": "FluxPipeline"}}, "max_outputs": 3}

    def options(name: str = "FluxPipeline", **more: Any) -> DescribedDiffusersOptions:
        named = described | {"pipeline": {"width": 8, "height": 8, "call": {"name": name}}}
        return DescribedDiffusersOptions.model_validate(named | more)

    assert "max_batch" not in options().model_dump()
    assert "max_batch" in DescribedDiffusersOptions.UNVERSIONED
    assert options().predictions_at_once == 3
    assert options(max_batch=1).predictions_at_once == 1
    assert options(max_batch=9).predictions_at_once == 9
    assert options(max_batch=9)._pixels() == 3 * options()._pixels()
    assert options(max_batch=2)._pixels() == options()._pixels()
    assert options("WanPipeline", max_batch=9).predictions_at_once == 1
