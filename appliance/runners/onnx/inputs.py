"""Turns the inputs of a prediction into the tensors that an ONNX file expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio, images
from appliance.runners.interfaces import FILE
from appliance.runners.onnx.options import (
    AnyInput,
    AudioInput,
    ImageInput,
    NumberInput,
    TensorInput,
    TextInput,
)
from appliance.runners.onnx_session import DTYPES, described, shape_text
from appliance.runners.schemas import number, string

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    Array = npt.NDArray[Any]

#: Layout -> positions of the axes of channels, height and width, counted from the last axis
_AXES: Final = {"nchw": (-3, -2, -1), "nhwc": (-1, -3, -2)}


class Placement(NamedTuple):
    """Where the pixels of an input image are in its tensor. Numbers are pixels of the tensor."""

    image: Image
    width: int  # of the tensor
    height: int
    left: float  # of the scaled image in the tensor; negative if its edges are cut
    top: float
    scaled_width: int
    scaled_height: int


class InputTensors(NamedTuple):
    """The inputs of one prediction as tensors."""

    tensors: dict[str, Array]  # by their name in the ONNX file
    placement: Placement | None  # of the first input image
    mask: Array | None  # 1 for each token of the first text; shape: 1, tokens
    seconds: float | None  # length of the first audio


class _Part(NamedTuple):
    """The tensors of one input."""

    tensors: dict[str, Array]
    placement: Placement | None = None
    mask: Array | None = None
    seconds: float | None = None


_Reader = Callable[[Any], _Part]


def schemas(inputs: Mapping[str, AnyInput]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Return the JSON schemas of the inputs in the API, and the names of the required ones."""
    found: dict[str, dict[str, Any]] = {}
    for name, spec in inputs.items():
        match spec:
            case ImageInput():
                found[name] = {**FILE, "description": spec.description or "Input image"}
            case AudioInput():
                found[name] = {**FILE, "description": spec.description or "Audio or video file"}
            case TextInput():
                found[name] = string(spec.description or "Text", minLength=1)
            case NumberInput():
                about = spec.description or "Number"
                found[name] = number(about, default=spec.default, ge=spec.minimum, le=spec.maximum)
            case TensorInput():
                about = spec.description or "Numbers, as nested lists"
                found[name] = {"type": "array", "items": {}, "description": about}
    return found, tuple(name for name in found if "default" not in found[name])


class OnnxInputs:
    """Reads the inputs of predictions for one ONNX file."""

    def __init__(self, inputs: Mapping[str, AnyInput], session: Any, folder: Path) -> None:
        """Match ``inputs`` with the inputs of the file; ``folder`` has the file and tokenizers.

        Raises:
            LoadFailed: the inputs do not match; the message does not name the model.
        """
        self._tensors = {tensor.name: tensor for tensor in session.get_inputs()}
        self._folder = folder
        self._unused = dict(self._tensors)
        self._alone = len(inputs) == 1
        self._readers: dict[str, _Reader] = {name: self._reader(name, spec) for name, spec in inputs.items()}
        if self._unused:
            missing = ", ".join(map(described, self._unused.values()))
            raise LoadFailed(
                f"the ONNX file expects {missing}, which options.inputs does not describe: add it"
            )

    def read(self, given: Mapping[str, Any]) -> InputTensors:
        """Return the tensors for the inputs of a prediction.

        Raises:
            PredictionFailed: an input cannot be read, or has not the shape that the file expects.
        """
        parts = [read(given[name]) for name, read in self._readers.items()]
        return InputTensors(
            tensors={name: tensor for part in parts for name, tensor in part.tensors.items()},
            placement=next((part.placement for part in parts if part.placement is not None), None),
            mask=next((part.mask for part in parts if part.mask is not None), None),
            seconds=next((part.seconds for part in parts if part.seconds is not None), None),
        )

    def _take(self, name: str, wanted: str | None, key: str = "tensor") -> Any:
        """Return the input of the file for the input ``name`` of the API, and mark it as used."""
        chosen = wanted or (name if name in self._tensors else None)
        if chosen is None and len(self._tensors) == 1:
            chosen = next(iter(self._tensors))
        if chosen not in self._tensors:
            known = ", ".join(map(described, self._tensors.values()))
            raise LoadFailed(
                f"options.inputs.{name}: the ONNX file has no input {chosen or name}; set {key} to one "
                f"of {known}"
            )
        tensor = self._tensors[chosen]
        if tensor.type not in DTYPES:
            raise LoadFailed(f"options.inputs.{name}: the type of {described(tensor)} is not supported")
        if self._unused.pop(chosen, None) is None:
            raise LoadFailed(f"options.inputs.{name}: {chosen} is already the tensor of another input")
        return tensor

    def _reader(self, name: str, spec: AnyInput) -> _Reader:
        match spec:
            case ImageInput():
                return _image_reader(name, spec, self._take(name, spec.tensor))
            case AudioInput():
                return _audio_reader(name, spec, self._take(name, spec.tensor))
            case NumberInput():
                return _number_reader(name, self._take(name, spec.tensor))
            case TensorInput():
                return _tensor_reader(name, self._take(name, spec.tensor))
            case TextInput():
                return self._text_reader(name, spec)

    def _text_reader(self, name: str, spec: TextInput) -> _Reader:
        from tokenizers import Tokenizer

        ids = "input_ids" if "input_ids" in self._tensors else None
        tensor = self._take(name, spec.tensor or ids)
        usual = (("mask", spec.mask, "attention_mask"), ("types", spec.types, "token_type_ids"))
        chosen = {
            role: self._take(name, wanted or default, role)
            for role, wanted, default in usual
            if wanted is not None or default in self._unused
        }
        file = self._folder / spec.tokenizer
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain exceptions
            raise LoadFailed(
                f"options.inputs.{name}.tokenizer: {file} cannot be loaded: {error}; correct the name or "
                "the source"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return _text_reader(name, spec, tokenizer, tensor, chosen)


def _image_reader(name: str, spec: ImageInput, tensor: Any) -> _Reader:
    if len(tensor.shape) not in {3, 4}:
        raise LoadFailed(
            f"options.inputs.{name}: an image needs a tensor with three or four axes, but the ONNX file "
            f"expects {described(tensor)}; correct type or tensor"
        )
    channels, height, width = (tensor.shape[axis] for axis in _AXES[spec.layout])
    wanted = 1 if spec.colour == "grey" else 3
    if isinstance(channels, int) and channels != wanted:
        raise LoadFailed(
            f"options.inputs.{name}: {wanted} channels in the layout {spec.layout} do not fit "
            f"{described(tensor)}; correct colour or layout"
        )
    for key, given, found in (("width", spec.width, width), ("height", spec.height, height)):
        if given is not None and isinstance(found, int) and given != found:
            raise LoadFailed(
                f"options.inputs.{name}.{key} is {given}, but the ONNX file expects {described(tensor)}: "
                "remove the option"
            )
    fixed = (
        spec.width or (width if isinstance(width, int) else None),
        spec.height or (height if isinstance(height, int) else None),
    )

    def read(value: Any) -> _Part:
        image = images.read(Path(value), name)
        placement, drawn = _placed(image, spec, *fixed, name)
        return _Part({tensor.name: _pixels(drawn, spec, tensor)}, placement=placement)

    return read


#: An image may be scaled to this many times the size of the tensor, before its edges are cut off.
_MAX_CUT: Final = 16


def _placed(
    image: Image, spec: ImageInput, width: int | None, height: int | None, name: str
) -> tuple[Placement, Image]:
    """Return where the image is in the tensor, and an image with the size of the tensor."""
    from PIL import Image as Pillow

    own_size = width is None and height is None
    width = width or _rounded_up(image.width, spec.multiple_of)
    height = height or _rounded_up(image.height, spec.multiple_of)
    if max(width, height) > spec.max_side:
        raise PredictionFailed(
            f"input.{name}: this image needs a tensor of {width} x {height} pixels, but this model "
            f"accepts at most {spec.max_side} x {spec.max_side}; scale it down"
        )
    if spec.resize == "stretch":
        placement = Placement(image, width, height, 0, 0, width, height)
        return placement, image.resize((width, height), Pillow.Resampling.BILINEAR)
    ratios = (width / image.width, height / image.height)
    ratio = 1.0 if own_size else max(ratios) if spec.resize == "crop" else min(ratios)
    scaled = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if scaled[0] * scaled[1] > _MAX_CUT * width * height:
        raise PredictionFailed(
            f"input.{name}: of this image of {image.width} x {image.height} pixels, the model would use less "
            f"than one part in {_MAX_CUT}; crop it, or set resize to fit in options.inputs"
        )
    left, top = (width - scaled[0]) // 2, (height - scaled[1]) // 2
    canvas = Pillow.new("RGB", (width, height), (spec.padding,) * 3)
    canvas.paste(image.resize(scaled, Pillow.Resampling.BILINEAR), (left, top))
    return Placement(image, width, height, left, top, *scaled), canvas


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pixels(image: Image, spec: ImageInput, tensor: Any) -> Array:
    """Return the normalized pixels of an image, with the shape and dtype of ``tensor``."""
    import numpy as np

    values = np.asarray(image.convert("L") if spec.colour == "grey" else image, np.float32)
    if values.ndim == 2:
        values = values[:, :, None]
    if spec.colour == "bgr":
        values = values[:, :, ::-1]
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    values = (values / np.float32(spec.divisor) - mean) / std
    if spec.layout == "nchw":
        values = values.transpose(2, 0, 1)
    if len(tensor.shape) == 4:
        values = values[None]
    return np.ascontiguousarray(_as(values, tensor))


def _as(values: Array, tensor: Any) -> Array:
    """Convert to the dtype of ``tensor``; integers are rounded."""
    import numpy as np

    dtype = np.dtype(DTYPES[tensor.type])
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _audio_reader(name: str, spec: AudioInput, tensor: Any) -> _Reader:
    import numpy as np

    rank = len(tensor.shape)
    if rank not in {1, 2, 3}:
        raise LoadFailed(
            f"options.inputs.{name}: audio needs a tensor with one to three axes, but the ONNX file expects "
            f"{described(tensor)}; correct type or tensor"
        )
    length = tensor.shape[-1] if isinstance(tensor.shape[-1], int) else None

    def read(value: Any) -> _Part:
        longest = spec.max_duration if length is None else min(spec.max_duration, length / spec.sample_rate)
        samples: Array = audio.read(Path(value), spec.sample_rate, name, longest=longest + 0.01)
        seconds = round(samples.size / spec.sample_rate, 3)
        if length is not None:
            samples = np.pad(samples[:length], (0, max(0, length - samples.size)))
        return _Part({tensor.name: _as(samples.reshape((1,) * (rank - 1) + (-1,)), tensor)}, seconds=seconds)

    return read


def _text_reader(name: str, spec: TextInput, tokenizer: Any, tensor: Any, more: Mapping[str, Any]) -> _Reader:
    import numpy as np

    length = tensor.shape[-1] if isinstance(tensor.shape[-1], int) else None
    most = spec.max_tokens if length is None else min(length, spec.max_tokens)

    def read(value: Any) -> _Part:
        encoded = tokenizer.encode(value)
        if len(encoded.ids) > most:
            raise PredictionFailed(
                f"input.{name}: the text has {len(encoded.ids)} tokens, but this model accepts at most "
                f"{most}; shorten it"
            )
        columns = {"tensor": encoded.ids, "mask": encoded.attention_mask, "types": encoded.type_ids}
        padding = 0 if length is None else length - len(encoded.ids)
        arrays = {
            role: np.pad(np.array([numbers], np.int64), ((0, 0), (0, padding)))
            for role, numbers in columns.items()
        }
        tensors = {each.name: _as(arrays[role], each) for role, each in (("tensor", tensor), *more.items())}
        return _Part(tensors, mask=arrays["mask"])

    return read


def _number_reader(name: str, tensor: Any) -> _Reader:
    import numpy as np

    if len(tensor.shape) > 1 or (tensor.shape and tensor.shape[0] not in {1, None} | _symbols(tensor)):
        raise LoadFailed(
            f"options.inputs.{name}: a number needs a tensor with one value, but the ONNX file expects "
            f"{described(tensor)}; correct type or tensor"
        )

    def read(value: Any) -> _Part:
        values = np.full((1,) * len(tensor.shape), value, np.float64)
        _check_range(name, values, tensor)
        return _Part({tensor.name: _as(values, tensor)})

    return read


def _symbols(tensor: Any) -> set[Any]:
    return {axis for axis in tensor.shape if not isinstance(axis, int)}


def _tensor_reader(name: str, tensor: Any) -> _Reader:
    import numpy as np

    def read(value: Any) -> _Part:
        try:
            values = np.array(value, np.float64)
        except (ValueError, TypeError) as error:
            raise PredictionFailed(
                f"input.{name}: the value must be nested lists of numbers of equal length: {error}"
            ) from error
        if not np.isfinite(values).all():  # null becomes NaN
            raise PredictionFailed(f"input.{name}: this has null or another value that is no finite number")
        if not _fits(values.shape, tensor.shape):
            raise PredictionFailed(
                f"input.{name}: the numbers have the shape {shape_text(values.shape)}, but the model expects "
                f"{shape_text(tensor.shape)} ({DTYPES[tensor.type]})"
            )
        _check_range(name, values, tensor)
        return _Part({tensor.name: _as(values, tensor)})

    return read


def _check_range(name: str, values: Array, tensor: Any) -> None:
    """Check that numbers of a prediction can be converted to the dtype of ``tensor``.

    Raises:
        PredictionFailed: a number is too small or too large for an integer type.
    """
    import numpy as np

    dtype = np.dtype(DTYPES[tensor.type])
    if dtype.kind not in "iu" or not values.size:
        return
    limits = np.iinfo(dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise PredictionFailed(
            f"input.{name}: the model expects {dtype.name}: numbers from {limits.min} to {limits.max}"
        )


def _fits(shape: Sequence[int], expected: Sequence[Any]) -> bool:
    return len(shape) == len(expected) and all(
        not isinstance(axis, int) or axis == size for size, axis in zip(shape, expected, strict=True)
    )
