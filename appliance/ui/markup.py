"""Pieces of HTML for ``gr.HTML``. What is given as text is escaped here; what is called ``html`` is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from appliance.ui.media import gallery, medium

#: Longest text that is shown of one value, in characters.
LONGEST: Final = 50_000


class BarSegment(NamedTuple):
    """A part of a bar."""

    text: str
    amount: float
    look: str  # a class of style.css


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return ""
    if 0 < seconds < 0.01:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def money(amount: float | None, currency: str | None) -> str:
    """An amount for people; nothing where no price is known."""
    if amount is None:
        return ""
    return f"{amount:,.2f} {currency}" if amount >= 1 or amount == 0 else f"{amount:.3g} {currency}"


def moment(timestamp: str | None) -> str:
    """HTML of one of the API's times, in UTC."""
    if timestamp is None:
        return ""
    shown = datetime.fromisoformat(timestamp).strftime("%Y-%m-%d %H:%M:%S")
    return f'<time datetime="{escape(timestamp)}" title="UTC">{shown}</time>'


def badge(state: str) -> str:
    """HTML of a state."""
    look = re.sub("[^a-z]+", "-", state.lower())
    return f'<span class="badge {look}">{escape(state)}</span>'


def link(path: str, text: str) -> str:
    """HTML of a link to one of our pages."""
    return f'<a href="{escape(quote(path, safe="/?=&-_.~"))}">{escape(text)}</a>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> str:
    """HTML of a table of cells that are HTML; ``empty`` is HTML that says what to do where there is none."""
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    if not lines:
        return f'<div class="empty">{empty}</div>'
    names = "".join(f"<th scope=col>{escape(name)}</th>" for name in headings)
    return (
        f'<div class="scroll"><table class="rows"><thead><tr>{names}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def bar(segments: Sequence[BarSegment], total: float, *, label: str) -> str:
    """HTML of a bar of ``total``, with what each of its parts is below it."""
    drawn, named = "", ""
    for part in segments:
        share = 100 * part.amount / total if total > 0 else 0.0
        drawn += f'<i class="{part.look}" style="width:{share:.3f}%" title="{escape(part.text)}"></i>'
        named += f'<li><i class="{part.look}"></i>{escape(part.text)}</li>'
    return (
        f'<div class="bar" role="img" aria-label="{escape(label)}">{drawn}</div>'
        f'<ul class="legend">{named}</ul>'
    )


def section(title: str, html: str, note: str = "") -> str:
    """HTML of a part of a page under a heading; ``note`` is said beside that."""
    beside = f" <span>{escape(note)}</span>" if note else ""
    return f'<section class="part"><h3>{escape(title)}{beside}</h3>{html}</section>'


def pairs(values: Mapping[str, str]) -> str:
    """HTML of names with values that are HTML."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{html}</dd>" for name, html in values.items())
    return f'<dl class="pairs">{lines}</dl>'


def tiles(values: Mapping[str, str]) -> str:
    """HTML of a few numbers, large."""
    lines = "".join(
        f"<div><b>{escape(number)}</b><span>{escape(name)}</span></div>" for name, number in values.items()
    )
    return f'<div class="tiles">{lines}</div>'


def value(given: Any) -> str:
    """HTML of an input or an output: its files as what they are, everything else as text."""
    match given:
        case None:
            return '<span class="note">nothing</span>'
        case str():
            return gallery([medium(given)]) or text(given)
        case list() if given and all(isinstance(item, str) for item in given):
            files = [medium(item, number) for number, item in enumerate(given, 1)]
            if all(files):
                return gallery(files)
            return text("".join(given)) if not any(files) else "".join(map(value, given))
        case dict() if any(isinstance(part, str) and medium(part) for part in given.values()):
            return pairs({name: value(part) for name, part in given.items()})
    return text(json.dumps(given, ensure_ascii=False, indent=2))


def text(text: str) -> str:
    """HTML of text as it is, and no more of it than can be read."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}\n… ({len(text):,} characters in all)"
    return f'<pre class="text">{escape(shown)}</pre>'
