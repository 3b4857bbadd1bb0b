"""The bodies of the responses of ``/admin``, ``/healthz`` and ``/readyz``, as structs.

Sizes are in bytes and durations in seconds. A field that is ``UNSET`` is absent from the response.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from appliance.protocols.response_types import (
    Page,
    PredictionResponse,
    Time,
)


class HealthResponse(Struct, kw_only=True):
    """The gateway is alive."""

    status: Literal["ok"]


class ReadinessResponse(Struct, kw_only=True):
    """Whether predictions are accepted."""

    status: Literal["ready", "not ready"]
    reasons: Annotated[list[str] | UnsetType, Meta(description="Why the appliance is not ready")] = UNSET


class ModelStateResponse(Struct, kw_only=True):
    """The state of a model."""

    name: str
    state: str
    pinned: bool | UnsetType = UNSET
    detail: str | UnsetType = UNSET


# -- the machine and its models ----------------------------------------------------------------------------


class ModelMemory(Struct, kw_only=True):
    """Memory that a model takes on each of its devices."""

    bytes: int | None
    share: Annotated[float | None, Meta(description="Share of a device, if models.yaml declares a share")]
    origin: Annotated[str, Meta(description="declared, estimated or measured")] = field(name="from")
    estimate: Annotated[int | None, Meta(description="Estimate before the first load")]
    peak: Annotated[int | None, Meta(description="Highest measured use; null before the first load")]
    exceeds: Annotated[bool, Meta(description="Whether the model takes more than models.yaml declares")]
    out_of_memory: Annotated[int, Meta(description="How often its worker process ran out of memory")]
    fits: Annotated[
        bool,
        Meta(
            description="Whether the model could be loaded beside the pinned models; true while it is not "
            "known, because only nodes run models, and none has joined"
        ),
    ]
    fits_on: Annotated[tuple[str, ...], Meta(description="Devices that could hold the model")]
    problem: Annotated[str | None, Meta(description="Why the model does not fit")]


class Decision(Struct, kw_only=True):
    """An event of the scheduler's log."""

    number: int
    at: Time
    kind: str = field(name="what")
    model: str
    on_behalf_of: Annotated[str | None, Meta(description="The model that gets the memory")] = field(
        name="for"
    )
    reason: str = field(name="why")
    devices: tuple[str, ...]
    memory: Annotated[int, Meta(description="Bytes on each device")]
    seconds: float | None
    idle: Annotated[
        float | None,
        Meta(description="Seconds since the last prediction of a model that is unloaded or put to sleep"),
    ]
    text: Annotated[str, Meta(description="The event as a sentence")]


class DeviceMemoryUse(Struct, kw_only=True):
    """The memory of a device."""

    name: str
    reserved: Annotated[dict[str, int], Meta(description="Bytes by model")]
    free: Annotated[int, Meta(description="Negative while other programs use reserved memory")]
    foreign: Annotated[int, Meta(description="Bytes used by other programs")]


class DeviceStatus(DeviceMemoryUse, kw_only=True):
    """A device and its memory."""

    kind: Literal["cpu", "cuda"]
    memory: Annotated[int, Meta(description="Bytes that models may reserve")]
    label: str
    logical: Annotated[bool, Meta(description="Whether models.yaml declares the device")]
    is_main_memory: bool


class ModelPart(Struct):
    """The part of a model on one of its machines."""

    node: str
    state: Annotated[str, Meta(description="waiting for a replica, loading, ready, or ending")]


class ModelStatus(Struct, kw_only=True):
    """A model with its state, instances and memory."""

    name: str
    kind: str
    state: str
    loading_for: float | None
    load_seconds: Annotated[float | None, Meta(description="Duration of the last load")]
    pinned: bool
    queued: Annotated[int, Meta(description="Number of predictions")]
    running: Annotated[int, Meta(description="Number of predictions")]
    devices: tuple[str, ...]
    instances: Annotated[int, Meta(description="Number of instances that are not cold")]
    memory: ModelMemory
    copying_to: Annotated[
        str | None,
        Meta(description="Nodes of the cluster that the weights are being copied to, separated by commas"),
    ] = None
    parts: Annotated[
        list[ModelPart], Meta(description="Of a model on several machines, the leader first; else empty")
    ] = []
    head_only: Annotated[
        str | None, Meta(description="Why the model runs only on the head of the cluster")
    ] = None
    fits_nowhere: Annotated[
        str | None,
        Meta(
            description="Why predictions of the model wait for another node: it fits on no node that is ready"
        ),
    ] = None


class SchedulerStatus(Struct, kw_only=True):
    """The scheduler's part of ``ApplianceStatusResponse``."""

    draining: Annotated[bool, Meta(description="Whether the appliance is stopping")]
    queued: Annotated[int, Meta(description="Number of predictions")]
    models: list[ModelStatus]
    devices: list[DeviceMemoryUse]
    decisions: Annotated[list[Decision], Meta(description="The newest decisions, newest first")]


class ModelNotServed(Struct, kw_only=True):
    """A model of models.yaml that cannot be served."""

    name: str
    problem: str


class ApplianceStatusResponse(Struct, kw_only=True):
    """The state of the devices and models."""

    version: str
    uptime: Annotated[float, Meta(description="Seconds")]
    draining: Annotated[bool, Meta(description="Whether the appliance is stopping")]
    queued: Annotated[int, Meta(description="Number of predictions")]
    models: list[ModelStatus]
    devices: list[DeviceStatus]
    decisions: Annotated[list[Decision], Meta(description="The newest decisions, newest first")]
    not_served: list[ModelNotServed]
    runs_models: Annotated[
        bool, Meta(description="false: this machine runs no models, only the other nodes of its cluster do")
    ] = True


class DeviceResidency(DeviceMemoryUse, kw_only=True):
    """A device with the models on it."""

    memory: Annotated[int, Meta(description="Bytes that models may reserve")]


class ModelResidency(Struct, kw_only=True):
    """A model, or an instance of a model, in the scheduler."""

    name: str
    state: str
    devices: tuple[str, ...]
    queued: Annotated[int, Meta(description="Number of predictions")]
    running: Annotated[int, Meta(description="Number of predictions")]
    load_seconds: Annotated[float | None, Meta(description="Duration of the last load")]
    pinned: bool
    priority: int
    memory: ModelMemory


class WaitingModel(Struct, kw_only=True):
    """A model that waits for memory."""

    position: Annotated[int, Meta(description="1: the model that is loaded next")]
    model: str
    queued: Annotated[int, Meta(description="Number of predictions")]
    waited: float
    claimed_devices: tuple[str, ...] = field(name="cleared_for_it")


class ResidencyResponse(Struct, kw_only=True):
    """The scheduler's devices, models and decisions."""

    devices: list[DeviceResidency]
    models: list[ModelResidency]
    waiting: list[WaitingModel]
    decisions: Annotated[list[Decision], Meta(description="Newest first")]


class ReloadResponse(Struct, kw_only=True):
    """The changes of a reload of models.yaml."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Annotated[dict[str, tuple[str, ...]], Meta(description="Changed keys by model")]
    settings: Annotated[tuple[str, ...], Meta(description="Changed keys outside of models")]
    needs_restart: Annotated[tuple[str, ...], Meta(description="Changed keys that need a restart")]
    not_served: Annotated[dict[str, str], Meta(description="Why a model cannot be served, by model")]


class MainMemory(Struct, kw_only=True):
    """The machine's main memory."""

    total: int
    available: int


class Disk(Struct, kw_only=True):
    """The disk that holds the data folder."""

    folder: Annotated[str, Meta(description="Absolute path of the data folder")]
    total: int
    free: int
    parts: Annotated[dict[str, int], Meta(description="Bytes by folder in the data folder")]


class MachineResponse(Struct, kw_only=True):
    """Threads, main memory and disk of the machine, and the outcomes of webhooks."""

    threads: int
    memory: MainMemory
    disk: Disk
    webhooks: Annotated[
        dict[str, int],
        Meta(
            description="Attempts to send a webhook since the gateway started: delivered, retried, given_up"
        ),
    ]


class DeviceHistory(Struct, kw_only=True):
    """The measurements of a device, one value for each time of ``HistoryResponse.at``."""

    name: str
    memory: Annotated[int, Meta(description="Bytes that models may reserve")]
    is_main_memory: bool
    reserved: Annotated[dict[str, list[int]], Meta(description="Bytes by model")]
    foreign: Annotated[list[int], Meta(description="Bytes used by other programs")]
    utilisation: Annotated[
        list[float | None] | None,
        Meta(description="Share of the time in which the GPU computed; null if it cannot be measured"),
    ]
    power: Annotated[
        list[float | None] | None,
        Meta(description="Power of the GPU in watts; null if it cannot be measured"),
    ] = None
    temperature: Annotated[
        list[float | None] | None,
        Meta(description="Temperature of the GPU in degrees Celsius; null if it cannot be measured"),
    ] = None


class ModelHistory(Struct, kw_only=True):
    """The work of a model, one value for each time of ``HistoryResponse.at``."""

    name: str
    queued: list[int]
    running: list[int]
    tokens_per_second: Annotated[
        list[float],
        Meta(
            description="Output tokens; if the model's inference engine reports no metrics, the tokens of a "
            "prediction are added when it ends"
        ),
    ]
    kv_cache: Annotated[
        list[float] | None,
        Meta(
            description="Highest share of the KV cache in use, 0 to 1; null if the model's inference engine "
            "does not measure it"
        ),
    ] = None


class ModelLoad(Struct, kw_only=True):
    """A load of a model, or its waking, that has succeeded."""

    at: Time
    model: str
    seconds: float


class InstanceLog(Struct, kw_only=True):
    """Output of the worker processes of an instance of a model."""

    instance: Annotated[
        str, Meta(description="Name of the model, with a suffix for a version or an instance")
    ]
    lines: Annotated[list[str], Meta(description="Oldest first, with credentials masked")]


class ModelLogsResponse(Struct, kw_only=True):
    """The end of the output of a model's worker processes."""

    model: str
    instances: Annotated[list[InstanceLog], Meta(description="Instances that have been loaded")]


class HistoryResponse(Struct, kw_only=True):
    """The last hour of the machine. It is kept in memory, so it begins at the last start of the gateway."""

    seconds: Annotated[float, Meta(description="How long a sample is kept")]
    interval: Annotated[float, Meta(description="Seconds between two samples")]
    at: Annotated[list[Time], Meta(description="Times of the samples, oldest first")]
    devices: list[DeviceHistory]
    models: Annotated[list[ModelHistory], Meta(description="Models that had work in this hour")]
    memory: Annotated[int, Meta(description="Bytes of main memory")]
    available: Annotated[list[int], Meta(description="Available bytes of main memory")]
    loads: Annotated[list[ModelLoad], Meta(description="Oldest first")]


# -- usage and history -------------------------------------------------------------------------------------


class UsageRow(Struct, kw_only=True):
    """Usage of a group of predictions; only the keys that the request groups by are present."""

    day: str | UnsetType | None = UNSET
    model: str | UnsetType | None = UNSET
    work: Annotated[str | UnsetType | None, Meta(description="prediction or training")] = UNSET
    owner: str | UnsetType | None = UNSET
    token: Annotated[str | UnsetType | None, Meta(description="Id of the token")] = UNSET
    hardware: str | UnsetType | None = UNSET
    token_name: str | UnsetType | None = UNSET
    predictions: int
    succeeded: int
    failed: int
    canceled: int
    aborted: int
    predict_time: float
    cold_starts: Annotated[int, Meta(description="Predictions that waited for their model to be loaded")]
    cold_start: Annotated[float, Meta(description="Seconds of that waiting")]
    input_tokens: int
    output_tokens: int
    cost: Annotated[float | None, Meta(description="null if no part of the usage has a price")]
    unpriced_time: Annotated[float, Meta(description="Seconds that the cost leaves out")]


class UsageResponse(Struct, kw_only=True):
    """Usage from one day to another, both included."""

    first: Annotated[str, Meta(description="YYYY-MM-DD, in UTC")] = field(name="from")
    last: Annotated[str, Meta(description="YYYY-MM-DD, in UTC")] = field(name="to")
    by: Annotated[list[str], Meta(description="The keys that the rows are grouped by")]
    currency: Annotated[str | None, Meta(description="null without prices in models.yaml")]
    rows: list[UsageRow]
    total: UsageRow


class DeliveryResponse(Struct, kw_only=True):
    """The delivery of a webhook."""

    id: str
    event: str
    state: Literal["pending", "delivered", "given up"]
    attempts: int
    due_at: Time | None  # of the next attempt
    ended_at: Time | None
    problem: str | None


class Phase(Struct, kw_only=True):
    """A phase of a prediction."""

    phase: Literal["queued", "loading", "running"]
    begin: Time = field(name="from")
    end: Annotated[Time | None, Meta(description="null while the phase lasts")] = field(name="to")
    seconds: float


class Preview(Struct, kw_only=True):
    """The beginning of a prediction's input and output, as one line of text each."""

    input: str
    output: str


class AdminPredictionResponse(PredictionResponse, kw_only=True):
    """A prediction or training with details for operators. Lists omit the fields that may be long."""

    input: dict[str, Any] | UnsetType = UNSET  # type: ignore[assignment]  # absent from lists
    logs: str | UnsetType = UNSET  # type: ignore[assignment]  # absent from lists
    destination: str | UnsetType = UNSET
    type: Literal["prediction", "training"]
    owner: str
    token: Annotated[str | None, Meta(description="Id of the token that created the prediction")]
    token_name: str | None
    hardware: Annotated[str | None, Meta(description="SKU of the devices that the prediction ran on")]
    attempts: int
    preview: Annotated[Preview | UnsetType, Meta(description="Only in lists")] = UNSET
    timeline: Annotated[list[Phase] | UnsetType, Meta(description="Absent from lists")] = UNSET
    model_state: Annotated[
        str | UnsetType | None, Meta(description="null if the version is no longer served")
    ] = UNSET
    newest_version: Annotated[
        bool | UnsetType, Meta(description="Whether the prediction ran on the model's newest version")
    ] = UNSET
    example: Annotated[
        bool | UnsetType, Meta(description="Whether the prediction is an example of its model")
    ] = UNSET
    deliveries: Annotated[list[DeliveryResponse] | UnsetType, Meta(description="Of webhooks")] = UNSET
    cost: Annotated[float | UnsetType | None, Meta(description="null without a price")] = UNSET
    currency: str | UnsetType | None = UNSET


class AdminPredictionPage(Page[AdminPredictionResponse], kw_only=True):
    """A page of predictions and trainings."""


#: Each body that an operation of the OpenAPI document responds with.
RESPONSES: Final = (
    HealthResponse,
    ReadinessResponse,
    ModelStateResponse,
    ApplianceStatusResponse,
    ResidencyResponse,
    ReloadResponse,
    MachineResponse,
    HistoryResponse,
    ModelLogsResponse,
    UsageResponse,
    AdminPredictionResponse,
    AdminPredictionPage,
)
