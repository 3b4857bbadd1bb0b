"""Charts of the last hour of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from markupsafe import Markup

from appliance.protocols.admin_types import DeviceHistory, HistoryResponse
from appliance.ui import chart, markup
from appliance.ui.chart import Series
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.sizes import readable_bytes
from appliance.ui.state_names import state_name

#: Models in a chart that have a colour of their own; the others are one series.
_NAMED: Final = 7
_COLOURS: Final = 8  # c0, c1, ... in chart.css
_TABLE_ROWS: Final = 12  # of the table below a chart
_MARKS: Final = (60, 45, 30, 15, 0)  # minutes ago


def render(history: HistoryResponse, colours: Mapping[str, str], now: float) -> list[Markup]:
    """Return the charts of the last hour, which ends at ``now``, in Unix seconds.

    ``colours`` has the CSS class of each model.
    """
    at = [datetime.fromisoformat(each).timestamp() for each in history.at]
    axis = _Axis(at, history.seconds, now)
    memory, available = history.memory, history.available
    used = [Series(_("in use"), [float(memory - each) for each in available], "c0")]
    charts = []
    for each in history.devices:
        series = _reserved(each, colours)
        charts.append(
            axis.memory(
                f"memory-{each.name}", _("Memory of {device}").format(device=each.name), series, each.memory
            )
        )
    charts += [
        axis.work(history),
        axis.amounts(
            "tokens", _("Tokens per second"), _tokens(history, colours), _("at most {number} tokens/s")
        ),
        *axis.shares("kv-cache", _("KV cache in use"), _kv_caches(history, colours)),
        axis.loads([(datetime.fromisoformat(each.at).timestamp(), each.model) for each in history.loads]),
        axis.memory("main-memory", _("Main memory"), used, memory),
    ]
    shares = [
        (each.name, [None if value is None else 100 * value for value in each.utilisation])
        for each in history.devices
        if each.utilisation is not None
    ]
    power = [(each.name, each.power) for each in history.devices if each.power is not None]
    heat = [(each.name, each.temperature) for each in history.devices if each.temperature is not None]
    charts += axis.gpus("utilisation", _("GPU utilisation"), shares, " %", ceiling=100.0)
    charts += axis.gpus("power", _("GPU power"), power, " W", ceiling=100.0)
    charts += axis.gpus("temperature", _("GPU temperature"), heat, " \N{DEGREE SIGN}C", ceiling=100.0)
    return charts


def _reserved(device: DeviceHistory, colours: Mapping[str, str]) -> list[Series]:
    found = {name: [float(each) for each in sizes] for name, sizes in device.reserved.items()}
    series = _largest(found, colours)
    foreign = [float(each) for each in device.foreign]
    return [*series, Series(_("other programs"), foreign, "others")] if any(foreign) else series


def _tokens(history: HistoryResponse, colours: Mapping[str, str]) -> list[Series]:
    return _largest({each.name: each.tokens_per_second for each in history.models}, colours)


def _kv_caches(history: HistoryResponse, colours: Mapping[str, str]) -> list[Series]:
    shares = {
        each.name: [100 * share for share in each.kv_cache]
        for each in history.models
        if each.kv_cache is not None
    }
    fullest = sorted(shares.items(), key=lambda one: -max(one[1]))[:_NAMED]
    return [Series(name, each, colours.get(name, "c0")) for name, each in fullest]


def _largest(values: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> list[Series]:
    """Return a series for each of the models with the largest values, and one for all others together."""
    found = sorted(((name, each) for name, each in values.items() if any(each)), key=lambda one: -max(one[1]))
    series = [Series(name, each, colours.get(name, "c0")) for name, each in found[:_NAMED]]
    rest = [each for _name, each in found[_NAMED:]]
    if rest:
        sums = [sum(column) for column in zip(*rest, strict=True)]
        others = ngettext("{number} other model", "{number} other models", len(rest))
        series.append(Series(others.format(number=len(rest)), sums, "others"))
    return series


class _Axis:
    """Draws charts with one time axis."""

    def __init__(self, at: Sequence[float], seconds: float, now: float) -> None:
        self._at = at
        self._now = now
        self._span = (now - seconds, now)
        self._marks = [(now - 60 * ago, _minutes(ago) if ago else _("now")) for ago in _MARKS]

    def memory(self, id: str, title: str, series: Sequence[Series], total: int) -> Markup:
        drawing = chart.areas(
            self._at,
            series,
            span=self._span,
            marks=self._marks,
            shown=readable_bytes,
            unit=chart.byte_unit(total),
            ceiling=total,
        )
        sums = [
            sum(value or 0.0 for value in column) for column in zip(*(s.values for s in series), strict=True)
        ]
        now = sums[-1] if sums else 0.0
        note = _("{size} of {total}").format(size=readable_bytes(now), total=readable_bytes(total))
        highest = readable_bytes(max(sums, default=0.0))
        label = _("{title}: now {amount}, at most {highest} in the last hour").format(
            title=title, amount=note, highest=highest
        )
        return self._chart(drawing, id, title, label, note, series, readable_bytes)

    def work(self, history: HistoryResponse) -> Markup:
        models = history.models
        totals = {
            "running": [
                float(sum(column)) for column in zip(*(each.running for each in models), strict=True)
            ],
            "queued": [float(sum(column)) for column in zip(*(each.queued for each in models), strict=True)],
        }
        series = [
            Series(state_name(name), values or [0.0] * len(self._at), css_class)
            for (name, values), css_class in zip(totals.items(), ("c1", "c2"), strict=True)
        ]
        return self._lines("work", _("Predictions"), series, "", "{:,.0f}".format)

    def amounts(self, id: str, title: str, series: Sequence[Series], text: str) -> Markup:
        """Return a chart of amounts. ``text`` tells the highest ``{number}``."""
        drawing = chart.areas(self._at, series, span=self._span, marks=self._marks, shown=_number)
        highest = max((sum(column) for column in zip(*(s.values for s in series), strict=True)), default=0.0)
        note = text.format(number=_number(highest))
        label = _("{title}: {amount} in the last hour").format(title=title, amount=note)
        return self._chart(drawing, id, title, label, note, series, _number)

    def gpus(
        self,
        id: str,
        title: str,
        devices: Sequence[tuple[str, Sequence[float | None]]],
        unit: str,
        *,
        ceiling: float,
    ) -> list[Markup]:
        """Return a chart with a line for each GPU; none if no GPU has values."""
        if not devices:
            return []
        series = [
            Series(name, values, f"c{number % _COLOURS}") for number, (name, values) in enumerate(devices)
        ]
        return [self._lines(id, title, series, unit, f"{{:.0f}}{unit}".format, ceiling=ceiling)]

    def shares(self, id: str, title: str, series: Sequence[Series]) -> list[Markup]:
        """Return a chart with a line in percent for each series; none if there are no series."""
        if not series:
            return []
        return [self._lines(id, title, series, " %", "{:.0f} %".format, ceiling=100.0)]

    def loads(self, loads: Sequence[tuple[float, str]]) -> Markup:
        """Return a chart of the loads in each five minutes."""
        first, last = self._span
        bins = [0] * 12
        for at, _model in loads:
            if first <= at < last:
                bins[int((at - first) / (last - first) * len(bins))] += 1
        names = [_minutes(60 - 5 * number) for number in range(len(bins))]
        drawing = chart.columns(
            [*zip(names, map(float, bins), strict=True)], shown="{:,.0f}".format, css_class="c3", ceiling=4.0
        )
        note = _("{number} in the last hour").format(number=f"{sum(bins):,}")
        title = _("Loads")
        rows = markup.table(
            [_("Ago"), _("Model")],
            [[markup.duration(round(self._now - at)), model] for at, model in reversed(loads[-50:])],
        )
        return markup.chart(
            drawing, id="chart-loads", title=title, label=f"{title}: {note}", note=note, rows=rows
        )

    def _lines(
        self,
        id: str,
        title: str,
        series: Sequence[Series],
        unit: str,
        shown: Callable[[float], str],
        ceiling: float = 4.0,
    ) -> Markup:
        drawing = chart.lines(
            self._at, series, span=self._span, marks=self._marks, shown=shown, ceiling=ceiling
        )
        now = [
            f"{_number(each.values[-1])}{unit} {each.name}"
            for each in series
            if each.values and each.values[-1] is not None
        ]
        note = ", ".join(now)
        label = _("{title}: now {amount}").format(title=title, amount=note or _("unknown"))
        return self._chart(drawing, id, title, label, note, series, shown)

    def _chart(
        self,
        drawing: chart.Drawing,
        id: str,
        title: str,
        label: str,
        note: str,
        series: Sequence[Series],
        shown: Callable[[float], str],
    ) -> Markup:
        step = -(-len(self._at) // _TABLE_ROWS) or 1
        numbers = range(len(self._at) - 1, -1, -step)
        rows = [
            [
                _("{amount} ago").format(amount=markup.duration(max(0, round(self._now - self._at[number])))),
                *("" if (value := each.values[number]) is None else shown(value) for each in series),
            ]
            for number in numbers
        ]
        table = markup.table([_("Time"), *(each.name for each in series)], rows)
        return markup.chart(
            drawing, id=f"chart-{id}", title=title, label=label, note=note, legend=series, rows=table
        )


def _minutes(ago: int) -> str:
    return "\u2212" + _("{n} min").format(n=ago)


def _number(value: float) -> str:
    return f"{value:,.1f}".rstrip("0").rstrip(".") if value < 100 else f"{value:,.0f}"
