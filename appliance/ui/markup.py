"""HTML for ``gr.HTML``, rendered from the templates in ``templates``.

Templates escape every text that is not ``Markup``, so text from people and models cannot become HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from appliance.ui import languages
from appliance.ui.chart import WIDTH, Drawing, Series
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.media import MediaFile, media_file
from appliance.ui.state_names import state_name

#: Characters of one value that a page shows at most.
LONGEST: Final = 50_000

_environment: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    auto_reload=False,  # a template of a newer version would not fit the running code
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.i18n"],
)
_environment.install_gettext_callables(  # type: ignore[attr-defined] # added by the extension
    languages.gettext, languages.ngettext, newstyle=True
)
_environment.filters |= {
    "css_class": lambda state: re.sub("[^a-z]+", "-", state.lower()),
    "clock": lambda seconds: f"{int(seconds // 60)}:{seconds % 60:04.1f}",
    # Relative to the <base> of the page, because a reverse proxy may serve the UI under a path.
    "url_path": lambda path: "." + quote(path, safe="/?=&-_.~"),
    "encoded_path": lambda path: f".{path}",  # of a path whose query is encoded already
}


class BarSegment(NamedTuple):
    """A segment of a bar, with its text in the legend."""

    text: str
    amount: float
    css_class: str  # classes of style.css


def render(template: str, **values: Any) -> Markup:
    return Markup(_environment.get_template(template).render(values))  # noqa: S704 - templates escape


def _part(name: str, *values: Any) -> Markup:
    made: Markup = getattr(_environment.get_template("parts.html").module, name)(*values)
    return made


def join(pieces: Iterable[str]) -> Markup:
    """Join pieces of HTML. Pieces that are plain text are escaped."""
    return Markup().join(pieces)


def duration(seconds: float | None) -> str:
    """Format a duration with units, such as "2 h 5 min"; return an empty string for None."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.01:
        return _("{n} ms").format(n=f"{1000 * seconds:.1f}")
    if seconds < 1:
        return _("{n} ms").format(n=f"{1000 * seconds:.0f}")
    if seconds < 60:
        return _("{n} s").format(n=f"{seconds:.1f}")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return _("{n} d").format(n=days) + " " + _("{n} h").format(n=hours)
    if hours:
        return _("{n} h").format(n=hours) + " " + _("{n} min").format(n=minutes)
    return _("{n} min").format(n=minutes) + " " + _("{n} s").format(n=rest)


def money(amount: float | None, currency: str | None) -> str:
    """Format an amount with its currency; return an empty string for None."""
    if amount is None:
        return ""
    return f"{amount:,.2f} {currency}" if amount >= 1 or amount == 0 else f"{amount:.3g} {currency}"


def moment(timestamp: str | None, now: datetime | None = None) -> Markup:
    """Format an API timestamp as how long ago it is, or as a date after a week; empty HTML for None.

    common.js keeps the text up to date, and adds the reader's local time as the title.
    """
    if timestamp is None:
        return Markup()
    then = datetime.fromisoformat(timestamp)
    seconds = round(((now or datetime.now(UTC)) - then).total_seconds())
    return Markup('<time datetime="{}">{}</time>').format(timestamp, _ago(then, seconds))


def _ago(then: datetime, seconds: int) -> str:
    """Return the text that ``ago`` of common.js returns."""
    size = abs(seconds)
    if size >= 7 * 86400:
        return then.strftime("%Y-%m-%d")
    if size < 5:
        return _("just now")
    units = ((86400, _("{n} d")), (3600, _("{n} h")), (60, _("{n} min")), (1, _("{n} s")))
    length, unit = next(each for each in units if size >= each[0])
    amount = unit.format(n=size // length)
    return (_("in {amount}") if seconds < 0 else _("{amount} ago")).format(amount=amount)


def badge(state: str, text: str | None = None) -> Markup:
    """Return a label in the colour of ``state``, with ``text`` or else the name of the state."""
    return _part("badge", state, text)


def link(path: str, text: str) -> Markup:
    """Return a link to ``path``, which begins with a slash, on this appliance."""
    return _part("link", path, text)


def foreign_link(url: str, text: str) -> Markup:
    return _part("foreign_link", url, text)


def note(text: str) -> Markup:
    return _part("note", text)


def empty(title: str, text: str = "") -> Markup:
    """Return a box that tells the user why there is nothing to show, and what to do."""
    return _part("empty", title, text)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, if_empty: Markup = Markup()) -> Markup:  # noqa: B008 - immutable
    listed = list(rows)
    return _part("table", headings, listed) if listed else if_empty


def bar(segments: Sequence[BarSegment], total: float, *, label: str) -> Markup:
    """Return a bar whose full width is ``total``, with a legend below it."""
    return _part("bar", segments, total, label)


def chart(
    drawing: Drawing,
    *,
    id: str,
    title: str,
    label: str,
    note: str = "",
    legend: Sequence[Series] = (),
    rows: Markup = Markup(),  # noqa: B008 - immutable
) -> Markup:
    """Return a chart. ``label`` tells its content in a sentence, and ``rows`` has its numbers as a table."""
    return render(
        "chart.html",
        drawing=drawing,
        width=WIDTH,
        id=id,
        title=title,
        label=label,
        note=note,
        legend=legend,
        rows=rows,
    )


def section(title: str, html: str, note: str = "", level: int = 2) -> Markup:
    """Return a section of a page; ``note`` is shown next to the heading; ``level`` 2 is ``<h2>``."""
    return _part("section", title, html, note, level)


def pairs(values: Mapping[str, str]) -> Markup:
    return _part("pairs", values)


def tiles(values: Mapping[str, str]) -> Markup:
    return _part("tiles", values)


def gallery(figures: Iterable[Markup]) -> Markup:
    found = [figure for figure in figures if figure]
    return _part("gallery", found) if found else Markup()


def figure(url: str, number: int = 1) -> Markup:
    """Return the file at ``url`` as an image, a player or a download; empty HTML if it may not be shown.

    ``media_file`` decides which files may be shown.
    """
    file = media_file(url, number)
    return Markup() if file is None else file_figure(file)


def file_figure(file: MediaFile) -> Markup:
    """Return a file as an image, a player or a download."""
    return _part("figure", file)


def value(given: Any) -> Markup:
    """Return an input or output of a prediction, with files as figures and everything else as text."""
    match given:
        case None:
            return Markup('<span class="note">{}</span>').format(_("nothing"))
        case str():
            return gallery([figure(given)]) or text(given)
        case list() if given and all(isinstance(item, str) for item in given):
            files = [figure(item, number) for number, item in enumerate(given, 1)]
            if all(files):
                return gallery(files)
            return join(map(value, given)) if any(files) else text("".join(given))
        case dict() if any(isinstance(part, str) and media_file(part) for part in given.values()):
            return pairs({name: value(part) for name, part in given.items()})
    return text(json.dumps(given, ensure_ascii=False, indent=2))


def text(text: str) -> Markup:
    """Return preformatted text, cut off after ``LONGEST`` characters."""
    if len(text) > LONGEST:
        length = ngettext("{number} character in all", "{number} characters in all", len(text))
        text = f"{text[:LONGEST]}\n… ({length.format(number=f'{len(text):,}')})"
    return _part("text", text)


_environment.filters |= {"moment": moment, "state_name": state_name}
