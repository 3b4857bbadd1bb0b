"""Charts: no label is on another one or outside of the drawing, and shapes are where their values are."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from appliance.domain.units import readable_bytes
from appliance.ui import chart, markup
from appliance.ui.chart import HEIGHT, LINE, WIDTH, Drawing, Label, Series
from tests.unit.ui.test_markup import HOSTILE, inert

HOUR = (0.0, 3600.0)
MARKS = [(3600.0 - 60 * ago, f"\u2212{ago} min" if ago else "now") for ago in (60, 45, 30, 15, 0)]
GIB = 2.0**30


def check(drawing: Drawing) -> None:
    """Check that all labels are inside of the drawing and none is on another one."""
    for label in drawing.labels:
        assert label.left >= -0.01, label
        assert label.right <= WIDTH + 0.01, label
        assert LINE - 5 <= label.y <= drawing.height, label
    for one, other in combinations(drawing.labels, 2):
        beside = one.right <= other.left or other.right <= one.left
        apart = abs(one.y - other.y) >= LINE
        assert beside or apart, (one, other)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize(
    "highest", [0.0, 0.03, 1, 3, 7, 10, 999, 1000, 1023, 1025, 123456, 7.2 * GIB, 140 * GIB]
)
def test_labels_of_areas_and_lines_do_not_overlap(highest: float) -> None:
    series = [Series("a", [0.0, highest], "c0")]
    unit = chart.byte_unit(highest)
    for draw in (chart.areas, chart.lines):
        check(
            draw(
                [0.0, 3600.0],
                series,
                span=HOUR,
                marks=MARKS,
                shown=lambda n: readable_bytes(int(n)),
                unit=unit,
            )
        )
        check(draw([0.0, 3600.0], series, span=HOUR, marks=MARKS, shown="{:,.2f} tokens/s".format))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 30, 90, 365])
def test_labels_of_columns_and_horizontal_bars_do_not_overlap(count: int) -> None:
    values = [(f"2026-01-{number:02}", float(number)) for number in range(count)]
    found = chart.columns(values, shown=lambda n: f"{n:,.0f} s")
    check(found)
    assert len(found.shapes) == max(0, count - 1)  # no column for 0
    models = [(f"an-owner-with-a-long-name/model-{number}" * 3, 1e6 * number) for number in range(count)]
    check(chart.ranking(models, shown=lambda n: f"{n:,.1f} s"))


def test_stacked_areas_lie_on_each_other() -> None:
    series = [Series("a", [1.0, 2.0], "c0"), Series("b", [3.0, None], "c1")]
    found = chart.areas([0.0, 3600.0], series, span=HOUR, marks=MARKS, shown=str)
    lower, upper = (points(shape.path) for shape in found.shapes)
    assert upper[2:] == lower[1::-1]  # the lower edge of the second area is the upper edge of the first
    top = {y for _, _, y in found.grid}
    assert upper[0][1] == min(top)  # 1 + 3 is the highest value, and the axis ends there
    assert upper[1][1] == lower[1][1]  # an unknown value takes no space


def test_a_line_is_interrupted_where_values_are_unknown() -> None:
    series = [Series("a", [1.0, 2.0, None, 4.0], "c0")]
    (shape,) = chart.lines([0.0, 10.0, 20.0, 30.0], series, span=(0.0, 30.0), marks=[], shown=str).shapes
    assert [*re.sub(r"[^ML]", "", shape.path)] == ["M", "L", "M"]
    xs = [x for x, _ in points(shape.path)]
    assert xs == sorted(xs)
    assert xs[-1] == WIDTH - 1


@pytest.mark.parametrize(
    ("highest", "unit", "found"),
    [
        (0, 1, [0, 1]),
        (4, 1, [0, 1, 2, 3, 4]),
        (7, 1, [0, 2, 4, 6, 8]),
        (90, 1, [0, 25, 50, 75, 100]),
        (0.3, 1, [0, 0.1, 0.2, 0.3]),
        (3 * GIB, GIB, [0, GIB, 2 * GIB, 3 * GIB]),
    ],
)
def test_an_axis_has_round_values_up_to_the_highest(highest: float, unit: float, found: list[float]) -> None:
    assert chart.ticks(highest, unit) == pytest.approx(found)


def test_a_long_name_keeps_its_begin_and_end() -> None:
    assert chart.shortened("owner/a-model-with-a-long-name", 12 * chart.CHARACTER) == "owner…g-name"
    assert chart.shortened("short", 100) == "short"


def test_labels_at_the_edges_are_moved_inside() -> None:
    first, last = chart.spread([Label("first", 0, HEIGHT, "middle"), Label("last", WIDTH, HEIGHT, "middle")])
    assert (first.left, last.right) == (0, WIDTH)


def test_texts_in_a_chart_are_inert() -> None:
    for text in HOSTILE:
        drawing = chart.ranking([(text, 1.0)], shown=str)
        legend = [Series(text, [], "c0")]
        rows = markup.table([text], [[text]])
        inert(markup.chart(drawing, id="x", title=text, label=text, note=text, legend=legend, rows=rows))
