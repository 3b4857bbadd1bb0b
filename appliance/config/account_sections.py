"""The sections of models.yaml about accounts: rights, budgets, and how people sign in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.config import text_file
from appliance.domain.section import Section, subsection
from appliance.domain.token import Scope
from appliance.domain.user import User
from appliance.domain.values import (
    FilePath,
    IssuerUrl,
    ModelPattern,
    Seconds,
)


class RightsConfig(Section):
    """Models and rights of accounts."""

    models: tuple[ModelPattern, ...] = Field(
        default=(),
        strict=False,
        description="Names of models, or patterns such as owner/*. A single * stands for all models.",
    )
    may: tuple[Literal["run", "push", "train", "deploy", "see-all", "operate"], ...] = Field(
        default=(),
        strict=False,
        description="run: create predictions; train: create trainings; deploy: change deployments; push: "
        "build Cog projects; see-all: see the predictions and usage of all accounts; operate: change models, "
        "tokens and settings. Push, see-all and operate also need a token with the scope admin.",
    )


class GroupConfig(RightsConfig):
    """Models and rights of the accounts of a group."""

    members: tuple[str, ...] = Field(strict=False, description="Usernames of the accounts.")
    priority: int = Field(
        default=0,
        ge=-5,
        le=5,
        description="When accounts wait for the same model, each step up doubles the share of started "
        "predictions that a member gets. An account has the highest priority of its groups.",
    )


class AccessConfig(Section):
    """Who may use which models, and what else accounts may do."""

    everybody: RightsConfig = subsection(RightsConfig(), "Models and rights that every account has.")
    groups: dict[str, GroupConfig] = Field(
        default={}, description="Groups by name. An account has the models and rights of all its groups."
    )


class OidcConfig(Section):
    """An identity provider with OpenID Connect."""

    issuer: IssuerUrl = Field(
        description="URL of the provider, exactly as its discovery document names it. Must begin with "
        "https://, except on this machine."
    )
    client_id: str = Field(min_length=1, description="Id of the appliance at the provider.")
    client_secret: str | None = Field(
        default=None,
        min_length=1,
        description="Secret of the appliance at the provider. Default: none, for a public client.",
    )
    client_secret_file: FilePath | None = Field(
        default=None,
        description="File with the secret, instead of client_secret. It is read at each sign-in.",
    )
    name: str = Field(
        default="single sign-on",
        min_length=1,
        max_length=60,
        description="Name of the provider on the sign-in page.",
    )
    scopes: tuple[str, ...] = Field(
        default=("profile", "email"), strict=False, description="Scopes to request besides openid."
    )
    account_claim: str = Field(
        default="preferred_username",
        min_length=1,
        description="Claim that gives the name of the account at the first sign-in.",
    )
    groups_claim: str | None = Field(
        default=None, min_length=1, description="Claim with the groups of the person. Default: none."
    )
    groups: dict[str, str] = Field(
        default={}, description="Value of the groups claim -> group in the section access."
    )
    scope: Literal["read", "run", "admin"] = Field(
        default="run",
        description="Scope of sessions. admin needs the section access, which says who may do what.",
    )

    def secret(self) -> str | None:
        """Return the secret of the client; None for a public client.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.client_secret_file is None:
            return self.client_secret
        return text_file.read(self.client_secret_file).strip()


class SignOnConfig(Section):
    """How people sign in to the web UI, besides with tokens."""

    passwords: bool = Field(
        default=True,
        description="Let people sign in with passwords. `appliance users add` adds a person with a password.",
    )
    session: Annotated[Seconds, Field(ge=60, le=7 * 86400)] = Field(
        default=43200.0, description="Time after which a person must sign in again."
    )
    oidc: OidcConfig | None = Field(
        default=None, description="Let people sign in at an identity provider with OpenID Connect."
    )

    def scope_of(self, user: User) -> Scope | None:
        """Return the scope of the user's sessions; None if the user may not sign in."""
        if user.method == "password":
            return user.scope if self.passwords else None
        return Scope(self.oidc.scope) if self.oidc is not None and user.issuer == self.oidc.issuer else None

    def groups_of(self, user: User) -> frozenset[str]:
        """Return the groups that the provider named at the user's last sign-in."""
        if self.oidc is None or user.issuer != self.oidc.issuer:
            return frozenset()
        return user.groups(self.oidc.groups)


class BudgetConfig(Section):
    """Limits on the predictions of accounts, groups, tokens or models."""

    account: str | None = Field(
        default=None,
        min_length=1,
        description='Username. "*" stands for each account that no other budget with the same keys names.',
    )
    group: str | None = Field(
        default=None,
        description="Group of access.groups, or everybody: its members share the budget.",
    )
    token: str | None = Field(
        default=None,
        pattern=r"^(\*|[A-Za-z0-9_-]+)$",
        description='Id of a token. "*" stands for each token that no other budget with the same keys names.',
    )
    model: ModelPattern | None = Field(
        default=None,
        description="Name of a model, or a pattern such as owner/* for each model that no other budget with "
        "the same keys names.",
    )
    per: Literal["day", "month"] = Field(
        default="day", description="Period of predictions, seconds, tokens and cost, in UTC."
    )
    concurrent: int | None = Field(
        default=None, ge=0, description="Maximum number of unfinished predictions; more get status 429."
    )
    predictions: int | None = Field(
        default=None, ge=0, description="Maximum predictions and trainings per period; more get status 429."
    )
    seconds: Seconds | None = Field(
        default=None,
        description="Maximum run time per period: seconds, or text such as 10h; more gets status 402.",
    )
    tokens: int | None = Field(
        default=None, ge=0, description="Maximum tokens, in and out, per period. Then status 402."
    )
    cost: Annotated[float, Field(ge=0, le=1e12)] | None = Field(
        default=None, description="Maximum cost per period, in prices.currency. Then status 402."
    )
    warn_at: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8,
        description="Used share of a daily or monthly limit from which responses have the header "
        "X-Budget-Warning.",
    )
