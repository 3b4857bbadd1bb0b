"""State, nonce and PKCE verifier of sign-ins at an identity provider."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import Final

import msgspec
from cryptography.fernet import Fernet, InvalidToken

from appliance.domain.errors import SignInRefused

#: Seconds within which a person must sign in at the provider.
LIFETIME: Final = 600
_MAX_USED: Final = 100_000  # used authorization requests that are remembered


class AuthorizationRequest(msgspec.Struct, frozen=True):
    """State, nonce and PKCE code verifier of one sign-in."""

    state: str  # the provider returns it with the code
    nonce: str  # the provider puts it into the ID token
    verifier: str  # of PKCE (RFC 7636)

    @property
    def challenge(self) -> str:
        """The challenge of PKCE, with the method S256."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class AuthorizationRequests:
    """Begins authorization requests, and checks that each is finished in the same browser, once and in time.

    The UI keeps the encrypted request in a cookie of the browser, so unfinished sign-ins need no memory here.
    """

    def __init__(self, key: bytes) -> None:
        """``key`` is a key of Fernet. It stays the same when the gateway restarts."""
        self._fernet = Fernet(key)
        self._used: dict[str, float] = {}  # state -> when it was used, oldest first

    def begin(self) -> tuple[AuthorizationRequest, str]:
        """Return a new authorization request, and its encrypted form for the browser."""
        made = AuthorizationRequest(*(secrets.token_urlsafe(32) for _ in range(3)))
        return made, self._fernet.encrypt(msgspec.json.encode(made)).decode()

    def finish(self, encrypted: str, state: str) -> AuthorizationRequest:
        """Return the authorization request if the provider has returned its ``state``.

        Raises:
            SignInRefused: the authorization request is forged, too old or of another sign-in, or was
                used already.
        """
        now = time.time()
        try:
            opened = self._fernet.decrypt(encrypted.encode(errors="replace"), ttl=LIFETIME)
        except InvalidToken as error:
            raise SignInRefused(
                f"The sign-in took longer than {LIFETIME // 60} min, or began in another browser: try again."
            ) from error
        found = msgspec.json.decode(opened, type=AuthorizationRequest)
        if not hmac.compare_digest(found.state.encode(), state.encode(errors="replace")):
            raise SignInRefused("The response of the provider belongs to another sign-in: try again.")
        while self._used:
            oldest, at = next(iter(self._used.items()))
            if now - at <= LIFETIME and len(self._used) < _MAX_USED:
                break
            del self._used[oldest]
        if found.state in self._used:
            raise SignInRefused("This sign-in has been finished already: sign in again.")
        self._used[found.state] = now
        return found
