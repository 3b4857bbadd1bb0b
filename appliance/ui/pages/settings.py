"""The settings page for administrators: tokens, the webhook key, and the configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols.account_types import TokenPage, TokenResponse
from appliance.protocols.admin_types import ApplianceStatusResponse
from appliance.ui import markup, session, template_pages
from appliance.ui.client import Caller
from appliance.ui.languages import gettext as _
from appliance.ui.sizes import readable_bytes


async def show(request: Request) -> Response:
    caller = session.current(request).caller
    config, status, tokens = await asyncio.gather(
        caller.get("/admin/config"),
        caller.get_as(ApplianceStatusResponse, "/admin/status"),
        _tokens(caller),
    )
    return template_pages.respond(
        request,
        "settings.html",
        title=_("Settings"),
        tokens=tokens,
        about=about(status, config),
        config=markup.text(json.dumps(config, ensure_ascii=False, indent=2)),
        scopes=[
            ("run", _("run: create predictions")),
            ("read", _("read: see predictions")),
            ("admin", _("admin: everything")),
        ],
    )


async def tokens(request: Request) -> Response:
    return template_pages.fragment(
        "settings_tokens.html",
        tokens=await _tokens(session.current(request).caller),
    )


async def _tokens(caller: Caller) -> list[TokenResponse]:
    return by_validity((await caller.get_as(TokenPage, "/admin/tokens")).results)


def by_validity(tokens: Sequence[TokenResponse]) -> list[TokenResponse]:
    """Return the valid tokens, followed by those that have expired or are revoked."""
    return sorted(tokens, key=lambda each: each.revoked_at is not None or each.state == "expired")


def about(status: ApplianceStatusResponse, config: Mapping[str, Any]) -> Markup:
    retention = config["retention"]
    kept, most, uploads = retention["predictions"], retention["outputs"], config["files"]
    kept_uploads = (
        _("kept until they are deleted, at most {size} in all")
        if uploads["keep"] is None
        else _("kept for {time}, at most {size} in all")
    )
    removed = _("kept forever") if kept is None else _("removed {time} after their end")
    removed = removed.format(time=markup.duration(kept))
    if retention["models"] or retention["accounts"] or retention["groups"]:
        removed = _("{time}; sooner for some models or accounts").format(time=removed)
    outputs = _("no limit") if most is None else _("at most {size} in all")
    facts = {
        _("Version"): status.version,
        _("Running for"): markup.duration(status.uptime),
        _("Health"): markup.badge("draining", _("stopping")) if status.draining else markup.badge("ready"),
        _("Data of predictions"): removed,
        _("Files of outputs"): outputs.format(size=readable_bytes(most or 0)),
        _("Uploads"): kept_uploads.format(
            time=markup.duration(uploads["keep"]), size=readable_bytes(uploads["quota"])
        ),
    }
    return markup.pairs(facts)


ROUTES: Final = (Route("/settings", show), Route("/settings/tokens", tokens))
