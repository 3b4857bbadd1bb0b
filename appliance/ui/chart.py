"""Charts as SVG: stacked areas, lines, columns and horizontal bars.

The functions place all texts and shapes; ``markup`` and ``templates/chart.html`` make the HTML. Coordinates
are pixels of a drawing that is ``WIDTH`` wide. Widths of texts are estimated, because the server does not
know the reader's font.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

WIDTH: Final = 360.0
HEIGHT: Final = 165.0
#: Width of a character of a label, at least that of the widest common fonts at 11 pixels.
CHARACTER: Final = 6.6
LINE: Final = 13.0  # height of a label
GAP: Final = 8.0  # least distance between two labels
_TOP: Final = 10.0
_BOTTOM: Final = 24.0  # space for the labels below the drawing
_ROW: Final = 32.0  # height of a horizontal bar with the texts above it
_NICE: Final = (1.0, 2.0, 2.5, 5.0, 10.0)  # steps of an axis, times a power of ten
_STEPS: Final = 4  # of the vertical axis, at most


class Series(NamedTuple):
    """Values of one line or area; None where a value is unknown."""

    name: str
    values: Sequence[float | None]
    css_class: str


class Label(NamedTuple):
    """A text in a drawing. ``x`` is its left edge, its middle or its right edge, as ``anchor`` says."""

    text: str
    x: float
    y: float  # of the baseline
    anchor: str = "start"  # or "middle", "end"

    @property
    def left(self) -> float:
        return self.x - width(self.text) * {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]

    @property
    def right(self) -> float:
        return self.left + width(self.text)


class Shape(NamedTuple):
    """An SVG path."""

    path: str
    css_class: str  # a colour, and "area" or "line"
    title: str = ""


class Drawing(NamedTuple):
    """A chart: everything that the template writes into the SVG."""

    height: float
    grid: Sequence[tuple[float, float, float]]  # horizontal lines: left, right, y
    shapes: Sequence[Shape]
    labels: Sequence[Label]


class _Frame(NamedTuple):
    """The rectangle between the axes, and the value at its upper edge."""

    left: float
    right: float
    top: float
    bottom: float
    highest: float

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * min(value / self.highest, 1.0)


def width(text: str) -> float:
    """Return the estimated width of a label in pixels."""
    return len(text) * CHARACTER


def ticks(highest: float, unit: float = 1.0) -> list[float]:
    """Return round values, in units of ``unit``, from 0 to at least ``highest``."""
    wanted = max(highest, 0.0) / unit
    if wanted == 0.0:
        return [0.0, unit]
    least = wanted / _STEPS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * nice for nice in _NICE if power * nice >= least * (1 - 1e-9))
    return [number * step * unit for number in range(math.ceil(wanted / step - 1e-9) + 1)]


def byte_unit(highest: float) -> float:
    """Return the largest power of 1024 that is not above ``highest``; 1 for less than a KiB."""
    unit = 1.0
    while unit * 1024 <= highest:
        unit *= 1024
    return unit


def spread(labels: Iterable[Label]) -> list[Label]:
    """Return those labels of one line that fit beside each other, from the left, moved inside the drawing."""
    kept: list[Label] = []
    for label in map(_inside, labels):
        if not kept or label.left >= kept[-1].right + GAP:
            kept.append(label)
    return kept


def _inside(label: Label) -> Label:
    if label.right > WIDTH:
        return Label(label.text, WIDTH, label.y, "end")
    return Label(label.text, 0.0, label.y) if label.left < 0 else label


def shortened(text: str, space: float) -> str:
    """Return ``text``, with its middle left out if it is wider than ``space``."""
    most = max(3, int(space / CHARACTER + 1e-9))
    if len(text) <= most:
        return text
    first = (most - 1) // 2
    return f"{text[:first]}…{text[len(text) - (most - 1 - first) :]}"


def areas(
    at: Sequence[float],
    series: Sequence[Series],
    *,
    span: tuple[float, float],
    marks: Sequence[tuple[float, str]],
    shown: Callable[[float], str],
    unit: float = 1.0,
    ceiling: float = 0.0,
) -> Drawing:
    """Return stacked areas, the first series at the bottom.

    ``at`` has the times of the values, ``span`` the times at both ends of the drawing, ``marks`` times with
    their labels. ``shown`` formats values for the vertical axis, which reaches at least ``ceiling``. An
    unknown value is drawn as 0.
    """
    stacks: list[list[float]] = [[0.0] * len(at)]
    for each in series:
        stacks.append(
            [below + max(value or 0.0, 0.0) for below, value in zip(stacks[-1], each.values, strict=True)]
        )
    frame, grid, labels = _axes(max([ceiling, *stacks[-1]]), shown, unit)
    xs = [_x(frame, span, time) for time in at]
    shapes = []
    for each, (lower, upper) in zip(series, pairwise(stacks), strict=True):
        if len(at) > 1 and upper != lower:
            edge = [*zip(xs, upper, strict=True), *reversed([*zip(xs, lower, strict=True)])]
            points = " L".join(f"{x:.1f} {frame.y(value):.1f}" for x, value in edge)
            shapes.append(Shape(f"M{points}Z", f"area {each.css_class}", each.name))
    return Drawing(HEIGHT, grid, shapes, [*labels, *_below(frame, span, marks)])


def lines(
    at: Sequence[float],
    series: Sequence[Series],
    *,
    span: tuple[float, float],
    marks: Sequence[tuple[float, str]],
    shown: Callable[[float], str],
    unit: float = 1.0,
    ceiling: float = 0.0,
) -> Drawing:
    """Return one line for each series, with the arguments of ``areas``. Unknown values interrupt a line."""
    known = [value for each in series for value in each.values if value is not None]
    frame, grid, labels = _axes(max([ceiling, *known]), shown, unit)
    xs = [_x(frame, span, time) for time in at]
    shapes = []
    for each in series:
        path, pen = [], "M"
        for x, value in zip(xs, each.values, strict=True):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{x:.1f} {frame.y(value):.1f}")
            pen = "L"
        if path:
            shapes.append(Shape("".join(path), f"line {each.css_class}", each.name))
    return Drawing(HEIGHT, grid, shapes, [*labels, *_below(frame, span, marks)])


def columns(
    values: Sequence[tuple[str, float]],
    *,
    shown: Callable[[float], str],
    css_class: str = "c0",
    unit: float = 1.0,
    ceiling: float = 0.0,
) -> Drawing:
    """Return a column for each name and value, with as many of the names below as there is space for."""
    frame, grid, labels = _axes(max([ceiling, *(value for _, value in values)]), shown, unit)
    band = (frame.right - frame.left) / max(len(values), 1)
    wide = band * (0.8 if band > 3 else 1.0)
    shapes, names = [], []
    for number, (name, value) in enumerate(values):
        middle = frame.left + (number + 0.5) * band
        names.append(Label(name, middle, HEIGHT - 6, "middle"))
        if value > 0:
            title = f"{name}: {shown(value)}"
            shapes.append(_block(middle - wide / 2, frame.y(value), wide, frame.bottom, css_class, title))
    return Drawing(HEIGHT, grid, shapes, [*labels, *_with_last(names)])


def ranking(
    values: Sequence[tuple[str, float]], *, shown: Callable[[float], str], css_class: str = "c0"
) -> Drawing:
    """Return a horizontal bar for each name and value, in their order, with both texts above the bar."""
    highest = max([0.0, *(value for _, value in values)]) or 1.0
    shapes, labels = [], []
    for number, (name, value) in enumerate(values):
        top = number * _ROW
        amount = shown(value)
        labels.append(Label(shortened(name, WIDTH - width(amount) - GAP), 0.0, top + LINE - 2))
        labels.append(Label(amount, WIDTH, top + LINE - 2, "end"))
        wide = WIDTH * value / highest
        shapes.append(_block(0.0, top + LINE + 3, wide, top + LINE + 11, css_class, f"{name}: {amount}"))
    return Drawing(max(1, len(values)) * _ROW, (), shapes, labels)


def _axes(
    highest: float, shown: Callable[[float], str], unit: float
) -> tuple[_Frame, list[tuple[float, float, float]], list[Label]]:
    """Return the frame for values up to ``highest``, and lines and labels of its vertical axis."""
    values = ticks(highest, unit)
    texts = [shown(value) for value in values]
    left = max(map(width, texts)) + 6
    frame = _Frame(left, WIDTH - 1, _TOP, HEIGHT - _BOTTOM, values[-1])
    grid = [(frame.left, frame.right, frame.y(value)) for value in values]
    labels = [
        Label(text, left - 6, frame.y(value) + 4, "end") for text, value in zip(texts, values, strict=True)
    ]
    return frame, grid, labels


def _below(frame: _Frame, span: tuple[float, float], marks: Sequence[tuple[float, str]]) -> list[Label]:
    """Return the labels of the horizontal axis."""
    return _with_last([Label(text, _x(frame, span, time), HEIGHT - 6, "middle") for time, text in marks])


def _with_last(labels: Sequence[Label]) -> list[Label]:
    """Return the last label, and those of the others that fit beside each other and beside it."""
    if not labels:
        return []
    last = _inside(labels[-1])
    return [*(each for each in spread(labels[:-1]) if each.right + GAP <= last.left), last]


def _x(frame: _Frame, span: tuple[float, float], time: float) -> float:
    first, last = span
    return frame.left + (frame.right - frame.left) * (time - first) / (last - first)


def _block(x: float, top: float, wide: float, bottom: float, css_class: str, title: str) -> Shape:
    return Shape(f"M{x:.1f} {bottom:.1f}V{top:.1f}h{wide:.1f}V{bottom:.1f}Z", f"area {css_class}", title)
