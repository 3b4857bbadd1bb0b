"""Set up logging in each process: one line for each record, without secrets, with its prediction and model.

In the text format a traceback follows its record on lines that begin with four spaces. In JSON the traceback
is the field ``exception``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from appliance.domain.errors import ConfigError

if TYPE_CHECKING:  # importing the config is slow, and the commands and the zygote import this module
    from appliance.config import LoggingConfig

#: Environment variables that override the configuration.
FORMAT_VARIABLE: Final = "APPLIANCE_LOG_FORMAT"
LEVEL_VARIABLE: Final = "APPLIANCE_LOG_LEVEL"
FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

#: Environment variable with the admin token, which is masked in all records.
TOKEN_VARIABLE: Final = "APPLIANCE_TOKEN"  # noqa: S105 - the name of a variable

_MASK: Final = "***"

# Credentials of HTTP requests, tokens with our or Replicate's prefix, webhook keys and join tokens.
# "Token" is also a common word in logs, so the word after it counts only if it has a digit, as tokens do.
_CREDENTIALS: Final = re.compile(
    r"\b(?:(?P<kind>bearer\s+|token\s+(?=[^\s\d]*\d)|r8_|apl_|whsec_|appliance-join\.)[\w\-.~+/=]{8,})",
    re.IGNORECASE,
)
# URLs: the user name, query and fragment may be secret. Queries may also occur without a URL.
_URL: Final = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{1,20}://)(?:[^\s/?#\"'<>]*@)?(?P<path>[^\s?#\"'<>]*)(?P<rest>[?#][^\s\"'<>]*)?",
    re.IGNORECASE,
)
_QUERY: Final = re.compile(r"(?<=[\w/])\?[\w.%\[\]-]+=[^\s\"'<>]*")

#: Libraries that log every request.
_CHATTY: Final = ("httpx", "httpcore", "uvicorn")

_prediction: ContextVar[str | None] = ContextVar("prediction", default=None)
_model: ContextVar[str | None] = ContextVar("model", default=None)


def configure(file: Path | None = None, config: LoggingConfig | None = None, *, level: str = "info") -> None:
    """Append all log records to ``file``, or write them to stderr; replaces an earlier configuration.

    ``APPLIANCE_LOG_FORMAT`` and ``APPLIANCE_LOG_LEVEL`` override ``config``, which overrides ``level``.

    Raises:
        ConfigError: one of these environment variables names an unknown format or level.
    """
    chosen = os.environ.get(FORMAT_VARIABLE) or ("text" if config is None else config.format)
    level = os.environ.get(LEVEL_VARIABLE) or (level if config is None else config.level)
    for value, known, key in ((chosen, FORMATS, FORMAT_VARIABLE), (level, LEVELS, LEVEL_VARIABLE)):
        if value not in known:
            raise ConfigError(f"{value!r} should be one of {', '.join(known)}", key=key)
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(Formatter(_as_json if chosen == "json" else _as_text))
    handler.addFilter(add_context)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


@contextlib.contextmanager
def bind(*, prediction: str | None = None, model: str | None = None) -> Iterator[None]:
    """Add a prediction and a model to the log records of this task and of tasks that it starts in the block.

    An argument that is None does not change the present value.
    """
    tokens = _prediction.set(prediction or _prediction.get()), _model.set(model or _model.get())
    try:
        yield
    finally:
        _prediction.reset(tokens[0])
        _model.reset(tokens[1])


def add_context(record: logging.LogRecord) -> bool:
    """Set ``prediction`` and ``model`` on the log record. Used as a logging filter.

    The values come from the ``extra`` of the logging call, else from the attribute ``about`` of one of its
    arguments, else from ``bind``.
    """
    given = [each.about for each in record.args or () if hasattr(each, "about")]
    for name, bound in (("prediction", _prediction), ("model", _model)):
        if getattr(record, name, None) is None:
            named = (about[name] for about in given if name in about)
            setattr(record, name, next(named, bound.get()))
    return True


class Formatter(logging.Formatter):
    """Formats log records with credentials masked.

    ``render`` gets the fields of the record that have a value. Credentials are masked before ``render``
    escapes the text, because escaped credentials would not be recognized.
    """

    def __init__(self, render: Callable[[dict[str, str]], str]) -> None:
        super().__init__()
        self._render = render
        self._secret = admin_token()

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "prediction": getattr(record, "prediction", None),
            "model": getattr(record, "model", None),
            "message": record.getMessage(),
            "exception": _traceback(record),
        }
        return self._render(
            {name: self._mask(str(value)) for name, value in fields.items() if value is not None}
        )

    def _mask(self, text: str) -> str:
        return mask(text, () if self._secret is None else (self._secret,))


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """Return ``text`` with ``secrets``, credentials, and users and queries of URLs masked."""
    for secret in secrets:
        text = text.replace(secret, _MASK)
    text = _URL.sub(_without_secrets, text)
    text = _QUERY.sub(f"?{_MASK}", text)
    return _CREDENTIALS.sub(lambda match: f"{match['kind']}{_MASK}", text)


def admin_token() -> str | None:
    """Return the admin token of the environment, if there is one."""
    return os.environ.get(TOKEN_VARIABLE) or None


def _as_text(fields: dict[str, str]) -> str:
    """Render as ``2025-01-31T12:00:00.123Z INFO appliance.engine [id owner/name] message``.

    Line breaks in the message are escaped, so no message can look like a second record.
    """
    message = fields["message"]
    names = [fields[name] for name in ("prediction", "model") if name in fields]
    subject = " ".join(name for name in names if name not in message)
    message = f"[{subject}] {message}" if subject else message
    line = f"{fields['time']} {fields['level']} {fields['logger']} {_one_line(message)}"
    rows = fields["exception"].split("\n") if fields.get("exception") else []
    return line + "".join(f"\n    {_one_line(row)}" for row in rows)


def _as_json(fields: dict[str, str]) -> str:
    unicode = {key: value.encode("utf-8", "backslashreplace").decode() for key, value in fields.items()}
    return msgspec.json.encode(unicode).decode()


def _without_secrets(url: re.Match[str]) -> str:
    rest = url["rest"]
    return url["scheme"] + url["path"] + (f"{rest[0]}{_MASK}" if rest else "")


def _traceback(record: logging.LogRecord) -> str | None:
    if not record.exc_info:
        return None
    return "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")


def _one_line(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
