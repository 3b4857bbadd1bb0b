"""Which operations are recorded in the audit log, and what is known about a request.

Every route that changes something is in ``RECORDED`` or in ``NOT_RECORDED``; a test checks this.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.types import Scope

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import PermissionDenied, SignInRefused, Unauthenticated
from appliance.domain.token import Token
from appliance.gateway.api import client_address
from appliance.gateway.api.services import Services, services_of
from appliance.observability import audit_log

_ADMIN_MODEL: Final = "/admin/models/{owner}/{name}"
_MODEL: Final = "/v1/models/{owner}/{name}"
_DEPLOYMENT: Final = "/v1/deployments/{owner}/{name}"

#: Method and path of a route -> action in the audit log.
RECORDED: Final = {
    ("POST", "/admin/tokens"): "token.create",
    ("DELETE", "/admin/tokens/{id}"): "token.revoke",
    ("POST", "/admin/sign-in/password"): "session.sign_in",
    ("POST", "/admin/sign-in/provider/callback"): "session.sign_in",
    ("DELETE", "/admin/sessions/{id}"): "session.revoke",
    ("POST", "/admin/signins"): "session.sign_in",
    ("POST", "/admin/signouts"): "session.sign_out",
    ("POST", "/admin/reload"): "config.reload",
    ("PUT", "/admin/config/file"): "config.write",
    ("POST", "/admin/webhooks/secret"): "webhook_key.replace",
    ("POST", "/admin/additions"): "model.add",
    ("POST", "/admin/additions/{id}/cancel"): "model.cancel_add",
    ("POST", f"{_ADMIN_MODEL}/update"): "model.update",
    ("DELETE", _ADMIN_MODEL): "model.remove",
    ("POST", f"{_ADMIN_MODEL}/load"): "model.load",
    ("POST", f"{_ADMIN_MODEL}/unload"): "model.unload",
    ("POST", f"{_ADMIN_MODEL}/pin"): "model.pin",
    ("POST", f"{_ADMIN_MODEL}/unpin"): "model.unpin",
    ("PUT", f"{_ADMIN_MODEL}/examples/{{id}}"): "example.add",
    ("DELETE", f"{_ADMIN_MODEL}/examples/{{id}}"): "example.remove",
    ("POST", "/admin/nodes/{name}/drain"): "node.drain",
    ("DELETE", "/admin/nodes/{name}/drain"): "node.undrain",
    ("POST", "/admin/weights/prune"): "weights.delete",
    ("DELETE", "/admin/predictions/{id}"): "prediction.delete",
    ("POST", "/admin/predictions/{id}/cancel"): "prediction.cancel",
    ("DELETE", "/admin/accounts/{account}/data"): "account.erase",
    ("POST", "/v1/models"): "model.create",
    ("PATCH", _MODEL): "model.change",
    ("DELETE", _MODEL): "model.delete",
    ("POST", f"{_MODEL}/versions"): "version.push",
    ("DELETE", f"{_MODEL}/versions/{{id}}"): "version.delete",
    ("POST", "/v1/builds/{id}/cancel"): "build.cancel",
    ("POST", f"{_MODEL}/versions/{{id}}/trainings"): "training.create",
    ("POST", "/v1/trainings/{id}/cancel"): "training.cancel",
    ("POST", "/v1/deployments"): "deployment.create",
    ("PATCH", _DEPLOYMENT): "deployment.change",
    ("DELETE", _DEPLOYMENT): "deployment.delete",
}

#: Routes whose successful requests are not recorded: they run models, or change nothing, or only data of the
#: caller. Refused requests are recorded.
NOT_RECORDED: Final = frozenset(
    {
        ("POST", "/admin/sign-in/provider"),
        ("POST", "/admin/proposals"),
        ("POST", "/admin/config/check"),
        ("POST", "/admin/conversations"),
        ("PUT", "/admin/conversations/{id}"),
        ("DELETE", "/admin/conversations/{id}"),
        ("POST", "/v1/predictions"),
        ("POST", "/v1/predictions/{id}/cancel"),
        ("POST", f"{_MODEL}/predictions"),
        ("POST", "/v1/models/{version}/predictions"),
        ("POST", f"{_DEPLOYMENT}/predictions"),
        ("POST", "/v1/files"),
        ("DELETE", "/v1/files/{id}"),
    }
)
#: Paths of the compatible APIs, which run models.
NOT_RECORDED_PREFIXES: Final = ("/openai/", "/anthropic/")

# Keys in an ASGI scope:
_STORED: Final = "appliance.audit.stored"  # event that the store records in the transaction of the change
_DETAILS: Final = "appliance.audit.details"  # object, before and after
_DONE: Final = "appliance.audit.done"  # whether the request is recorded
_ID: Final = "appliance.request_id"  # id of the request
CALLER: Final = "appliance.caller"  # token of the caller
_ROUTE: Final = "appliance.route"  # path of the route


def identify(request: Request, token: Token) -> None:
    """Note who sent the request, for its record and for those of tasks that it starts."""
    request.scope[CALLER] = token
    audit_log.CALLER.set(_audit_event(services_of(request), request.scope, ""))


def describe(request: Request, *, object: str | None = None, before: Any = None, after: Any = None) -> None:
    """Add details to the record of this request, which is stored before the response is sent."""
    request.scope[_DETAILS] = {"object": object, "before": before, "after": after}


def event(
    request: Request, *, object: str | None = None, before: Any = None, after: Any = None
) -> AuditEvent:
    """Return the event of this request, for a method of the store that records it with the change."""
    describe(request, object=object, before=before, after=after)
    action = RECORDED[request.method, request.scope[_ROUTE]]
    made = _detailed(_audit_event(services_of(request), request.scope, action), request.scope)
    request.scope[_STORED] = made
    return made


def request_id(scope: Scope) -> str | None:
    """Return the id of a request that is recorded; None for others."""
    id: str | None = scope.get(_ID)
    return id


async def respond(services: Services, scope: Scope, status: int, error: Exception | None) -> None:
    """Record a request whose response has this status, unless it needs no record. ``error`` caused it.

    Raises:
        StoreError: the record of a successful request is not stored.
    """
    if scope.get(_DONE):
        return
    scope[_DONE] = True
    if isinstance(error, (Unauthenticated, PermissionDenied)):
        object = scope.get(_ROUTE, scope["path"])
        denied = _audit_event(services, scope, f"request.{scope['method'].lower()}")
        if isinstance(error, SignInRefused):
            denied = msgspec.structs.replace(denied, action="session.sign_in", owner=error.account)
        await services.audit.record_refusal(
            msgspec.structs.replace(denied, object=object, outcome="denied", status=status)
        )
        return
    action = RECORDED.get((scope["method"], scope.get(_ROUTE, "")))
    if action is None or (CALLER not in scope and action != "session.sign_in"):
        return
    made = _detailed(_audit_event(services, scope, action), scope)
    if status >= 400:
        await services.audit.record_refusal(msgspec.structs.replace(made, outcome="failed", status=status))
    elif _STORED not in scope:
        await services.audit.record(msgspec.structs.replace(made, status=status))


def _audit_event(services: Services, scope: Scope, action: str) -> AuditEvent:
    token: Token | None = scope.get(CALLER)
    return AuditEvent(
        action=action,
        token=None if token is None else token.session or token.id,
        owner=None if token is None else token.owner,
        address=client_address.of(scope, services.config.server.trusted_proxies),
        request=scope.setdefault(_ID, secrets.token_hex(8)),
    )


def _detailed(made: AuditEvent, scope: Scope) -> AuditEvent:
    details = scope.get(_DETAILS, {})
    named = details.get("object")
    parameters = scope.get("path_params", {})
    return msgspec.structs.replace(
        made,
        object="/".join(map(str, parameters.values())) if named is None else named,
        before=details.get("before"),
        after=details.get("after"),
    )
