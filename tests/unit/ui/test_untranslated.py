"""Every text that a page shows can be translated: no page has a text outside of a message catalogue."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from gettext import NullTranslations
from html.parser import HTMLParser
from pathlib import Path

import pytest

from appliance.ui import languages
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages

#: Texts that are data or the same in all languages: names, units, formats and terms of the API.
DATA = re.compile(
    r"""[\w.-]+/[\w./*-]+|\b(?:[KMGT]iB|B|UTC|API|CSV|JSONL|JSON|curl|Python|JavaScript|OpenAI|Anthropic|POST|GET
    |PUT|DELETE|QUERY|PATCH|Ctrl|K|Our|models|models\.yaml|me|first|second|other|you|gpu|cpu|cuda|hub:owner|name
    |transformers|\d{4}-\d\d-\d\d|search|bytes|text|openapi\.json|echo|English|Deutsch|Español|Français)\b""",
    re.VERBOSE,
)
ATTRIBUTES = ("title", "aria-label", "placeholder", "alt", "data-label")
#: Elements whose text is code or data; elements with the attribute ``lang`` are as well.
SKIPPED = {"script", "style", "pre", "code", "kbd", "textarea"}
PATHS = (
    "/explore", "/explore?q=zzzz", "/chat", "/compare", "/predictions", "/predictions?search=zzzz",
    "/machine", "/usage", "/settings", "/add", "/p/none", "/nothing", "/api",
    "/audit",
)  # fmt: skip


#: Paths of the API whose texts are data, also those that the scheduler has composed.
DESCRIBED = (
    "/admin/me", "/admin/catalogue", "/v1/models", "/v1/collections", "/admin/status", "/admin/residency",
)  # fmt: skip


class Marking(NullTranslations):
    """A language in which every text is in brackets."""

    def gettext(self, message: str) -> str:
        return f"⟦{message}⟧"

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return f"⟦{msgid1 if n == 1 else msgid2}⟧"


class Outside(HTMLParser):
    """Collects the texts of a page that are not in brackets."""

    def __init__(self, data: frozenset[str] = frozenset()) -> None:
        """``data`` are texts that come from the API."""
        super().__init__()
        self.data = data
        self.found: list[str] = []
        self.depth = 0  # of brackets
        self.inside: list[str] = []  # skipped elements that are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in SKIPPED or (tag in {"option", "span", "h3"} and "lang" in given):
            self.inside.append(tag)
        for name in ATTRIBUTES:
            depth = self.depth
            self.depth = 0
            self.text(given.get(name) or "")
            self.depth = depth

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text(data)

    def text(self, text: str) -> None:
        outside = ""
        for letter in text:
            self.depth += {"⟦": 1, "⟧": -1}.get(letter, 0)
            if self.depth == 0:
                outside += letter if letter != "⟧" else " "
        if not re.search("[A-Za-z]{2}", outside):
            return
        # Ids first: one may contain a short text of the API.
        outside = re.sub(r"\b[0-9a-z]{26}\b", "", outside)
        known = sorted(self.data, key=len, reverse=True)
        for each in known:
            outside = outside.replace(each, "") if " " in each else outside
        outside = re.sub(r"\b[a-z]+(?:[._][a-z_0-9]+)+\b", "", outside)  # keys of the API
        for each in known:
            outside = outside.replace(each, "")
        outside = DATA.sub("", outside)
        if re.search(r"[A-Za-z]{2,}", outside):
            self.found.append(" ".join(outside.split()))


def texts_in(given: object) -> frozenset[str]:
    """Return all texts in a response of the API."""
    match given:
        case str():
            return frozenset(each for each in (given, given[:1].upper() + given[1:]) if len(each) > 2)
        case dict():
            return frozenset().union(*map(texts_in, given.values()))
        case list():
            return frozenset().union(*map(texts_in, given))
    return frozenset()


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def test_no_page_has_a_text_that_cannot_be_translated(
    api: Api, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "_translations", lambda _language: Marking())
    created = await api.create(text="12345")
    record = await api.ended(created)
    async with pages.signed_in(SECRET) as browser:
        found = {}
        data: frozenset[str] = frozenset()
        for path in DESCRIBED:
            data |= texts_in((await api.get(path)).json())
        for path in (*PATHS, f"/p/{record['id']}"):
            reply = await browser.get(path)
            assert reply.status_code < 500, reply.text
            reader = Outside(data)
            reader.feed(reply.text)
            found[path] = reader.found
    assert {path: texts for path, texts in found.items() if texts} == {}


async def test_the_sign_in_can_be_translated(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "_translations", lambda _language: Marking())
    async with pages.browser() as browser:
        reader = Outside()
        reader.feed((await browser.post("/signin", data={"token": "wrong"})).text)
    assert reader.found == []
