"""Bodies of the ``/admin`` routes for conversations of the chat page, as structs."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from appliance.domain.conversation import (
    ConversationContent,
    ConversationMessage,
    ConversationModel,
    ConversationSettings,
    ConversationTitle,
    MessageId,
)
from appliance.protocols.request_types import Request
from appliance.protocols.response_types import Page, Time

#: Messages of one conversation, in all of its branches.
MAX_MESSAGES: Final = 5000


class ConversationRequest(Request, kw_only=True):
    """A conversation to store."""

    title: ConversationTitle
    model: ConversationModel
    messages: Annotated[list[ConversationMessage], Meta(max_length=MAX_MESSAGES)]
    settings: ConversationSettings
    leaf: Annotated[MessageId | None, Meta(description="Last message of the branch that the page shows")] = (
        None
    )

    @property
    def content(self) -> ConversationContent:
        return ConversationContent(settings=self.settings, messages=self.messages, leaf=self.leaf)


class ConversationUpdateRequest(ConversationRequest, kw_only=True):
    """A changed conversation."""

    revision: Annotated[
        int, Meta(description="The revision that was changed; if the stored one differs, the status is 409")
    ]


class ConversationSummaryResponse(Struct, kw_only=True):
    """A conversation without its messages."""

    id: str
    title: str
    model: str
    created_at: Time
    updated_at: Time
    revision: Annotated[int, Meta(description="Number of changes")]


class ConversationResponse(ConversationSummaryResponse, kw_only=True):
    """A conversation of the chat page."""

    settings: ConversationSettings
    messages: list[ConversationMessage]
    leaf: str | None


class ConversationPage(Page[ConversationSummaryResponse], kw_only=True):
    """All conversations of an account."""


#: Each request body that the OpenAPI document describes.
REQUESTS: Final = (ConversationRequest, ConversationUpdateRequest)
#: Each response body that the OpenAPI document describes.
RESPONSES: Final = (ConversationSummaryResponse, ConversationResponse, ConversationPage)
