"""Deployments: endpoints ``owner/name`` that run one version of a model; each change is a new release."""

from __future__ import annotations

import msgspec


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release of a deployment."""

    owner: str
    name: str
    number: int  # from 1
    model: str
    version: str
    hardware: str
    min_instances: int
    max_instances: int
    created_at: float
    created_by: str

    @property
    def deployment(self) -> str:
        return f"{self.owner}/{self.name}"
