"""Kind `transformers`: predictions that wait at the same time share a batch, and each gets its own result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from appliance.domain.errors import PredictionFailed
from appliance.runners.transformers.loading import BatchCompute
from appliance.runners.transformers.options import BATCHED, Task, TransformersOptions
from appliance.runners.transformers.runner import TransformersRunner
from tests.support import tiny_models, tiny_vision_models
from tests.support.appliance_process import until
from tests.support.held_batches import HeldBatches
from tests.support.runner_calls import Ran, job, run
from tests.support.task_models import MAKERS, Models

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LONG = "cat " * 99
#: Inputs of predictions that share a batch, for each task; the last one fails.
TEXTS = ["the cat sat", "a bird", "the dog ran on the mat", "the good dog sat on the hill"]
INPUTS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [
        *({"text": text, "top_k": 1 + number % 2} for number, text in enumerate(TEXTS)),
        {"text": LONG},
    ],
    "token-classification": [*({"text": text} for text in TEXTS), {"text": LONG}],
    "zero-shot-classification": [
        *({"text": text, "labels": "cat,dog"} for text in TEXTS),
        {"text": LONG, "labels": "cat,dog"},
    ],
    "reranking": [
        {"query": "cat", "documents": ["the dog ran", "the cat ran"]},
        {"query": "fish", "documents": ["a fish sat", "the cat sat on the mat", "a fish"], "top_k": 2},
        {"query": "dog", "documents": ["the cat", "the dog ran"], "max_tokens": 1},
        {"query": LONG, "documents": ["the cat"]},
    ],
    "translation": [
        *(
            {"text": text, "target_language": "fra_Latn", "max_new_tokens": 12}
            for text in ("hello", "a long text", "b")
        ),
        {"text": "c", "source_language": "deu_Latn", "target_language": "fra_Latn", "max_new_tokens": 12},
        {"text": "c", "source_language": "xx", "target_language": "fra_Latn", "max_new_tokens": 12},
    ],
    "summarization": [
        *({"text": text, "max_new_tokens": 9, "num_beams": 2} for text in TEXTS),
        {"text": LONG, "max_new_tokens": 9, "num_beams": 2},
    ],
    "image-classification": [
        {"image": name, "top_k": 1 + number} for number, name in enumerate(("red.png", "blue.png"))
    ]
    + [{"image": "noise.png"}],
    "fill-mask": [*({"text": f"{text} [MASK]"} for text in TEXTS), {"text": f"{LONG} [MASK]"}],
    "object-detection": [
        {"image": name, "threshold": threshold}
        for name, threshold in (("one.png", 0), ("two.png", 0.3), ("three.png", 0))
    ],
    "depth-estimation": [{"image": name} for name in ("one.png", "two.png", "three.png")],
    "image-segmentation": [
        {"image": name, "threshold": threshold}
        for name, threshold in (("one.png", 0), ("two.png", 0.6), ("three.png", 0))
    ],
    "background-removal": [
        {"image": "one.png"},
        {"image": "two.png", "background_type": "map"},
        {"image": "three.png", "reverse": True},
        {"image": "one.png", "labels": "unicorn"},
    ],
    "zero-shot-object-detection": [
        {"image": "one.png", "query": "cat,dog", "box_threshold": 0},
        {"image": "two.png", "query": "dog,cat", "box_threshold": 0},
        {"image": "three.png", "query": "cat", "box_threshold": 0},
        {"image": "text.png", "query": "cat"},
    ],
    "image-captioning": [
        {"image": "one.png", "max_new_tokens": 9},
        {"image": "two.png", "max_new_tokens": 9},
        {"image": "three.png", "max_new_tokens": 9, "prompt": "the cat"},
        {"image": "text.png", "max_new_tokens": 9},
    ],
    "ocr": [
        *({"image": name, "max_new_tokens": 9} for name in ("one.png", "two.png", "word.png")),
        {"image": "text.png", "max_new_tokens": 9},
    ],
    "visual-question-answering": [
        {"image": "one.png", "question": "the cat sat", "max_new_tokens": 9},
        {"image": "two.png", "question": "the dog sat", "max_new_tokens": 9},
        {"image": "three.png", "question": "a bird", "max_new_tokens": 9},
        {"image": "one.png", "question": LONG, "max_new_tokens": 9},
    ],
    "zero-shot-image-classification": [
        {"image": name, "labels": "cat,dog"} for name in ("red.png", "blue.png", "noise.png")
    ],
    "image-text-embeddings": [
        {"inputs": [{"text": "the cat"}, {"text": "red", "file": "red.png"}]},
        {"inputs": [{"text": "blue", "file": "blue.png"}], "normalize_embeddings": True},
        {"inputs": [{"text": "the good dog"}, {"text": "a"}]},
        {"inputs": [{"text": "?", "file": "text.png"}]},
    ],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (50, 40), (200, 20, 10)).save(folder / "red.png")
    Image.new("RGB", (64, 90), (10, 20, 200)).save(folder / "blue.png")
    Image.effect_noise((33, 21), 80).convert("RGB").save(folder / "noise.png")
    for number, name in enumerate(("one.png", "two.png", "three.png")):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    tiny_vision_models.written(next(iter(tiny_vision_models.READ)), 3, 1).save(folder / "word.png")
    (folder / "text.png").write_text("no image")
    return folder


def jobs(
    runner: TransformersRunner,
    task: str,
    given: list[dict[str, Any]],
    files: Path,
    output: str = "output",
) -> list[Any]:
    interface = runner.interface({"task": task})
    made = []
    for number, each in enumerate(given):
        named = {key: files / value if key == "image" else value for key, value in each.items()}
        lines = named.pop("inputs", None)
        one = job(
            interface, files / output / f"{task}-{number}", **named, **({"inputs": "x"} if lines else {})
        )
        if lines:  # as the gateway sends them
            one.input["inputs"] = [
                {**line, "file": str(files / line["file"])} if "file" in line else line for line in lines
            ]
        made.append(one)
    return made


def assert_equal(found: Any, expected: Any) -> None:
    """Numbers may differ by 1e-5: padding changes the order of sums."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, Path):
        with Image.open(found) as one, Image.open(expected) as other:
            difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
        assert abs(difference).max() <= (1 if one.mode != "I;16" else 8)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


def contents(output: Any) -> str:
    """Return an output as a text, with the contents of its files."""

    def content(file: Path) -> str:
        return file.read_bytes().hex()

    return json.dumps(output, default=content)


@pytest.mark.parametrize(
    ("task", "maker"),
    [
        *((task, MAKERS[task]) for task in sorted(BATCHED)),
        ("image-captioning", tiny_models.captioning_by_chat),
        ("image-segmentation", tiny_vision_models.detr),
        ("visual-question-answering", tiny_vision_models.vilt),
        ("zero-shot-object-detection", tiny_vision_models.grounding_dino),
    ],
)
async def test_each_prediction_of_a_batch_gets_its_own_result(
    models: Models, files: Path, monkeypatch: pytest.MonkeyPatch, task: str, maker: Callable[[Path], None]
) -> None:
    runner = await models.loaded(task, maker)
    given = jobs(runner, task, INPUTS[task], files)

    async def alone(one: Any) -> Ran | PredictionFailed:
        try:
            return await run(runner, one)
        except PredictionFailed as error:
            return error

    expected = [await alone(each) for each in jobs(runner, task, INPUTS[task], files, "alone")]
    assert sum(isinstance(each, Ran) for each in expected) >= 3
    held = HeldBatches(runner._batches, monkeypatch)
    started = await held.started([run(runner, each) for each in (given[0], *given)])
    held.go.set()
    results = (await asyncio.gather(*started, return_exceptions=True))[1:]
    assert held.seen[:2] == [1, len(given)]
    for found, wanted in zip(results, expected, strict=True):
        if isinstance(wanted, Ran):
            assert isinstance(found, Ran), found
            assert_equal(found.output, wanted.output)
            assert found.metrics == wanted.metrics
        else:
            assert isinstance(found, PredictionFailed)
            assert str(found) == str(wanted)
    different = {contents(each.output) for each in expected if isinstance(each, Ran)}
    if maker is MAKERS[task]:  # the random weights of the other models give equal results
        assert len(different) > 1, "equal results could not be told apart"


async def test_tasks_that_share_batches_are_known(models: Models) -> None:
    for task in sorted(BATCHED):
        assert isinstance((await models.loaded(task))._compute, BatchCompute)
        assert TransformersOptions.model_validate({"task": task, "max_batch": 7}).predictions_at_once == 7
    for task in sorted(set(get_args(Task)) - BATCHED):
        assert not isinstance((await models.loaded(task))._compute, BatchCompute)
        assert TransformersOptions.model_validate({"task": task}).predictions_at_once == 1


async def test_a_cancelled_text_ends_and_the_others_go_on(
    models: Models, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = await models.loaded("summarization")
    asked = [{"text": text, "max_new_tokens": 40, "num_beams": 2} for text in TEXTS]
    given = jobs(runner, "summarization", asked, files)
    expected = [await run(runner, each) for each in given]
    held = HeldBatches(runner._batches, monkeypatch)
    started = await held.started([run(runner, each) for each in (given[0], *given)])
    started[2].cancel()
    held.go.set()
    found = await asyncio.gather(*started, return_exceptions=True)
    assert isinstance(found[2], asyncio.CancelledError)
    for at, result in enumerate(found[1:]):
        if at != 1:
            assert isinstance(result, Ran)
            assert result.output == expected[at].output


async def test_a_batch_whose_predictions_are_all_cancelled_ends_early(
    models: Models, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = await models.loaded("summarization")
    asked = [{"text": text, "max_new_tokens": 4096} for text in TEXTS]
    given = jobs(runner, "summarization", asked, files)
    (short,) = jobs(runner, "summarization", [{"text": TEXTS[0], "max_new_tokens": 2}], files)
    held = HeldBatches(runner._batches, monkeypatch)
    first, *started = await held.started([run(runner, each) for each in (short, *given)])
    held.go.set()
    await first
    await until(lambda: bool(runner._batches._batch) and not runner._batches._waiting)
    for task in started:
        task.cancel()
    await asyncio.wait(started)
    assert all(task.cancelled() for task in started)
    assert held.seen == [1, len(started)]
    assert (await models("summarization", text="the cat", max_new_tokens=2)).output is not None


async def test_texts_of_a_model_without_attention_mask_are_not_padded(models: Models, files: Path) -> None:
    """The tokenizer of a model such as FNet has no attention mask: padding would change the results."""
    runner = await models.loaded("text-classification", tiny_models.text_classification_without_mask)
    given = jobs(runner, "text-classification", [{"text": text} for text in TEXTS], files)
    expected = [await run(runner, each) for each in given]
    found = await asyncio.gather(*(run(runner, each) for each in given))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one.output, other.output)
    scores = np.array([each.output[0]["score"] for each in expected])
    assert scores.std() > 1e-4
