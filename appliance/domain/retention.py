"""How long data of predictions and conversations is kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from appliance.domain.access import Policy, matches


class RetentionRules(msgspec.Struct, frozen=True):
    """Times in seconds from the end of a prediction, or the last change of a conversation, to its removal.

    The shortest of all times that apply to a model and an account counts.
    """

    everything: float | None = None  # for all models and accounts; None: no such time
    models: Mapping[str, float] = {}  # by pattern of model names
    accounts: Mapping[str, float] = {}  # by account
    groups: Mapping[str, float] = {}  # by name of a group of ``policy``
    policy: Policy | None = None  # has the members of the groups

    def seconds_for(self, model: str, account: str) -> float | None:
        """Return the time for data of this model and account; None: the data is kept forever."""
        times = [seconds for pattern, seconds in self.models.items() if matches(model, (pattern,))]
        if self.everything is not None:
            times.append(self.everything)
        if account in self.accounts:
            times.append(self.accounts[account])
        if self.policy is not None:
            names = (group.name for group in self.policy.groups_of(account))
            times += [self.groups[name] for name in names if name in self.groups]
        return min(times, default=None)

    @property
    def times(self) -> list[float]:
        """Return all different times, shortest first."""
        everything = () if self.everything is None else (self.everything,)
        limited = (self.models, self.accounts, self.groups)
        return sorted({*everything, *(seconds for times in limited for seconds in times.values())})
