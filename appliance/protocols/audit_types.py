"""Responses about the audit log."""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import Struct

from appliance.protocols.response_types import Page


class AuditRecordResponse(Struct, kw_only=True):
    """A record of the audit log."""

    number: int
    at: str
    action: str
    object: str
    outcome: Literal["succeeded", "failed", "denied"]
    status: int | None
    token: str | None
    owner: str | None
    address: str | None
    request: str | None
    before: Any
    after: Any
    count: int
    previous: str
    hash: str


class AuditPage(Page[AuditRecordResponse], kw_only=True):
    """A page of the audit log, newest records first."""


RESPONSES: Final = (AuditPage,)
