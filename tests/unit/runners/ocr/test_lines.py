"""Lines of text: their boxes, their order, and how they are decoded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners.ocr.lines import cut_out, find_lines, in_rows
from appliance.runners.ocr.options import OcrOptions
from appliance.runners.ocr.runner import OcrRunner, decoded
from tests.support.onnx_files import Node, Tensor, write_onnx
from tests.support.runner_calls import job, load_spec, run


def box(left: float, top: float, right: float, bottom: float) -> Any:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def test_a_line_is_larger_than_its_middle_and_in_pixels_of_the_image() -> None:
    probabilities = np.zeros((100, 200), np.float32)
    probabilities[40:50, 50:150] = 0.9
    probabilities[80:82, 10:12] = 0.9  # too small
    probabilities[5:15, 5:60] = 0.4  # too uncertain
    (found,) = find_lines(probabilities, 400, 100)
    left, top = found.min(axis=0)
    right, bottom = found.max(axis=0)
    assert 70 <= left <= 90
    assert 310 <= right <= 330
    assert 30 <= top < 40
    assert 50 < bottom <= 60
    assert found[0].tolist() == [left, top], "the first corner is top left"


def test_a_line_is_cut_out_and_turned_if_it_is_upright() -> None:
    image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    assert np.array_equal(cut_out(image, box(10, 5, 30, 15)), image[5:15, 10:30])
    assert cut_out(image, box(10, 5, 20, 35)).shape == (10, 30, 3)


def test_boxes_are_read_in_rows() -> None:
    boxes = [
        box(50, 2, 90, 12),
        box(0, 20, 40, 30),
        box(0, 0, 40, 10),
        box(50, 24, 90, 34),
        box(0, 40, 9, 50),
    ]
    assert in_rows(boxes) == [[2, 0], [1, 3], [4]]
    assert in_rows([]) == []


def test_repeated_characters_are_one_unless_they_are_separated() -> None:
    steps = [1, 1, 0, 1, 2, 2, 0, 0, 3]
    scores = np.full((len(steps), 4), 0.0, np.float32)
    scores[np.arange(len(steps)), steps] = [0.9, 0.1, 0.5, 0.7, 0.8, 0.3, 0.9, 0.9, 0.6]
    text, score = decoded(scores, ["", "a", "b", " "])
    assert text == "aab "
    assert score == pytest.approx((0.9 + 0.7 + 0.8 + 0.6) / 4)
    assert decoded(np.array([[1.0, 0.0]]), ["", "a"]) == ("", 0.0)


def model(folder: Path, name: str, *shape: int, metadata: dict[str, str] | None = None) -> None:
    """Write a file that returns zeros of ``shape`` for any image."""
    inputs, outputs = [Tensor("x", ["n", 3, "h", "w"])], [Tensor("y", shape)]
    nodes = [Node("Identity", ["zeros"], ["y"])]
    write_onnx(folder / name, inputs, outputs, nodes, {"zeros": np.zeros(shape, np.float32)}, metadata or {})


async def load(folder: Path, **more: Any) -> OcrRunner:
    options = OcrOptions.model_validate(more).model_dump(mode="json")
    runner = OcrRunner(load_spec("ocr", folder, **options))
    await runner.setup()
    return runner


@pytest.mark.parametrize(("width", "height"), [(800, 200), (80, 20), (30_000, 1)])
def test_lines_are_found_in_a_smaller_copy_of_a_large_image(width: int, height: int) -> None:
    seen: list[tuple[int, ...]] = []

    def detect(_: None, given: dict[str, Any]) -> list[Any]:
        (values,) = given.values()
        seen.append(values.shape[2:])
        probabilities = np.zeros((1, 1, *values.shape[2:]), np.float32)
        rows, columns = values.shape[2:]
        probabilities[0, 0, rows * 2 // 5 : rows * 3 // 5, columns // 4 : columns // 2] = 0.9
        return [probabilities]

    runner = OcrRunner(load_spec("ocr", Path("/none"), **OcrOptions(max_side=320).model_dump(mode="json")))
    runner._detector = SimpleNamespace(run=detect, get_inputs=lambda: [SimpleNamespace(name="x")])
    (found,) = runner._find(np.zeros((height, width, 3), np.uint8))
    assert max(seen[0]) <= 320
    left, right = found[:, 0].min() / width, found[:, 0].max() / width
    assert 0.1 < left <= 0.25
    assert 0.5 <= right < 0.65
    assert found[:, 1].max() <= height - 1


async def test_an_image_with_a_side_that_is_too_long_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (32_767, 1)).save(tmp_path / "long.png")
    runner = OcrRunner(load_spec("ocr", tmp_path, **OcrOptions().model_dump(mode="json")))
    given = job(OcrRunner.interface({}), tmp_path, image=tmp_path / "long.png")
    with pytest.raises(PredictionFailed, match=r"input\.image: .* 32767 x 1 pixels, .* more than 32766"):
        await run(runner, given)


async def test_the_models_and_the_dictionary_are_found_by_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    with pytest.raises(LoadFailed, match=r"model test/ocr: there are no weights"):
        await load(folder)
    folder.mkdir()
    with pytest.raises(
        LoadFailed, match=r"test/ocr: .* has no ONNX file with det in the name, but needs one"
    ):
        await load(folder)
    model(folder, "a_det.onnx", 1, 5)
    with pytest.raises(LoadFailed, match=r"a_det\.onnx returns y \(float32, \[1, 5\]\), but .* with 4 axes"):
        await load(folder)
    model(folder, "a_det.onnx", 1, 1, 8, 8)
    model(folder, "a_rec.onnx", 1, 2, 5)
    with pytest.raises(LoadFailed, match=r"has no dictionary in its metadata; set options\.dictionary"):
        await load(folder)
    with pytest.raises(LoadFailed, match=r"options\.dictionary cannot be read"):
        await load(folder, dictionary="no.txt")
    (folder / "two.txt").write_text("a\nb\n")
    with pytest.raises(LoadFailed, match=r"dictionary has 2 characters, but .* knows 3; correct options"):
        await load(folder, dictionary="two.txt")
    (folder / "three.txt").write_text("a\nb\nc\n")
    assert (await load(folder, dictionary="three.txt"))._characters == ["", "a", "b", "c", " "]
    model(folder, "a_rec.onnx", 1, 2, 5, metadata={"character": "x\ny\nz\n"})
    assert (await load(folder))._characters == ["", "x", "y", "z", " "]
    model(folder, "b_rec.onnx", 1, 2, 5)
    with pytest.raises(LoadFailed, match="has 2 ONNX files with rec in the name"):
        await load(folder)
