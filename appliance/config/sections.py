"""models.yaml as a whole, and its sections about the appliance itself. Editors show the descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from appliance.config.models import (
    CogModel,
    DiffusersModel,
    EchoModel,
    EmbeddingsModel,
    PiperModel,
    TransformersModel,
    VllmModel,
    WhisperModel,
)
from appliance.domain.section import Section, size, subsection
from appliance.domain.values import Address, Bytes, DeviceName, FilePath, ModelName, NetworkName, Seconds


class TlsConfig(Section):
    """What HTTPS is spoken with."""

    certificate: FilePath = Field(
        description="PEM file with the certificate, and those between it and its root. A relative path "
        "counts from the config file."
    )
    key: FilePath = Field(description="PEM file with its private key, without a passphrase.")


class ServerConfig(Section):
    """Where the appliance listens, what it calls itself, where it keeps its data."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 is every interface. Overridden by --host.",
    )
    port: int = Field(
        default=8000,
        ge=1,
        le=65535,
        description="Port to listen on. Overridden by APPLIANCE_PORT and --port.",
    )
    tls: TlsConfig | None = Field(
        default=None,
        description="Speak HTTPS. Official clients make file objects of outputs at https addresses only. "
        "Default: plain HTTP.",
    )
    public_url: Address | None = Field(
        default=None,
        description="Address under which clients reach it, for the links in its answers. "
        "Default: the one that each client used.",
    )
    trusted_proxies: tuple[NetworkName, ...] = Field(
        default=(),
        strict=False,
        description="Networks of reverse proxies whose X-Forwarded-Proto and X-Forwarded-Host are believed.",
    )
    account: str = Field(
        default="appliance",
        pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$",
        description="Username of the account that owns the tokens.",
    )
    account_name: str | None = Field(
        default=None, min_length=1, description="The account's name for people. Default: the username."
    )
    data: FilePath | None = Field(
        default=None,
        description="Data folder: database, weights, caches, logs. Overridden by APPLIANCE_HOME and --home. "
        "A relative path counts from the config file. Default: ~/.local/share/appliance.",
    )
    drain_timeout: Seconds = Field(
        default=30.0, description="How long running predictions may go on when the appliance is stopped."
    )


class LimitsConfig(Section):
    """What protects the appliance from its clients, and predictions from a broken model."""

    body: Bytes = size("20MiB", "Largest request body.")
    queue_per_model: int = Field(
        default=1000, ge=1, description="Predictions that may wait for one model; more are answered with 429."
    )
    queue: int = Field(default=5000, ge=1, description="Predictions that may wait in all.")
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests of one token that do not create a prediction; more are answered with 429. "
        "As many may come at once. Default: no limit.",
    )
    predictions_per_minute: int | None = Field(
        default=None, ge=1, description="Predictions that one token may create, likewise. Default: no limit."
    )
    attempts: int = Field(
        default=2,
        ge=1,
        le=10,
        description="How often a prediction is run when its engine host dies before it has shown any output.",
    )
    run_timeout: Annotated[Seconds, Field(gt=0)] = Field(
        default=1800.0, description="A prediction that runs longer fails."
    )
    load_timeout: Annotated[Seconds, Field(gt=0)] = Field(
        default=900.0, description="A model that takes longer to load fails to load."
    )
    cancel_grace: Annotated[Seconds, Field(gt=0)] = Field(
        default=10.0,
        description="An engine host that does not confirm a cancellation within this time is killed.",
    )


class UiConfig(Section):
    """The pages for people."""

    enabled: bool = Field(
        default=True, description="Whether browsers get pages at /. Overridden by --ui and --no-ui."
    )
    title: str = Field(
        default="Appliance", min_length=1, max_length=60, description="What the pages call this appliance."
    )


class CodeConfig(Section):
    """Whose code is run."""

    cog: bool = Field(
        default=False,
        description="Whether Cog projects may be built and run, with the rights of the appliance.",
    )


class EgressConfig(Section):
    """What may be reached because a caller asks for it."""

    allow: tuple[NetworkName, ...] = Field(
        default=(),
        strict=False,
        description="Networks that webhooks and inputs may reach although they are private or loopback.",
    )


class FilesConfig(Section):
    """What callers upload, what models make, and what models are given."""

    max_upload: Bytes = size("100MB", "Largest upload.")
    quota: Bytes = size("20GiB", "What all uploads may take together; more are refused.")
    keep: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=86400.0,
        description="How long an upload is kept; null keeps it until it is deleted.",
    )
    outputs: Literal["url", "data"] = Field(
        default="url",
        description="How outputs name their files: by addresses that nobody can guess, or by data: URLs, "
        "which hold the file itself. Over plain HTTP official clients make file objects of the latter only.",
    )
    max_data: Bytes = size("10MiB", "With data: a larger file has an address all the same.")
    max_input: Bytes = size("1GiB", "Largest file that is fetched for an input.")
    input_timeout: Annotated[Seconds, Field(gt=0)] = Field(
        default=300.0, description="How long the files of one prediction's input may take to arrive."
    )


class RetentionConfig(Section):
    """How long data is kept."""

    predictions: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Input, output, logs and files of a prediction are removed so long after its end; "
        "that it was, how it ended and its metrics stay. Default: never.",
    )
    outputs: Bytes | None = Field(
        default=None,
        description="What the files of all outputs may take together: over it, those of the oldest "
        "predictions are removed as above, before their time. Default: no limit.",
    )


class PricesConfig(Section):
    """What models cost, by what they run on."""

    currency: str = Field(
        default="USD", pattern="^[A-Z]{3}$", description="ISO 4217 code of the currency of the prices."
    )
    per_second: dict[DeviceName, Annotated[float, Field(ge=0, le=1e6)]] = Field(
        default={},
        description="Price of a second of predictions, by SKU, as GET /v1/hardware names them. What runs on "
        "others has no cost. Default: none has.",
    )


class TelemetryConfig(Section):
    """Where traces are sent."""

    otlp_endpoint: Address | None = Field(
        default=None,
        description="Address of an OpenTelemetry collector that takes OTLP over HTTP; /v1/traces is added. "
        "Overridden by OTEL_EXPORTER_OTLP_ENDPOINT. Default: nothing is traced.",
    )


class LoggingConfig(Section):
    """What the log looks like."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="Lines for people, or a JSON object a line. Overridden by APPLIANCE_LOG_FORMAT.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is logged. Overridden by APPLIANCE_LOG_LEVEL."
    )


class CollectionConfig(Section):
    """A list of models under a heading."""

    slug: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", description="Its name in addresses, unique."
    )
    name: str = Field(min_length=1, description="Its name for people.")
    description: str = Field(description="What is in it, in a sentence.")
    full_description: str | None = Field(default=None, description="The same at length, in Markdown.")
    models: tuple[ModelName, ...] = Field(strict=False, description="Names of models in this file, in order.")


class DeviceConfig(Section):
    """A logical device: a part of main memory on which models are placed as if it were a GPU."""

    name: DeviceName = Field(description="Its name, unique.")
    memory: Bytes = Field(description="What models may reserve on it.")


_Devices = tuple[DeviceConfig, ...]


def _devices_tag(value: object) -> str:
    return "auto" if isinstance(value, str) else "declared"


class HardwareConfig(Section):
    """What models may use of the machine."""

    devices: Annotated[
        Annotated[Literal["auto"], Tag("auto")]
        | Annotated[_Devices, Tag("declared"), Field(strict=False, min_length=1)],
        Discriminator(_devices_tag),
    ] = Field(
        default="auto",
        description="auto: the machine's GPUs, or the CPU where there is none. Or a list of logical devices.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="CPU threads a model may compute with. Default: all that the appliance may use but one, "
        "which keeps requests moving.",
    )
    host_memory: Bytes | None = Field(
        default=None,
        description="Memory of the device called cpu: for all models where there is no GPU, beside GPUs for "
        "those that compute on the CPU and the weights of sleepers. Default: 80 % of the main memory the "
        "appliance may use; beside logical devices there is no cpu unless this is given.",
    )


_AnyModel = Annotated[
    EchoModel
    | VllmModel
    | EmbeddingsModel
    | DiffusersModel
    | WhisperModel
    | PiperModel
    | TransformersModel
    | CogModel,
    Discriminator("kind"),
]


class Config(Section):
    """models.yaml."""

    server: ServerConfig = subsection(ServerConfig(), "Address, account, data folder.")
    limits: LimitsConfig = subsection(LimitsConfig(), "Sizes, queues, times.")
    retention: RetentionConfig = subsection(RetentionConfig(), "How long data is kept.")
    files: FilesConfig = subsection(FilesConfig(), "Uploads, outputs and inputs that are files.")
    code: CodeConfig = subsection(CodeConfig(), "Whose code is run.")
    egress: EgressConfig = subsection(EgressConfig(), "Networks that may be reached for callers.")
    ui: UiConfig = subsection(UiConfig(), "The pages for people.")
    hardware: HardwareConfig = subsection(HardwareConfig(), "Devices, threads, memory.")
    logging: LoggingConfig = subsection(LoggingConfig(), "What the log looks like.")
    telemetry: TelemetryConfig = subsection(TelemetryConfig(), "Where traces are sent.")
    prices: PricesConfig = subsection(PricesConfig(), "What a second costs.")
    collections: tuple[CollectionConfig, ...] = Field(
        default=(), strict=False, description="Lists of models under a heading."
    )
    models: tuple[_AnyModel, ...] = Field(
        strict=False, min_length=1, description="The models that can be called."
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        """A section whose keys are all commented out reads as null; it is one that says nothing."""
        if not isinstance(value, dict):
            return value
        return {key: part for key, part in value.items() if part is not None or key == "models"}
