"""Colour and shape of an image, measured without another model."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from scripts.tiny_image_model import shapes

_SIDE = 64  # pixels that images are looked at with
_RADII = tuple(radius / 100 for radius in range(14, 90, 3))


class Seen(NamedTuple):
    """What an image shows most of."""

    colour: str
    shape: str
    likeness: float  # of the shape and the nearest drawn one: what they share over what either has
    x: float  # its middle, from -1 on the left to 1 on the right
    y: float  # from -1 at the top to 1 at the bottom
    background: str


def seen(image: Image) -> Seen | None:
    """Colour and shape of what stands out from the image's corners; None if nothing does."""
    pixels = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE)), dtype=np.float32)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(edge, axis=0)
    mask = np.abs(pixels - background).sum(axis=2) > 120  # of 765
    if mask.sum() < 25:
        return None
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    inner = mask & _shrunk(mask)
    colour = np.median(pixels[inner if inner.any() else mask], axis=0)
    likeness, shape = max((_likeness(mask, template, rows, columns), name) for name, template in _templates())
    return Seen(
        colour=_nearest(colour, shapes.COLOURS),
        shape=shape,
        likeness=likeness,
        x=float(columns.mean() / _SIDE * 2 - 1),
        y=float(rows.mean() / _SIDE * 2 - 1),
        background=_nearest(background, shapes.BACKGROUNDS),
    )


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the pixels at its edge, whose colour is mixed."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _nearest(colour: NDArray[np.float32], known: dict[str, tuple[int, int, int]]) -> str:
    return min(known, key=lambda name: float(np.abs(colour - np.array(known[name])).sum()))


@functools.cache
def _templates() -> list[tuple[str, NDArray[np.bool_]]]:
    """Every shape in every size, in the middle."""
    scenes = [
        shapes.Scene(shape, "black", "white", radius, 0.0, 0.0, ())
        for shape in shapes.SHAPES
        for radius in _RADII
    ]
    drawn = shapes.draw(scenes, _SIDE).numpy().mean(axis=1) < 0
    return [(each.shape, mask) for each, mask in zip(scenes, drawn, strict=True)]


def _likeness(
    mask: NDArray[np.bool_], template: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> float:
    """What both have over what either has, with the middles of their boxes on each other."""
    own_rows, own_columns = (np.flatnonzero(template.any(axis=axis)) for axis in (1, 0))
    down = round((rows[0] + rows[-1] - own_rows[0] - own_rows[-1]) / 2)
    right = round((columns[0] + columns[-1] - own_columns[0] - own_columns[-1]) / 2)
    moved = np.roll(template, (down, right), axis=(0, 1))
    return float((mask & moved).sum() / (mask | moved).sum())
