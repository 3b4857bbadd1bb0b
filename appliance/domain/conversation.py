"""Conversations of the chat page: a tree of messages, in which each message names the one before it.

A message has several children if its answer was regenerated or the message after it was edited.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from appliance.domain.prediction import new_id

#: Limits of one conversation in bytes, and of all conversations of one account. ``docs/ui.md`` lists them.
MAX_SIZE: Final = 8 * 2**20
MAX_COUNT: Final = 1000
MAX_TOTAL_SIZE: Final = 512 * 2**20

#: State of an answer: "interrupted" if the connection was lost, "streaming" until the answer has ended.
MessageState = Literal["complete", "streaming", "stopped", "failed", "interrupted"]
MessageId = Annotated[str, Meta(pattern="^[a-z0-9-]{1,40}$")]
ConversationTitle = Annotated[str, Meta(min_length=1, max_length=200)]
ConversationModel = Annotated[str, Meta(max_length=300, description="owner/name, or an alias")]
_Name = Annotated[str, Meta(max_length=255)]
_Time = Annotated[str, Meta(max_length=40, extra_json_schema={"format": "date-time"})]
_DATA_URL: Final = r"^data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$"


class MessageImage(Struct, kw_only=True):
    """An image that belongs to a message."""

    name: _Name
    url: Annotated[str, Meta(pattern=_DATA_URL, description="data: URL of a PNG, JPEG, WebP or GIF file")]


class MessageFile(Struct, kw_only=True):
    """A text file that belongs to a message."""

    name: _Name
    text: str


class MessageToolCall(Struct, kw_only=True):
    """A tool call that the model asks for."""

    id: str
    name: str
    arguments: Annotated[str, Meta(description="JSON")]


class MessageMetrics(Struct, kw_only=True, omit_defaults=True):
    """Tokens and speed of an answer, as the page measured them. Times are in seconds."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    time_to_first_token: float | None = None
    seconds: Annotated[float | None, Meta(description="From the first token to the last")] = None


class ConversationMessage(Struct, kw_only=True, omit_defaults=True):
    """A message of a conversation."""

    id: MessageId
    parent: MessageId | None
    role: Literal["user", "assistant", "tool"]
    text: str
    created_at: _Time
    reasoning: str = ""
    images: list[MessageImage] = []
    files: list[MessageFile] = []
    tool_calls: list[MessageToolCall] = []
    tool_call: Annotated[str | None, Meta(description="Id of the call that a tool's result is for")] = None
    model: Annotated[ConversationModel | None, Meta(description="Model that answered")] = None
    prediction: Annotated[
        Annotated[str, Meta(pattern="^[a-z0-9]{26}$")] | None,
        Meta(description="Id of the prediction that made the answer"),
    ] = None
    state: MessageState = "complete"
    finish_reason: str | None = None
    error: str | None = None
    metrics: MessageMetrics | None = None


class ConversationSettings(Struct, kw_only=True, omit_defaults=True):
    """Settings that are sent with each request of a conversation; null leaves a setting to the model."""

    system: Annotated[str, Meta(description="System prompt")] = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    tools: Annotated[str, Meta(description="Definitions of tools, a JSON array as text")] = ""


class ConversationContent(Struct, kw_only=True):
    """Settings, messages and shown branch of a conversation, which are stored as one value."""

    settings: ConversationSettings
    messages: list[ConversationMessage]
    leaf: Annotated[MessageId | None, Meta(description="Last message of the branch that the page shows")]


class ConversationSummary(Struct, kw_only=True):
    """A conversation without its messages. Times are Unix seconds."""

    id: str
    owner: str
    title: str
    model: str
    created_at: float
    updated_at: float
    revision: int  # number of changes


class Conversation(ConversationSummary, kw_only=True):
    """A conversation of one account."""

    content: ConversationContent


def new_conversation(
    owner: str, title: str, model: str, content: ConversationContent, now: float
) -> Conversation:
    """Return a conversation with a new id; ``now`` is in Unix seconds."""
    return Conversation(
        id=new_id(),
        owner=owner,
        title=title,
        model=model,
        created_at=now,
        updated_at=now,
        revision=0,
        content=content,
    )
