"""Kind `onnx` with small ONNX files, run by onnxruntime."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from appliance.domain.errors import InvalidInput, LoadFailed, PredictionFailed
from appliance.runners import audio
from appliance.runners.onnx.options import OnnxOptions
from appliance.runners.onnx.runner import OnnxRunner
from tests.support.onnx_files import INT64, UINT8, Node, Tensor, write_onnx
from tests.support.runner_calls import Ran, job, load_spec, run

Options = dict[str, Any]
Shape = list[int | str]
SAME = [Node("Identity", ["x"], ["y"])]


def complete(inputs: Mapping[str, Any], outputs: Mapping[str, Any], **more: Any) -> Options:
    given = {"inputs": dict(inputs), "outputs": dict(outputs), **more}
    return OnnxOptions.model_validate(given).model_dump(mode="json")


class Model:
    """A loaded model, whose predictions are checked against its interface."""

    def __init__(self, weights: Path, options: Options) -> None:
        self.runner = OnnxRunner(load_spec("onnx", weights, **options))
        self.interface = OnnxRunner.interface(options)
        self.folder = weights.parent / "output"

    async def __call__(self, **given: Any) -> Ran:
        ran = await run(self.runner, job(self.interface, self.folder, **given))
        plain = json.loads(json.dumps(ran.output, default=str))
        jsonschema.validate(plain, self.interface.output)
        return ran


async def loaded(weights: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], **more: Any) -> Model:
    model = Model(weights, complete(inputs, outputs, **more))
    await model.runner.setup()
    return model


def identity(
    folder: Path, shape: list[int | str], type: int = 1, result: list[int | str] | None = None
) -> Path:
    """A file that returns its input."""
    return write_onnx(
        folder / "m.onnx", [Tensor("x", shape, type)], [Tensor("y", result or shape, type)], SAME
    )


def picture(folder: Path, colours: Any, name: str = "in.png") -> Path:
    path = folder / name
    Image.fromarray(np.array(colours, np.uint8)).save(path)
    return path


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
IMAGE = {"image": {"type": "image"}}
TENSOR = {"y": {"type": "tensor"}}


# -- images as inputs


async def test_pixels_are_normalized_in_the_layout_of_the_file(tmp_path: Path) -> None:
    image = picture(tmp_path, [[RED, GREEN]])
    model = await loaded(identity(tmp_path, [1, 3, "h", "w"]), IMAGE, TENSOR)
    assert (await model(image=image)).output == [[[[1, 0]], [[0, 1]], [[0, 0]]]]
    options: Options = {
        "image": {"type": "image", "layout": "nhwc", "colour": "bgr", "mean": [0.5], "std": [0.5]}
    }
    model = await loaded(identity(tmp_path, ["n", "h", "w", 3]), options, TENSOR)
    assert (await model(image=image)).output == [[[[-1, -1, 1], [-1, 1, -1]]]]
    bytes_in = {"image": {"type": "image", "colour": "grey", "divisor": 1}}
    model = await loaded(identity(tmp_path, [1, 1, "h", "w"], UINT8), bytes_in, TENSOR)
    assert (await model(image=picture(tmp_path, [[(9, 9, 9)]]))).output == [[[[9]]]]


@pytest.mark.parametrize(
    ("resize", "row"),
    [("stretch", [RED, RED, BLUE, BLUE]), ("crop", [RED, RED, BLUE, BLUE])],
)
async def test_an_image_gets_the_size_of_the_tensor(
    tmp_path: Path, resize: str, row: list[tuple[int, int, int]]
) -> None:
    image = picture(tmp_path, [[RED] * 8 + [BLUE] * 8] * 16)
    options = {"image": {"type": "image", "resize": resize, "divisor": 1}}
    model = await loaded(identity(tmp_path, [1, 3, 4, 4]), options, TENSOR)
    found = np.array((await model(image=image)).output)[0].transpose(1, 2, 0)
    assert np.abs(found - np.array(row)).max() <= 80  # bilinear at the border of the colours
    assert found.shape == (4, 4, 3)


async def test_an_image_that_would_be_almost_all_cut_off_is_refused(tmp_path: Path) -> None:
    options = {"image": {"type": "image", "resize": "crop", "divisor": 1}}
    model = await loaded(identity(tmp_path, [1, 3, 4, 4]), options, TENSOR)
    await model(image=picture(tmp_path, [[RED] * 16]))
    with pytest.raises(PredictionFailed, match=r"input\.image: of this image of 17 x 1 pixels"):
        await model(image=picture(tmp_path, [[RED] * 17]))


async def test_an_image_that_fits_is_padded(tmp_path: Path) -> None:
    image = picture(tmp_path, [[RED] * 4] * 2)
    options = {"image": {"type": "image", "resize": "fit", "divisor": 1, "padding": 7}}
    model = await loaded(identity(tmp_path, [1, 3, 4, 4]), options, TENSOR)
    found = np.array((await model(image=image)).output)[0].transpose(1, 2, 0)
    assert found[:, 0].tolist() == [[7, 7, 7], [255, 0, 0], [255, 0, 0], [7, 7, 7]]


async def test_a_tensor_with_the_size_of_the_image_is_a_multiple(tmp_path: Path) -> None:
    options = {"image": {"type": "image", "multiple_of": 4, "resize": "fit", "max_side": 8}}
    outputs = {"y": {"type": "tensor"}, "again": {"type": "image", "tensor": "y"}}
    model = await loaded(identity(tmp_path, [1, 3, "h", "w"]), options, outputs)
    ran = await model(image=picture(tmp_path, [[RED, GREEN, BLUE]]))
    assert np.array(ran.output["y"]).shape == (1, 3, 4, 4)
    assert np.array(Image.open(ran.output["again"])).tolist() == [[list(RED), list(GREEN), list(BLUE)]]
    with pytest.raises(PredictionFailed, match=r"input\.image: .* 12 x 4 pixels, but .* at most 8 x 8"):
        await model(image=picture(tmp_path, [[RED] * 9]))


# -- images as outputs


async def test_an_upscaled_image_loses_its_padding(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("x", [1, 3, "h", "w"])],
        [Tensor("y", [1, 3, "H", "W"])],
        [Node("Resize", ["x", "", "scales"], ["y"], {"mode": "nearest"})],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    options = {"image": {"type": "image", "multiple_of": 4, "resize": "fit"}}
    model = await loaded(file, options, {"image": {"type": "image"}})
    made = Image.open((await model(image=picture(tmp_path, [[RED, GREEN]] * 3))).output)
    assert made.size == (4, 6)
    assert np.array(made)[0].tolist() == [list(RED)] * 2 + [list(GREEN)] * 2


async def test_depth_is_stretched_to_black_and_white_in_the_size_of_the_image(tmp_path: Path) -> None:
    options = {"image": {"type": "image", "width": 2, "height": 2, "colour": "grey"}}
    spec = {"type": "image", "colour": "grey", "normalize": True, "original_size": True}
    model = await loaded(identity(tmp_path, [1, 1, "h", "w"]), options, {"depth": spec})
    image = picture(tmp_path, [[(100,) * 3] * 4 + [(120,) * 3] * 4] * 6)
    made = Image.open((await model(image=image)).output)
    assert (made.size, made.mode) == ((8, 6), "L")
    assert made.getextrema() == (0, 255)


async def test_a_mask_cuts_the_background_away(tmp_path: Path) -> None:
    image = picture(tmp_path, [[RED] * 6 + [BLUE] * 6] * 4)
    options = {"image": {"type": "image", "width": 4, "height": 4, "resize": "fit"}}
    spec = {"type": "mask", "activation": "none", "threshold": 0.5, "result": "cutout"}
    model = await loaded(identity(tmp_path, [1, 3, 4, 4]), options, {"cutout": spec})
    made = Image.open((await model(image=image)).output)
    assert (made.size, made.mode) == ((12, 4), "RGBA")
    assert made.getpixel((1, 2)) == (*RED, 255)
    assert made.getpixel((10, 2)) == (*BLUE, 0)


async def test_a_mask_is_one_channel_after_softmax(tmp_path: Path) -> None:
    options = {"image": {"type": "image", "divisor": 25.5}}
    spec = {"type": "mask", "activation": "softmax", "channel": 2}
    model = await loaded(identity(tmp_path, [1, 3, "h", "w"]), options, {"mask": spec})
    made = Image.open((await model(image=picture(tmp_path, [[RED, BLUE]]))).output)
    assert [made.getpixel((x, 0)) for x in range(2)] == [0, 255]
    model = await loaded(
        identity(tmp_path, [1, 3, "h", "w"]), options, {"mask": {"type": "mask", "channel": 3}}
    )
    with pytest.raises(PredictionFailed, match="has 3 channels, so there is no channel 3"):
        await model(image=picture(tmp_path, [[RED, BLUE]]))


# -- labels and boxes


async def test_the_likeliest_labels_come_first(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nfish\n")
    options = {"x": {"type": "tensor"}}
    model = await loaded(
        identity(tmp_path, [1, 3]),
        options,
        {"labels": {"type": "labels", "names_file": "names.txt", "top_k": 2}},
    )
    found = (await model(x=[[0, 2, 1]])).output
    assert [each["label"] for each in found] == ["dog", "fish"]
    assert found[0]["score"] == pytest.approx(np.exp(2) / (1 + np.exp(1) + np.exp(2)))
    assert len((await model(x=[[0, 2, 1]], top_k=3)).output) == 3


def detector(folder: Path, rows: Any, **outputs: Any) -> Path:
    """A file that finds the same boxes in every image."""
    constants = {"rows": np.array([rows], np.float32)} | {
        name: np.array([values]) for name, values in outputs.items()
    }
    return write_onnx(
        folder / "m.onnx",
        [Tensor("image", [1, 3, 64, 64])],
        [Tensor("boxes", list(constants["rows"].shape))]
        + [
            Tensor(name, list(constants[name].shape), INT64 if constants[name].dtype == np.int64 else 1)
            for name in outputs
        ],
        [Node("Identity", ["rows"], ["boxes"])],
        constants,
    )


async def test_boxes_of_a_transposed_tensor_are_those_of_the_image(tmp_path: Path) -> None:
    # 32 x 64 pixels of the image are 32 x 64 of the tensor, from x = 16 on
    rows = [
        [32, 32, 16, 16, 0.9, 0.1],
        [33, 32, 16, 16, 0.8, 0.1],
        [33, 32, 16, 16, 0.1, 0.7],
        [9, 9, 4, 4, 0.2, 0],
    ]
    file = detector(tmp_path, np.array(rows).T)
    image = {"image": {"type": "image", "resize": "fit"}}
    spec = {"type": "boxes", "transposed": True, "coordinates": "cxcywh", "names": ["cat"]}
    model = await loaded(file, image, {"boxes": spec})
    found = (await model(image=picture(tmp_path, [[RED] * 32] * 64))).output
    assert [(each["label"], round(each["score"], 3)) for each in found] == [("cat", 0.9), ("1", 0.7)]
    assert found[0]["box"] == {"xmin": 8, "ymin": 24, "xmax": 24, "ymax": 40}
    assert len((await model(image=picture(tmp_path, [[RED] * 32] * 64), threshold=0.1)).output) == 3


async def test_objectness_multiplies_the_scores(tmp_path: Path) -> None:
    file = detector(tmp_path, [[0, 0, 8, 8, 0.5, 0.2, 0.8]])
    spec = {"type": "boxes", "objectness": True, "overlap": 1.0}
    model = await loaded(file, {"image": {"type": "image"}}, {"boxes": spec})
    (found,) = (await model(image=picture(tmp_path, [[RED] * 128] * 32))).output
    assert found["score"] == pytest.approx(0.4)
    assert (found["label"], found["box"]) == ("1", {"xmin": 0, "ymin": 0, "xmax": 16, "ymax": 4})


async def test_scores_and_classes_may_be_tensors_of_their_own(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("image", [1, 3, 64, 64])],
        [Tensor("b", [2, 4]), Tensor("s", [1, 2]), Tensor("c", [2], INT64)],
        [Node("Identity", [each], [each[0]]) for each in ("boxes", "scores", "classes")],
        {
            "boxes": np.array([[0, 0, 0.5, 0.25], [0.5, 0.5, 1, 1]], np.float32),
            "scores": np.array([[0.3, 0.9]], np.float32),
            "classes": np.array([1, 0], np.int64),
        },
    )
    spec = {
        "type": "boxes", "tensor": "b", "scores": "s", "classes": "c", "coordinates": "yxyx",
        "unit": "fraction", "names": ["a", "b"],
    }  # fmt: skip
    model = await loaded(file, {"image": {"type": "image"}}, {"boxes": spec})
    found = (await model(image=picture(tmp_path, [[RED] * 64] * 64))).output
    assert [each["label"] for each in found] == ["a", "b"]
    assert found[1]["box"] == {"xmin": 0, "ymin": 0, "xmax": 16, "ymax": 32}


# -- other inputs and outputs


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.save(str(folder / "tokenizer.json"))


async def test_a_text_becomes_a_vector_of_length_one(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("input_ids", ["n", 4], INT64), Tensor("attention_mask", ["n", 4], INT64)],
        [Tensor("states", ["n", 4, 2])],
        [Node("Gather", ["table", "input_ids"], ["states"])],
        {"table": np.array([[50, 50], [3, 0], [0, 4]], np.float32)},
    )
    text = {"text": {"type": "text"}}
    model = await loaded(file, text, {"vector": {"type": "vector", "pooling": "mean"}})
    assert (await model(text="cat dog")).output == pytest.approx([0.6, 0.8])  # without the padding
    first = await loaded(file, text, {"vector": {"type": "vector", "pooling": "first", "normalize": False}})
    assert (await first(text="dog cat")).output == [0, 4]
    with pytest.raises(PredictionFailed, match=r"input\.text: the text has 5 tokens, but .* at most 4"):
        await model(text="cat cat cat cat cat")


async def test_audio_and_a_number(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("samples", [1, "t"]), Tensor("gain", [])],
        [Tensor("y", [1, "t"])],
        [Node("Mul", ["samples", "gain"], ["y"])],
    )
    inputs = {
        "audio": {"type": "audio", "tensor": "samples", "sample_rate": 8000, "max_duration": 1.0},
        "gain": {"type": "number", "default": 2, "maximum": 4},
    }
    model = await loaded(file, inputs, TENSOR)
    audio.write(tmp_path / "a.wav", np.full(4000, 0.25, np.float32), 8000)
    ran = await model(audio=tmp_path / "a.wav")
    assert ran.metrics["audio_duration"] == 0.5
    assert np.array(ran.output) == pytest.approx(np.full((1, 4000), 0.5), abs=1e-3)
    assert np.array((await model(audio=tmp_path / "a.wav", gain=0)).output).max() == 0
    with pytest.raises(InvalidInput, match="less than or equal to 4"):
        await model(audio=tmp_path / "a.wav", gain=5)
    audio.write(tmp_path / "b.wav", np.zeros(16_000, np.float32), 8000)
    with pytest.raises(PredictionFailed, match=r"input\.audio: this audio is longer than"):
        await model(audio=tmp_path / "b.wav")


async def test_numbers_have_the_shape_that_the_file_expects(tmp_path: Path) -> None:
    model = await loaded(identity(tmp_path, ["n", 2]), {"x": {"type": "tensor"}}, TENSOR)
    assert (await model(x=[[1, 2], [3, 4]])).output == [[1, 2], [3, 4]]
    with pytest.raises(
        PredictionFailed, match=r"input\.x: .* shape \[2\], but the model expects \[\?, 2\] \(float32\)"
    ):
        await model(x=[1, 2])
    with pytest.raises(PredictionFailed, match=r"input\.x: the value must be nested lists of numbers"):
        await model(x=[[1], [1, 2]])
    with pytest.raises(PredictionFailed, match=r"input\.x: this has null or another value"):
        await model(x=[[1, None]])
    file = write_onnx(
        tmp_path / "m.onnx", [Tensor("x", [1])], [Tensor("y", [1])], [Node("Log", ["x"], ["y"])]
    )
    model = await loaded(file, {"x": {"type": "tensor"}}, TENSOR)
    with pytest.raises(PredictionFailed, match="infinite or NaN"):
        await model(x=[0])


async def test_integers_are_in_the_range_of_their_type(tmp_path: Path) -> None:
    model = await loaded(identity(tmp_path, [1], UINT8), {"x": {"type": "tensor"}}, TENSOR)
    assert (await model(x=[255])).output == [255]
    for value in (256, -1):
        with pytest.raises(
            PredictionFailed, match=r"input\.x: the model expects uint8: numbers from 0 to 255"
        ):
            await model(x=[value])


async def test_results_that_are_no_numbers_are_left_out_or_refused(tmp_path: Path) -> None:
    file = detector(tmp_path, [[0, 0, 8, 8, np.nan], [np.inf, 0, 8, 8, 0.9], [0, 0, 8, 8, 0.8]])
    model = await loaded(file, IMAGE, {"boxes": {"type": "boxes"}})
    (found,) = (await model(image=picture(tmp_path, [[RED] * 8] * 8))).output
    assert found["score"] == pytest.approx(0.8)
    file = write_onnx(
        tmp_path / "m.onnx", [Tensor("x", [1])], [Tensor("y", [1])], [Node("Log", ["x"], ["y"])]
    )
    labels = {"labels": {"type": "labels", "activation": "none"}}
    model = await loaded(file, {"x": {"type": "tensor"}}, labels)
    with pytest.raises(PredictionFailed, match="the output labels has scores that are infinite or NaN"):
        await model(x=[0])


# -- batches


async def test_predictions_are_computed_together_if_the_first_axis_is_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sizes(
        shape: list[int | str], result: list[int | str], given: list[Any]
    ) -> tuple[list[int], list[Any]]:
        model = await loaded(identity(tmp_path, shape, result=result), {"x": {"type": "tensor"}}, TENSOR)
        seen: list[int] = []
        compute = model.runner._batches._compute

        def counted(batch: list[Any]) -> Any:
            seen.append(len(batch))
            return compute(batch)

        monkeypatch.setattr(model.runner._batches, "_compute", counted)
        ran = await asyncio.gather(*(model(x=each) for each in given))
        return seen, [each.output for each in ran]

    given = [[[each, 1]] for each in range(4)]
    seen, outputs = await sizes(["n", "w"], ["n", "w"], given)
    assert max(seen) > 1
    assert outputs == given
    other = [[[1]], [[2, 3]], [[4]], [[5, 6], [7, 8]]]  # of other widths, and two rows
    seen, outputs = await sizes(["n", "w"], ["n", "w"], other)
    assert max(seen) > 1
    assert outputs == other
    seen, outputs = await sizes(["n", 2], ["objects", 2], given)  # an axis that is not the batch
    assert seen == [1] * 4
    assert outputs == given


async def test_rows_of_different_predictions_are_never_combined(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("a", ["n", 1]), Tensor("b", ["n", 1])],
        [Tensor("y", ["n", 1])],
        [Node("Add", ["a", "b"], ["y"])],
    )
    model = await loaded(file, {"a": {"type": "tensor"}, "b": {"type": "tensor"}}, TENSOR)
    given = [([[0]], [[0]]), ([[1], [2]], [[10]]), ([[3]], [[30]]), ([[4]], [[40], [50]])]
    ran = await asyncio.gather(*(model(a=a, b=b) for a, b in given))
    assert [each.output for each in ran] == [[[0]], [[11], [12]], [[33]], [[44], [54]]]


async def test_each_prediction_of_a_failed_batch_gets_its_own_result(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("x", ["n", 1], INT64)],
        [Tensor("y", ["n", 1])],
        [Node("Gather", ["table", "x"], ["y"])],
        {"table": np.array([10, 11], np.float32)},
    )
    model = await loaded(file, {"x": {"type": "tensor"}}, TENSOR)
    one, wrong, two = await asyncio.gather(*(model(x=[[each]]) for each in (0, 5, 1)), return_exceptions=True)
    assert isinstance(one, Ran)
    assert isinstance(two, Ran)
    assert (one.output, two.output) == ([[10]], [[11]])
    assert isinstance(wrong, PredictionFailed)
    assert str(wrong).startswith("model test/onnx failed with this input: ")


# -- what does not fit


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (
            {"x": {"type": "tensor", "tensor": "z"}}, TENSOR,
            r"options\.inputs\.x: the ONNX file has no input z; set tensor to one of x \(float32, \[1, 3",
        ),
        ({"x": {"type": "tensor"}, "z": {"type": "number"}}, TENSOR, "z: x is already the tensor of"),
        ({"x": {"type": "text"}}, TENSOR, r"x\.tokenizer: .*tokenizer\.json cannot be loaded"),
        ({"x": {"type": "number"}}, TENSOR, r"needs a tensor with one value, but the ONNX file expects x"),
        ({"x": {"type": "audio"}}, TENSOR, r"audio needs a tensor with one to three axes"),
        ({"x": {"type": "image", "layout": "nhwc"}}, TENSOR, r"3 channels in the layout nhwc do not fit x"),
        ({"x": {"type": "image", "width": 5}}, TENSOR, r"x\.width is 5, but the ONNX file expects"),
        (
            IMAGE, {"a": {"type": "tensor", "tensor": "q"}},
            r"options\.outputs\.a: the ONNX file has no output q; set tensor to one of y \(float32",
        ),
        ({"x": {"type": "tensor"}}, {"y": {"type": "mask"}}, "an output of type mask needs an input image"),
        (IMAGE, {"y": {"type": "labels", "names_file": "no.txt"}}, r"y\.names_file cannot be read"),
    ],
)  # fmt: skip
async def test_options_that_do_not_fit_the_file(
    tmp_path: Path, inputs: Options, outputs: Options, message: str
) -> None:
    with pytest.raises(LoadFailed, match=rf"^model test/onnx: .*{message}"):
        await loaded(identity(tmp_path, [1, 3, 4, 4]), inputs, outputs)


async def test_every_input_of_the_file_is_described(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "m.onnx",
        [Tensor("x", [1]), Tensor("state", [2, "n"])],
        [Tensor("y", [1])],
        [Node("Identity", ["x"], ["y"])],
    )
    with pytest.raises(LoadFailed, match=r"expects state \(float32, \[2, \?\]\), which options\.inputs"):
        await loaded(file, {"x": {"type": "tensor"}}, TENSOR)


async def test_the_file_is_found_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    with pytest.raises(LoadFailed, match="there are no weights at"):
        await loaded(folder, {"x": {"type": "tensor"}}, TENSOR)
    folder.mkdir()
    with pytest.raises(LoadFailed, match=r"model test/onnx: .* has no ONNX file"):
        await loaded(folder, {"x": {"type": "tensor"}}, TENSOR)
    first = identity(folder, [1])
    await loaded(folder, {"x": {"type": "tensor"}}, TENSOR)
    (folder / "n.onnx").write_bytes(b"nothing")
    with pytest.raises(LoadFailed, match=r"several ONNX files: set options\.file to one; .* m\.onnx, n"):
        await loaded(folder, {"x": {"type": "tensor"}}, TENSOR)
    await loaded(folder, {"x": {"type": "tensor"}}, TENSOR, file=first.name)
    with pytest.raises(LoadFailed, match=r"model test/onnx: .*n\.onnx cannot be loaded"):
        await loaded(folder, {"x": {"type": "tensor"}}, TENSOR, file="n.onnx")


async def test_a_gpu_without_a_provider_is_an_error_unless_the_cpu_is_chosen(tmp_path: Path) -> None:
    import msgspec

    options = complete({"x": {"type": "tensor"}}, TENSOR)
    spec = msgspec.structs.replace(load_spec("onnx", identity(tmp_path, [1]), **options), device="cuda:0")
    with pytest.raises(LoadFailed, match=r"onnxruntime computes only on the CPU; set options\.device to cpu"):
        await OnnxRunner(spec).setup()
    await OnnxRunner(msgspec.structs.replace(spec, options={**options, "device": "cpu"})).setup()


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"x": {"type": "video"}}, TENSOR, "should be a mapping with the key type: image, audio"),
        ({"not a name": {"type": "tensor"}}, TENSOR, "not a valid name of an input"),
        ({"x": {"type": "image", "mean": [1, 2]}}, TENSOR, "one number or three"),
        ({}, TENSOR, "at least 1 item"),
        (IMAGE, {"y": {"type": "labels", "names": ["a"], "names_file": "b"}}, "y has names and names_file"),
        ({"x": {"type": "image"}}, {"y": {"type": "boxes", "classes": "c"}}, "y has classes but no scores"),
    ],
)  # fmt: skip
def test_options_that_are_wrong(inputs: Options, outputs: Options, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        complete(inputs, outputs)
