"""Finds the boxes of objects in the tensors of a detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from appliance.domain.errors import PredictionFailed
from appliance.runners.onnx.inputs import Placement
from appliance.runners.onnx.options import BoxesOutput

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Boxes with the best scores that are compared with each other; detectors return thousands.
_COMPARED: Final = 2000


def find_boxes(
    spec: BoxesOutput, tensors: Mapping[str, Array], names: list[str], placement: Placement, threshold: float
) -> list[dict[str, Any]]:
    """Return label, score and box of each object, the best first; boxes are in pixels of the image.

    Raises:
        PredictionFailed: the tensors have not the shape that ``spec`` says.
    """
    import numpy as np

    rows = _rows(tensors["tensor"], spec)
    scores, classes = _scored(spec, rows, tensors)
    kept = np.flatnonzero((scores >= threshold) & np.isfinite(rows[:, :4]).all(axis=1) & np.isfinite(scores))
    kept = kept[np.argsort(-scores[kept], kind="stable")][:_COMPARED]
    boxes = _in_image(_corners(rows[kept, :4], spec), spec, placement)
    chosen = best_boxes(boxes, classes[kept], spec.overlap)[: spec.max_boxes]
    return [
        {
            "label": names[number] if (number := int(classes[kept[each]])) < len(names) else str(number),
            "score": float(scores[kept[each]]),
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(round, boxes[each].tolist()), strict=True)),
        }
        for each in chosen
    ]


def best_boxes(boxes: Array, classes: Array, overlap: float) -> list[int]:
    """Return the positions of the boxes that overlap no better box of their class by more than ``overlap``.

    Args:
        boxes: corners, the box with the best score first.
        classes: class of each box.
        overlap: intersection over union.
    """
    import numpy as np

    if overlap >= 1:
        return list(range(len(boxes)))
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    chosen: list[int] = []
    waiting = np.arange(len(boxes))
    while waiting.size:
        best, waiting = int(waiting[0]), waiting[1:]
        chosen.append(best)
        corner = np.maximum(boxes[best, :2], boxes[waiting, :2])
        sides = np.maximum(np.minimum(boxes[best, 2:], boxes[waiting, 2:]) - corner, 0)
        common = sides[:, 0] * sides[:, 1]
        shares = common / np.maximum(areas[best] + areas[waiting] - common, 1e-9)
        waiting = waiting[(shares <= overlap) | (classes[waiting] != classes[best])]
    return chosen


def _rows(tensor: Array, spec: BoxesOutput) -> Array:
    """Return the tensor with one row for each box."""
    while tensor.ndim > 2 and tensor.shape[0] == 1:
        tensor = tensor[0]
    rows = tensor.T if spec.transposed and tensor.ndim == 2 else tensor
    least = 4 if spec.scores is not None else 6 if spec.objectness else 5
    if rows.ndim != 2 or rows.shape[1] < least:
        raise PredictionFailed(
            f"the tensor of the boxes has the shape {list(tensor.shape)}, but needs two axes "
            f"and at least {least} numbers for each box; correct transposed, scores or objectness in "
            "options.outputs"
        )
    return rows.astype("float32")


def _scored(spec: BoxesOutput, rows: Array, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return the score and the class of each box."""
    import numpy as np

    values = rows[:, 4:]
    if "scores" in tensors:
        values = tensors["scores"].astype(np.float32).reshape(-1, tensors["scores"].shape[-1])
        if values.shape[0] != len(rows):
            values = values.T if values.shape[1] == len(rows) else values
    if spec.activation == "sigmoid":
        values = 1 / (1 + np.exp(-np.clip(values, -80, 80)))
    if spec.objectness:
        values = values[:, 1:] * values[:, :1]
    if len(values) != len(rows):
        raise PredictionFailed(
            f"the model returned {len(rows)} boxes but {len(values)} scores; correct scores in "
            "options.outputs"
        )
    if "classes" in tensors:
        classes = tensors["classes"].reshape(-1).astype(np.int64)
        if len(classes) != len(rows):
            raise PredictionFailed(
                f"the model returned {len(rows)} boxes but {len(classes)} classes; correct classes in "
                "options.outputs"
            )
        return values.max(axis=1), classes
    return values.max(axis=1), values.argmax(axis=1)


def _corners(boxes: Array, spec: BoxesOutput) -> Array:
    import numpy as np

    a, b, c, d = boxes.T
    match spec.coordinates:
        case "xywh":
            corners = (a, b, a + c, b + d)
        case "cxcywh":
            corners = (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
        case "yxyx":
            corners = (b, a, d, c)
        case "xyxy":
            corners = (a, b, c, d)
    return np.stack(corners, axis=1)


def _in_image(corners: Array, spec: BoxesOutput, placement: Placement) -> Array:
    """Convert corners in the tensor to pixels of the image, inside of the image."""
    import numpy as np

    image = placement.image
    scale = (placement.width, placement.height) if spec.unit == "fraction" else (1, 1)
    ratio = (image.width / placement.scaled_width, image.height / placement.scaled_height)
    shift = np.array([placement.left, placement.top] * 2, np.float32)
    moved = (corners * np.array(scale * 2, np.float32) - shift) * np.array(ratio * 2, np.float32)
    return np.clip(moved, 0, np.array([image.width, image.height] * 2, np.float32))
