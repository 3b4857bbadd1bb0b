"""Bodies of responses of ``/admin`` about tokens, users, sessions and data of accounts, as structs."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from appliance.domain.token import Scope
from appliance.protocols.response_types import Page, Time, WebhookSecretResponse


class MeResponse(Struct, kw_only=True):
    """The token of a request, and its account."""

    username: str
    name: str
    token: str  # name of the token
    scope: Scope
    signed_in_with: Annotated[
        Literal["token", "password", "provider"], Meta(description="How the caller has signed in")
    ] = "token"


class SignInMethodsResponse(Struct, kw_only=True):
    """How people can sign in to the UI, besides with tokens."""

    passwords: Annotated[bool, Meta(description="Whether there are people with passwords")]
    provider: Annotated[str | None, Meta(description="Name of the identity provider")] = None


class ProviderSignInResponse(Struct, kw_only=True):
    """A sign-in that has begun at the identity provider."""

    url: Annotated[str, Meta(description="URL at which the person signs in")]
    authorization_request: Annotated[
        str, Meta(description="Encrypted state of this sign-in, to be returned with the code")
    ]


class SignOutResponse(Struct, kw_only=True):
    """The end of a session that began at an identity provider."""

    url: Annotated[str, Meta(description="URL at which the person can also sign out of the provider")]


class SessionResponse(Struct, kw_only=True):
    """A session of the UI. Only the response to its creation contains the secret, as ``token``."""

    id: str
    username: str
    created_at: Time
    expires_at: Time
    address: Annotated[str, Meta(description="IP address from which the person signed in")]
    browser: Annotated[str, Meta(description="User-Agent header of the browser")]
    last_used_at: Annotated[Time | None, Meta(description="Exact to a minute")] = None
    last_used_from: Annotated[str | None, Meta(description="IP address")] = None
    current: Annotated[bool, Meta(description="Whether this request has used the session")] = False
    token: str | UnsetType = UNSET


class SessionPage(Page[SessionResponse], kw_only=True):
    """All sessions that have not ended: those of the caller, or of all people for an operator."""


class TokenResponse(Struct, kw_only=True):
    """An API token. Only the response to its creation contains the secret, as ``token``."""

    id: str
    name: str
    owner: str
    scope: Scope
    created_at: Time
    revoked_at: Time | None
    state: Literal["valid", "expired", "revoked"] = "valid"
    description: str = ""
    expires_at: Time | None = None
    networks: Annotated[list[str] | None, Meta(description="null: it may be used from everywhere")] = None
    models: Annotated[list[str] | None, Meta(description="null: it may use all models")] = None
    last_used_at: Annotated[Time | None, Meta(description="Exact to a minute")] = None
    last_used_from: Annotated[str | None, Meta(description="IP address")] = None
    token: str | UnsetType = UNSET


class TokenPage(Page[TokenResponse], kw_only=True):
    """All tokens."""


class NewWebhookSecretResponse(WebhookSecretResponse, kw_only=True):
    """A new webhook key, and when the old keys stop signing."""

    old_keys_until: Time


class AccountDataResponse(Struct, kw_only=True):
    """How much is stored of an account, or what an erasure has erased."""

    account: str
    erasing: Annotated[bool, Meta(description="Whether the data is being erased")]
    predictions: int
    trainings: int
    versions: Annotated[int, Meta(description="Versions that trainings of the account created")]
    uploads: int
    output_files: int
    bytes: Annotated[int, Meta(description="Bytes of uploads and output files")]
    conversations: int
    deployments: int
    builds: Annotated[int, Meta(description="Records and logs of builds; the built versions stay")]
    examples: Annotated[int, Meta(description="Predictions of the account that are examples of a model")]
    tokens: int
    sessions: Annotated[int, Meta(description="Sessions of the account's user, also ended ones")]
    users: Annotated[int, Meta(description="1 if somebody signs in as this account, else 0")]
    webhook_keys: int
    usage: Annotated[int, Meta(description="Rows of usage, which stay without the account and the token")]
    kept_models: Annotated[
        list[str], Meta(description="Models of the account, which stay with their pushed versions")
    ]


#: Each body that an operation of the OpenAPI document responds with.
RESPONSES: Final = (
    MeResponse,
    SignInMethodsResponse,
    ProviderSignInResponse,
    SignOutResponse,
    SessionResponse,
    SessionPage,
    TokenResponse,
    TokenPage,
    NewWebhookSecretResponse,
    AccountDataResponse,
)
