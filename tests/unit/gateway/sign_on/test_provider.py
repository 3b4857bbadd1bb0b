"""What the client of an identity provider accepts, and what it refuses."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.fernet import Fernet
from joserfc import jwk

from appliance.config import OidcConfig
from appliance.domain.errors import ProviderFailed, SignInRefused
from appliance.gateway.sign_on import authorization_request
from appliance.gateway.sign_on.authorization_request import AuthorizationRequests
from appliance.gateway.sign_on.provider import Claims, Provider
from tests.support.identity_provider import ISSUER, IdentityProvider

CALLBACK = "https://ai.example.org/signin/callback"


def client(network: httpx.MockTransport, **changes: Any) -> Provider:
    fields = {"issuer": ISSUER, "client_id": "appliance", "client_secret": "a secret"}
    config = OidcConfig.model_validate({**fields, "groups_claim": "groups", **changes})
    return Provider(config, CALLBACK, network)


async def sign_in(provider: IdentityProvider, found: Provider | None = None, **answer: Any) -> Claims:
    found = found or client(provider)
    begun, _ = AuthorizationRequests(Fernet.generate_key()).begin()
    query = provider.sign_in(await found.authorization_url(begun))
    return await found.claims(begun, answer.get("code", query["code"]), answer.get("iss", query["iss"]))


async def test_the_request_has_state_nonce_and_a_challenge() -> None:
    begun, _ = AuthorizationRequests(Fernet.generate_key()).begin()
    url = await client(IdentityProvider(), scopes=["groups", "openid"]).authorization_url(begun)
    assert {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()} == {
        "response_type": "code",
        "client_id": "appliance",
        "redirect_uri": CALLBACK,
        "scope": "openid groups",
        "state": begun.state,
        "nonce": begun.nonce,
        "code_challenge": begun.challenge,
        "code_challenge_method": "S256",
    }
    assert len({begun.state, begun.nonce, begun.verifier}) == 3
    assert min(map(len, (begun.state, begun.nonce, begun.verifier))) >= 43


async def test_claims_of_the_id_token_and_missing_ones_of_the_user_info() -> None:
    provider = IdentityProvider()
    assert (await sign_in(provider))["preferred_username"] == "anna"
    assert "/userinfo" not in provider.requests
    provider.claims = {"groups": None}
    provider.user_info = {"sub": "s-anna", "groups": ["/other"], "preferred_username": "forged"}
    claims = await sign_in(provider)
    assert (claims["groups"], claims["preferred_username"]) == (["/other"], "anna")
    provider.user_info["sub"] = "s-ben"
    with pytest.raises(SignInRefused, match="of another person"):
        await sign_in(provider)


def from_now(claims: dict[str, Any]) -> dict[str, Any]:
    """Return ``claims`` with Unix times in place of offsets in seconds."""
    times = {
        name: time.time() + claims[name] for name in ("exp", "iat", "nbf") if type(claims.get(name)) is int
    }
    return claims | times


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://evil.example.org"}, "its issuer"),
        ({"aud": "other"}, "does not include the client appliance"),
        ({"aud": ["other"]}, "does not include the client appliance"),
        ({"aud": None}, "does not include the client appliance"),
        ({"aud": ["appliance", "other"]}, "is not the client appliance"),
        ({"aud": ["appliance", "other"], "azp": "other"}, "is not the client appliance"),
        ({"azp": "other"}, "is not the client appliance"),
        ({"exp": -3600}, "has expired"),
        ({"exp": None}, "has expired"),
        ({"exp": "tomorrow"}, "has expired"),
        ({"iat": -3600}, "time of issue"),
        ({"iat": 3600}, "time of issue"),
        ({"iat": None}, "time of issue"),
        ({"nbf": 3600}, "not valid yet"),
        ({"nonce": "replayed"}, "nonce is that of another sign-in"),
        ({"nonce": None}, "nonce is that of another sign-in"),
        ({"sub": None}, "has no subject"),
        ({"sub": ""}, "has no subject"),
        ({"sub": 7}, "has no subject"),
    ],
)
async def test_wrong_id_tokens_are_refused(claims: dict[str, Any], reason: str) -> None:
    provider = IdentityProvider()
    provider.claims = from_now(claims)
    with pytest.raises(SignInRefused, match=reason):
        await sign_in(provider)


@pytest.mark.parametrize("claims", [{"aud": ["appliance", "other"], "azp": "appliance"}, {"iat": 30}])
async def test_unusual_id_tokens_are_accepted(claims: dict[str, Any]) -> None:
    provider = IdentityProvider()
    provider.claims = from_now(claims)
    assert (await sign_in(provider))["sub"] == "s-anna"


async def test_a_token_signed_with_another_key_is_refused() -> None:
    provider = IdentityProvider()
    provider.signs_with = jwk.ECKey.generate_key("P-256", {"kid": "k1"})
    with pytest.raises(SignInRefused, match="signature is not valid"):
        await sign_in(provider)


async def test_a_secret_or_missing_signature_is_refused() -> None:
    provider = IdentityProvider()
    provider.algorithm = "HS256"
    provider.signs_with = jwk.OctKey.import_key("a secret".ljust(32))
    with pytest.raises(SignInRefused, match="signature is not valid"):
        await sign_in(provider)
    provider.algorithm = "none"
    with pytest.raises(SignInRefused, match="signature is not valid"):
        await sign_in(provider)


async def test_new_keys_are_fetched_when_the_provider_replaces_them() -> None:
    provider = IdentityProvider()
    found = client(provider)
    await sign_in(provider, found)
    await sign_in(provider, found)
    assert provider.requests.count("/jwks") == 1
    provider.keys = [jwk.RSAKey.generate_key(2048, {"kid": "k2", "use": "sig", "alg": "RS256"})]
    provider.algorithm, provider.signs_with = "RS256", provider.keys[0]
    await sign_in(provider, found)
    assert provider.requests.count("/jwks") == 2


async def test_a_code_works_once_and_only_with_its_verifier() -> None:
    provider = IdentityProvider()
    found = client(provider)
    begun, _ = AuthorizationRequests(Fernet.generate_key()).begin()
    code = provider.sign_in(await found.authorization_url(begun))["code"]
    other, _ = AuthorizationRequests(Fernet.generate_key()).begin()
    with pytest.raises(SignInRefused, match="does not accept the authorization code"):
        await found.claims(other, code, ISSUER)
    code = provider.sign_in(await found.authorization_url(begun))["code"]
    await found.claims(begun, code, ISSUER)
    with pytest.raises(SignInRefused, match="does not accept the authorization code"):
        await found.claims(begun, code, ISSUER)


async def test_the_answer_of_another_issuer_is_refused() -> None:
    provider = IdentityProvider()
    with pytest.raises(SignInRefused, match="from another provider"):
        await sign_in(provider, iss="https://evil.example.org")
    assert "/token" not in provider.requests
    await sign_in(provider, iss=None)
    provider.metadata = {"authorization_response_iss_parameter_supported": True}
    with pytest.raises(SignInRefused, match="does not name its issuer"):
        await sign_in(provider, iss=None)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"issuer": f"{ISSUER}/"}, "names the issuer 'https://id.example.org/'"),
        ({"token_endpoint": "http://id.example.org/token"}, "token_endpoint is no https URL"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri is no https URL"),
        ({"authorization_endpoint": None}, "authorization_endpoint"),
        ({"token_endpoint": f"{ISSUER}/nothing"}, "status 404: not_found"),
    ],
)
async def test_what_is_wrong_with_a_provider_is_named(metadata: dict[str, Any], reason: str) -> None:
    provider = IdentityProvider()
    provider.metadata = metadata
    with pytest.raises(ProviderFailed, match=reason):
        await sign_in(provider)


async def test_a_provider_that_does_not_answer() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(ProviderFailed, match="cannot be reached"):
        await client(httpx.MockTransport(broken)).metadata()
    for content in (b"<html>", b"[]", b"x" * (1024 * 1024 + 1)):
        network = httpx.MockTransport(lambda request, content=content: httpx.Response(200, content=content))
        with pytest.raises(ProviderFailed):
            await client(network).metadata()
    assert await client(httpx.MockTransport(broken)).end_session_url("https://ai.example.org/") is None


async def test_a_wrong_client_secret_is_not_shown() -> None:
    provider = IdentityProvider()
    with pytest.raises(ProviderFailed, match="status 401: invalid_client") as caught:
        await sign_in(provider, client(provider, client_secret="wrong secret"))
    assert "wrong secret" not in str(caught.value)


def test_an_authorization_request_is_finished_once_and_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = Fernet.generate_key()
    made = AuthorizationRequests(key)
    begun, encrypted = made.begin()
    _, other = made.begin()
    with pytest.raises(SignInRefused, match="another sign-in"):
        made.finish(other, begun.state)
    with pytest.raises(SignInRefused, match="another sign-in"):
        made.finish(encrypted, "")
    assert made.finish(encrypted, begun.state) == begun
    with pytest.raises(SignInRefused, match="finished already"):
        made.finish(encrypted, begun.state)
    for forged in ("", "x", encrypted.swapcase(), AuthorizationRequests(Fernet.generate_key()).begin()[1]):
        with pytest.raises(SignInRefused, match="try again"):
            made.finish(forged, begun.state)
    restarted = AuthorizationRequests(key)
    assert restarted.finish(encrypted, begun.state) == begun
    begun, encrypted = made.begin()
    at = time.time() + authorization_request.LIFETIME + 2
    monkeypatch.setattr(time, "time", lambda: at)
    with pytest.raises(SignInRefused, match="longer than 10 min"):
        made.finish(encrypted, begun.state)
