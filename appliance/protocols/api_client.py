"""Code shared by the two clients of the appliance's HTTP API: those of the command line and of the UI."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
import msgspec

from appliance.domain.errors import (
    ApplianceError,
    BudgetSpent,
    FieldProblem,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Throttled,
    Unauthenticated,
)

T = TypeVar("T")


def authorization(token: str) -> dict[bytes, bytes]:
    """Return the ``Authorization`` header in bytes, because a token may have characters outside of ASCII."""
    return {b"authorization": b"Bearer " + token.encode()}


def next_page(path: str, url: str) -> str:
    """Return the path and query of the next page of the list at ``path``.

    ``url`` is the link to that page in a response. Its path may begin with that of ``server.public_url``,
    which the client's base URL may lack.
    """
    return f"{path.partition('?')[0]}?{httpx.URL(url).query.decode()}"


def stream_path(url: str) -> str:
    """Return the path of a stream of events, to be joined with the client's base URL.

    ``url`` is the link in a response. Its path may begin with that of ``server.public_url``.
    """
    path = httpx.URL(url).raw_path.decode()
    return path[max(path.rfind("/v1/"), 0) :]


def convert(value: Any, type: type[T]) -> T:
    """Return the JSON value of a response as ``type``, ignoring fields that a newer appliance may have added.

    Raises:
        ApplianceError: a field is missing or of another type.
    """
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        raise ApplianceError(
            f"the appliance sent a response that this version does not understand ({error}): "
            "run this command with the server's version"
        ) from error


def error_from(response: httpx.Response) -> ApplianceError:
    """Return the error of a response. Its body must have been read, and its status must be no success."""
    try:
        body = response.json()
        detail = str(body["detail"]).strip()
    except (ValueError, KeyError, TypeError):
        body = {}
        detail = response.text[:200] or "The API gave no reason."
    with contextlib.suppress(KeyError, TypeError, ValueError):  # such as the response of a proxy
        return _typed_error(response.status_code, body, detail)
    return ApplianceError(detail)


def _typed_error(status: int, body: dict[str, Any], detail: str) -> ApplianceError:
    match status:
        case 401:
            return Unauthenticated(token_given=True, reason=detail)
        case 402:
            return BudgetSpent(detail, retry_after=int(body.get("retry_after", 1)))
        case 403:
            return PermissionDenied(detail)
        case 404:
            return NotFound(detail)
        case 422 if body.get("invalid_fields"):
            return InvalidInput([FieldProblem(**problem) for problem in body["invalid_fields"]])
        case 429:
            return Throttled(detail, retry_after=int(body.get("retry_after", 1)))
    return ApplianceError(detail)


def file_urls(output: Any) -> Iterator[str]:
    """Yield every URL of a file in an output, at any depth."""
    match output:
        case str() if output.startswith(("http://", "https://", "data:")):
            yield output
        case list():
            for part in output:
                yield from file_urls(part)
        case dict():
            yield from file_urls(list(output.values()))
