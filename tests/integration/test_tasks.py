"""Kind `transformers`, task by task, with tiny models of real architectures.

Their weights are random, but for two that are trained on the spot, so that this is about shapes, schemas,
files and errors; see tests/support/tiny_models.py.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio
from tests.support import tiny_models
from tests.support.runner_calls import job, run
from tests.support.task_models import Models, runner_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """red.png, blue.jpg, noise.wav, text.txt, damaged.png and huge.png."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (50, 40), (200, 20, 10)).save(folder / "red.png")
    Image.new("RGB", (64, 64), (10, 20, 200)).save(folder / "blue.jpg")
    noise = np.random.default_rng(0).standard_normal(40_000, dtype=np.float32) * np.float32(0.1)
    audio.write(folder / "noise.wav", noise, 16_000)
    (folder / "text.txt").write_text("no sound and no image " * 100)
    Image.effect_noise((200, 200), 50).save(folder / "whole.png")
    (folder / "damaged.png").write_bytes((folder / "whole.png").read_bytes()[:5000])
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    return folder


# -- meaning


async def test_red_and_blue_are_told_apart(models: Models, files: Path) -> None:
    red = await models("image-classification", image=files / "red.png")
    assert [part["label"] for part in red.output] == ["red", "blue"]
    assert red.output[0]["score"] > 0.8
    blue = await models("image-classification", image=files / "blue.jpg", top_k=1)
    assert [part["label"] for part in blue.output] == ["blue"]


async def test_the_document_that_answers_comes_first(models: Models) -> None:
    documents = ["the dog ran", "a fish sat", "the cat ran", "a bird ran"]
    ranked = (await models("reranking", query="cat", documents=json.dumps(documents))).output
    assert ranked[0]["document"] == "the cat ran"
    assert sorted(part["index"] for part in ranked) == [0, 1, 2, 3]
    assert all(documents[part["index"]] == part["document"] for part in ranked)
    scores = [part["score"] for part in ranked]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] < 0.5 < scores[0] <= 1
    (best,) = (await models("reranking", query="fish", documents=documents, top_k=1)).output
    assert best["document"] == "a fish sat"


async def test_tokens_are_counted_and_documents_truncated(models: Models) -> None:
    documents = ["the dog ran", "the cat ran", "ran"]
    whole = await models("reranking", query="cat", documents=documents)
    assert whole.metrics["input_token_count"] == (4 + 3) + (4 + 3) + (4 + 1), "with the separators"
    cut = await models("reranking", query="cat", documents=documents, max_tokens=1)
    assert cut.metrics["input_token_count"] == 3 * (4 + 1)
    scores = {part["index"]: part["score"] for part in cut.output}
    assert scores[0] == pytest.approx(scores[1], abs=1e-4), "only the first word is read"
    with pytest.raises(
        PredictionFailed, match=r"input\.query: the query has 100 tokens, but .* accepts 64 for"
    ):
        await models("reranking", query="cat " * 100, documents=documents)


async def test_documents_are_computed_together_or_not(models: Models) -> None:
    alone = runner_of(models.made(tiny_models.reranking), "reranking", max_batch=1)
    await alone.setup()
    documents = ["the dog ran", "a fish sat on the mat", "the cat"]
    together = await models("reranking", query="cat", documents=documents)
    apart = await run(
        alone, job(alone.interface({"task": "reranking"}), models.folder, query="cat", documents=documents)
    )
    assert [part["index"] for part in apart.output] == [part["index"] for part in together.output]
    assert [part["score"] for part in apart.output] == pytest.approx(
        [part["score"] for part in together.output], abs=1e-4
    )


# -- shapes


async def test_boxes_lie_in_the_image(models: Models, files: Path) -> None:
    found = (await models("object-detection", image=files / "red.png", threshold=0)).output
    assert found
    for part in found:
        assert part["label"] in {"red", "blue"}
        assert part["box"]["xmin"] <= part["box"]["xmax"] <= 55
        assert part["box"]["ymin"] <= part["box"]["ymax"] <= 45
    assert (await models("object-detection", image=files / "red.png", threshold=1)).output == []


@pytest.mark.parametrize(
    ("maker", "prompt"),
    [
        (tiny_models.image_captioning, "the cat"),
        (tiny_models.captioning_without_beginning, None),
        (tiny_models.captioning_by_chat, "is this a cat"),
    ],
)
async def test_captions(
    models: Models, files: Path, maker: Callable[[Path], None], prompt: str | None
) -> None:
    made = await models("image-captioning", maker, image=files / "blue.jpg", max_new_tokens=4)
    assert isinstance(made.output, str)
    assert made.metrics["output_token_count"] >= 1
    given = {"image": files / "blue.jpg", "prompt": prompt or "the cat", "max_new_tokens": 4}
    if prompt is None:
        with pytest.raises(PredictionFailed, match=r"input\.prompt: this model takes no prompt"):
            await models("image-captioning", maker, **given)
    else:
        assert isinstance((await models("image-captioning", maker, **given)).output, str)


async def test_translation_between_many_languages(models: Models) -> None:
    into: dict[str, Any] = {"target_language": "fra_Latn", "max_new_tokens": 20}
    made = await models("translation", text="hello", num_beams=2, **into)
    assert made.metrics["input_token_count"] > 1
    assert 1 <= made.metrics["output_token_count"] <= 22
    made = await models("translation", text="hello", **into)
    await models("translation", text="hello", source_language="deu_Latn", **into)
    again = await models("translation", text="hello", **into)
    assert again.output == made.output, "the language of one text is not that of the next"


async def test_translation_between_two_languages(models: Models) -> None:
    made = await models("translation", tiny_models.summarization, text="the cat", max_new_tokens=3)
    assert made.metrics["input_token_count"] == 4, "two words, a beginning and an end"
    longer = await models(
        "translation", tiny_models.summarization, text="the cat", prefix="this is ", max_new_tokens=3
    )
    assert longer.metrics["input_token_count"] == 6
    with pytest.raises(PredictionFailed, match=r"input\.target_language: this model knows only two"):
        await models("translation", tiny_models.summarization, text="the cat", target_language="de")


async def test_a_summary_is_no_longer_than_asked(models: Models) -> None:
    made = await models("summarization", tiny_models.t5_told_what_to_do, text="the cat sat", max_new_tokens=3)
    assert made.metrics["output_token_count"] <= 4
    assert made.metrics["input_token_count"] == 6, "the model is told what to do by a word"


async def test_texts_are_labelled(models: Models) -> None:
    found = (await models("text-classification", text="the cat is good")).output
    assert {part["label"] for part in found} == {"good", "bad"}
    assert sum(part["score"] for part in found) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("labels", ["cat, dog,fish", ["cat", "dog", "fish"]])
async def test_labels_of_the_callers_own(models: Models, labels: Any) -> None:
    found = (await models("zero-shot-classification", text="the cat sat", labels=labels)).output
    assert {part["label"] for part in found} == {"cat", "dog", "fish"}
    assert sum(part["score"] for part in found) == pytest.approx(1, abs=1e-4)


async def test_entities_and_where_they_are(models: Models) -> None:
    text = "the cat sat on the mat"
    found = (await models("token-classification", text=text, aggregation="none")).output
    assert all(text[part["start"] : part["end"]] == part["word"] for part in found)
    assert {part["entity"] for part in found} <= {"B-ANIMAL", "I-ANIMAL"}


@pytest.mark.parametrize("gap", ["[MASK]", "<mask>"])
async def test_gaps_are_filled(models: Models, gap: str) -> None:
    found = (await models("fill-mask", text=f"the {gap} sat", top_k=3)).output
    assert len(found) == 3
    scores = [part["score"] for part in found]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("form", ["wav", "mp3"])
async def test_speech_is_a_file(models: Models, form: str) -> None:
    made = await models("text-to-speech", text="hello world " * 20, output_format=form)
    with av.open(str(made.output)) as container:
        assert container.format.name == form
        assert container.streams.audio[0].rate == 16_000
    assert made.metrics["audio_duration"] > 0


async def test_speech_recognition_by_letters(models: Models, files: Path) -> None:
    plain = await models("automatic-speech-recognition", audio=files / "noise.wav")
    assert plain.output["chunks"] == []
    assert plain.metrics["audio_duration"] == 2.5
    words = await models("automatic-speech-recognition", audio=files / "noise.wav", timestamp="word")
    assert words.output["text"] == plain.output["text"]
    assert words.output["chunks"]
    with pytest.raises(PredictionFailed, match=r"input\.language: this model knows only one language"):
        await models("automatic-speech-recognition", audio=files / "noise.wav", language="de")
    with pytest.raises(PredictionFailed, match=r"input\.task: this model cannot translate"):
        await models("automatic-speech-recognition", audio=files / "noise.wav", task="translate")


async def test_speech_recognition_by_whisper(models: Models, files: Path) -> None:
    task, maker = "automatic-speech-recognition", tiny_models.whisper
    heard = await models(task, maker, audio=files / "noise.wav", language="german", task="translate")
    assert all(len(part["timestamp"]) == 2 for part in heard.output["chunks"])
    with pytest.raises(
        PredictionFailed, match=r"input\.language: this model does not know 'french'; choose one of de"
    ):
        await models(task, maker, audio=files / "noise.wav", language="French")


# -- what cannot be done


@pytest.mark.parametrize(
    ("task", "given", "error"),
    [
        ("image-classification", {"image": "text.txt"}, r"input\.image: this is not an image"),
        ("image-classification", {"image": "damaged.png"}, r"input\.image: this image is damaged"),
        ("object-detection", {"image": "huge.png"}, r"input\.image: this image has too many pixels"),
        ("image-captioning", {"image": "noise.wav"}, r"input\.image: this is not an image"),
        ("automatic-speech-recognition", {"audio": "text.txt"}, r"input\.audio: "),
        ("automatic-speech-recognition", {"audio": "red.png"}, r"input\.audio: this file has no audio"),
        (
            "reranking",
            {"query": "cat", "documents": "the cat"},
            r"input\.documents: this must be a JSON list",
        ),
        ("reranking", {"query": "cat", "documents": "[]"}, r"input\.documents: this must be a JSON list"),
        ("zero-shot-classification", {"text": "cat", "labels": " , "}, r"input\.labels: there is no label"),
        ("fill-mask", {"text": "the cat"}, r"input\.text: the text must have \[MASK\]"),
        (
            "text-classification",
            {"text": "cat " * 99},
            r"input\.text: the text has 101 tokens, .* most 64",
        ),
        ("token-classification", {"text": "cat " * 99}, r"input\.text: the text has 101 tokens"),
        ("summarization", {"text": "cat " * 99}, r"input\.text: the text has 101 tokens"),
        ("translation", {"text": "hi"}, r"input\.target_language: this model knows many languages"),
        ("translation", {"text": "hi", "target_language": "xx"}, r"does not know the language 'xx'"),
        ("text-to-speech", {"text": "\u4f60\u597d"}, r"input\.text|text-to-speech failed"),
    ],
)
async def test_what_is_refused_and_that_the_model_goes_on(
    models: Models, files: Path, task: str, given: dict[str, Any], error: str
) -> None:
    found = {name: files / value if name in {"image", "audio"} else value for name, value in given.items()}
    with pytest.raises(PredictionFailed, match=error):
        await models(task, **found)
    good: dict[str, dict[str, Any]] = {
        "image": {"image": files / "red.png"},
        "audio": {"audio": files / "noise.wav"},
        "query": {"query": "cat", "documents": ["cat"]},
        "text": {"text": "the [MASK]"} if task == "fill-mask" else {"text": "the cat"},
    }
    again = good[next(iter(given))]
    if "labels" in given:
        again = {**again, "labels": "cat"}
    if task == "translation":
        again = {**again, "target_language": "fra_Latn", "max_new_tokens": 2}
    await models(task, **again)


async def test_a_cancel_ends_the_writing_between_two_tokens(models: Models) -> None:
    runner = await models.loaded("summarization")
    asked = job(
        runner.interface({"task": "summarization"}), models.folder, text="the cat", max_new_tokens=4096
    )
    written = asyncio.create_task(run(runner, asked))
    await asyncio.sleep(0.3)
    assert not written.done(), "it would write for long"
    written.cancel()
    with pytest.raises(asyncio.CancelledError):
        await written
    assert (await models("summarization", text="the cat", max_new_tokens=2)).output is not None


async def refusal(folder: Path | None, task: str, **more: Any) -> str:
    with pytest.raises(LoadFailed) as caught:
        await runner_of(folder, task, **more).setup()
    return caught.value.detail


async def test_weights_that_cannot_be_used_say_why(models: Models, tmp_path: Path) -> None:
    good = models.made(tiny_models.text_classification)
    task = "text-classification"
    assert "there are no weights at" in await refusal(tmp_path / "none", task)
    assert "has no config.json" in await refusal(tmp_path, task)

    def copy(name: str, *left_out: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name, ignore=shutil.ignore_patterns(*left_out)))

    assert "model.safetensors" in await refusal(copy("no weights", "*.safetensors"), task)
    damaged = copy("damaged")
    with (damaged / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    assert f"cannot be loaded for {task}" in await refusal(damaged, task)
    pickled = copy("pickled", "*.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"a program")
    assert "safetensors" in await refusal(pickled, task)
    other = copy("other")
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**described, "model_type": "no-such-type"}))
    assert "no-such-type" in await refusal(other, task)
    sized = copy("sized")
    (sized / "config.json").write_text(json.dumps({**described, "hidden_size": 32}))
    assert "cannot be loaded" in await refusal(sized, task)
    coded = copy("coded")
    remote = {"auto_map": {"AutoModelForSequenceClassification": "model.Model"}, "model_type": "own"}
    (coded / "config.json").write_text(json.dumps({**described, **remote}))
    (coded / "model.py").write_text("raise SystemExit('code that came with weights was run')")
    assert "cannot be loaded" in await refusal(coded, task)


async def test_weights_for_another_task_are_not_made_up(models: Models) -> None:
    said = await refusal(models.made(tiny_models.fill_mask), "text-classification")
    assert "which this task needs" in said
    assert "classifier.weight" in said
    labels = await refusal(models.made(tiny_models.zero_shot_classification), "reranking")
    assert "one or two labels, but this model has 3" in labels
    unlabelled = await refusal(models.made(tiny_models.text_classification), "zero-shot-classification")
    assert 'no label "entailment"' in unlabelled


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_what_is_computed_in(models: Models, files: Path, dtype: str) -> None:
    task = "image-classification"
    runner = runner_of(models.made(tiny_models.image_classification), task, dtype=dtype)
    await runner.setup()
    seen = await run(runner, job(runner.interface({"task": task}), models.folder, image=files / "red.png"))
    assert seen.output[0]["label"] == "red"
