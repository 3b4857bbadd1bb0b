"""Logging setup for every process: one line for each record, with its model or prediction, without secrets.

A traceback follows its record on lines that begin with four spaces; as JSON it is a field.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from appliance.domain.errors import ConfigError

if TYPE_CHECKING:  # the command line and the zygote import this module, which must import fast
    from appliance.config import LoggingConfig

#: Environment variables that override the configuration.
FORMAT_VARIABLE: Final = "APPLIANCE_LOG_FORMAT"
LEVEL_VARIABLE: Final = "APPLIANCE_LOG_LEVEL"
FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

#: The environment variable with the admin token, which is masked wherever it occurs.
_TOKEN_VARIABLE: Final = "APPLIANCE_TOKEN"  # noqa: S105 - the name of a variable

_MASK: Final = "***"

# Credentials of HTTP requests, tokens with our or Replicate's prefix, and webhook keys.
# "Token" is also a common word here, so the word after it must look like a token, with a digit.
_CREDENTIALS: Final = re.compile(
    r"\b(?:(?P<kind>bearer\s+|token\s+(?=[^\s\d]*\d)|r8_|apl_|whsec_)[\w\-.~+/=]{8,})", re.IGNORECASE
)
# URLs, whose user, query and fragment may be secrets; and queries without their URL.
_ADDRESS: Final = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{1,20}://)(?:[^\s/?#\"'<>]*@)?(?P<path>[^\s?#\"'<>]*)(?P<rest>[?#][^\s\"'<>]*)?",
    re.IGNORECASE,
)
_QUERY: Final = re.compile(r"(?<=[\w/])\?[\w.%\[\]-]+=[^\s\"'<>]*")

#: Libraries that log every request or every started process.
_CHATTY: Final = ("httpx", "httpcore", "uvicorn")

_prediction: ContextVar[str | None] = ContextVar("prediction", default=None)
_model: ContextVar[str | None] = ContextVar("model", default=None)


def configure(file: Path | None = None, config: LoggingConfig | None = None, *, level: str = "info") -> None:
    """Send every logger's records to ``file``, appending, or to stderr; a second call replaces the first.

    ``APPLIANCE_LOG_FORMAT`` and ``APPLIANCE_LOG_LEVEL`` override ``config``, which overrides ``level``.

    Raises:
        ConfigError: one of these variables has an unknown format or level.
    """
    chosen = os.environ.get(FORMAT_VARIABLE) or ("text" if config is None else config.format)
    level = os.environ.get(LEVEL_VARIABLE) or (level if config is None else config.level)
    for value, known, key in ((chosen, FORMATS, FORMAT_VARIABLE), (level, LEVELS, LEVEL_VARIABLE)):
        if value not in known:
            raise ConfigError(f"{value!r} should be one of {', '.join(known)}", key=key)
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(JsonFormatter() if chosen == "json" else TextFormatter())
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
    """Add the prediction and model to the log records of this task until the block ends.

    None leaves a name as it was. Tasks that are started inside the block inherit the names.
    """
    tokens = _prediction.set(prediction or _prediction.get()), _model.set(model or _model.get())
    try:
        yield
    finally:
        _prediction.reset(tokens[0])
        _model.reset(tokens[1])


def add_context(record: logging.LogRecord) -> bool:
    """Logging filter: set ``prediction`` and ``model`` on the record.

    Names in ``extra`` override those of the record's arguments (their attribute ``about``), and these
    override the ones set with ``bind``.
    """
    given = [each.about for each in record.args or () if hasattr(each, "about")]
    for name, bound in (("prediction", _prediction), ("model", _model)):
        if getattr(record, name, None) is None:
            named = (about[name] for about in given if name in about)
            setattr(record, name, next(named, bound.get()))
    return True


class Formatter(logging.Formatter):
    """Gathers the fields of a record and masks credentials in each, before escaping could hide them."""

    def __init__(self) -> None:
        """Remembers the admin token of the environment, so that it is known in any guise."""
        super().__init__()
        self._secret = os.environ.get(_TOKEN_VARIABLE) or None

    def format(self, record: logging.LogRecord) -> str:
        """The line without its end."""
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
        return self.lay_out(
            {name: self._mask(str(value)) for name, value in fields.items() if value is not None}
        )

    def _mask(self, text: str) -> str:
        if self._secret is not None:
            text = text.replace(self._secret, _MASK)
        text = _ADDRESS.sub(_without_secrets, text)
        text = _QUERY.sub(f"?{_MASK}", text)
        return _CREDENTIALS.sub(lambda match: f"{match['kind']}{_MASK}", text)

    def lay_out(self, fields: dict[str, str]) -> str:
        """The line made of ``fields``; what is unknown (prediction, model, exception) is not among them."""
        raise NotImplementedError


class TextFormatter(Formatter):
    """``2025-01-31T12:00:00.123Z INFO appliance.engine [id owner/name] message``."""

    def lay_out(self, fields: dict[str, str]) -> str:
        """Line breaks inside the message are escaped, so that no text can pose as a record."""
        message = fields["message"]
        named = [fields[name] for name in ("prediction", "model") if name in fields]
        subject = " ".join(name for name in named if name not in message)
        message = f"[{subject}] {message}" if subject else message
        line = f"{fields['time']} {fields['level']} {fields['logger']} {_one_line(message)}"
        rows = fields["exception"].split("\n") if fields.get("exception") else []
        return line + "".join(f"\n    {_one_line(row)}" for row in rows)


class JsonFormatter(Formatter):
    """A JSON object a line, with the fields that are known."""

    def lay_out(self, fields: dict[str, str]) -> str:
        """Text that is not Unicode (lone surrogates) is written with escapes."""
        unicode = {key: value.encode("utf-8", "backslashreplace").decode() for key, value in fields.items()}
        return msgspec.json.encode(unicode).decode()


def _without_secrets(address: re.Match[str]) -> str:
    rest = address["rest"]
    return address["scheme"] + address["path"] + (f"{rest[0]}{_MASK}" if rest else "")


def _traceback(record: logging.LogRecord) -> str | None:
    if not record.exc_info:
        return None
    return "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")


def _one_line(text: str) -> str:
    """``text`` with control characters and lone surrogates escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )
