"""Routes for sessions of the UI: sign in with a password, list sessions, and revoke them."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from msgspec import UNSET, UnsetType, structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.access import Right
from appliance.domain.audit import AuditEvent
from appliance.domain.errors import NotFound, PermissionDenied
from appliance.domain.token import Scope, Token
from appliance.domain.user import Session, User
from appliance.gateway.api import audit, client_address, requests, responses
from appliance.gateway.api.services import services_of
from appliance.gateway.sign_on import Browser, ProviderCallback
from appliance.protocols import serializers
from appliance.protocols.account_types import ProviderSignInResponse, SessionResponse, SignInMethodsResponse
from appliance.protocols.request_types import ProviderCallbackRequest, SignInRequest


async def list_methods(request: Request) -> Response:
    """``GET /admin/sign-in``: what the sign-in page offers. It needs no token."""
    sign_on = services_of(request).sign_on
    passwords = await sign_on.takes_passwords()
    return responses.json(SignInMethodsResponse(passwords=passwords, provider=sign_on.provider_name))


async def create_session(request: Request) -> Response:
    """``POST /admin/sign-in/password``: create a session; only this response has its secret, as ``token``.

    Only the UI process may send it. So the secret reaches the browser only encrypted, in a cookie.
    """
    _check_sender(request)
    given = await requests.parse(request, SignInRequest)
    sign_on, browser = services_of(request).sign_on, _browser(request, given.browser)
    made = await sign_on.with_password(
        given.username, given.password, browser, partial(_audit_event, request)
    )
    return responses.json(_response(made[1], None, made[0]), 201)


async def begin_at_provider(request: Request) -> Response:
    """``POST /admin/sign-in/provider``: begin a sign-in; only the UI process may send it."""
    _check_sender(request)
    url, authorization_request = await services_of(request).sign_on.begin_at_provider()
    return responses.json(ProviderSignInResponse(url=url, authorization_request=authorization_request), 201)


async def finish_at_provider(request: Request) -> Response:
    """``POST /admin/sign-in/provider/callback``: create a session from the provider's response."""
    _check_sender(request)
    given = await requests.parse(request, ProviderCallbackRequest)
    callback = ProviderCallback(given.authorization_request, given.state, given.code, given.iss)
    secret, made = await services_of(request).sign_on.finish_at_provider(
        callback, _browser(request, given.browser), partial(_audit_event, request)
    )
    return responses.json(_response(made, None, secret), 201)


def _check_sender(request: Request) -> None:
    if not client_address.from_ui(request.scope):
        raise PermissionDenied("People sign in on the sign-in page of the UI. Programs use API tokens.")


def _browser(request: Request, browser: str | None) -> Browser:
    return Browser(requests.address_of(request), browser or "")


def _audit_event(request: Request, user: User, session: Session) -> AuditEvent:
    after = {"signed_in_with": user.method} | (
        {"groups_claim": user.groups_claim} if user.groups_claim else {}
    )
    made = audit.event(request, object=session.id, after=after)
    return structs.replace(made, owner=user.name, token=session.id)


async def list_sessions(request: Request) -> Response:
    """``GET /admin/sessions``: the sessions of the caller, newest first; an operator gets those of all."""
    caller = await requests.caller(request, Scope.READ)
    user = None if _is_operator(caller) else caller.owner
    found = await services_of(request).store.users.sessions(user, time.time())
    return responses.json(serializers.page([_response(each, caller) for each in found]))


async def revoke_session(request: Request) -> Response:
    """``DELETE /admin/sessions/{id}``: revoke a session; its next requests get status 401."""
    caller = await requests.caller(request, Scope.READ)
    if caller.prediction is not None:
        raise PermissionDenied("The token of a running prediction cannot revoke sessions: use another token.")
    if caller.session is None and not caller.may(Scope.RUN):
        raise PermissionDenied('A token with the scope "read" cannot revoke sessions: use another token.')
    services, id = services_of(request), request.path_params["id"]
    user = None if _is_operator(caller) else caller.owner
    ended = await services.store.users.end_session(id, user, time.time(), audit.event(request))
    if ended is None:
        raise NotFound
    services.auth.forget(id)
    return Response(status_code=204)


def _is_operator(caller: Token) -> bool:
    return caller.may(Scope.ADMIN) and Right.OPERATE in caller.access.rights


def _response(known: Session, caller: Token | None, secret: str | UnsetType = UNSET) -> SessionResponse:
    return SessionResponse(
        id=known.id,
        username=known.user,
        created_at=serializers.timestamp(known.created_at),
        expires_at=serializers.timestamp(known.expires_at),
        address=known.address,
        browser=known.browser,
        last_used_at=None if known.last_used_at is None else serializers.timestamp(known.last_used_at),
        last_used_from=known.last_used_from,
        current=caller is not None and caller.session == known.id,
        token=secret,
    )


ROUTES: Final = (
    Route("/admin/sign-in", list_methods, methods=["GET"]),
    Route("/admin/sessions", list_sessions, methods=["GET"]),
    Route("/admin/sign-in/password", create_session, methods=["POST"]),
    Route("/admin/sign-in/provider", begin_at_provider, methods=["POST"]),
    Route("/admin/sign-in/provider/callback", finish_at_provider, methods=["POST"]),
    Route("/admin/sessions/{id}", revoke_session, methods=["DELETE"]),
)
