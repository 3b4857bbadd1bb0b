"""Finds lines of text in the result of a detector, and puts them in the order of reading.

The detector computes the probability of each pixel to be in the middle of a line of text (DB):
https://arxiv.org/abs/1911.08947
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_TEXT: Final = 0.3  # probability from which a pixel is text
_BOX: Final = 0.5  # mean probability from which a box is text
_GROWTH: Final = 1.6  # how much a box grows: the detector marks only the middle of a line
_SMALLEST: Final = 3  # pixels of the shorter side before it grows
_MOST: Final = 1000  # boxes


def find_lines(probabilities: Array, width: int, height: int) -> list[Array]:
    """Return the corners of each line of text in an image of ``width`` x ``height`` pixels, in no order.

    Corners are top left, top right, bottom right, bottom left, as the line lies in the image.
    """
    import cv2
    import numpy as np

    mask = cv2.dilate((probabilities > _TEXT).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = np.array([width / probabilities.shape[1], height / probabilities.shape[0]])
    found: list[Array] = []
    for contour in contours[:_MOST]:
        centre, (across, down), angle = cv2.minAreaRect(contour)
        if min(across, down) < _SMALLEST:
            continue
        if _mean_inside(probabilities, cv2.boxPoints((centre, (across, down), angle))) < _BOX:
            continue
        growth = 2 * _GROWTH * across * down / (2 * (across + down))
        grown = cv2.boxPoints((centre, (across + growth, down + growth), angle))
        corners = np.clip(_ordered(grown) * scale, 0, [width - 1, height - 1])
        if min(_sides(corners)) > _SMALLEST:
            found.append(corners.astype(np.float32))
    return found


def _mean_inside(probabilities: Array, corners: Array) -> float:
    import cv2
    import numpy as np

    height, width = probabilities.shape
    low = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, [width - 1, height - 1])
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, [width - 1, height - 1])
    mask = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), np.uint8)
    cv2.fillPoly(mask, [(corners - low).astype(np.int32)], 1)
    return float(cv2.mean(probabilities[low[1] : high[1] + 1, low[0] : high[0] + 1], mask)[0])


def _ordered(corners: Array) -> Array:
    """Order four corners: top left, top right, bottom right, bottom left."""
    import numpy as np

    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]], np.float32)


def _sides(corners: Array) -> tuple[float, float]:
    """Return the length of the upper and of the left side."""
    import numpy as np

    return float(np.linalg.norm(corners[1] - corners[0])), float(np.linalg.norm(corners[3] - corners[0]))


def cut_out(image: Array, corners: Array) -> Array:
    """Return a line of text as an image of its own; a line that is higher than wide is turned left."""
    import cv2
    import numpy as np

    width, height = (max(1, round(side)) for side in _sides(corners))
    upright = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    line: Array = cv2.warpPerspective(
        image,
        cv2.getPerspectiveTransform(corners, upright),
        (width, height),
        borderMode=cv2.BORDER_REPLICATE,
        flags=cv2.INTER_CUBIC,
    )
    return np.rot90(line) if height >= 1.5 * width else line


def in_rows(boxes: list[Array]) -> list[list[int]]:
    """Return the positions of ``boxes`` in rows from top to bottom, each from left to right.

    Boxes are in one row if their centres differ in height by less than half of the smaller height.
    """
    middles = [float(box[:, 1].mean()) for box in boxes]
    heights = [float(box[:, 1].max() - box[:, 1].min()) for box in boxes]
    rows: list[list[int]] = []
    for each in sorted(range(len(boxes)), key=lambda number: middles[number]):
        first = rows[-1][0] if rows else None
        if first is not None and middles[each] - middles[first] < min(heights[each], heights[first]) / 2:
            rows[-1].append(each)
        else:
            rows.append([each])
    return [sorted(row, key=lambda number: float(boxes[number][:, 0].min())) for row in rows]
