"""Signed-in browsers: a cookie with an API token, or with the secret of a session, encrypted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Final, Literal

from cryptography.fernet import Fernet, InvalidToken
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from appliance.domain.errors import ApplianceError, Throttled, Unauthenticated
from appliance.protocols import api_client
from appliance.protocols.account_types import MeResponse, SignInMethodsResponse, SignOutResponse
from appliance.ui.client import BROWSER, Api, Caller
from appliance.ui.languages import gettext as _

_log = logging.getLogger(__name__)

LIFETIME: Final = 7 * 86400  # seconds until a user must sign in again
#: Seconds for which a token counts as valid after the API has accepted it.
MEMORY: Final = 5.0
_MAX_REMEMBERED: Final = 1000
_SIGN_IN_LIFETIME: Final = 600  # seconds for a sign-in at an identity provider
_LONGEST_THEN: Final = 1000  # characters of the path to open after a sign-in at a provider
#: Key in an ASGI scope of the session.
SCOPE: Final = "appliance.session"
#: Key in an ASGI scope of the path of ``server.public_url``, under which a reverse proxy serves the UI.
PREFIX: Final = "appliance.prefix"


class UserSession:
    """The signed-in user of one request."""

    def __init__(
        self,
        caller: Caller,
        username: str,
        name: str,
        token: str,
        scope: str,
        digest: str = "",
        signed_in_with: Literal["token", "password", "provider"] = "token",
    ) -> None:
        """``token`` is the name of the user's token, ``digest`` that of its secret.

        ``scope`` is read, run or admin.
        """
        self.digest = digest
        self.caller = caller
        self.username = username
        self.name = name
        self.token = token
        self.scope = scope
        self.signed_in_with = signed_in_with

    @property
    def admin(self) -> bool:
        return self.scope == "admin"

    @property
    def may_run(self) -> bool:
        return self.scope != "read"


class Sessions:
    """Sets and reads the session cookies."""

    def __init__(self, api: Api, key_file: Path) -> None:
        """``key_file`` is created if missing. Removing the file signs out all users."""
        key = _key(key_file)
        self._api = api
        self._fernet = Fernet(key)
        # Browsers send cookies to all ports of a host, so each appliance needs its own cookie name.
        self.cookie = f"appliance_{hashlib.sha256(key).hexdigest()[:8]}"
        self._sign_in_cookie = f"{self.cookie}_signin"
        self._known: dict[tuple[str, str | None], tuple[float, MeResponse]] = {}

    async def of(self, request: Request) -> UserSession | None:
        """Return the session of a request; None without a valid cookie or if the token is no longer valid.

        Raises:
            ApplianceError: the API does not answer.
        """
        encrypted = request.cookies.get(self.cookie)
        if encrypted is None:
            return None
        try:
            secret = self._fernet.decrypt(encrypted.encode(errors="replace"), ttl=LIFETIME).decode()
        except InvalidToken:
            return None
        try:
            return await self._session(secret, request)
        except Throttled:  # the token is unknown, and the address has sent many unknown tokens
            return None

    async def sign_in(self, secret: str, request: Request, response: Response) -> bool:
        """Return whether ``secret`` is a valid token; if so, set the session cookie on ``response``.

        Raises:
            PermissionDenied: the token may not be used from the address of the browser.
            Throttled: too many unknown tokens came from this address.
        """
        found = await self._session(secret, request) if secret and secret.isprintable() else None
        if found is None:
            return False
        try:
            await found.caller.post("/admin/signins")
        except ApplianceError as error:
            if error.status < 500:
                raise
            _log.error("a sign-in of %s is not in the audit log: %s", found.username, error)
        await self._keep(secret, request, response)
        return True

    async def methods(self, request: Request) -> SignInMethodsResponse:
        """Return how people can sign in, besides with tokens.

        Raises:
            ApplianceError: the API does not answer.
        """
        return await self._anonymous(request).get_as(SignInMethodsResponse, "/admin/sign-in")

    async def sign_in_with_password(
        self, username: str, password: str, request: Request, response: Response
    ) -> None:
        """Sign in with a password, and set the session cookie on ``response``.

        Raises:
            Unauthenticated: the username or the password is wrong.
            Throttled: too many passwords were wrong.
        """
        given = {"username": username, "password": password}
        given["browser"] = request.headers.get("user-agent", "")
        made = await self._anonymous(request).post("/admin/sign-in/password", given)
        await self._keep(made["token"], request, response)

    async def begin_at_provider(self, then: str, request: Request) -> Response:
        """Return a redirect to the identity provider, which later sends the browser to the callback.

        ``then`` is the path to open after the sign-in.

        Raises:
            ApplianceError: there is no provider, or it does not answer.
        """
        begun = await self._anonymous(request).post("/admin/sign-in/provider")
        kept = json.dumps(
            {"authorization_request": begun["authorization_request"], "then": then[:_LONGEST_THEN]}
        )
        response = RedirectResponse(begun["url"], 303, {"cache-control": "no-store"})
        response.set_cookie(
            self._sign_in_cookie,
            self._fernet.encrypt(kept.encode()).decode(),
            max_age=_SIGN_IN_LIFETIME,
            path=f"{prefix(request)}/signin",
            httponly=True,
            samesite="lax",  # the provider's redirect to the callback comes from another site
            secure=request.url.scheme == "https",
        )
        return response

    async def finish_at_provider(self, request: Request) -> Response:
        """Sign in with the provider's answer in the query, and return a redirect to the page to open.

        Raises:
            Unauthenticated: the provider refused the sign-in, or its answer is not valid.
            ApplianceError: the provider or the API does not answer.
        """
        encrypted = request.cookies.get(self._sign_in_cookie, "")
        try:
            kept = self._fernet.decrypt(encrypted.encode(errors="replace"), ttl=_SIGN_IN_LIFETIME)
            begun = json.loads(kept)
            encrypted_request = begun["authorization_request"]
        except (InvalidToken, KeyError) as error:  # cookies of earlier releases have another key
            reason = _("The sign-in did not begin in this browser, or too long ago: try again.")
            raise Unauthenticated(token_given=True, reason=reason) from error
        query = request.query_params
        if "error" in query or "code" not in query:
            reason = _("The provider refused the sign-in: {reason}")
            shown = re.sub(r"[^a-z_]", "", query.get("error", ""))[:50] or "no code"
            raise Unauthenticated(token_given=True, reason=reason.format(reason=shown))
        answer = {
            "authorization_request": encrypted_request,
            "state": query.get("state", ""),
            "code": query["code"],
        }
        answer |= {"iss": query.get("iss"), "browser": request.headers.get("user-agent", "")}
        made = await self._anonymous(request).post("/admin/sign-in/provider/callback", answer)
        response = RedirectResponse(begun["then"], 303)
        await self._keep(made["token"], request, response)
        return response

    def forget_sign_in(self, request: Request, response: Response) -> None:
        """Delete the cookie of a sign-in at the provider, which can be used once."""
        path = f"{prefix(request)}/signin"
        response.delete_cookie(self._sign_in_cookie, path=path, httponly=True, samesite="lax")

    def _anonymous(self, request: Request) -> Caller:
        return self._api.caller(None, base_url(request), browser=request.headers.get(BROWSER, ""))

    async def _keep(self, secret: str, request: Request, response: Response) -> None:
        """Set the session cookie on ``response``, and end the session that the browser has had."""
        try:
            before = await self.of(request)
            if before is not None and before.signed_in_with != "token":
                await before.caller.post("/admin/signouts")
        except ApplianceError as error:
            _log.error("could not end the previous session of a browser: %s", error)
        response.set_cookie(
            self.cookie,
            self._fernet.encrypt(secret.encode()).decode(),
            max_age=LIFETIME,
            path=prefix(request) or "/",
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )

    async def sign_out(self, request: Request, response: Response) -> str | None:
        """Delete the session cookie on ``response``, even if the API does not answer.

        Returns the URL at which the person can also sign out of the identity provider, or None.
        """
        response.delete_cookie(self.cookie, path=prefix(request) or "/", httponly=True, samesite="lax")
        try:
            found = await self.of(request)
            if found is not None:  # the token may be revoked
                self._known.pop((found.digest, request.headers.get(BROWSER, "")), None)
                ended = await found.caller.post("/admin/signouts")
                return None if ended is None else api_client.convert(ended, SignOutResponse).url
        except ApplianceError as error:
            _log.error("a sign-out is not in the audit log: %s", error)
        return None

    async def _session(self, secret: str, request: Request) -> UserSession | None:
        browser = request.headers.get(BROWSER, "")
        caller = self._api.caller(secret, base_url(request), browser=browser)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        now = time.monotonic()
        key = digest, browser  # a token may be limited to some networks
        known = self._known.get(key)
        if known is not None and now - known[0] < MEMORY:
            user = known[1]
        else:
            try:
                user = await caller.get_as(MeResponse, "/admin/me")
            except Unauthenticated:
                self._known.pop(key, None)
                return None
            except Throttled:
                if known is None:
                    raise
                user = known[1]  # the token was valid a moment ago, and has made too many requests since
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = now, user
        return UserSession(
            caller, user.username, user.name, user.token, user.scope, digest, user.signed_in_with
        )


def current(request: Request) -> UserSession:
    """Return the session of a request that the server has let through."""
    found = request.scope.get(SCOPE)
    if not isinstance(found, UserSession):
        raise ApplianceError("This request has no session: sign in again.")
    return found


def origin(request: Request) -> str:
    """Return the scheme and host in the browser's URLs of this appliance."""
    return f"{request.url.scheme}://{request.headers.get('host', '')}"


def prefix(request: Request) -> str:
    """Return the path that precedes all paths in the browser's URLs, such as "/ai"; usually empty."""
    found: str = request.scope.get(PREFIX, "")
    return found


def base_url(request: Request) -> str:
    """Return the URL of the appliance in the browser, without a slash at the end."""
    return origin(request) + prefix(request)


def _key(file: Path) -> bytes:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    with os.fdopen(descriptor, "wb") as created:
        key = Fernet.generate_key()
        created.write(key)
    return key
