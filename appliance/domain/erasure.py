"""What the appliance stores of an account, and the erasure of it."""

from __future__ import annotations

import msgspec

from appliance.domain.audit import AuditEvent


class AccountData(msgspec.Struct, frozen=True, kw_only=True):
    """How much is stored of an account, or was erased."""

    predictions: int = 0
    trainings: int = 0
    versions: int = 0  # that trainings of the account created
    uploads: int = 0
    output_files: int = 0
    bytes: int = 0  # of uploads and output files
    conversations: int = 0
    deployments: int = 0
    builds: int = 0  # records and logs of builds; the versions that they created stay
    examples: int = 0  # predictions of the account that were examples of a model
    tokens: int = 0
    sessions: int = 0  # of the account's user, also ended ones
    users: int = 0  # 1 if somebody signs in as this account
    webhook_keys: int = 0
    usage: int = 0  # rows of usage, which stay without the account and the token

    def __add__(self, other: AccountData) -> AccountData:
        return AccountData(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        )


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure that has begun."""

    account: str
    event: AuditEvent  # who requested it
    erased: AccountData = AccountData()
