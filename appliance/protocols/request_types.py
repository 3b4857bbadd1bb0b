"""The bodies of the requests of Replicate's HTTP API and of ``/admin``, as structs.

``gateway.api.requests.parse`` checks a body by the JSON Schema of its struct, and the served OpenAPI document
is generated from the structs. An optional field that is null is the same as an absent one, unless its default
is ``UNSET``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType

from appliance.domain.prediction import WEBHOOK_EVENTS
from appliance.domain.token import Scope

_ACCOUNT_OR_NAME: Final = r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"
#: Any text, as on Replicate, except URLs that a page must not link to (javascript:).
_LINKABLE: Final = r"^([Hh][Tt][Tt][Pp][Ss]?:|[^:/?#]*([/?#]|$))"

Name = Annotated[str, Meta(pattern=_ACCOUNT_OR_NAME, max_length=100)]
Text = Annotated[str, Meta(max_length=1_000_000)]
Link = Annotated[str, Meta(pattern=_LINKABLE, max_length=2000)]
Hardware = Annotated[str, Meta(max_length=2000, description="A SKU of GET /hardware")]
WebhookEvent = Annotated[str, Meta(extra_json_schema={"enum": list(WEBHOOK_EVENTS)})]
VersionId = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
MinInstances = Annotated[int, Meta(ge=0, le=5)]
MaxInstances = Annotated[int, Meta(ge=0, le=20)]


class Request(Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of a request."""


class ModelRequest(Request, kw_only=True):
    """A new model."""

    owner: Name
    name: Name
    visibility: Annotated[str, Meta(extra_json_schema={"enum": ["public", "private"]})]
    hardware: Hardware
    description: Text | None = None
    github_url: Link | None = None
    paper_url: Link | None = None
    license_url: Link | None = None
    cover_image_url: Link | None = None


class ModelUpdateRequest(Request, kw_only=True):
    """Changes of a model; null removes a value."""

    description: Text | UnsetType | None = UNSET
    readme: Text | UnsetType | None = UNSET
    github_url: Link | UnsetType | None = UNSET
    paper_url: Link | UnsetType | None = UNSET
    license_url: Link | UnsetType | None = UNSET
    weights_url: Link | UnsetType | None = UNSET


class PredictionRequest(Request, kw_only=True):
    """A new prediction."""

    input: Annotated[
        dict[str, Any], Meta(description="The model's inputs; files are http, https or data URLs")
    ]
    webhook: Annotated[
        Annotated[str, Meta(extra_json_schema={"format": "uri"})] | None,
        Meta(description="Where signed events are posted"),
    ] = None
    webhook_events_filter: Annotated[
        list[WebhookEvent] | None, Meta(description="The events to post; all if absent")
    ] = None
    stream: Annotated[
        Any,
        Meta(
            description="No effect: every prediction can be streamed", extra_json_schema={"deprecated": True}
        ),
    ] = None
    webhook_completed: Annotated[
        Any, Meta(description="No effect", extra_json_schema={"deprecated": True})
    ] = None


class VersionPredictionRequest(PredictionRequest, kw_only=True):
    """A new prediction of the model or version that the body names."""

    version: Annotated[str, Meta(description="owner/name, owner/name:version, or a version id")]


class TrainingRequest(PredictionRequest, kw_only=True):
    """A new training."""

    destination: Annotated[str, Meta(description="owner/name of a model of the caller")]
    version: Annotated[Any, Meta(description="No effect: the URL has the version")] = None


class DeploymentRequest(Request, kw_only=True):
    """A new deployment."""

    name: Name
    model: Annotated[str, Meta(description="owner/name")]
    version: VersionId
    hardware: Hardware
    min_instances: MinInstances
    max_instances: MaxInstances


class DeploymentUpdateRequest(Request, kw_only=True):
    """Changes of a deployment."""

    model: Annotated[str | None, Meta(description="owner/name")] = None
    version: VersionId | None = None
    hardware: Hardware | None = None
    min_instances: MinInstances | None = None
    max_instances: MaxInstances | None = None


class VersionRequest(Request, kw_only=True):
    """A new version, built from an uploaded Cog project."""

    source: Annotated[
        str, Meta(description="urls.get of an upload: a tar archive of the project, compressed or not")
    ]
    memory: Annotated[
        Annotated[int, Meta(le=2**53)] | str | None,
        Meta(description="Bytes to reserve for the version, or text such as 4GiB"),
    ] = None


class FileRequest(Struct, kw_only=True):
    """An upload: a form, not JSON."""

    content: Annotated[str, Meta(extra_json_schema={"contentMediaType": "application/octet-stream"})]
    filename: Annotated[str, Meta(max_length=255)] | UnsetType = UNSET
    type: Annotated[str | UnsetType, Meta(description="Media type")] = UNSET
    metadata: Annotated[dict[str, Any] | UnsetType, Meta(description="Kept with the file")] = UNSET


class TokenRequest(Request, kw_only=True):
    """A new API token."""

    name: str
    scope: Annotated[str, Meta(extra_json_schema={"enum": [scope.value for scope in Scope]})] | None = None
    owner: str | None = None
    description: str | None = None
    expires_at: Annotated[
        str | None, Meta(description="Time from which the token is refused, such as 2030-01-31T12:00:00Z")
    ] = None
    networks: Annotated[
        tuple[str, ...] | None, Meta(description="Networks from which it may be used, such as 10.0.0.0/8")
    ] = None
    models: Annotated[
        tuple[str, ...] | None, Meta(description="Models that it may use: names, or patterns (owner/*)")
    ] = None


class SignInRequest(Request, kw_only=True):
    """The sign-in of a person with a password."""

    username: str
    password: str
    browser: Annotated[str | None, Meta(description="User-Agent header of the browser")] = None


class ProviderCallbackRequest(Request, kw_only=True):
    """What the identity provider has sent to the browser."""

    authorization_request: str
    state: str
    code: str
    iss: Annotated[str | None, Meta(description="Issuer (RFC 9207)")] = None
    browser: Annotated[str | None, Meta(description="User-Agent header of the browser")] = None


class WebhookSecretRequest(Request, kw_only=True):
    """The replacement of a webhook key."""

    keep: Annotated[
        Annotated[float, Meta(ge=0, le=30 * 86400)] | None,
        Meta(description="Seconds for which webhooks are signed with the old key too; a day if absent"),
    ] = None


#: Each request body that the OpenAPI document describes.
REQUESTS: Final = (
    SignInRequest,
    ProviderCallbackRequest,
    ModelRequest,
    ModelUpdateRequest,
    PredictionRequest,
    VersionPredictionRequest,
    TrainingRequest,
    DeploymentRequest,
    DeploymentUpdateRequest,
    VersionRequest,
    FileRequest,
    TokenRequest,
    WebhookSecretRequest,
)
