"""The sections of models.yaml, except models. Editors show the descriptions of the keys."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from appliance.config.account_sections import (
    AccessConfig,
    BudgetConfig,
    SignOnConfig,
)
from appliance.config.cluster_section import ClusterConfig
from appliance.domain.access import Group, Policy, Right
from appliance.domain.budget_rules import Budget
from appliance.domain.retention import RetentionRules
from appliance.domain.section import Section, size, subsection
from appliance.domain.values import (
    BucketUrl,
    Bytes,
    DeviceName,
    FilePath,
    HttpUrl,
    ModelName,
    ModelPattern,
    NetworkName,
    PathOrUrl,
    PostgresUrl,
    PublicUrl,
    Seconds,
    SyslogAddress,
)
from appliance.runners import model_configs
from appliance.runners.model_config import ModelConfig


class TlsConfig(Section):
    """Certificate and key for HTTPS."""

    certificate: FilePath = Field(
        description="PEM file with the certificate and its intermediate certificates. A relative path is "
        "resolved against the folder of this file."
    )
    key: FilePath = Field(description="PEM file with the certificate's private key, without a passphrase.")
    client_ca: FilePath | None = Field(
        default=None,
        description="PEM file with certificates of authorities. If it is set, every client needs a "
        "certificate of one of them, besides its token. Default: clients need no certificate.",
    )
    client_crl: FilePath | None = Field(
        default=None,
        description="PEM file with the certificate revocation list of each authority in client_ca. Clients "
        "with a revoked certificate are refused. Default: no certificate is revoked.",
    )


class ServerConfig(Section):
    """Listening, URLs, account and data folder of the appliance."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 means every interface. Overridden by --host.",
    )
    port: int = Field(
        default=8000,
        ge=1,
        le=65535,
        description="Port to listen on. Overridden by APPLIANCE_PORT and --port.",
    )
    tls: TlsConfig | None = Field(
        default=None,
        description="Serve HTTPS. Replicate's official clients return file objects only for https URLs. "
        "Default: plain HTTP.",
    )
    public_url: PublicUrl | None = Field(
        default=None,
        description="URL at which clients reach the appliance, used for links in responses. If the URL has a "
        "path, the reverse proxy must remove the path from requests. Default: the URL that each client used.",
    )
    trusted_proxies: tuple[NetworkName, ...] = Field(
        default=(),
        strict=False,
        description="Networks of reverse proxies whose X-Forwarded-Proto and X-Forwarded-Host are trusted.",
    )
    account: str = Field(
        default="appliance",
        pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$",
        description="Username of the account that owns the tokens.",
    )
    account_name: str | None = Field(
        default=None, min_length=1, description="Display name of the account. Default: the username."
    )
    data: FilePath | None = Field(
        default=None,
        description="Data folder: database, weights, caches, logs. Overridden by APPLIANCE_HOME and --home. "
        "A relative path is resolved against the folder of this file. Default: ~/.local/share/appliance.",
    )
    drain_timeout: Seconds = Field(
        default=30.0, description="Time for running predictions to end when the appliance is stopped."
    )


class LimitsConfig(Section):
    """Limits on requests, queues, loads and predictions."""

    body: Bytes = size("20MiB", "Largest request body.")
    queue_per_model: int = Field(
        default=1000,
        ge=1,
        description="Maximum number of waiting predictions of one model; further requests get status 429.",
    )
    queue: int = Field(
        default=5000, ge=1, description="Maximum number of waiting predictions of all models together."
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Maximum requests per minute of one token, except those that create predictions; more "
        "get status 429. All of them may come at once. Default: no limit.",
    )
    predictions_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Maximum predictions per minute that one token creates. Default: no limit.",
    )
    attempts: int = Field(
        default=2,
        ge=1,
        le=10,
        description="Maximum number of runs of a prediction whose worker process dies before any output.",
    )
    run_timeout: Annotated[Seconds, Field(gt=0)] = Field(
        default=1800.0, description="A prediction that runs longer fails."
    )
    load_timeout: Annotated[Seconds, Field(gt=0)] = Field(
        default=900.0, description="A model that takes longer to load fails to load."
    )
    cancel_grace: Annotated[Seconds, Field(gt=0)] = Field(
        default=10.0,
        description="A worker process that does not confirm a cancellation within this time is killed.",
    )
    budgets: tuple[BudgetConfig, ...] = Field(
        default=(),
        strict=False,
        description="Limits on the predictions of accounts, groups, tokens and models. Default: none.",
    )


class UiConfig(Section):
    """The web UI."""

    enabled: bool = Field(default=True, description="Serve the web UI at /. Overridden by --ui and --no-ui.")
    title: str = Field(default="Appliance", min_length=1, max_length=60, description="Title of the pages.")


class CodeConfig(Section):
    """Permission to run code of Cog projects."""

    cog: bool = Field(
        default=False,
        description="Allow building and running Cog projects, with the appliance's own permissions.",
    )


class EgressConfig(Section):
    """Private networks that the appliance may reach on behalf of clients."""

    allow: tuple[NetworkName, ...] = Field(
        default=(),
        strict=False,
        description="Private, link-local or loopback networks that webhooks and input URLs may reach.",
    )


class S3Config(Section):
    """A bucket of Amazon S3, or of a server with its API, for the content of files."""

    url: BucketUrl = Field(
        description="Bucket and prefix of its objects, e.g. s3://bucket/appliance. No other program, and no "
        "other appliance, may use the prefix."
    )
    endpoint: HttpUrl | None = Field(
        default=None,
        description="URL of a server with the API of S3, e.g. https://minio.example.org:9000. "
        "Default: AWS_ENDPOINT_URL, else Amazon S3.",
    )
    region: str | None = Field(
        default=None, description="Region of the bucket. Default: AWS_REGION, else us-east-1."
    )
    access_key_id: str | None = Field(
        default=None, description="Id of the access key. Default: AWS_ACCESS_KEY_ID, else the machine's role."
    )
    secret_access_key: str | None = Field(
        default=None, description="The secret access key; use ${VARIABLE}. Default: AWS_SECRET_ACCESS_KEY."
    )

    @model_validator(mode="after")
    def _both_keys(self) -> S3Config:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key belong together: set both or neither")
        return self

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("s3://").split("/", 1)[0]

    @property
    def prefix(self) -> str:
        """The prefix of objects without slashes at its ends; empty for none."""
        return self.url.removeprefix("s3://").partition("/")[2].strip("/")


class FilesConfig(Section):
    """Uploads, output files and input files."""

    max_upload: Bytes = size("100MB", "Largest upload.")
    quota: Bytes = size("20GiB", "Maximum size of all uploads together; further uploads are refused.")
    keep: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=86400.0,
        description="Time until an upload is deleted; null keeps it until a client deletes it.",
    )
    outputs: Literal["url", "data"] = Field(
        default="url",
        description="How outputs refer to files: url for unguessable URLs, data for data: URLs with content. "
        "Over plain HTTP Replicate's official clients return file objects only for data: URLs.",
    )
    max_data: Bytes = size("10MiB", "If outputs is data: larger files still get a URL.")
    max_input: Bytes = size("1GiB", "Largest file that is downloaded for an input.")
    input_timeout: Annotated[Seconds, Field(gt=0)] = Field(
        default=300.0, description="Time limit for downloading the input files of one prediction."
    )
    s3: S3Config | None = Field(
        default=None,
        description="Bucket to which the content of files is moved. Default: it stays in the data folder.",
    )


class StoreConfig(Section):
    """The database of predictions, tokens and all else that the appliance stores."""

    url: PostgresUrl | None = Field(
        default=None,
        description="URL of a PostgreSQL database, e.g. postgresql://appliance@db.example.org/appliance. The "
        "password may be in the URL (use ${VARIABLE}) or in the file that PGPASSFILE names. No other program "
        "may use the database. Default: an SQLite file in the data folder.",
    )


class RetentionConfig(Section):
    """How long data is kept."""

    predictions: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Time after the end of a prediction until its input, output, logs and files are removed; "
        "its status and metrics are kept. Conversations of the chat page are removed when they have not "
        "changed for this time. Default: never.",
    )
    models: dict[ModelPattern, Annotated[Seconds, Field(ge=0)]] = Field(
        default={},
        description="Time after which data of single models is removed, by name or pattern such as owner/*. "
        "The shortest of all times that apply to a prediction counts. 0 removes the data within seconds. "
        "Default: none.",
    )
    accounts: dict[str, Annotated[Seconds, Field(ge=0)]] = Field(
        default={},
        description="Time after which data of single accounts is removed, by username. Default: none.",
    )
    groups: dict[str, Annotated[Seconds, Field(ge=0)]] = Field(
        default={},
        description="Time after which data of the members of a group is removed, by name of the group in "
        "`access.groups`. Default: none.",
    )
    outputs: Bytes | None = Field(
        default=None,
        description="Maximum size of all output files together. Above it, the data of the oldest predictions "
        "is removed, as with `predictions`. Default: no limit.",
    )


class AuditConfig(Section):
    """The audit log: records of administrative acts and of refused requests."""

    retention: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=365 * 86400.0,
        description="Time until a record is deleted; null keeps records forever. Default: a year.",
    )
    file: FilePath | None = Field(
        default=None,
        description="File to which each record is also appended, as a line of JSON. A relative path is "
        "resolved against the folder of this file. Default: none.",
    )
    syslog: SyslogAddress | None = Field(
        default=None,
        description="Syslog server that also gets each record, in the format of RFC 5424: udp://host:port, "
        "or the absolute path of a Unix socket such as /dev/log. Default: none.",
    )


class PricesConfig(Section):
    """Prices of predictions, by hardware."""

    currency: str = Field(
        default="USD", pattern="^[A-Z]{3}$", description="ISO 4217 code of the currency of the prices."
    )
    per_second: dict[DeviceName, Annotated[float, Field(ge=0, le=1e6)]] = Field(
        default={},
        description="Price of one second of a prediction, by hardware SKU (see GET /v1/hardware). Other "
        "hardware costs nothing. Default: no prices.",
    )


class TelemetryConfig(Section):
    """Where traces are sent."""

    otlp_endpoint: HttpUrl | None = Field(
        default=None,
        description="URL of an OpenTelemetry collector for OTLP over HTTP; /v1/traces is appended. "
        "Overridden by OTEL_EXPORTER_OTLP_ENDPOINT. Default: no tracing.",
    )


class LoggingConfig(Section):
    """Format and level of the log."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="text: readable lines; json: one JSON object per line. Overridden by "
        "APPLIANCE_LOG_FORMAT.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged. Overridden by APPLIANCE_LOG_LEVEL."
    )
    slow_after: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Log a warning with the duration of each phase for predictions that take more seconds "
        "than this from creation to end. Default: no prediction.",
    )


class CollectionConfig(Section):
    """A list of models under a heading."""

    slug: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", description="Unique name of the collection in URLs."
    )
    name: str = Field(min_length=1, description="Display name of the collection.")
    description: str = Field(description="Description in one sentence.")
    full_description: str | None = Field(default=None, description="Long description, in Markdown.")
    models: tuple[ModelName, ...] = Field(strict=False, description="Names of models in this file, in order.")


class CatalogueConfig(Section):
    """The catalogue of models that can be added by short name."""

    source: PathOrUrl | None = Field(
        default=None,
        description="File or https URL of a catalogue of your own; its models come first. A relative path is "
        "resolved against the folder of this file. Overridden by APPLIANCE_CATALOGUE. Default: none.",
    )
    shipped: bool = Field(
        default=True, description="Whether the models of the catalogue of the appliance are offered too."
    )


class DeviceConfig(Section):
    """A logical device: a part of main memory that models are placed on as if it were a GPU."""

    name: DeviceName = Field(description="Unique name of the device.")
    memory: Bytes = Field(description="Memory that models may reserve on the device.")


_Devices = tuple[DeviceConfig, ...]


def _devices_tag(value: object) -> str:
    return "auto" if isinstance(value, str) else "declared"


class HardwareConfig(Section):
    """Devices, threads and memory for models."""

    devices: Annotated[
        Annotated[Literal["auto", "none"], Tag("auto")]
        | Annotated[_Devices, Tag("declared"), Field(strict=False, min_length=1)],
        Discriminator(_devices_tag),
    ] = Field(
        default="auto",
        description="auto: the GPUs of the machine, or the CPU if it has none. none: this machine, the head "
        "of a cluster, runs no models. Or a list of logical devices.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="CPU threads that one model may use. Default: all CPUs of the appliance but one, which "
        "handles requests.",
    )
    host_memory: Bytes | None = Field(
        default=None,
        description="Main memory for models (the device named cpu): for all models if there is no GPU; with "
        "GPUs, for models on the CPU and for weights of sleeping models. Default: 80 % of the main memory of "
        "the appliance; with logical devices there is no cpu device unless this is set.",
    )


#: Kind of model -> the class of such models in models.yaml.
MODELS: Final = model_configs()

if TYPE_CHECKING:
    _AnyModel = ModelConfig
else:
    _AnyModel = Annotated[functools.reduce(operator.or_, MODELS.values()), Discriminator("kind")]


class Config(Section):
    """The config file, models.yaml."""

    server: ServerConfig = subsection(ServerConfig(), "Bind address, account, data folder.")
    limits: LimitsConfig = subsection(LimitsConfig(), "Limits on requests, queues, loads and predictions.")
    retention: RetentionConfig = subsection(RetentionConfig(), "How long data is kept.")
    audit: AuditConfig = subsection(AuditConfig(), "Records of administrative acts and refused requests.")
    files: FilesConfig = subsection(FilesConfig(), "Uploads, outputs and inputs that are files.")
    store: StoreConfig = subsection(StoreConfig(), "The database.")
    code: CodeConfig = subsection(CodeConfig(), "Permission to run code of Cog projects.")
    egress: EgressConfig = subsection(
        EgressConfig(), "Private networks that the appliance may reach on behalf of clients."
    )
    ui: UiConfig = subsection(UiConfig(), "The web UI.")
    hardware: HardwareConfig = subsection(HardwareConfig(), "Devices, threads and memory for models.")
    cluster: ClusterConfig | None = Field(
        default=None,
        description="Makes this machine the head of a cluster, which other machines can join. Default: the "
        "appliance uses only this machine.",
    )
    logging: LoggingConfig = subsection(LoggingConfig(), "Format and level of the log.")
    telemetry: TelemetryConfig = subsection(TelemetryConfig(), "Where traces are sent.")
    access: AccessConfig | None = Field(
        default=None,
        description="Who may use which models, and what else accounts may do. The account in server.account "
        "may do everything. Default: every account may use all models, and do what its tokens permit.",
    )
    sign_on: SignOnConfig = subsection(
        SignOnConfig(), "How people sign in to the web UI, besides with tokens."
    )
    prices: PricesConfig = subsection(PricesConfig(), "Prices of predictions.")
    catalogue: CatalogueConfig = subsection(
        CatalogueConfig(), "The catalogue of models that can be added by short name."
    )
    collections: tuple[CollectionConfig, ...] = Field(
        default=(), strict=False, description="Lists of models under a heading."
    )
    models: tuple[_AnyModel, ...] = Field(
        strict=False, min_length=1, description="The models that can be called."
    )

    @property
    def access_policy(self) -> Policy:
        """Return the rights of all accounts."""
        if self.access is None:
            return Policy()
        groups = [
            Group(name, frozenset(each.members), each.models, frozenset(map(Right, each.may)), each.priority)
            for name, each in self.access.groups.items()
        ]
        shared = self.access.everybody
        everybody = Group("everybody", frozenset(), shared.models, frozenset(map(Right, shared.may)))
        return Policy(groups, everybody, self.server.account)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(
            Budget(period=each.per, **each.model_dump(exclude={"per"})) for each in self.limits.budgets
        )

    def retention_rules(self, policy: Policy) -> RetentionRules:
        """Return how long data is kept. ``policy`` has the members of groups."""
        kept = self.retention
        return RetentionRules(kept.predictions, kept.models, kept.accounts, kept.groups, policy)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: Any) -> Any:
        """Drop empty sections: YAML reads a section as null if all its keys are commented out."""
        if not isinstance(value, dict):
            return value
        return {key: each for key, each in value.items() if each is not None or key == "models"}
