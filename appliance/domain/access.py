"""Decides which models and rights an account and a token have. Pure."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final

import msgspec

#: A pattern of model names: ``owner/name``, in which ``*`` stands for any characters but a slash.
#: A single ``*`` stands for all models.
PATTERN: Final = re.compile(r"(?:\*|[a-z0-9._*-]+/[a-z0-9._*-]+)")


class Right(StrEnum):
    """What the section ``access`` of models.yaml can permit."""

    RUN = "run"  # create predictions
    PUSH = "push"  # build versions from Cog projects
    TRAIN = "train"  # create trainings
    DEPLOY = "deploy"  # create and change deployments
    SEE_ALL = "see-all"  # see the predictions and the usage of all accounts
    OPERATE = "operate"  # load models, and change models.yaml, tokens and settings


class Access(msgspec.Struct, frozen=True):
    """The models and rights of one caller."""

    #: Account whose private models are visible; None: the private models of every account.
    account: str | None
    #: Tuples of patterns. A model must match a pattern in each of them; without tuples, all are allowed.
    models: tuple[tuple[str, ...], ...] = ()
    rights: frozenset[Right] = frozenset(Right)

    @property
    def restricted(self) -> bool:
        """Return whether some models may be denied."""
        return bool(self.models)

    def allows(self, model: str) -> bool:
        """Return whether the model named ``owner/name`` is allowed."""
        return all(matches(model, patterns) for patterns in self.models)

    def only(self, patterns: tuple[str, ...] | None) -> Access:
        """Return this access without the models that match none of ``patterns``; None removes no models."""
        return self if patterns is None else msgspec.structs.replace(self, models=(*self.models, patterns))

    def of_all_accounts(self) -> Access:
        """Return this access with the private models of every account."""
        return msgspec.structs.replace(self, account=None)


#: The access of the appliance itself.
UNRESTRICTED: Final = Access(None)


class Group(msgspec.Struct, frozen=True):
    """Models and rights of some accounts."""

    name: str
    members: frozenset[str]
    models: tuple[str, ...]  # patterns
    rights: frozenset[Right]
    priority: int = 0  # of the predictions of its members, where predictions wait for the same model


class Policy:
    """The rights of all accounts."""

    def __init__(
        self, groups: Iterable[Group] | None = None, everybody: Group | None = None, administrator: str = ""
    ) -> None:
        """Without ``groups``, every account has all rights.

        ``everybody`` has the rights that all accounts have. The account ``administrator`` has all rights.
        """
        self._provider_groups: dict[str, frozenset[str]] = {}  # names of groups, by account
        self._priorities: dict[str, int] = {}  # found before, by account
        self._groups = None if groups is None else tuple(groups)
        self._everybody = everybody
        self._administrator = administrator

    @property
    def has_provider_groups(self) -> bool:
        """Return whether an account is in a group that an identity provider named."""
        return bool(self._provider_groups)

    def set_provider_groups(self, account: str, groups: frozenset[str]) -> frozenset[str]:
        """Set the names of an account's groups that an identity provider named at the last sign-in.

        Return the names of the groups that the account has joined or left.
        """
        changed = groups ^ self._provider_groups.pop(account, frozenset())
        if groups:
            self._provider_groups[account] = groups
        if changed:
            self._priorities.pop(account, None)
        return changed

    def groups_of(self, account: str | None) -> list[Group]:
        """Return the groups of an account; None is a request without a token."""
        shared = [] if self._everybody is None else [self._everybody]
        return [*shared, *self._own_groups(account)]

    def _own_groups(self, account: str | None) -> list[Group]:
        named = self._provider_groups.get(account, frozenset()) if account is not None else frozenset()
        return [each for each in self._groups or () if account in each.members or each.name in named]

    def priority(self, account: str) -> int:
        """Return the highest priority of the account's groups; 0 if it is in no group."""
        found = self._priorities.get(account)
        if found is None:
            found = max((group.priority for group in self._own_groups(account)), default=0)
            self._priorities[account] = found
        return found

    def unlimited(self, account: str | None) -> bool:
        """Return whether the account has all rights: it is the administrator's, or there are no groups."""
        return self._groups is None or (account is not None and account == self._administrator)

    def of(self, account: str | None) -> Access:
        """Return the access of an account: the union of its groups."""
        if self.unlimited(account):
            return Access(account)
        groups = self.groups_of(account)
        patterns = tuple(dict.fromkeys(pattern for group in groups for pattern in group.models))
        rights: frozenset[Right] = frozenset().union(*(group.rights for group in groups))
        return Access(account, () if "*" in patterns else (patterns,), rights)


def matches(model: str, patterns: Iterable[str]) -> bool:
    """Return whether the name ``owner/name`` matches one of ``patterns``."""
    return any(_compiled(pattern).fullmatch(model) is not None for pattern in patterns)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern == "*":
        return re.compile(".*")
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))


def network(text: str) -> str | None:
    """Return an IP address or network in its usual notation; None if ``text`` is neither."""
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        return None


def client_network(address: str) -> str:
    """Return the address; for IPv6 its /64 network, all of whose addresses one client may have."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((int(found), 64), strict=False))
    return address


def is_within(address: str, networks: Collection[str]) -> bool:
    """Return whether the IP address is in one of ``networks``. IPv4 addresses may be written as IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped  # a client with IPv4 of a socket that listens on "::"
    parsed = map(ipaddress.ip_network, networks)
    return any(found in each for each in parsed if each.version == found.version)
