"""Readers of a request's caller, base URL, body, query parameters and headers."""

from __future__ import annotations

import codecs
import functools
import json
import re
import time
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from starlette.requests import Request

from appliance.domain import input_schema
from appliance.domain.access import Right, is_within
from appliance.domain.errors import (
    BodyTooLarge,
    FieldProblem,
    InvalidInput,
    MalformedBody,
    PermissionDenied,
    Throttled,
)
from appliance.domain.local_url import host_and_port
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.domain.values import seconds_of
from appliance.gateway.api import audit, client_address
from appliance.gateway.api.services import Services, services_of

#: Longest wait in seconds, and the wait that ``Prefer: wait`` without a number requests.
LONGEST_WAIT: Final = 60
#: The response is sent this many seconds before the wait ends, because a client whose timeout equals the wait
#: would repeat its POST.
EARLY: Final = 1.0
SHORTEST_DEADLINE: Final = 5  # seconds
#: Key in an ASGI scope of the caller's ``RateLimitState``, which the response headers show.
RATE_LIMIT: Final = "appliance.rate_limit"
#: Key in the ASGI scope: value of the header X-Budget-Warning; absent if no budget is nearly spent.
BUDGETS: Final = "appliance.budgets"
#: Key in an ASGI scope of the path template of the matched route.
ROUTE: Final = "appliance.route"
#: Key in an ASGI scope of the span of a request that creates a prediction; absent without tracing.
SPAN: Final = "appliance.span"

_GZIP: Final = b"\x1f\x8b"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SURROGATE_ERRORS: Final = ("truncated", "surrogate")  # words of the decoder's messages
_HOST: Final = re.compile(r"[A-Za-z0-9_.:\[\]-]+")
_WAIT: Final = re.compile(r"(?i)\s*wait\s*(?:=\s*\"?(\d{1,9})(?:\.\d*)?\"?\s*)?")
_DEADLINE: Final = re.compile(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s?)?")

T = TypeVar("T", bound=msgspec.Struct)


class Wait(NamedTuple):
    """The wait that a ``Prefer`` header requests."""

    seconds: int
    applied: str  # value of the header ``Preference-Applied``

    @property
    def patience(self) -> float:
        """Seconds after which the response is sent."""
        return max(self.seconds - EARLY, 0.5)


async def caller(
    request: Request,
    needed: Scope,
    *,
    creates: bool = False,
    right: Right | None = None,
    authorization: str | None = None,
) -> Token:
    """Return the caller's token, and count the request for the rate limit of the token.

    ``creates``: the request creates a prediction or training. ``right``: the right that the caller's owner
    needs, by default RUN for a request that creates, and OPERATE for the scope ADMIN. ``authorization``
    replaces the header of that name, for clients that send the token in another header.

    Raises:
        Unauthenticated: the request has no valid token.
        PermissionDenied: the token lacks the scope ``needed`` or the right, or may not be used from the
            address of the client.
        Throttled: the token has made too many requests.
    """
    services = services_of(request)
    header = authorization or request.headers.get("authorization")
    token = await services.auth.caller(header, address_of(request))
    audit.identify(request, token)
    if not token.may(needed):
        raise PermissionDenied(f'This token has the scope "{token.scope}"; this request needs "{needed}".')
    if right is None and (creates or needed is Scope.ADMIN):
        right = Right.RUN if creates else Right.OPERATE
    if right is not None and right not in token.access.rights:
        raise PermissionDenied(
            f'The account "{token.owner}" has no group with the right "{right}": '
            "add the right to one of its groups in the section access of models.yaml."
        )
    if token.prediction is not None:  # a running prediction is not throttled
        return token
    state = services.rate_limits.take(token.id, creates=creates, now=time.monotonic())
    if state is not None:
        request.scope[RATE_LIMIT] = state
        if state.retry_after:
            raise Throttled(
                f"Request was throttled. Your rate limit resets in ~{state.reset}s.",
                retry_after=state.retry_after,
            )
    return token


def warn_of_budgets(request: Request, record: Prediction) -> None:
    """Add a header to the response if a budget that counts the new prediction is nearly spent."""
    budgets = services_of(request).engine.budgets
    if budgets and (found := budgets.warnings(record.owner, record.token, record.model, time.time())):
        request.scope[BUDGETS] = "; ".join(found)


def trace(request: Request) -> str | None:
    """Start the span of a request that creates a prediction. Return its traceparent; None without tracing."""
    tracing = services_of(request).tracing
    if tracing is None:
        return None
    span, traceparent = tracing.start_request(request.method, request.scope[ROUTE], request.headers)
    request.scope[SPAN] = span
    return traceparent


def prefix(request: Request) -> str:
    """Return the path of ``server.public_url``, such as "/ai"; usually empty."""
    public_url = services_of(request).config.server.public_url
    return "" if public_url is None else urlsplit(public_url).path.rstrip("/")


def base_url(request: Request) -> str:
    """Return the URL by which this client reaches the appliance, without a slash at the end."""
    services = services_of(request)
    if services.config.server.public_url is not None:
        return services.config.server.public_url.rstrip("/")
    host = request.headers.get("host", "")
    scheme = request.scope["scheme"]
    if request.client is not None and is_proxy(services, request.client.host):
        host = request.headers.get("x-forwarded-host", host).split(",")[0].strip()
        forwarded = request.headers.get("x-forwarded-proto", "").split(",")[0].strip()
        scheme = forwarded if forwarded in {"http", "https"} else scheme
    if not _HOST.fullmatch(host):
        server = request.scope.get("server") or (services.config.server.host, services.config.server.port)
        host = host_and_port(server[0], server[1])
    return f"{scheme}://{host}"


def address_of(request: Request) -> str:
    """Return the IP address of the client, also of one behind trusted proxies or the UI."""
    found = client_address.of(request.scope, services_of(request).config.server.trusted_proxies)
    return found or client_address.UNKNOWN


def is_proxy(services: Services, client: str) -> bool:
    """Return whether the IP address ``client`` is in ``server.trusted_proxies``."""
    return is_within(client, services.config.server.trusted_proxies)


def model_name(request: Request) -> str:
    return "{owner}/{name}".format(**request.path_params)


async def text_body(request: Request) -> str:
    """Return the body, which is plain text or a JSON string.

    Raises:
        BodyTooLarge: the body is over ``limits.body``.
        MalformedBody: the body is not text.
    """
    received = await _received(request)
    try:
        text = received.decode()
    except UnicodeDecodeError as error:
        raise MalformedBody("The request body is not text in UTF-8") from error
    try:
        return msgspec.json.decode(received, type=str)
    except msgspec.DecodeError:
        return text


async def body(request: Request) -> dict[str, Any]:
    """Return the body, a JSON object, whatever the content type of the request is.

    Raises:
        BodyTooLarge: the body is over ``limits.body``; the rest of it was not read.
        MalformedBody: the body is not JSON, or not an object.
    """
    received = await _received(request)
    try:
        value = msgspec.json.decode(received)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"The request body is not valid JSON: {_reason(received, error)}") from error
    if not isinstance(value, dict):
        raise MalformedBody(f"The request body must be a JSON object, not {input_schema.type_name(value)}")
    return value


async def parse(request: Request, type: type[T]) -> T:
    """Return the body as a struct of ``request_types``.

    Raises:
        BodyTooLarge, MalformedBody: as ``body``.
        InvalidInput: as ``convert``.
    """
    return convert(await body(request), type)


def convert(given: dict[str, Any], type: type[T]) -> T:
    """Return a request body as a struct of ``request_types`` or ``compat_types``.

    Raises:
        InvalidInput: names every field that is missing, unknown or wrong; msgspec alone would name the first.
    """
    input_schema.check(given, *schema(type))
    try:
        return msgspec.convert(given, type, strict=False)  # 4.0 is an integer in JSON
    except msgspec.ValidationError as error:  # a float beyond the exact integers
        reason, _, field = str(error).partition(" - at `$.")
        raise InvalidInput([FieldProblem("invalid_type", field.rstrip("`") or "body", reason)]) from error


@functools.cache
def schema(type: type[msgspec.Struct]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the schemas of the fields of a struct, without null, and the names of the required fields."""
    _, components = msgspec.json.schema_components([type])
    found = components[type.__name__]
    return {name: _not_null(field) for name, field in found["properties"].items()}, found["required"]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    variants = [variant for variant in schema.get("anyOf", ()) if variant != {"type": "null"}]
    return variants[0] if len(variants) == 1 else {"anyOf": variants} if variants else schema


def _not_finite(received: bytes) -> str | None:
    """Return the reason why a body is not JSON if that is a NaN or infinite number, else None."""
    try:
        place = input_schema.non_finite(json.loads(received))
    except (ValueError, RecursionError):
        return None
    return None if place is None else f"{place or 'it'} must be a finite number"


def content_length(request: Request) -> int:
    """Return the ``Content-Length``; 0 if it is absent or not valid."""
    given = request.headers.get("content-length", "")
    return int(given) if given.isascii() and given.isdecimal() and len(given) < 16 else 0


def check_encoding(request: Request) -> None:
    """Refuse a compressed body before any of it is read.

    Raises:
        MalformedBody: the content encoding is not ``identity``.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise MalformedBody(
            f"The request body has the content encoding {encoding[:40]}, which is not supported: "
            "send it uncompressed, without the header Content-Encoding"
        )


def _reason(received: bytes, error: Exception) -> str:
    """Return the reason why a body is not JSON, in clearer words than the decoder for common errors."""
    if received.startswith(_GZIP):
        return "it is compressed with gzip; send it uncompressed"
    if received.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it is UTF-16; send it as UTF-8"
    if isinstance(error, UnicodeDecodeError):
        return "text in it is not UTF-8"
    not_finite = _not_finite(received)
    if not_finite is not None:
        return not_finite
    if "out of range" in str(error):
        return "a number in it is out of range, because it has too many digits or too large an exponent"
    if any(words in str(error) for words in _SURROGATE_ERRORS) and _SURROGATE.search(received):
        return r"text in it has half of a surrogate pair (\ud800 to \udfff), which is no character"
    return str(error)


async def _received(request: Request) -> bytes:
    """Return the body without a leading UTF-8 byte order mark."""
    check_encoding(request)
    limit = services_of(request).config.limits.body
    received = bytearray()
    if content_length(request) > limit:
        raise _too_large(limit)
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise MalformedBody("The connection closed before the body was complete")
        received += message.get("body", b"")
        if len(received) > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    return bytes(received).removeprefix(codecs.BOM_UTF8)


def one_of(request: Request, key: str, choices: tuple[str, ...]) -> str | None:
    """Return a query parameter that must be one of ``choices``, or None if it is absent.

    Raises:
        InvalidInput: the parameter has another value.
    """
    value = request.query_params.get(key)
    if value is None or value in choices:
        return value
    described = ", ".join(f'"{choice}"' for choice in choices)
    raise InvalidInput([FieldProblem("enum", key, f"{key} must be one of the following: {described}")])


def duration(request: Request, key: str) -> float | None:
    """Return a query parameter such as ``2s``, ``1.5`` or ``10m`` in seconds, or None if it is absent.

    Raises:
        InvalidInput: the parameter is not a duration.
    """
    text = request.query_params.get(key)
    if not text:
        return None
    try:
        return seconds_of(float(text) if text.isascii() and text[-1:].isdecimal() else text)
    except ValueError as error:
        described = f'{key} must be a duration such as "2s" or "10m", or a number of seconds'
        raise InvalidInput([FieldProblem("invalid_type", key, described)]) from error


def limit(request: Request, default: int, most: int, key: str = "limit") -> int:
    """Return the query parameter ``key``, from 1 to ``most``.

    Raises:
        InvalidInput: the parameter is not a number from 1 to ``most``.
    """
    text = request.query_params.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidInput(
            [FieldProblem("invalid_type", key, "Invalid type. Expected: integer, given: string")]
        )
    number = int(text)
    if number < 1:
        raise InvalidInput([FieldProblem("number_gte", key, "Must be greater than or equal to 1")])
    if number > most:
        raise InvalidInput([FieldProblem("number_lte", key, f"Must be less than or equal to {most}")])
    return number


def wait(request: Request) -> Wait | None:
    """Return the wait that the ``Prefer`` headers request; headers that cannot be parsed have no effect."""
    for header in request.headers.getlist("prefer"):
        found = _wait_in(header)
        if found is not None:
            return found
    return None


@functools.lru_cache(maxsize=128)
def _wait_in(header: str) -> Wait | None:
    for preference in re.split("[,;]", header):
        match = _WAIT.fullmatch(preference)
        if match is None:
            continue
        if match[1] is None:
            return Wait(LONGEST_WAIT, "wait")
        seconds = min(max(int(match[1]), 1), LONGEST_WAIT)
        return Wait(seconds, f"wait={seconds}")
    return None


def deadline(request: Request) -> float | None:
    """Return the time at which ``Cancel-After`` cancels the prediction, in Unix seconds; None without it.

    Raises:
        InvalidInput: the header cannot be parsed, or its duration is under ``SHORTEST_DEADLINE``.
    """
    header = request.headers.get("cancel-after")
    if header is None:
        return None
    match = _DEADLINE.fullmatch(header.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total < SHORTEST_DEADLINE:
        described = f"Must be a duration of at least {SHORTEST_DEADLINE} seconds, such as 30s, 5m or 1h30m45s"
        raise InvalidInput([FieldProblem("format", "Cancel-After", described)])
    return time.time() + total


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is over the limit of {limit:,} bytes (limits.body in models.yaml)")
