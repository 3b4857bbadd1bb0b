"""The language of pages, and the completeness of each language."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from babel.messages.catalog import Message
from babel.messages.extract import extract_from_dir
from starlette.requests import Request

from appliance.ui import languages
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages

ROOT = languages.FOLDER.parent
METHODS = [
    ("static/vendor/**", "ignore"),
    ("**.py", "python"),
    ("templates/**.html", "jinja2"),
    ("static/**.js", "javascript"),
]
OTHERS = [code for code in languages.available() if code != languages.ENGLISH]


@contextmanager
def using(language: str) -> Iterator[None]:
    before = languages.current()
    languages.use(language)
    yield
    languages.use(before)


def request(**headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": named})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "en"),
        ({"accept_language": "de-AT,de;q=0.9,en;q=0.8"}, "de"),
        ({"accept_language": "xx, en;q=0.1, de;q=0.5"}, "de"),
        ({"accept_language": "xx;q=high, *"}, "en"),
        ({"accept_language": "de", "cookie": "appliance_language=en"}, "en"),
        ({"cookie": "appliance_language=de"}, "de"),
        ({"cookie": "appliance_language=../de"}, "en"),
    ],
)
def test_the_users_choice_comes_before_the_browsers(headers: dict[str, str], expected: str) -> None:
    assert languages.chosen(request(**headers)) == expected


def test_texts_are_translated_and_unknown_ones_stay_english() -> None:
    with using("de"):
        assert languages.gettext("Predictions") == "Vorhersagen"
        assert languages.gettext("no text of the UI") == "no text of the UI"
        assert (
            languages.ngettext("{n} thing of no page", "{n} things of no page", 2) == "{n} things of no page"
        )
        assert languages.texts_of_scripts()["Sign in again"] == "Erneut anmelden"
        assert "Predictions" not in languages.texts_of_scripts()  # no script has it
    assert languages.gettext("Predictions") == "Predictions"


async def test_a_page_is_in_the_language_of_its_reader(api: Api, tmp_path: Path) -> None:
    pages = Pages(api, tmp_path)
    async with pages.signed_in(SECRET) as browser:
        german = await browser.get("/predictions", headers={"accept-language": "de"})
        english = await browser.get("/predictions")
    await pages.server.close()
    assert '<html lang="de" dir="ltr"' in german.text
    assert "<h1>Vorhersagen</h1>" in german.text
    assert "Erneut anmelden" in german.text
    assert "<h1>Predictions</h1>" in english.text


@functools.cache
def texts() -> dict[str | tuple[str, ...], str]:
    """Return every text of the UI with a file that has it, as scripts/texts finds them."""
    keywords = {"_": None, "gettext": None, "ngettext": (1, 2), "translatable": None}
    found = extract_from_dir(ROOT, METHODS, {"templates/**.html": {"trimmed": "true"}}, keywords)
    return {message: name for name, _, message, _, _ in found}


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_is_complete(language: str) -> None:
    translated: dict[object, Message] = {
        message.id: message for message in languages.catalog(language) if message.id
    }
    wanted = texts()
    missing = [text for text in wanted if text not in translated]
    assert not missing, "run scripts/texts and translate what it adds"
    assert not [text for text in translated if text not in wanted], "run scripts/texts"
    for id, message in translated.items():
        ids = id if isinstance(id, tuple) else (id,)
        strings = message.string if isinstance(message.string, tuple) else (str(message.string or ""),)
        assert all(strings), f"{id} has no translation"
        for string in strings:
            assert placeholders(string) <= placeholders(*ids), f"{string} has a value that {id} lacks"
        assert placeholders(*ids) <= placeholders(*strings), f"{id} has a value that no translation shows"


def placeholders(*found: str) -> set[str]:
    return {name for text in found for name in re.findall(r"\{\w+\}|%\(\w+\)\w", text)}


def test_every_text_of_a_script_is_found() -> None:
    found = texts()
    for script in (ROOT / "static").glob("*.js"):
        for text in re.findall(r'\b_\("((?:[^"\\]|\\.)*)"', script.read_text()):
            assert text.replace('\\"', '"') in found, f"{script.name}: scripts/texts does not see {text!r}"
