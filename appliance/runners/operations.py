"""What a model can be asked for beside its own predictions: the operations of OpenAI's and Anthropic's APIs.

The input of one is the whole body of such a request, its output the answer, or the objects of the stream if
the body asks for one. An answer that refuses is the output of a failed prediction.
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

#: kind -> the operations that its runner takes as `Job.operation`
OPERATIONS: Final[dict[str, frozenset[str]]] = {
    "vllm": frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS})
}

_INPUT: Final[dict[str, Any]] = {"type": "object", "title": "Input", "properties": {}}
_ANSWER: Final = {"type": "object", "title": "Output", "properties": {}}
_STREAM: Final = {
    "type": "array",
    "title": "Output",
    "items": {"type": "object"},
    "x-cog-array-type": "iterator",
}


def streams(body: Mapping[str, Any]) -> bool:
    """Whether a request asks for a stream."""
    return body.get("stream") is True


def interface(body: Mapping[str, Any]) -> Interface:
    """Input and output of the operation that ``body`` asks for."""
    return Interface(input=_INPUT, output=_STREAM if streams(body) else _ANSWER, verbatim=True)
