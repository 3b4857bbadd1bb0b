"""Sessions: the token of a signed-in person, encrypted in a cookie that only this appliance can read."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Final

import gradio as gr
from cryptography.fernet import Fernet, InvalidToken
from starlette.requests import Request
from starlette.responses import Response

from appliance.domain.errors import ApplianceError, Unauthenticated
from appliance.ui.client import Api, Caller

LIFETIME: Final = 7 * 86400  # seconds after which one signs in anew
#: Seconds for which a token that was asked about is not asked about again.
MEMORY: Final = 5.0
_REMEMBERED: Final = 1000
#: Where in an ASGI scope the session is.
SCOPE: Final = "appliance.session"


class Session:
    """One person, as long as one request lasts."""

    def __init__(self, caller: Caller, username: str, name: str, token: str, scope: str) -> None:
        """``token`` is its name, not its secret; ``scope`` is read, run or admin."""
        self.caller = caller
        self.username = username
        self.name = name
        self.token = token
        self.scope = scope

    @property
    def admin(self) -> bool:
        """Whether it may change the appliance."""
        return self.scope == "admin"

    @property
    def may_run(self) -> bool:
        """Whether it may make predictions."""
        return self.scope != "read"


class Sessions:
    """Opens and seals the cookies."""

    def __init__(self, api: Api, key_file: Path) -> None:
        """``key_file`` is made if it is not there; without it all are signed out."""
        key = _key(key_file)
        self._api = api
        self._fernet = Fernet(key)
        # A cookie is for all ports of a host, so each appliance has a name of its own for it.
        self.cookie = f"appliance_{hashlib.sha256(key).hexdigest()[:8]}"
        self._known: dict[str, tuple[float, dict[str, str]]] = {}

    async def of(self, request: Request) -> Session | None:
        """Return the caller of a request; None without sign-in, or if the token is no longer valid.

        Raises:
            ApplianceError: the API does not answer.
        """
        sealed = request.cookies.get(self.cookie)
        if sealed is None:
            return None
        try:
            secret = self._fernet.decrypt(sealed.encode(errors="replace"), ttl=LIFETIME).decode()
        except InvalidToken:
            return None
        return await self._session(secret, origin(request))

    async def sign_in(self, secret: str, request: Request, response: Response) -> bool:
        """Put ``secret`` into a cookie of ``response`` if it is a valid token; whether it is."""
        if not secret or not secret.isprintable() or await self._session(secret, origin(request)) is None:
            return False
        response.set_cookie(
            self.cookie,
            self._fernet.encrypt(secret.encode()).decode(),
            max_age=LIFETIME,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return True

    def sign_out(self, response: Response) -> None:
        """Take the cookie away."""
        response.delete_cookie(self.cookie, httponly=True, samesite="lax")

    async def _session(self, secret: str, origin: str) -> Session | None:
        caller = self._api.caller(secret, origin)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        now = time.monotonic()
        at, told = self._known.get(digest, (-MEMORY, {}))
        if now - at >= MEMORY:
            try:
                told = await caller.get("/admin/me")
            except Unauthenticated:
                self._known.pop(digest, None)
                return None
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[digest] = now, told
        return Session(caller, told["username"], told["name"], told["token"], told["scope"])


def of(request: gr.Request) -> Session:
    """Return the caller of a page's event, for the functions of the page."""
    found = None if request.request is None else request.request.scope.get(SCOPE)
    if not isinstance(found, Session):
        raise ApplianceError("this request has not come through the sign-in")
    return found


def origin(request: Request) -> str:
    """Scheme and host by which the browser knows this appliance."""
    return f"{request.url.scheme}://{request.headers.get('host', '')}"


def _key(file: Path) -> bytes:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    with os.fdopen(descriptor, "wb") as created:
        key = Fernet.generate_key()
        created.write(key)
    return key
