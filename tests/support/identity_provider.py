"""An identity provider in one process, whose answers a test can change."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from joserfc import jwk, jwt

ISSUER = "https://id.example.org"


class IdentityProvider(httpx.MockTransport):
    """Answers the client of the gateway, and stands for the person in the browser."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.keys: list[jwk.Key] = [
            jwk.ECKey.generate_key("P-256", {"kid": "k1", "use": "sig", "alg": "ES256"})
        ]
        self.algorithm = "ES256"
        self.signs_with: Any = self.keys[0]
        self.metadata: dict[str, Any] = {}  # changes of the discovery document
        self.claims: dict[str, Any] = {}  # changes of the ID token; None removes a claim
        self.user_info: dict[str, Any] | None = None
        self.person: dict[str, Any] = {"sub": "s-anna", "preferred_username": "anna", "groups": ["/ml"]}
        self.requests: list[str] = []  # paths
        self._codes: dict[str, dict[str, str]] = {}  # code -> parameters of the authorization request

    def sign_in(self, url: str) -> dict[str, str]:
        """Sign in as the person in a browser at an authorization URL; return the query of the callback."""
        query = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        code = f"code-{len(self._codes)}"
        self._codes[code] = query
        return {"code": code, "state": query["state"], "iss": ISSUER}

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": "appliance", "iat": now, "exp": now + 300, "nonce": nonce}
        claims |= {**self.person, **self.claims}
        kept = {name: value for name, value in claims.items() if value is not None}
        if self.algorithm == "none":
            parts = (json.dumps(part).encode() for part in ({"alg": "none"}, kept))
            return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), ""])
        header = {"alg": self.algorithm, "kid": getattr(self.signs_with, "kid", None) or "k1"}
        return jwt.encode(header, kept, self.signs_with, algorithms=[self.algorithm])

    def _respond(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.requests.append(path)
        match path:
            case "/.well-known/openid-configuration":
                document = {
                    "issuer": ISSUER,
                    "authorization_endpoint": f"{ISSUER}/authorize",
                    "token_endpoint": f"{ISSUER}/token",
                    "jwks_uri": f"{ISSUER}/jwks",
                    "userinfo_endpoint": f"{ISSUER}/userinfo",
                    "end_session_endpoint": f"{ISSUER}/logout",
                }
                return httpx.Response(200, json=document | self.metadata)
            case "/jwks":
                return httpx.Response(200, json={"keys": [key.as_dict(private=False) for key in self.keys]})
            case "/token":
                return self._token(request)
            case "/userinfo" if request.headers["authorization"] == "Bearer access":
                return httpx.Response(200, json=self.user_info or {"sub": self.person["sub"]})
        return httpx.Response(404, json={"error": "not_found"})

    def _token(self, request: httpx.Request) -> httpx.Response:
        form = {key: values[0] for key, values in parse_qs(request.content.decode()).items()}
        begun = self._codes.pop(form["code"], None)
        secret = base64.b64encode(b"appliance:a+secret").decode()
        if request.headers.get("authorization", f"Basic {secret}") != f"Basic {secret}":
            return httpx.Response(401, json={"error": "invalid_client"})
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if begun is None or begun["code_challenge"] != challenge:
            return httpx.Response(400, json={"error": "invalid_grant"})
        if begun["redirect_uri"] != form["redirect_uri"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        token = self.id_token(begun["nonce"])
        return httpx.Response(200, json={"access_token": "access", "id_token": token, "token_type": "Bearer"})
