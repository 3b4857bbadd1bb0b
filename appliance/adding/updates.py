"""Newer revisions of hub and git sources."""

from __future__ import annotations

from typing import NamedTuple

from appliance.adding import hub
from appliance.builds import git
from appliance.config import GitSource, HubSource, ModelConfig
from appliance.domain.errors import ApplianceError


class Update(NamedTuple):
    """The revision in models.yaml, and the newest commit of the default branch."""

    old: str
    new: str


def find_update(model: ModelConfig) -> Update:
    """Return the newest revision of a model's source.

    Raises:
        ApplianceError: the source cannot be reached, or has no revisions.
    """
    match model.source:
        case HubSource(hub=repository, revision=old):
            return Update(old, hub.list_repository(repository).revision or old)
        case GitSource(git=url, revision=old):
            return Update(old, git.newest(url, "HEAD"))
        case _:
            raise ApplianceError(
                f"model {model.name} is not from the hub or from git, so it has no newer revision: edit its "
                "source in models.yaml"
            )
