"""The audit log: records of what administrators do and of refused requests, chained by hashes.

The hash of a record is the SHA-256 of the previous record's hash, a newline, and the record as canonical
JSON. So a record that is changed, removed or moved no longer fits the records after it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote

import msgspec

#: The hash before the first record.
GENESIS: Final = "0" * 64

HIDDEN: Final = "**********"
_LONGEST: Final = 2000  # characters of one text in a record
_SECRET_KEY: Final = re.compile(
    r"(?i)(?:(?:authorization|credential|passphrase|passwd|password|secret|signature|token)s?"
    r"|(?:access|api|encryption|private|signing|ssh)[_-]?keys?"
    r"|(?:^|[^a-z])(?:cookies?|digest))(?:$|[^a-z])"
)
#: Where a word of a key such as ``accessToken`` begins.
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
#: A parameter of a URL. ``sig``, ``key`` and ``code`` are secret in a URL, but not as keys of a record.
_PARAMETER: Final = re.compile(r"([?&#])([^\s?&#=]{1,100})=([^\s&#]+)")
_SECRET_PARAMETERS: Final = frozenset({"auth", "code", "key", "sig"})
#: Tokens of the appliance, webhook keys, tokens of Hugging Face and GitHub, and users of URLs.
_SECRET_TEXT: Final = re.compile(
    r"apl_[A-Za-z0-9_-]{8,}|whsec_\S+|\bhf_[A-Za-z0-9]{8,}|\bgh[pousr]_[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{8,}"
    r"|(?<=://)[^/@\s]+(?=@)"
)

Outcome = Literal["succeeded", "failed", "denied"]


class AuditEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did, or was refused to do."""

    action: str  # such as "token.create"
    object: str = ""  # what it was done to, such as the id of a token or the name of a model
    outcome: Outcome = "succeeded"
    status: int | None = (
        None  # of the HTTP response; None for a command, and for a change before its response
    )
    token: str | None = None  # id of the caller's token
    owner: str | None = None  # account of the caller; the user of the machine for a command
    address: str | None = None  # IP address of the client
    request: str | None = None  # id of the HTTP request; the response header x-request-id
    before: Any = None
    after: Any = None
    count: int = 1  # number of refused requests that the record stands for


class AuditRecord(AuditEvent, frozen=True, kw_only=True):
    """A stored event. ``body`` is its canonical JSON, of which ``hash`` is made."""

    number: int  # from 1, without gaps
    at: str  # ISO 8601, in UTC
    previous: str
    hash: str
    body: str


class ChainFault(NamedTuple):
    """The first record that does not fit the chain."""

    number: int
    problem: str


class Verification(NamedTuple):
    """The result of a verification."""

    first: int  # number of the oldest record that was checked; 0 if there are none
    last: int
    hash: str  # of the last record
    fault: ChainFault | None


class ChainPosition(NamedTuple):
    """A position in the chain: the number and the hash of a record."""

    number: int
    hash: str


START: Final = ChainPosition(0, GENESIS)


def make(event: AuditEvent, previous: ChainPosition, at: float) -> AuditRecord:
    """Return the record of ``event`` that follows ``previous``; secrets in it are masked."""
    number = previous.number + 1
    time = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    fields = {key: masked(value) for key, value in msgspec.to_builtins(event).items()}
    body = canonical({"number": number, "at": time, **fields})
    return parse(body, previous.hash, chained(previous.hash, body))


def parse(body: str, previous: str, hash: str) -> AuditRecord:
    """Return a stored record.

    Raises:
        msgspec.MsgspecError: ``body`` is not that of a record.
    """
    fields = msgspec.json.decode(body, type=dict[str, Any])
    return msgspec.convert({**fields, "previous": previous, "hash": hash, "body": body}, AuditRecord)


def canonical(fields: Mapping[str, Any]) -> str:
    """Return ``fields`` as JSON with sorted keys, without spaces, and in ASCII."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def chained(previous: str, body: str) -> str:
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def masked(value: Any, key: str = "") -> Any:
    """Return a JSON value without secrets: neither those of secret keys, nor texts that look like tokens.

    Numbers of secret keys stay, because a key such as ``max_tokens`` has one.
    """
    if isinstance(value, Mapping):
        if _is_secret(key):
            return HIDDEN
        return {_encodable(str(name)): masked(each, str(name)) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(each, key) for each in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    if not isinstance(value, str):
        return value
    if _is_secret(key):
        return HIDDEN
    text = _PARAMETER.sub(_parameter, _SECRET_TEXT.sub(HIDDEN, _encodable(value)))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(_WORD.sub("_", key)) is not None


def _parameter(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    known = unquote(name)
    hidden = known.lower() in _SECRET_PARAMETERS or _is_secret(known)
    return f"{mark}{name}={HIDDEN if hidden else value}"


def _encodable(text: str) -> str:
    """Return the text as valid Unicode. Bytes of a file name that are not UTF-8 become escapes."""
    return text.encode(errors="backslashreplace").decode()


def difference(before: Any, after: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys whose values differ, by dotted path, with their old and their new values."""
    old, new = dict(_leaves(before, "")), dict(_leaves(after, ""))
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return {key: old[key] for key in keys if key in old}, {key: new[key] for key in keys if key in new}


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value):
        items = [(_name(each, number), each) for number, each in enumerate(value)]
    else:
        return [(path, value)]
    found = []
    for key, each in items:
        found += _leaves(each, f"{path}.{key}" if path else key)
    return found


def _name(value: Any, number: int) -> str:
    """Return the name of an item of a list, such as a model; its position if it has none."""
    name = value.get("name", value.get("slug")) if isinstance(value, Mapping) else None
    return f"{number}" if name is None else str(name)


class Chain:
    """Checks records, which must come in the order of their numbers."""

    def __init__(self, start: ChainPosition) -> None:
        """``start`` is the record before the first one: the last that was deleted because of its age."""
        self.first = 0
        self.end = start
        self.fault: ChainFault | None = None

    def check(self, number: int, body: str, previous: str, hash: str) -> ChainFault | None:
        """Check the next record; return the first problem of all records so far."""
        if self.fault is None:
            problem = self._problem(number, body, previous, hash)
            self.fault = None if problem is None else ChainFault(*problem)
        self.first = self.first or number
        self.end = ChainPosition(number, hash)
        return self.fault

    def _problem(self, number: int, body: str, previous: str, hash: str) -> tuple[int, str] | None:
        expected = self.end.number + 1
        if number != expected:
            return expected, f"is missing; the next record is {number}"
        if chained(previous, body) != hash:
            return number, "was changed: its hash does not match its content"
        if previous != self.end.hash:
            return number, "does not follow the record before it: a record was changed, removed or moved"
        try:
            inner = parse(body, previous, hash).number
        except msgspec.MsgspecError as error:
            return number, f"is not a record: {error}"
        return None if inner == number else (number, f"was moved: its content is that of record {inner}")
