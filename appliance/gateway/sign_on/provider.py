"""The client of an identity provider: OpenID Connect, with an authorization code and PKCE.

It follows OpenID Connect Core 1.0 and the security advice of RFC 9700. It calls only URLs that the
provider's own discovery document names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
import msgspec
from joserfc import jwk, jwt
from joserfc.errors import InvalidKeyIdError, JoseError

from appliance.config import OidcConfig
from appliance.domain.errors import ProviderFailed, SignInRefused
from appliance.domain.local_url import is_loopback
from appliance.gateway.sign_on.authorization_request import AuthorizationRequest

#: Accepted signatures of ID tokens: only asymmetric ones, so that no public key serves as an HMAC secret.
ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
#: Seconds by which the clocks of the provider and of this machine may differ.
CLOCK_SKEW: Final = 60
#: Seconds after its time of issue (iat) in which an ID token is accepted.
_MAX_AGE: Final = 600
_KEPT: Final = 3600.0  # seconds for which the discovery document and the keys are kept
_TIMEOUT: Final = 10.0
_LARGEST: Final = 1024 * 1024  # bytes of a response
_LONGEST_SUBJECT: Final = 255  # characters (OpenID Connect Core, section 2)

Claims = Mapping[str, Any]
T = TypeVar("T")


class Metadata(msgspec.Struct, kw_only=True):
    """The part of a discovery document that is used (OpenID Connect Discovery 1.0, section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class _Tokens(msgspec.Struct, kw_only=True):
    """The response to a code."""

    id_token: str
    access_token: str


class Provider:
    """One identity provider."""

    def __init__(
        self, config: OidcConfig, redirect_url: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """``redirect_url`` is the URL to which the provider sends the browser back.

        ``transport`` replaces the network.
        """
        self.config = config
        self._redirect_url = redirect_url
        self._transport = transport
        self._metadata: tuple[float, Metadata] | None = None
        self._keys: tuple[float, jwk.KeySet] | None = None

    async def metadata(self) -> Metadata:
        """Return the discovery document.

        Raises:
            ProviderFailed: the provider does not answer, or answers for another issuer.
        """
        now = time.monotonic()
        if self._metadata is not None and now - self._metadata[0] < _KEPT:
            return self._metadata[1]
        url = f"{self.config.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = self._converted(await self._json("GET", url), Metadata, url)
        if found.issuer != self.config.issuer:
            raise self._failed(f"{url} names the issuer {found.issuer!r}: set sign_on.oidc.issuer to it")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
            if not self._is_safe(getattr(found, name)):
                raise self._failed(f"{url}: {name} is no https URL")
        self._metadata = now, found
        return found

    async def authorization_url(self, request: AuthorizationRequest) -> str:
        """Return the URL at which the person signs in.

        Raises:
            ProviderFailed: the provider does not answer.
        """
        endpoint = (await self.metadata()).authorization_endpoint
        query = {
            "response_type": "code",
            "client_id": self.config.client_id,
            "redirect_uri": self._redirect_url,
            "scope": " ".join(dict.fromkeys(("openid", *self.config.scopes))),
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": request.challenge,
            "code_challenge_method": "S256",
        }
        return _with_query(endpoint, query)

    async def end_session_url(self, then: str) -> str | None:
        """Return the URL at which the person can also sign out of the provider; None if it has none.

        The provider offers to go on to the URL ``then``.
        """
        try:
            endpoint = (await self.metadata()).end_session_endpoint
        except ProviderFailed:
            return None
        if endpoint is None or not self._is_safe(endpoint):
            return None
        return _with_query(endpoint, {"client_id": self.config.client_id, "post_logout_redirect_uri": then})

    async def claims(self, request: AuthorizationRequest, code: str, issuer: str | None) -> Claims:
        """Exchange a code for the claims of the person; ``issuer`` is the parameter ``iss`` of RFC 9207.

        Raises:
            ProviderFailed: the provider does not answer, or its answer cannot be used.
            SignInRefused: the provider refuses the code, or the ID token is not valid.
        """
        metadata = await self.metadata()
        if issuer is None and metadata.authorization_response_iss_parameter_supported:
            raise SignInRefused("The response of the provider does not name its issuer: sign in again.")
        if issuer is not None and issuer != metadata.issuer:
            raise SignInRefused("The response came from another provider: sign in again.")
        tokens = await self._exchange(metadata, request, code)
        claims = await self._verified(metadata, tokens.id_token)
        self._check(claims, request)
        wanted = {self.config.account_claim, self.config.groups_claim} - {None}
        if wanted <= claims.keys() or metadata.userinfo_endpoint is None:
            return claims
        headers = {"authorization": f"Bearer {tokens.access_token}"}
        info = await self._json("GET", metadata.userinfo_endpoint, headers=headers)
        if info.get("sub") != claims["sub"]:  # section 5.3.2
            raise SignInRefused("The user info of the provider is of another person: sign in again.")
        return {**info, **claims}

    async def _exchange(self, metadata: Metadata, request: AuthorizationRequest, code: str) -> _Tokens:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_url,
            "client_id": self.config.client_id,
            "code_verifier": request.verifier,
        }
        secret, authentication = self.config.secret(), None
        methods = metadata.token_endpoint_auth_methods_supported
        if secret is not None and "client_secret_basic" in methods:
            # RFC 6749, section 2.3.1, wants both encoded as in a form.
            authentication = httpx.BasicAuth(quote_plus(self.config.client_id), quote_plus(secret))
        elif secret is not None:
            form["client_secret"] = secret
        body = await self._json("POST", metadata.token_endpoint, data=form, auth=authentication)
        return self._converted(body, _Tokens, metadata.token_endpoint)

    async def _verified(self, metadata: Metadata, id_token: str) -> dict[str, Any]:
        """Return the claims of an ID token with a valid signature. New keys of the provider are fetched."""
        try:
            try:
                return jwt.decode(id_token, await self._key_set(metadata), list(ALGORITHMS)).claims
            except InvalidKeyIdError:
                self._keys = None
                return jwt.decode(id_token, await self._key_set(metadata), list(ALGORITHMS)).claims
        except (JoseError, ValueError) as error:
            raise self._refused(f"its signature is not valid ({error})") from error

    async def _key_set(self, metadata: Metadata) -> jwk.KeySet:
        now = time.monotonic()
        if self._keys is not None and now - self._keys[0] < _KEPT:
            return self._keys[1]
        body = await self._json("GET", metadata.jwks_uri)
        try:
            public = [key for key in body["keys"] if key.get("use", "sig") == "sig" and key["kty"] != "oct"]
            found = jwk.KeySet.import_key_set({"keys": public})
        except (JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._failed(f"{metadata.jwks_uri}: the keys cannot be read: {error!r}") from error
        self._keys = now, found
        return found

    def _check(self, claims: Claims, request: AuthorizationRequest) -> None:
        """Check the claims of an ID token (OpenID Connect Core, section 3.1.3.7).

        Raises:
            SignInRefused: a claim is wrong.
        """
        now = time.time()
        client = self.config.client_id
        audiences = claims.get("aud")
        audiences = audiences if isinstance(audiences, list) else [audiences]
        issued, expires, valid_from = claims.get("iat"), claims.get("exp"), claims.get("nbf", 0)
        subject = claims.get("sub")
        if claims.get("iss") != self.config.issuer:
            raise self._refused("its issuer (iss) is another one")
        if client not in audiences:
            raise self._refused(f"its audience (aud) does not include the client {client}")
        if claims.get("azp", client if len(audiences) == 1 else None) != client:
            raise self._refused(f"its authorized party (azp) is not the client {client}")
        if not isinstance(expires, int | float) or now >= expires + CLOCK_SKEW:
            raise self._refused("it has expired: check the clocks of both machines")
        if not isinstance(issued, int | float) or not -CLOCK_SKEW <= now - issued <= _MAX_AGE + CLOCK_SKEW:
            raise self._refused("its time of issue (iat) is too old or in the future: check both clocks")
        if not isinstance(valid_from, int | float) or now < valid_from - CLOCK_SKEW:
            raise self._refused("it is not valid yet: check the clocks of both machines")
        if claims.get("nonce") != request.nonce:
            raise self._refused("its nonce is that of another sign-in")
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise self._refused("it has no subject (sub)")

    async def _json(self, method: str, url: str, **request: Any) -> dict[str, Any]:
        """Return the JSON object at a URL of the provider.

        Raises:
            SignInRefused: the provider refuses the code.
            ProviderFailed: the provider does not answer with a JSON object.
        """
        body = bytearray()
        try:
            async with (
                httpx.AsyncClient(timeout=_TIMEOUT, transport=self._transport) as client,
                client.stream(method, url, headers=request.pop("headers", {}), **request) as reply,
            ):
                async for chunk in reply.aiter_bytes():
                    body += chunk
                    if len(body) > _LARGEST:
                        raise self._failed(f"{url}: the response is larger than {_LARGEST:,} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(f"{url} cannot be reached: {error!r}") from error
        try:
            found = msgspec.json.decode(bytes(body))
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict):
            raise self._failed(f"{url}: status {reply.status_code}, and the response is no JSON object")
        if reply.status_code == 400 and found.get("error") == "invalid_grant":
            raise SignInRefused("The provider does not accept the authorization code: sign in again.")
        if not reply.is_success:
            reason = found.get("error_description") or found.get("error") or "no reason given"
            raise self._failed(f"{url}: status {reply.status_code}: {str(reason)[:200]}")
        return found

    def _converted(self, body: dict[str, Any], type: type[T], url: str) -> T:
        try:
            return msgspec.convert(body, type)
        except msgspec.ValidationError as error:
            raise self._failed(f"{url}: {error}") from error

    def _is_safe(self, url: str | None) -> bool:
        """Return whether nobody on the network path can read or change requests to the URL."""
        parts = urlsplit(url or "https:")
        return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))

    def _failed(self, reason: str) -> ProviderFailed:
        return ProviderFailed(f"The identity provider {self.config.issuer} failed: {reason}.")

    def _refused(self, reason: str) -> SignInRefused:
        return SignInRefused(f"The ID token of the provider is refused: {reason}.")


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


async def discover(config: OidcConfig, transport: httpx.AsyncBaseTransport | None = None) -> None:
    """Fetch the discovery document of a provider.

    Raises:
        ProviderFailed: the provider does not answer, or not as expected.
    """
    await Provider(config, "", transport).metadata()
