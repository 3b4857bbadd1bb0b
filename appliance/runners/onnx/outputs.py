"""Turns the tensors that an ONNX file computes into the outputs of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners.interfaces import FILE
from appliance.runners.onnx.boxes import find_boxes
from appliance.runners.onnx.inputs import InputTensors, Placement
from appliance.runners.onnx.options import (
    AnyOutput,
    BoxesOutput,
    ImageOutput,
    LabelsOutput,
    MaskOutput,
    NamedOutput,
    TensorOutput,
    VectorOutput,
)
from appliance.runners.onnx_session import described
from appliance.runners.schemas import integer, number

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    Array = npt.NDArray[Any]

_MAX_NUMBERS: Final = 1_000_000  # in an output tensor as JSON
_NUMBER: Final[dict[str, Any]] = {"type": "number"}
_INTEGER: Final[dict[str, Any]] = {"type": "integer"}
_LABEL: Final[dict[str, Any]] = {"label": {"type": "string"}, "score": _NUMBER}
_BOX: Final[dict[str, Any]] = {
    "type": "object",
    "properties": dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), _INTEGER),
}


class Computed(NamedTuple):
    """The inputs and results of one prediction, for its outputs."""

    prepared: InputTensors
    tensors: Mapping[str, Array]  # by their name in the ONNX file
    input: Mapping[str, Any]  # of the prediction
    folder: Path  # for files; exists

    @property
    def placement(self) -> Placement:
        assert self.prepared.placement is not None, "checked while loading"
        return self.prepared.placement


def schema(outputs: Mapping[str, AnyOutput]) -> dict[str, Any]:
    """Return the JSON schema of the output in the API."""
    each = {name: _schema_of(spec) for name, spec in outputs.items()}
    return next(iter(each.values())) if len(each) == 1 else {"type": "object", "properties": each}


def _schema_of(spec: AnyOutput) -> dict[str, Any]:
    match spec:
        case ImageOutput() | MaskOutput():
            return dict(FILE)
        case LabelsOutput():
            return {"type": "array", "items": {"type": "object", "properties": _LABEL}}
        case BoxesOutput():
            return {"type": "array", "items": {"type": "object", "properties": {**_LABEL, "box": _BOX}}}
        case VectorOutput():
            return {"type": "array", "items": _NUMBER}
        case TensorOutput():
            return {"type": "array", "items": {}}


def more_inputs(outputs: Mapping[str, AnyOutput]) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of the inputs that the outputs need."""
    found: dict[str, dict[str, Any]] = {}
    for spec in outputs.values():
        match spec:
            case LabelsOutput():
                found["top_k"] = integer("Number of labels to return", default=spec.top_k, ge=1, le=1000)
            case BoxesOutput():
                about = "Smallest score of the objects to return"
                found["threshold"] = number(about, default=spec.threshold, ge=0, le=1)
    return found


class Outputs:
    """Makes the outputs of predictions from the tensors of one ONNX file."""

    def __init__(self, outputs: Mapping[str, AnyOutput], session: Any, folder: Path, *, image: bool) -> None:
        """Match ``outputs`` with the outputs of the file; ``image``: whether an input is an image.

        Raises:
            LoadFailed: the outputs do not match; the message does not name the model.
        """
        self._tensors = {tensor.name: tensor for tensor in session.get_outputs()}
        self._makers: dict[str, Callable[[Computed], Any]] = {}
        self.names: list[str] = []  # of the tensors in the ONNX file that are needed
        for name, spec in outputs.items():
            needs_image = isinstance(spec, MaskOutput | BoxesOutput) or (
                isinstance(spec, ImageOutput) and spec.original_size
            )
            if needs_image and not image:
                raise LoadFailed(
                    f"options.outputs.{name}: an output of type {spec.type} needs an input image"
                )
            tensors = {"tensor": self._find(name, spec.tensor or self._usual(name), "tensor")}
            if isinstance(spec, BoxesOutput):
                tensors |= {
                    key: self._find(name, wanted, key)
                    for key, wanted in (("scores", spec.scores), ("classes", spec.classes))
                    if wanted is not None
                }
            self.names += [each.name for each in tensors.values() if each.name not in self.names]
            chosen = {key: each.name for key, each in tensors.items()}
            self._makers[name] = _maker(name, spec, chosen, _class_names(name, spec, folder))

    @property
    def tensors(self) -> list[Any]:
        """Return the needed outputs of the session."""
        return [self._tensors[name] for name in self.names]

    def make(self, computed: Computed) -> Any:
        """Return the output of a prediction; files are paths.

        Raises:
            PredictionFailed: the tensors cannot be what models.yaml says they are.
        """
        made = {name: make(computed) for name, make in self._makers.items()}
        return next(iter(made.values())) if len(made) == 1 else made

    def _usual(self, name: str) -> str:
        return next(iter(self._tensors)) if len(self._tensors) == 1 else name

    def _find(self, name: str, wanted: str, key: str) -> Any:
        if wanted not in self._tensors:
            known = ", ".join(map(described, self._tensors.values()))
            raise LoadFailed(
                f"options.outputs.{name}: the ONNX file has no output {wanted}; set {key} to one of {known}"
            )
        return self._tensors[wanted]


def _class_names(name: str, spec: AnyOutput, folder: Path) -> list[str]:
    if not isinstance(spec, NamedOutput) or spec.names_file is None:
        return list(spec.names) if isinstance(spec, NamedOutput) else []
    try:
        return (folder / spec.names_file).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailed(
            f"options.outputs.{name}.names_file cannot be read: {error}; correct the name"
        ) from error


def _maker(
    name: str, spec: AnyOutput, tensors: Mapping[str, str], names: list[str]
) -> Callable[[Computed], Any]:
    main = tensors["tensor"]
    match spec:
        case ImageOutput():
            return lambda computed: _image(name, spec, computed.tensors[main], computed)
        case MaskOutput():
            return lambda computed: _mask(name, spec, computed.tensors[main], computed)
        case LabelsOutput():
            return lambda computed: _labels(
                name, spec, computed.tensors[main], names, computed.input["top_k"]
            )
        case BoxesOutput():
            return lambda computed: find_boxes(
                spec,
                {key: computed.tensors[each] for key, each in tensors.items()},
                names,
                computed.placement,
                computed.input["threshold"],
            )
        case VectorOutput():
            return lambda computed: _vector(name, spec, computed.tensors[main], computed.prepared.mask)
        case TensorOutput():
            return lambda computed: _numbers(name, computed.tensors[main])


def activated(values: Array, activation: str, axis: int = -1) -> Array:
    """Apply sigmoid, or softmax over ``axis``, to 32-bit floats."""
    import numpy as np

    values = values.astype(np.float32)
    if activation == "sigmoid":
        values = 1 / (1 + np.exp(-np.clip(values, -80, 80)))
    elif activation == "softmax":
        powers = np.exp(values - values.max(axis=axis, keepdims=True))
        values = powers / powers.sum(axis=axis, keepdims=True)
    return values


def _planes(name: str, tensor: Array, layout: str = "nchw") -> Array:
    """Return a tensor of an image as an array with the axes channels, height and width.

    Raises:
        PredictionFailed: the tensor has another number of axes.
    """
    while tensor.ndim > 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif tensor.ndim == 3 and layout == "nhwc":
        tensor = tensor.transpose(2, 0, 1)
    if tensor.ndim != 3:
        raise PredictionFailed(
            f"the output {name} has the shape {list(tensor.shape)}, which is not an image; correct "
            "options.outputs"
        )
    return tensor


def _normalized(values: Array) -> Array:
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12)


def _uncovered(image: Image, placement: Placement) -> Image:
    """Undo `fit` or `crop` of the input image: remove the padding, or pad the edges that were cut."""
    across, down = image.width / placement.width, image.height / placement.height
    left, top = round(placement.left * across), round(placement.top * down)
    size = round(placement.scaled_width * across), round(placement.scaled_height * down)
    return image.crop((left, top, left + size[0], top + size[1]))


def _image(name: str, spec: ImageOutput, tensor: Array, computed: Computed) -> Path:
    import numpy as np
    from PIL import Image as Pillow

    planes = _planes(name, tensor, spec.layout).astype(np.float32)
    wanted = 1 if spec.colour == "grey" else 3
    if planes.shape[0] != wanted:
        raise PredictionFailed(
            f"the output {name} has {planes.shape[0]} channels instead of {wanted}; correct "
            "colour or layout in options.outputs"
        )
    planes = _normalized(planes) * 255 if spec.normalize else planes * spec.factor + spec.offset
    shades = np.rint(np.clip(np.nan_to_num(planes), 0, 255)).astype(np.uint8)
    if spec.colour == "bgr":
        shades = shades[::-1]
    image = Pillow.fromarray(shades[0] if wanted == 1 else np.ascontiguousarray(shades.transpose(1, 2, 0)))
    placement = computed.prepared.placement
    if placement is not None:
        image = _uncovered(image, placement)
        if spec.original_size:
            image = image.resize(placement.image.size, Pillow.Resampling.BICUBIC)
    path = computed.folder / f"{name}.{spec.format}"
    image.save(path)
    return path


def _mask(name: str, spec: MaskOutput, tensor: Array, computed: Computed) -> Path:
    import numpy as np
    from PIL import Image as Pillow

    planes = activated(_planes(name, tensor), spec.activation, axis=0)
    if spec.channel >= planes.shape[0]:
        raise PredictionFailed(
            f"the output {name} has {planes.shape[0]} channels, so there is no channel {spec.channel}; "
            "correct channel in options.outputs"
        )
    plane = np.nan_to_num(planes[spec.channel])
    if spec.normalize:
        plane = _normalized(plane)
    if spec.threshold is not None:
        plane = (plane >= spec.threshold).astype(np.float32)
    grey = Pillow.fromarray(np.rint(np.clip(plane, 0, 1) * 255).astype(np.uint8))
    original = computed.placement.image
    smooth = Pillow.Resampling.NEAREST if spec.threshold is not None else Pillow.Resampling.BILINEAR
    mask = _uncovered(grey, computed.placement).resize(original.size, smooth)
    if spec.result == "cutout":
        cutout = original.copy()
        cutout.putalpha(mask)
        mask = cutout
    path = computed.folder / f"{name}.png"
    mask.save(path)
    return path


def _labels(
    name: str, spec: LabelsOutput, tensor: Array, names: list[str], top_k: int
) -> list[dict[str, Any]]:
    import numpy as np

    scores = activated(tensor.reshape(-1), spec.activation)
    if not np.isfinite(scores).all():
        raise PredictionFailed(f"the output {name} has scores that are infinite or NaN; try another input")
    best = scores.argsort()[::-1][:top_k]
    return [{"label": class_name(names, int(each)), "score": float(scores[each])} for each in best]


def class_name(names: list[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)


def _vector(name: str, spec: VectorOutput, tensor: Array, mask: Array | None) -> list[float]:
    import numpy as np

    values = tensor.astype(np.float32)
    while values.ndim > 1 and values.shape[0] == 1 and not (values.ndim == 2 and spec.pooling != "none"):
        values = values[0]
    if values.ndim == 2 and spec.pooling != "none":
        present = np.ones(len(values), bool) if mask is None else mask[0].astype(bool)
        values = values[0] if spec.pooling == "first" else values[present].mean(axis=0)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise PredictionFailed(
            f"the output {name} has the shape {list(tensor.shape)} and is no vector of finite numbers; "
            "correct pooling or tensor in options.outputs"
        )
    if spec.normalize:
        values = values / max(float(np.linalg.norm(values)), 1e-12)
    return [float(each) for each in values]


def _numbers(name: str, tensor: Array) -> Any:
    import numpy as np

    if tensor.size > _MAX_NUMBERS:
        raise PredictionFailed(
            f"the output {name} has {tensor.size} numbers; at most {_MAX_NUMBERS} can be returned as JSON"
        )
    if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
        raise PredictionFailed(
            f"the output {name} has numbers that are infinite or NaN, which JSON cannot represent"
        )
    return np.atleast_1d(tensor).tolist()
