"""Operations: requests of OpenAI's and Anthropic's APIs that a runner answers itself, besides predictions.

A kind lists the operations that it supports in ``Kind.operations``. The input of an operation is the whole
request body, unchanged; its output is the response body or, if the request asks for a stream, the stream's
events. An error response is the output of a failed prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from appliance.domain.interface import Interface

CHAT: Final = "chat.completions"
COMPLETIONS: Final = "completions"
RESPONSES: Final = "responses"
MESSAGES: Final = "messages"
COUNT_TOKENS: Final = "messages.count_tokens"

_INPUT: Final[dict[str, Any]] = {"type": "object", "title": "Input", "properties": {}}
_RESPONSE: Final = {"type": "object", "title": "Output", "properties": {}}
_STREAM: Final = {
    "type": "array",
    "title": "Output",
    "items": {"type": "object"},
    "x-cog-array-type": "iterator",
}


def streams(body: Mapping[str, Any]) -> bool:
    """Whether the client requests a stream."""
    return body.get("stream") is True


def interface(body: Mapping[str, Any]) -> Interface:
    """Return the interface of an operation: the input is any object, the output an object or a stream."""
    return Interface(input=_INPUT, output=_STREAM if streams(body) else _RESPONSE, verbatim=True)
