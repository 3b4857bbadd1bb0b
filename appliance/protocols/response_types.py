"""The bodies of the responses of Replicate's HTTP API, as structs.

``serializers`` builds them from records, and the served OpenAPI document is generated from them. A field that
is ``UNSET`` is absent from the response; None is written as null.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

from appliance.domain.prediction import WEBHOOK_EVENTS, Status

Item = TypeVar("Item")

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Url = Annotated[str, Meta(extra_json_schema={"format": "uri"})]
WebhookEvent = Annotated[str, Meta(extra_json_schema={"enum": list(WEBHOOK_EVENTS)})]
_METRICS: Final = {
    "predict_time": {"type": "number", "description": "Seconds that the prediction ran"},
    "total_time": {"type": "number", "description": "Seconds from creation to completion"},
    "input_token_count": {"type": "integer"},
    "output_token_count": {"type": "integer"},
}
_TRAINING_OUTPUT: Final = {
    "version": {"type": "string", "description": "owner/name:version"},
    "weights": {"type": "string", "format": "uri"},
}


class Page(Struct, Generic[Item], kw_only=True):
    """A page of a list."""

    next: Annotated[Url | None, Meta(description="URL of the following page")]
    previous: Annotated[Url | None, Meta(description="URL of the preceding page")]
    results: list[Item]


# The bodies of errors are made by `ApplianceError.body`; these structs only describe them.
class ProblemResponse(Struct, kw_only=True):
    """An error."""

    detail: Annotated[str, Meta(description="What is wrong")]
    title: str | UnsetType = UNSET
    status: int | UnsetType = UNSET
    type: str | UnsetType = UNSET
    instance: str | UnsetType = UNSET


class InvalidField(Struct, kw_only=True):
    """A wrong field of a request."""

    type: str
    field: Annotated[str, Meta(description="Path in the body, with dots between its parts")]
    description: str


class InvalidInputResponse(ProblemResponse, kw_only=True):
    """An error that names each wrong field."""

    invalid_fields: list[InvalidField]


class ThrottledResponse(ProblemResponse, kw_only=True):
    """An error that says when to try again."""

    retry_after: Annotated[int, Meta(description="Seconds")]


class AccountResponse(Struct, kw_only=True):
    """The account behind a token."""

    type: Literal["user", "organization"]
    username: str
    name: str
    github_url: Url | UnsetType = UNSET
    avatar_url: Url | UnsetType = UNSET


class HardwareResponse(Struct, kw_only=True):
    """A kind of device of this machine."""

    name: str
    sku: str


class WebhookSecretResponse(Struct, kw_only=True):
    """The key that webhooks are signed with."""

    key: Annotated[str, Meta(extra_json_schema={"pattern": "^whsec_[A-Za-z0-9+/=]+$"})]


class VersionResponse(Struct, kw_only=True):
    """A version of a model."""

    id: Annotated[str, Meta(extra_json_schema={"pattern": "^[0-9a-f]{64}$"})]
    created_at: Time
    cog_version: str
    openapi_schema: Annotated[
        dict[str, Any], Meta(description="OpenAPI document that describes the version's inputs and output")
    ]


class PredictionUrls(Struct, kw_only=True):
    """URLs of a prediction or a training."""

    get: Url
    cancel: Url
    stream: Annotated[Url | UnsetType, Meta(description="Server-sent events; not of trainings")] = UNSET
    web: Url


class PredictionResponse(Struct, kw_only=True):
    """A prediction."""

    id: Annotated[
        str,
        Meta(description="26 lowercase letters and digits", extra_json_schema={"pattern": "^[a-z0-9]{26}$"}),
    ]
    model: Annotated[str, Meta(description="owner/name")]
    version: Annotated[str, Meta(description="64 hex digits")]
    input: Annotated[dict[str, Any], Meta(description="The inputs as the caller sent them")]
    logs: str
    error: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="Why the prediction failed; null otherwise"),
    ]
    status: Status
    created_at: Time
    data_removed: Annotated[bool, Meta(description="Whether input, output and logs were removed")]
    source: Annotated[str, Meta(extra_json_schema={"enum": ["api", "web"]})]
    urls: PredictionUrls
    output: Annotated[Any, Meta(description="Any JSON; absent until there is output")] = UNSET
    started_at: Time | UnsetType = UNSET
    completed_at: Time | UnsetType = UNSET
    metrics: Annotated[dict[str, Any], Meta(extra_json_schema={"properties": _METRICS})] | UnsetType = UNSET
    webhook: Url | UnsetType = UNSET
    webhook_events_filter: list[WebhookEvent] | UnsetType = UNSET
    deployment: Annotated[
        str | UnsetType, Meta(description="owner/name of the deployment that was called")
    ] = UNSET
    parent: Annotated[
        str | UnsetType, Meta(description="Id of the prediction that created this one while it ran")
    ] = UNSET
    operation: Annotated[
        str | UnsetType, Meta(description="The operation, if another API than Replicate's was called")
    ] = UNSET
    deadline: Annotated[Time | UnsetType, Meta(description="When Cancel-After cancels the prediction")] = (
        UNSET
    )
    parts: Annotated[
        list[str] | UnsetType,
        Meta(description="Ids of the predictions that this one created; absent from lists"),
    ] = UNSET


class TrainingResponse(PredictionResponse, kw_only=True):
    """A training."""

    output: (
        Annotated[dict[str, Any], Meta(extra_json_schema={"properties": _TRAINING_OUTPUT})] | UnsetType
    ) = UNSET
    destination: Annotated[
        str | UnsetType, Meta(description="owner/name of the model that gets the new version")
    ] = UNSET


class ModelResponse(Struct, kw_only=True):
    """A model."""

    url: Url
    owner: str
    name: str
    description: str | None
    visibility: Annotated[str, Meta(extra_json_schema={"enum": ["public", "private"]})]
    is_official: bool
    created_at: Time
    github_url: str | None
    paper_url: str | None
    license_url: str | None
    weights_url: str | None
    cover_image_url: str | None
    run_count: Annotated[int, Meta(description="Number of predictions created")]
    default_example: PredictionResponse | None
    latest_version: VersionResponse | None


class CollectionResponse(Struct, kw_only=True):
    """A collection of models, as lists show it."""

    name: str
    slug: str
    description: str


class CollectionDetailResponse(CollectionResponse, kw_only=True):
    """A collection with its models."""

    full_description: Annotated[str | None, Meta(description="Markdown")]
    models: list[ModelResponse]


class FoundMetadata(Struct, kw_only=True):
    """Why a search found a model."""

    generated_description: str
    tags: list[str]
    score: float


class FoundModel(Struct, kw_only=True):
    """A model that a search found."""

    model: ModelResponse
    metadata: FoundMetadata


class FoundCollection(CollectionResponse, kw_only=True):
    """A collection that a search found."""

    models: Annotated[list[str], Meta(description="owner/name of each model")]


class FoundPage(Struct, kw_only=True):
    """A page of the documentation that a search found. The appliance finds none."""

    name: str
    href: str


class SearchResultsResponse(Struct, kw_only=True):
    """The models and collections that a search found, best first."""

    query: str
    models: list[FoundModel]
    collections: list[FoundCollection]
    pages: list[FoundPage]


class DeploymentConfiguration(Struct, kw_only=True):
    """Where and how often a deployment is loaded."""

    hardware: str
    min_instances: int
    max_instances: int


class DeploymentRelease(Struct, kw_only=True):
    """A release of a deployment."""

    number: Annotated[int, Meta(ge=1)]
    model: str
    version: str
    created_at: Time
    created_by: AccountResponse
    configuration: DeploymentConfiguration


class DeploymentResponse(Struct, kw_only=True):
    """A deployment with its newest release."""

    owner: str
    name: str
    current_release: DeploymentRelease


class BuildUrls(Struct, kw_only=True):
    """URLs of a build."""

    get: Url
    cancel: Url


class BuildResponse(Struct, kw_only=True):
    """The build of a version from an uploaded Cog project."""

    id: str
    model: Annotated[str, Meta(description="owner/name")]
    version: Annotated[str | None, Meta(description="64 hex digits, once the build has succeeded")]
    status: Annotated[
        str, Meta(extra_json_schema={"enum": ["starting", "processing", "succeeded", "failed", "canceled"]})
    ]
    step: Annotated[str | None, Meta(description="The current step, or what the build waits for")]
    logs: str
    error: str | None
    created_at: Time
    completed_at: Time | None
    urls: BuildUrls


class FileChecksums(Struct, kw_only=True):
    """Checksums of a file, in hex digits."""

    sha256: str
    md5: str


class FileUrls(Struct, kw_only=True):
    """URLs of a file."""

    get: Annotated[Url, Meta(description="URL of this object; as an input of a model, the file itself")]


class FileResponse(Struct, kw_only=True):
    """An uploaded file."""

    id: str
    name: str
    content_type: str
    size: Annotated[int, Meta(description="Bytes")]
    etag: str
    checksums: FileChecksums
    metadata: Annotated[dict[str, Any], Meta(description="What the caller sent with the file")]
    created_at: Time
    expires_at: Time
    urls: FileUrls


class BuildPage(Page[BuildResponse], kw_only=True):
    """A page of builds."""


class CollectionPage(Page[CollectionResponse], kw_only=True):
    """A page of collections."""


class DeploymentPage(Page[DeploymentResponse], kw_only=True):
    """A page of deployments."""


class FilePage(Page[FileResponse], kw_only=True):
    """A page of files."""


class ModelPage(Page[ModelResponse], kw_only=True):
    """A page of models."""


class PredictionPage(Page[PredictionResponse], kw_only=True):
    """A page of predictions."""


class TrainingPage(Page[TrainingResponse], kw_only=True):
    """A page of trainings."""


class VersionPage(Page[VersionResponse], kw_only=True):
    """A page of versions."""


#: Each body that a route of the OpenAPI document responds with.
RESPONSES: Final = (
    ProblemResponse,
    InvalidInputResponse,
    ThrottledResponse,
    AccountResponse,
    HardwareResponse,
    CollectionDetailResponse,
    VersionResponse,
    ModelResponse,
    PredictionResponse,
    TrainingResponse,
    DeploymentResponse,
    BuildResponse,
    FileResponse,
    SearchResultsResponse,
    WebhookSecretResponse,
    BuildPage,
    CollectionPage,
    DeploymentPage,
    FilePage,
    ModelPage,
    PredictionPage,
    TrainingPage,
    VersionPage,
)
