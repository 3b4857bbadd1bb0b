"""LoRA adapters of models in models.yaml, and the inputs of predictions that select adapters.

An adapter is a small set of weights that changes a loaded base model. Adapters come from the key ``adapters``
of the base model, from trainings, and from the sources that ``adapter_sources`` allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

import msgspec
from pydantic import AfterValidator, Field, Tag
from pydantic_core import PydanticCustomError

from appliance.domain.interface import Interface
from appliance.domain.section import Section
from appliance.domain.values import Alias, ModelName
from appliance.runners.model_config import FolderSource, HubSource, ModelConfig, one_of
from appliance.runners.schemas import number, string

#: Inputs that name an adapter. The gateway replaces the name by the absolute path of the adapter.
LORA: Final = "lora_weights"
EXTRA: Final = "extra_lora"
INPUTS: Final = (LORA, EXTRA)
#: Value of these inputs that means the same as null: no adapter.
NONE: Final = "none"

_SCALES: Final = {LORA: "lora_scale", EXTRA: "extra_lora_scale"}
_REPOSITORY: Final = re.compile(
    r"(?:(?:https://)?huggingface\.co/|hub:)?(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w.-]*))?"
    r"(?:/(?:blob/main/)?(?P<file>[\w-][\w.-]*\.safetensors))?"
)
_PATTERN: Final = re.compile(
    r"hub:[\w.*-]+(/[\w.*-]+)?|https?://[^\s/@*?\[\]]+/(?:\S*\*\S*|\S*\.safetensors)"
)


class RemoteAdapter(msgspec.Struct, frozen=True):
    """An adapter that a caller names by its source: a file in a hub repository, or a URL."""

    hub: str | None = None  # owner/name
    revision: str = "main"
    file: str | None = None
    url: str | None = None


def _pattern(value: str) -> str:
    if not _PATTERN.fullmatch(value):
        raise PydanticCustomError(
            "adapter_source",
            'should be "hub:owner/name", or a URL with its host and the path of a file ".safetensors"; "*" '
            'stands for any text, except in the host: "https://example.org/loras/*"',
        )
    return value


class AdapterConfig(Section):
    """A LoRA adapter, served as a model of its own that runs on the loaded base model."""

    name: ModelName = Field(
        description='Name of the adapter in the API: "owner/name". It is also a value of `lora_weights`.'
    )
    source: Annotated[
        Annotated[FolderSource, Tag("FolderSource")] | Annotated[HubSource, Tag("HubSource")],
        one_of("path or hub"),
    ] = Field(
        description="Source of the adapter: a folder or hub repository in the format of PEFT or diffusers."
    )
    aliases: tuple[Alias, ...] = Field(
        default=(), strict=False, description="Additional names of the adapter, as of a model."
    )
    description: str = Field(default="", description="Description of the adapter in the API and the UI.")

    @property
    def as_model(self) -> ModelConfig:
        """A model with the name and source of the adapter, for functions that download weights of models."""
        return ModelConfig.model_construct(name=self.name, kind="adapter", source=self.source)


class AdaptableModel(ModelConfig):
    """A model whose kind supports LoRA adapters."""

    #: Whether a prediction can use two adapters, each with a scale.
    SCALES: ClassVar[bool]
    #: Whether loaded adapters take memory in addition to the footprint of the options.
    ADAPTERS_ADD_MEMORY: ClassVar[bool]

    adapters: tuple[AdapterConfig, ...] = Field(
        default=(), strict=False, description="LoRA adapters of this model, each a model of its own."
    )
    adapter_sources: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        default=(),
        strict=False,
        description="Sources of LoRA adapters that predictions may name: `hub:owner/name`, or URLs of "
        "safetensors files. `*` stands for any text. Default: none, nothing else is fetched.",
    )

    @property
    def local_adapters(self) -> Mapping[str, Path]:
        """Further adapters in files of this machine, by the name that predictions use."""
        return {}

    def adapter_problem(self, folder: Path) -> str | None:
        """Return why the adapter in ``folder`` cannot run on this model, as far as its files show."""
        return None if folder.exists() else f"{folder} does not exist: correct source.path"


def adapters_of(model: ModelConfig) -> tuple[AdapterConfig, ...]:
    return model.adapters if isinstance(model, AdaptableModel) else ()


def with_downloads(models: Iterable[ModelConfig]) -> Iterator[ModelConfig]:
    """Yield each model, and each of its ControlNets, IP-Adapters and LoRA adapters.

    That is everything whose weights are downloaded.
    """
    for model in models:
        yield model
        yield from model.extra_weights.values()
        yield from (adapter.as_model for adapter in adapters_of(model))


def interface_with(interface: Interface, model: ModelConfig, *, own: bool = False) -> Interface:
    """Return ``interface`` with the inputs that select adapters, if the model has any.

    With ``own`` it is the interface of an adapter, which has no input ``lora_weights`` for another one.
    """
    if not isinstance(model, AdaptableModel):
        return interface
    names = [*model.local_adapters, *(adapter.name for adapter in model.adapters)]
    if not names and not model.adapter_sources and not own:
        return interface
    added = [] if own else [(LORA, _input("LoRA adapter", names, model.adapter_sources))]
    if model.SCALES:
        added += [
            (_SCALES[LORA], number("Scale of the LoRA adapter", default=1.0, ge=-2, le=4)),
            (EXTRA, _input("Second LoRA adapter", names, model.adapter_sources)),
            (_SCALES[EXTRA], number("Scale of the second LoRA adapter", default=1.0, ge=-2, le=4)),
        ]
    first = len(interface.input["properties"])
    properties = {
        name: {**schema, "title": name.replace("_", " ").title(), "x-order": first + at}
        for at, (name, schema) in enumerate(added)
    }
    aliases = interface.aliases if own else {**interface.aliases, "lora": LORA}
    input = {**interface.input, "properties": {**interface.input["properties"], **properties}}
    return msgspec.structs.replace(interface, input=input, aliases=aliases)


def _input(description: str, names: list[str], sources: tuple[str, ...]) -> dict[str, Any]:
    values = [*([", ".join(names)] if names else []), *(f"a source like {each}" for each in sources)]
    return string(f"{description}: {', or '.join(values)}" if values else f"{description}, by its name")


def remote(value: str) -> RemoteAdapter | None:
    """Return the source that an input names: a hub repository or a URL; None if the value is neither."""
    if match := _REPOSITORY.fullmatch(value):
        return RemoteAdapter(match["name"], match["revision"] or "main", match["file"])
    if value.startswith(("https://", "http://")):
        return RemoteAdapter(url=value)
    return None


def allowed(source: RemoteAdapter, patterns: Iterable[str]) -> bool:
    """Return whether one of ``patterns``, the key ``adapter_sources`` of a model, allows ``source``.

    Scheme and host of a URL must be those of the pattern; the query of the URL may be any.
    """
    if source.url is None:
        return any(fnmatchcase(f"hub:{source.hub}", each) for each in patterns)
    try:
        url = urlsplit(source.url)
    except ValueError:
        return False
    path = unquote(url.path)
    if ".." in path or "\\" in path or not path.endswith(".safetensors"):
        return False
    for pattern in map(urlsplit, patterns):
        same_host = (url.scheme, url.netloc) == (pattern.scheme, pattern.netloc)
        if same_host and fnmatchcase(path, pattern.path):
            return True
    return False


def may_redirect(url: str, patterns: Iterable[str]) -> bool:
    """Return whether the download of an adapter may be redirected to ``url``.

    Scheme and host must be those of one of ``patterns``, the key ``adapter_sources`` of a model.
    """
    target = _origin(url)
    return target is not None and any(target == _origin(pattern) for pattern in patterns)


def _origin(url: str) -> tuple[str, bytes, int] | None:
    """Return scheme, host and port of an HTTP URL; None for other texts, such as ``hub:owner/name``."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return parts.scheme, (parts.hostname or "").encode("idna"), port
    except (KeyError, ValueError):  # UnicodeError is a ValueError
        return None


def hub_adapter(source: RemoteAdapter) -> ModelConfig:
    """Return the adapter in a hub repository as a model, for functions that download weights of models."""
    repository = HubSource(hub=str(source.hub), revision=source.revision, file=source.file)
    return ModelConfig.model_construct(name=source.hub, kind="adapter", source=repository)


def unfetched(input: Mapping[str, Any]) -> dict[str, str]:
    """Return the inputs that name an adapter which is not on this machine yet."""
    given = {name: input[name] for name in INPUTS if isinstance(input.get(name), str)}
    return {name: value for name, value in given.items() if not value.startswith("/")}
