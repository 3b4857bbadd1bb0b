"""Tasks of kind `transformers` with images, with tiny models; see tests/support/tiny_vision_models.py.

The models for embeddings, zero-shot classification, segmentation, background removal, enlarging and OCR are
trained on the spot, so that the tests can check the meaning of their outputs. The others have random weights.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners.transformers import image_outputs, image_text
from tests.support import tiny_models, tiny_vision_models
from tests.support.runner_calls import job, run
from tests.support.task_models import Models, runner_of

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

SQUARE = (16, 8, 40, 32)  # left, top, right and bottom of the bright square in square.png


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Models]:
    yield Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for colour, shade in (("red", (200, 20, 10)), ("green", (20, 210, 30)), ("blue", (10, 20, 200))):
        Image.new("RGB", (50, 40), shade).save(folder / f"{colour}.png")
    square = Image.new("RGB", (64, 64), "black")
    square.paste("white", SQUARE)
    square.save(folder / "square.png")
    for word in tiny_vision_models.READ:
        tiny_vision_models.written(word, 3, 1).save(folder / f"{word}.png")
    Image.linear_gradient("L").resize((40, 24)).convert("RGB").save(folder / "gradient.png")
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    (folder / "text.txt").write_text("no image " * 100)
    return folder


def opened(file: Any) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image


def overlap(mask: np.ndarray[Any, Any], box: tuple[int, int, int, int]) -> float:
    """Return the intersection of a mask and a box, divided by their union."""
    inside = np.zeros_like(mask, dtype=bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return float((mask & inside).sum() / (mask | inside).sum())


# -- embeddings


async def embedded(
    models: Models, *lines: str | Path, maker: Callable[[Path], None] | None = None, **given: Any
) -> Any:
    """Return the output for texts and image files, in the form in which the gateway sends them."""
    task = "image-text-embeddings"
    runner = await models.loaded(task, maker)
    interface = runner.interface({"task": task})
    asked = job(interface, models.folder, inputs="x", **given)
    asked.input["inputs"] = [
        {"text": f"https://example.org/{line.name}", "file": str(line)}
        if isinstance(line, Path)
        else {"text": line}
        for line in lines
    ]
    output = (await run(runner, asked)).output
    jsonschema.validate(json.loads(json.dumps(output)), interface.output)
    return output


async def test_texts_and_images_of_the_same_colour_have_similar_vectors(models: Models, files: Path) -> None:
    colours = list(tiny_vision_models.COLOURS)
    pictures = [files / f"{colour}.png" for colour in colours]
    texts = [f"this is a {colour}" for colour in colours]
    output = await embedded(
        models, texts[0], pictures[2], *texts[1:], *pictures[:2], normalize_embeddings=True
    )
    assert [part["input"] for part in output] == [
        texts[0],
        "https://example.org/blue.png",
        *texts[1:],
        "https://example.org/red.png",
        "https://example.org/green.png",
    ]
    vectors = np.array([part["embedding"] for part in output])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-4)
    similar = vectors[[0, 2, 3]] @ vectors[[4, 5, 1]].T
    assert similar.argmax(1).tolist() == [0, 1, 2]


async def test_vectors_do_not_depend_on_the_batch(models: Models, files: Path) -> None:
    lines: list[str | Path] = [
        "the cat",
        "the dog sat on the mat",
        files / "red.png",
        "a bird",
    ] * 6  # over max_batch texts
    together = await embedded(models, *lines)
    for at in (1, 2, 23):
        (alone,) = await embedded(models, lines[at])
        assert alone["embedding"] == pytest.approx(together[at]["embedding"], abs=1e-4)
    lengths = [np.linalg.norm(part["embedding"]) for part in together]
    assert max(abs(length - 1) for length in lengths) > 0.01, "not normalized unless requested"


async def test_long_texts_are_truncated_and_siglip_pads_them(models: Models, files: Path) -> None:
    for maker in (tiny_vision_models.image_text_embeddings, tiny_vision_models.siglip):
        output = await embedded(models, "cat " * 50, files / "red.png", maker=maker)
        assert len(output[0]["embedding"]) == len(output[1]["embedding"]) == 16


async def test_embedding_refuses_empty_inputs_and_models_without_images(models: Models, files: Path) -> None:
    with pytest.raises(PredictionFailed, match=r"input\.inputs: there is no text and no URL"):
        await embedded(models)
    with pytest.raises(PredictionFailed, match=r"input\.inputs: this is not an image"):
        await embedded(models, files / "text.txt")
    with pytest.raises(LoadFailed, match="the model type bert has no vectors of texts and images"):
        await runner_of(models.made(tiny_models.text_classification), "image-text-embeddings").setup()


# -- images and labels


@pytest.mark.parametrize("labels", ["blue, red,green", "blue | red | green", ["blue", "red", "green"]])
async def test_images_get_the_callers_labels(models: Models, files: Path, labels: Any) -> None:
    found = await models(
        "zero-shot-image-classification",
        image=files / "red.png",
        labels=labels,
        hypothesis_template="this is a {}",
    )
    assert found.output[0]["label"] == "red"
    assert found.output[0]["score"] > 0.8
    assert sum(part["score"] for part in found.output) == pytest.approx(1, abs=1e-4)


async def test_scores_of_siglip_are_independent(models: Models, files: Path) -> None:
    task, maker = "zero-shot-image-classification", tiny_vision_models.siglip
    alone = await models(task, maker, image=files / "red.png", labels="cat")
    more = await models(task, maker, image=files / "red.png", labels="dog, cat")
    assert alone.output[0]["score"] == pytest.approx(
        next(part["score"] for part in more.output if part["label"] == "cat"), abs=1e-4
    )


@pytest.mark.parametrize(
    "maker", [tiny_vision_models.zero_shot_object_detection, tiny_vision_models.grounding_dino]
)
async def test_described_objects_have_boxes_in_the_image(
    models: Models, files: Path, maker: Callable[[Path], None]
) -> None:
    task = "zero-shot-object-detection"
    found = (await models(task, maker, image=files / "red.png", query="Cat, dog", box_threshold=0.0)).output
    assert found["detections"]
    for part in found["detections"]:
        left, top, right, bottom = part["bbox"]
        assert 0 <= left <= right <= 50
        assert 0 <= top <= bottom <= 40
        assert 0 <= part["confidence"] <= 1
    scores = [part["confidence"] for part in found["detections"]]
    assert scores == sorted(scores, reverse=True)
    if maker is tiny_vision_models.zero_shot_object_detection:
        assert {part["label"] for part in found["detections"]} <= {"Cat", "dog"}
    assert opened(found["result_image"]).size == (50, 40)
    none = await models(
        task, maker, image=files / "red.png", query=["cat"], box_threshold=1, show_visualisation=False
    )
    assert none.output == {"detections": []}


async def test_boxes_are_drawn_with_captions_inside_the_image() -> None:
    image = Image.new("RGB", (200, 100), "black")
    detections = [
        {"bbox": [10, 20, 60, 90], "label": "cat", "confidence": 0.9},
        {"bbox": [190, 95, 200, 100], "label": "dog", "confidence": 0.5},
    ]
    drawn = image_text.draw_boxes(image, detections)
    for corner in ((10, 20), (59, 20), (10, 89), (59, 89)):
        assert drawn.getpixel(corner) == (255, 0, 0)
    assert drawn.getpixel((5, 50)) == (0, 0, 0)
    captions = np.asarray(drawn)[:, :, 1] > 200  # white letters
    assert captions[20:40, 10:60].any()
    assert captions[80:, 150:].any(), "the caption of the object in the corner is moved into the image"
    assert image.getpixel((10, 20)) == (0, 0, 0), "the input image does not change"


# -- segments


async def test_the_square_is_found(models: Models, files: Path) -> None:
    found = (await models("image-segmentation", image=files / "square.png")).output
    assert {part["label"] for part in found} == {"background", "square"}
    square = next(part for part in found if part["label"] == "square")
    mask = opened(square["mask"])
    assert mask.size == (64, 64)
    assert overlap(np.asarray(mask) > 0, SQUARE) > 0.8
    box = tuple(square["box"][side] for side in ("xmin", "ymin", "xmax", "ymax"))
    assert box == pytest.approx(SQUARE, abs=3)
    assert square["score"] > 0.8
    assert (await models("image-segmentation", image=files / "square.png", threshold=1)).output == []


async def test_masks_of_large_images_have_the_size_of_the_image(
    models: Models, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_outputs, "_MASK_PIXELS", 32 * 32)
    found = (await models("image-segmentation", image=files / "square.png")).output
    mask = opened(next(part["mask"] for part in found if part["label"] == "square"))
    assert mask.size == (64, 64)
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert overlap(np.asarray(mask) > 0, SQUARE) > 0.6


async def test_objects_with_masks(models: Models, files: Path) -> None:
    task, maker = "image-segmentation", tiny_vision_models.detr
    found = (await models(task, maker, image=files / "red.png", threshold=0)).output
    for part in found:
        assert part["label"] in {"cat", "dog"}
        assert opened(part["mask"]).size == (50, 40)
    cut = await models("background-removal", maker, image=files / "red.png", labels="cat")
    assert opened(cut.output).size == (50, 40)
    with pytest.raises(PredictionFailed, match=r"input\.labels: 'bird' is not a label .* knows cat, dog"):
        await models("background-removal", maker, image=files / "red.png", labels="bird")


async def test_the_background_is_removed(models: Models, files: Path) -> None:
    task, image = "background-removal", files / "square.png"
    cut = opened((await models(task, image=image)).output)
    assert (cut.mode, cut.size) == ("RGBA", (64, 64))
    alpha = np.asarray(cut)[:, :, 3]
    assert overlap(alpha > 127, SQUARE) > 0.8
    assert len(np.unique(alpha)) > 2, "the edges are soft"
    hard = opened((await models(task, image=image, threshold=0.5, background_type="map")).output)
    assert set(np.unique(np.asarray(hard))) == {0, 255}
    green = np.asarray(opened((await models(task, image=image, background_type="green")).output))
    assert green[60, 60].tolist() == pytest.approx([0, 255, 0], abs=30)
    assert green[20, 28].tolist() == pytest.approx([255, 255, 255], abs=30)
    rest = opened((await models(task, image=image, reverse=True, background_type="map")).output)
    assert overlap(np.asarray(rest) < 128, SQUARE) > 0.8
    named = opened((await models(task, image=image, labels=["background"], background_type="map")).output)
    assert overlap(np.asarray(named) < 128, SQUARE) > 0.8


# -- depth and larger images


async def test_depth_as_an_image_and_as_numbers(models: Models, files: Path) -> None:
    found = (await models("depth-estimation", image=files / "gradient.png")).output
    grey, exact = opened(found["grey_depth"]), opened(found["depth_16_bits"])
    assert grey.size == exact.size == (40, 24)
    shares = np.asarray(exact) / 65535
    assert np.asarray(grey) == pytest.approx(shares * 255, abs=1)
    assert (shares.min(), shares.max()) == (0, 1)
    assert found["minimum"] < found["maximum"]


async def test_images_are_enlarged(models: Models, files: Path) -> None:
    with Image.open(files / "gradient.png") as image:
        expected = np.asarray(image.resize((80, 48), Image.Resampling.BILINEAR)).astype(float)
    made = np.asarray(opened((await models("super-resolution", image=files / "gradient.png")).output))
    assert made.shape == (48, 80, 3)
    assert np.abs(made - expected).mean() < 20
    other = await models("super-resolution", image=files / "gradient.png", scale=3.5)
    assert opened(other.output).size == (140, 84)


async def test_large_images_are_enlarged_in_parts(
    models: Models, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.asarray(opened((await models("super-resolution", image=files / "gradient.png")).output))
    monkeypatch.setattr(image_outputs, "_TILE", 16)
    monkeypatch.setattr(image_outputs, "_OVERLAP", 8)
    parts = np.asarray(opened((await models("super-resolution", image=files / "gradient.png")).output))
    assert parts.shape == whole.shape
    assert np.abs(parts.astype(float) - whole).mean() < 10
    monkeypatch.setattr(image_outputs, "_MAX_ENLARGED", 1000)
    with pytest.raises(PredictionFailed, match=r"input\.image: .* 3,840 pixels, over the limit of 1,000"):
        await models("super-resolution", image=files / "gradient.png")


# -- images to text


async def test_words_are_read(models: Models, files: Path) -> None:
    for word in tiny_vision_models.READ:
        assert (await models("ocr", image=files / f"{word}.png", max_new_tokens=4)).output == word
    with pytest.raises(PredictionFailed, match=r"input\.prompt: this model takes no prompt"):
        await models("ocr", image=files / "cat.png", prompt="read this")
    chat = await models("ocr", tiny_models.captioning_by_chat, image=files / "cat.png", max_new_tokens=3)
    assert isinstance(chat.output, str)


async def test_questions_about_images(models: Models, files: Path) -> None:
    task = "visual-question-answering"
    made = await models(task, image=files / "red.png", question="is this a cat", max_new_tokens=3)
    assert made.metrics["output_token_count"] >= 1
    vilt = await models(task, tiny_vision_models.vilt, image=files / "red.png", question="is this a cat")
    assert vilt.output in {"yes", "no"}
    with pytest.raises(PredictionFailed, match=r"input\.question: the text has 82 tokens, .* at most 64"):
        await models(task, image=files / "red.png", question="cat " * 80)
    with pytest.raises(LoadFailed, match="supports the model types blip and vilt, not 'llava'"):
        await runner_of(models.made(tiny_models.captioning_by_chat), task).setup()


@pytest.mark.parametrize(
    ("task", "given", "error"),
    [
        ("zero-shot-image-classification", {"labels": " , "}, r"input\.labels: there is no label"),
        ("zero-shot-object-detection", {"query": ","}, r"input\.query: there is no label"),
        (
            "zero-shot-object-detection",
            {"query": "cat " * 20},
            r"input\.query: 'cat .* has 22 tokens, .* at most 16",
        ),
        ("background-removal", {"labels": "tree"}, r"input\.labels: 'tree' is not a label of this model"),
    ],
)
async def test_inputs_that_cannot_be_used(
    models: Models, files: Path, task: str, given: dict[str, Any], error: str
) -> None:
    with pytest.raises(PredictionFailed, match=error):
        await models(task, image=files / "square.png", **given)


@pytest.mark.parametrize("task", [task for task in tiny_vision_models.MAKERS if "embeddings" not in task])
async def test_images_that_cannot_be_used(models: Models, files: Path, task: str) -> None:
    more = {"visual-question-answering": {"question": "is this"}}.get(task, {})
    if task.startswith("zero-shot"):
        more = {"labels": "cat"}
    for file, error in (("huge.png", "has too many pixels"), ("text.txt", "is not an image")):
        with pytest.raises(PredictionFailed, match=rf"input\.image: this (image )?{error}"):
            await models(task, image=files / file, **more)
