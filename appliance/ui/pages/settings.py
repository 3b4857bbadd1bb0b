"""The settings page for administrators: tokens, the webhook key, and the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import gradio as gr
from markupsafe import Markup, escape

from appliance.domain.units import readable_bytes
from appliance.protocols import api_client
from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    NewWebhookSecretResponse,
    TokenPage,
    TokenResponse,
)
from appliance.ui import layout, markup, session

_SCOPES: Final = [
    ("read: see predictions", "read"),
    ("run: create predictions", "run"),
    ("admin: everything", "admin"),
]
_KEEP: Final = "Webhooks: hours for which the old key still signs after a change"


def build() -> gr.Blocks:
    with layout.page("Settings") as blocks:
        about = gr.HTML(elem_id="about", min_height=100, apply_default_css=False)
        tokens = gr.HTML(elem_id="tokens", min_height=120, apply_default_css=False)
        with gr.Row(elem_classes="filters"):
            name = gr.Textbox(label="Name of a new token", max_lines=1, placeholder="its purpose")
            scope = gr.Dropdown(label="Scope", choices=_SCOPES, value="run")
            owner = gr.Textbox(label="Account", max_lines=1, placeholder="the appliance's own")
            create = gr.Button("Create", variant="primary", size="sm")
        secret = gr.Textbox(
            label="The token: copy it now, it cannot be shown again",
            elem_id="secret",
            visible=False,
            interactive=False,
            buttons=["copy"],
        )
        with gr.Row(elem_classes="filters"):
            which = gr.Dropdown(label="Revoke a token", choices=[])
            revoke = gr.Button("Revoke", variant="stop", size="sm")
        with gr.Row(elem_classes="filters"):
            keep = gr.Number(label=_KEEP, value=24, minimum=0, maximum=720)
            rotate = gr.Button("Replace the webhook key", size="sm")
        key = gr.Textbox(label="The new key", visible=False, interactive=False, buttons=["copy"])
        with gr.Accordion("Configuration in effect", open=False):
            config = gr.HTML(elem_id="config", apply_default_css=False)
        blocks.load(_show, None, [about, config], **layout.QUIET)
        blocks.load(_tokens, None, [tokens, which], **layout.QUIET)
        create.click(_create, [name, scope, owner], [secret, name, tokens, which], **layout.QUIET)
        revoke.click(_revoke, which, [tokens, which], **layout.QUIET)
        rotate.click(_rotate, keep, key, **layout.QUIET)
    return blocks


@layout.show_errors
async def _show(request: gr.Request) -> list[str]:
    caller = session.of(request).caller
    config = await caller.get("/admin/config")
    status = await caller.get_as(ApplianceStatusResponse, "/admin/status")
    return [
        render_about(status, config),
        markup.note("models.yaml with all defaults; secrets are hidden.")
        + markup.text(json.dumps(config, ensure_ascii=False, indent=2)),
    ]


@layout.show_errors
async def _create(name: str, scope: str, owner: str, request: gr.Request) -> list[Any]:
    body = {"name": name, "scope": scope, **({"owner": owner} if owner else {})}
    created = api_client.convert(await session.of(request).caller.post("/admin/tokens", body), TokenResponse)
    return [gr.Textbox(value=created.token or "", visible=True), "", *await _tokens(request)]


@layout.show_errors
async def _revoke(id: str | None, request: gr.Request) -> list[Any]:
    if id is not None:
        response = await session.of(request).caller.send("DELETE", f"/admin/tokens/{id}")
        revoked = api_client.convert(response, TokenResponse)
        gr.Info(f"{escape(revoked.name)} is revoked.")
    return await _tokens(request)


@layout.show_errors
async def _rotate(hours: float, request: gr.Request) -> Any:
    body = {"keep": 3600 * (hours or 0)}
    response = await session.of(request).caller.post("/admin/webhooks/secret", body)
    made = api_client.convert(response, NewWebhookSecretResponse)
    return gr.Textbox(value=made.key, visible=True)


@layout.show_errors
async def _tokens(request: gr.Request) -> list[Any]:
    found = (await session.of(request).caller.get_as(TokenPage, "/admin/tokens")).results
    valid = [
        (f"{each.name} ({each.owner}, {each.scope}, {each.id})", each.id)
        for each in found
        if each.revoked_at is None
    ]
    return [render_tokens(found), gr.Dropdown(choices=valid, value=None)]


def render_tokens(tokens: Sequence[TokenResponse]) -> Markup:
    rows = [
        [
            each.name,
            markup.badge(each.scope),
            each.owner,
            markup.moment(each.created_at),
            "valid" if each.revoked_at is None else Markup("revoked ") + markup.moment(each.revoked_at),
            Markup("<code>{}</code>").format(each.id),
        ]
        for each in sorted(tokens, key=lambda each: each.revoked_at is not None)
    ]
    headings = ["Name", "Scope", "Account", "Created", "State", "Id"]
    return markup.section("Tokens", markup.table(headings, rows, if_empty=markup.empty("No tokens")))


def render_about(status: ApplianceStatusResponse, config: Mapping[str, Any]) -> Markup:
    retention = config["retention"]
    kept, most, uploads = retention["predictions"], retention["outputs"], config["files"]
    until = "until they are deleted" if uploads["keep"] is None else f"for {markup.duration(uploads['keep'])}"
    facts = {
        "Version": status.version,
        "Running for": markup.duration(status.uptime),
        "Health": markup.badge("draining" if status.draining else "ready"),
        "Data of predictions": "kept forever"
        if kept is None
        else f"removed {markup.duration(kept)} after their end",
        "Files of outputs": "no limit" if most is None else f"at most {readable_bytes(most)} in all",
        "Uploads": f"kept {until}, at most {readable_bytes(uploads['quota'])} in all",
    }
    return markup.section("Appliance", markup.pairs(facts))
