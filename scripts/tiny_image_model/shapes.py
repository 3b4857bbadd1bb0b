"""Training data: images of one coloured shape, and their captions."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec
import torch
from torch import Tensor

COLOURS: Final = {
    "red": (222, 32, 38),
    "green": (24, 150, 62),
    "blue": (34, 72, 214),
    "yellow": (250, 214, 28),
    "orange": (248, 132, 20),
    "purple": (132, 44, 168),
    "cyan": (36, 196, 222),
    "black": (18, 18, 20),
}
BACKGROUNDS: Final = {
    "white": (255, 255, 255),
    "black": (18, 18, 20),
    "gray": (150, 150, 154),
    "pink": (250, 190, 208),
}
SHAPES: Final = ("circle", "square", "triangle", "diamond", "star", "cross", "ring")
SIZES: Final = {"small": 0.32, "": 0.52, "large": 0.74}  # radius; the image reaches from -1 to 1
PLACES: Final = {
    "": (0.0, 0.0),
    "in the centre": (0.0, 0.0),
    "in the center": (0.0, 0.0),
    "in the middle": (0.0, 0.0),
    "on the left": (-1.0, 0.0),
    "on the right": (1.0, 0.0),
    "at the top": (0.0, -1.0),
    "at the bottom": (0.0, 1.0),
}
OPENINGS: Final = (
    "{a} {it}",
    "{a} {it}",
    "{it}",
    "a picture of {a} {it}",
    "an image of {a} {it}",
    "a photo of {a} {it}",
    "a drawing of {a} {it}",
    "draw {a} {it}",
    "please draw {a} {it}",
    "one {it}",
)
#: Pairs of colour and shape that are never trained: each colour and each shape is, with others.
HELD_OUT: Final = frozenset(
    (colour, shape)
    for row, shape in enumerate(SHAPES)
    for column, colour in enumerate(COLOURS)
    if (column - row) % len(COLOURS) in (1, 5)
)
PAIRS: Final = tuple(
    (colour, shape) for shape in SHAPES for colour in COLOURS if (colour, shape) not in HELD_OUT
)


class Scene(msgspec.Struct, frozen=True):
    """One image. Lengths count half the image's width; x goes right and y down, from its middle."""

    shape: str
    colour: str
    background: str
    radius: float
    x: float
    y: float
    captions: tuple[str, ...]  # all of them true


def scene(chance: random.Random, detail: float = 0.5) -> Scene:
    """Return a scene of a pair that is trained.

    ``detail`` is the probability, for each of size, place and background, that it is drawn at random. Above
    0.5, gray backgrounds are twice as likely as others: they are the hardest.
    """
    colour, shape = chance.choice(PAIRS)
    size = chance.choice(list(SIZES)) if chance.random() < detail else ""
    place = chance.choice(list(PLACES)) if chance.random() < detail else ""
    others = [each for each in BACKGROUNDS if each != colour]
    background = chance.choice([*others, "gray"] if detail > 0.5 else others)
    if chance.random() >= detail:
        background = "white"
    radius = SIZES[size] * chance.uniform(0.94, 1.06)
    room = 0.92 - radius
    x, y = (towards * room + chance.uniform(-0.03, 0.03) for towards in PLACES[place])
    captions = tuple(_caption(chance, colour, shape, size, place, background) for _ in range(4))
    return Scene(shape, colour, background, radius, x, y, captions)


def _caption(chance: random.Random, colour: str, shape: str, size: str, place: str, background: str) -> str:
    it = f"{size} {colour} {shape}".strip()
    said = chance.random()
    if said < 0.06:  # a colour or a shape alone: what either word means by itself
        it = f"{size} {shape}".strip()
    elif said < 0.12:
        it = f"{size} {colour} shape".strip()
    text = chance.choice(OPENINGS).format(a="an" if it[0] in "aeiou" else "a", it=it)
    if place:
        text = f"{text} {place}"
    if background != "white" or chance.random() < 0.3:
        name = "grey" if background == "gray" and chance.random() < 0.3 else background
        text = f"{text} {chance.choice(('on', 'on', 'with'))} a {name} background"
    return text + chance.choice(("", "", "", "."))


def draw(scenes: list[Scene], size: int) -> Tensor:
    """Images of ``size`` pixels a side: (number, 3, size, size), from -1 to 1, with smooth edges."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    images = []
    for each in scenes:
        outside = _distance(each.shape, (x - each.x) / each.radius, (y - each.y) / each.radius)
        ink = (0.5 - outside * each.radius * size / 2).clamp(0, 1)  # over one pixel
        front, back = (
            torch.tensor(rgb, dtype=torch.float32)[:, None, None] / 127.5 - 1
            for rgb in (COLOURS[each.colour], BACKGROUNDS[each.background])
        )
        images.append(back + (front - back) * ink)
    return torch.stack(images)


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """How far each point is outside a shape of radius 1, less than 0 inside; roughly, away from its edge."""
    around = torch.hypot(x, y)
    match shape:
        case "circle":
            return around - 1
        case "ring":
            return (around - 0.76).abs() - 0.24
        case "square":
            return torch.maximum(x.abs(), y.abs()) - 0.86
        case "diamond":
            return (x.abs() + y.abs() - 1.06) / math.sqrt(2)
        case "cross":
            upright = torch.maximum(x.abs() - 0.32, y.abs() - 1)
            across = torch.maximum(x.abs() - 1, y.abs() - 0.32)
            return torch.minimum(upright, across)
        case "triangle":
            slopes = (x.abs() * math.sqrt(3) - (y + 1)) / 2
            return torch.maximum(slopes, y - 0.6)
        case "star":
            return _star(x, y)
    raise ValueError(f"no such shape: {shape}")


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points at radius 1, and corners at radius 0.42 between: each half point is a straight line."""
    angle = torch.atan2(x, -y)  # from the upper point
    step = 2 * math.pi / 5
    folded = (angle - step * torch.round(angle / step)).abs()
    around = torch.hypot(x, y)
    along, aside = around * torch.cos(folded), around * torch.sin(folded)
    inner = (0.42 * math.cos(step / 2), 0.42 * math.sin(step / 2))
    edge = (inner[0] - 1, inner[1])
    length = math.hypot(*edge)
    return ((along - 1) * edge[1] - aside * edge[0]) / length
