"""Bodies of the ``/admin`` routes that add, update and remove models, as structs.

Sizes are in bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from appliance.protocols.admin_types import ReloadResponse
from appliance.protocols.request_types import Request
from appliance.protocols.response_types import Page, Time


class ProposalRequest(Request, kw_only=True):
    """A model to look at."""

    source: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=2000,
            description="Short name of the catalogue, hub:owner/name[@revision], "
            "pypi:package==version/path, git:URL[@revision], or the absolute path of a folder",
        ),
    ]
    name: Annotated[str | None, Meta(description="owner/name in the API; by default from the source")] = None
    file: Annotated[str | None, Meta(description="GGUF file or voice to use, of several")] = None
    kind: Annotated[str | None, Meta(description="Kind of the model, if its files do not tell it")] = None
    task: Annotated[str | None, Meta(description="Task of a model of the kind transformers")] = None


class AdditionRequest(ProposalRequest, kw_only=True):
    """A model to add."""

    force: Annotated[bool, Meta(description="Add the model although it does not fit")] = False
    yaml: Annotated[
        str | None,
        Meta(description="The yaml of the proposal; if the source has changed since, the status is 409"),
    ] = None


class PruneRequest(Request, kw_only=True):
    """Unused weights to delete."""

    paths: Annotated[list[str], Meta(description="Paths from the list of unused weights")]


class FitResponse(Struct, kw_only=True):
    """Where a model can be loaded."""

    state: Annotated[
        Literal["fits", "evicts", "does not fit", "not known"],
        Meta(description="not known: only nodes run models, and none has joined"),
    ]
    device: str | None
    evicts: Annotated[tuple[str, ...], Meta(description="Models that may be evicted for it")]


class DeviceFit(Struct, kw_only=True):
    """Whether a model can be loaded on one device; ``state`` is null if its memory is unknown."""

    device: str
    state: Literal["fits", "evicts", "does not fit"] | None
    evicts: Annotated[tuple[str, ...], Meta(description="Models that may be evicted for it")]
    memory: Annotated[int, Meta(description="Bytes of the device")]
    free: Annotated[int, Meta(description="Bytes that are free now")]


class CatalogueModelResponse(Struct, kw_only=True):
    """A model of the catalogue."""

    short: Annotated[str, Meta(description="Short name, which is a source")]
    task: str
    hub: Annotated[str | None, Meta(description="Repository on the hub")]
    name: str
    licence: str
    size: int
    memory: int
    kind: str
    file: str | None
    options: dict[str, Any]
    aliases: tuple[str, ...]
    description: str
    gated: Annotated[bool, Meta(description="Whether the hub asks to accept a licence first")]
    tested: Annotated[bool, Meta(description="Whether the model has been run with this version")]
    fit: FitResponse


class CatalogueResponse(Struct, kw_only=True):
    """Models of the catalogue, the best match first."""

    models: list[CatalogueModelResponse]


class HubModelResponse(Struct, kw_only=True):
    """A repository of the hub."""

    source: Annotated[str, Meta(description="The source for a proposal")]
    repository: str
    task: str | None
    library: str | None
    licence: str | None
    downloads: Annotated[int, Meta(description="In the last 30 days")]
    gated: bool


class HubSearchResponse(Struct, kw_only=True):
    """Repositories of the hub, the most used first."""

    models: list[HubModelResponse]


class ProposalResponse(Struct, kw_only=True):
    """What adding a model would change."""

    name: str
    kind: str
    about: Annotated[str, Meta(description="What was found at the source")]
    options: dict[str, Any]
    licence: str | None
    weights: Annotated[int, Meta(description="Bytes of the weights")]
    download: Annotated[int, Meta(description="Bytes to download")]
    disk_free: Annotated[int, Meta(description="Free bytes on the disk of the data folder")]
    memory: Annotated[int | None, Meta(description="Estimated bytes on a device; null if unknown")]
    fit: Annotated[FitResponse | None, Meta(description="null if the memory is unknown")]
    devices: Annotated[tuple[DeviceFit, ...], Meta(description="The fit on each device")]
    gated: Annotated[bool, Meta(description="Whether the hub asks to accept a licence first")]
    problem: Annotated[str | None, Meta(description="Why the model is only added with force")]
    tested: Annotated[bool | None, Meta(description="null if the model is not in the catalogue")]
    yaml: Annotated[str, Meta(description="The entry in models.yaml")]
    diff: Annotated[str, Meta(description="Unified diff of models.yaml")]


class AdditionResponse(Struct, kw_only=True):
    """A model that is being added or updated, or the result if that has ended."""

    id: str
    model: str
    action: Literal["add", "update"]
    state: Literal["waiting", "downloading", "applying", "succeeded", "failed", "canceled"]
    step: Annotated[str, Meta(description="What the download does")]
    done: Annotated[int, Meta(description="Bytes of the step")]
    total: Annotated[int | None, Meta(description="Bytes of the step; null if unknown")]
    problem: Annotated[str | None, Meta(description="Why the addition failed")]
    reload: Annotated[ReloadResponse | None, Meta(description="The changes, if it succeeded")]
    created_at: Time
    ended_at: Time | None


class AdditionPage(Page[AdditionResponse], kw_only=True):
    """Additions that run, and the last ones that have ended, newest first."""


class UpdateResponse(Struct, kw_only=True):
    """The revision of a model, and the newest one of its source."""

    model: str
    old: str
    new: str


class UnusedWeights(Struct, kw_only=True):
    """A folder or file of weights that no model uses."""

    path: str
    size: int


class UnusedWeightsPage(Page[UnusedWeights], kw_only=True):
    """Unused weights, the largest first."""


class RemovalResponse(Struct, kw_only=True):
    """A model that was removed from models.yaml."""

    model: str
    reload: ReloadResponse
    weights: Annotated[list[UnusedWeights], Meta(description="Weights that only this model used")]
    deleted: Annotated[bool, Meta(description="Whether these weights were deleted")]


class PruneResponse(Struct, kw_only=True):
    """Weights that were deleted."""

    deleted: list[UnusedWeights]
    freed: int


REQUESTS: Final = (ProposalRequest, AdditionRequest, PruneRequest)
RESPONSES: Final = (
    CatalogueResponse,
    HubSearchResponse,
    ProposalResponse,
    AdditionResponse,
    AdditionPage,
    UpdateResponse,
    UnusedWeightsPage,
    RemovalResponse,
    PruneResponse,
)
