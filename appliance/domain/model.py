"""Models and versions that clients create while the appliance runs, in addition to those in models.yaml."""

from __future__ import annotations

import msgspec


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a client created through the API. ``created_at`` is in Unix seconds."""

    name: str  # owner/name
    visibility: str  # public or private
    hardware: str
    created_at: float
    description: str | None = None
    readme: str | None = None  # Markdown
    github_url: str | None = None
    paper_url: str | None = None
    license_url: str | None = None
    weights_url: str | None = None
    cover_image_url: str | None = None

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a training created: a LoRA adapter for another version."""

    version: str  # 64 hex digits
    model: str  # owner/name of the destination
    base_model: str  # owner/name of a model in models.yaml
    base_version: str
    training: str
    created_at: float
    path: str  # folder of the adapter, relative to the folder of stored files


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """A version that a client pushed: a built Cog project."""

    version: str  # 64 hex digits
    model: str
    build: str  # folder of the build, relative to the folder of all builds
    created_at: float
    memory: int | None  # bytes to reserve; None if not declared


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """The build of a pushed Cog project; a successful build creates a version. Times are Unix seconds."""

    id: str
    model: str
    owner: str
    source: str  # id of the uploaded archive
    created_at: float
    memory: int | None  # bytes to reserve; None if not declared
    status: str = "starting"  # starting, processing, succeeded, failed or canceled
    step: str | None = None  # description of the current step
    logs: str = ""
    error: str | None = None
    version: str | None = None
    completed_at: float | None = None

    @property
    def over(self) -> bool:
        return self.completed_at is not None
