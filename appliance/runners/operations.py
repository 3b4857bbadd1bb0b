"""Operations of OpenAI's and Anthropic's APIs. ``Kind.operations`` lists those that a kind supports.

The gateway translates a request for one of ``TRANSLATED`` to inputs of the model. If such a request asks for
a stream, the runner outputs the stream's events; the operation of the prediction tells it so. Otherwise it is
an ordinary prediction.

Any other operation is answered by the runner: it runs as a prediction whose input is the whole request body,
unchanged. The output is the response body or, if the request asks for a stream, the stream's events. If it
fails, the output is the error response.
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
EMBEDDINGS: Final = "embeddings"
IMAGES: Final = "images"
TRANSCRIPTIONS: Final = "audio.transcriptions"
SPEECH: Final = "audio.speech"
RERANK: Final = "rerank"  # of Jina's and Cohere's APIs

TRANSLATED: Final = (EMBEDDINGS, IMAGES, TRANSCRIPTIONS, SPEECH, RERANK)
#: The operations of OpenAI's API.
OPENAI: Final = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, IMAGES, TRANSCRIPTIONS, SPEECH)

#: Prefix of the id of a response of ``RESPONSES``, before the id of its prediction.
RESPONSE_PREFIX: Final = "resp_"

_INPUT: Final[dict[str, Any]] = {"type": "object", "title": "Input", "properties": {}}
_RESPONSE: Final = {"type": "object", "title": "Output", "properties": {}}
_STREAM: Final = {
    "type": "array",
    "title": "Output",
    "items": {"type": "object"},
    "x-cog-array-type": "iterator",
}


def streams(body: Mapping[str, Any]) -> bool:
    """Return whether the request asks for a stream."""
    return body.get("stream") is True


def interface(operation: str, body: Mapping[str, Any], model: Interface) -> Interface:
    """Return the interface of an operation of a model with the interface ``model``.

    One of ``TRANSLATED`` has the model's inputs, and its output is a stream. Any other takes any object, and
    its output is an object or a stream.
    """
    if operation in TRANSLATED:
        return Interface(
            input=model.input, output=_STREAM, components=model.components, aliases=model.aliases
        )
    return Interface(input=_INPUT, output=_STREAM if streams(body) else _RESPONSE, verbatim=True)
