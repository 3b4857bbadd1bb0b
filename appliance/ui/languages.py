"""The language of a page: chosen by the user or by the browser, and its translations.

``locales/<language>/LC_MESSAGES/ui.po`` has the texts of one language. ``scripts/texts`` collects the texts
of templates, scripts and Python modules, and adds new ones to all these files. A text without a translation
is shown in English.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextvars import ContextVar
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path
from typing import Final

from babel import Locale, negotiate_locale
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from starlette.requests import Request

FOLDER: Final = Path(__file__).parent / "locales"
#: Cookie with the language that the user has chosen.
COOKIE: Final = "appliance_language"
ENGLISH: Final = "en"

_current: ContextVar[str] = ContextVar("language", default=ENGLISH)


@functools.cache
def available() -> Mapping[str, str]:
    """Return all languages: code, such as "de", and the language's own name."""
    codes = [ENGLISH, *sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())]
    return {code: (Locale(code).get_language_name(code) or code).capitalize() for code in codes}


def chosen(request: Request) -> str:
    """Return the code of the language for a request: the user's choice, else the browser's, else English."""
    cookie = request.cookies.get(COOKIE, "")
    if cookie in available():
        return cookie
    asked = []
    for part in request.headers.get("accept-language", "").split(","):
        code, _, quality = part.strip().partition(";q=")
        try:
            asked.append((-float(quality or 1), code.replace("-", "_")))
        except ValueError:
            continue
    wanted = [code for _, code in sorted(asked, key=lambda each: each[0])]
    return negotiate_locale(wanted, available()) or ENGLISH


def use(language: str) -> None:
    """Use ``language`` for all texts until the end of the current task."""
    _current.set(language)


def current() -> str:
    """Return the code of the language in use."""
    return _current.get()


def direction() -> str:
    """Return "rtl" for a language that is written from right to left, else "ltr"."""
    return Locale(current()).text_direction


def translatable(text: str) -> str:
    """Return ``text``; tells scripts/texts that it is shown later, with ``gettext``."""
    return text


def gettext(text: str) -> str:
    """Return ``text``, which is English, in the language in use."""
    return _translations(current()).gettext(text)


def ngettext(one: str, many: str, number: int) -> str:
    """Return the English text ``one`` or ``many``, by ``number``, in the language in use."""
    return _translations(current()).ngettext(one, many, number)


def texts_of_scripts() -> dict[str, str]:
    """Return the translations of the texts in ``static``, for ``texts.js``."""
    if current() == ENGLISH:
        return {}
    return {
        message.id: message.string
        for message in catalog(current())
        if isinstance(message.id, str)
        and isinstance(message.string, str)
        and message.string
        and any(name.endswith(".js") for name, _ in message.locations)
    }


@functools.cache
def catalog(language: str) -> Catalog:
    """Return the texts of a language other than English, with their translations."""
    with (FOLDER / language / "LC_MESSAGES" / "ui.po").open("rb") as file:
        return read_po(file, locale=language)


@functools.cache
def _translations(language: str) -> NullTranslations:
    if language == ENGLISH:
        return NullTranslations()
    compiled = BytesIO()
    write_mo(compiled, catalog(language))
    compiled.seek(0)
    return GNUTranslations(compiled)
