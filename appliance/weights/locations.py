"""The folder of each model's weights, whether it exists, and what identifies its content."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Final

from appliance.config import (
    BuiltCogOptions,
    BuiltinSource,
    CogModel,
    FolderSource,
    GitSource,
    HubSource,
    ModelConfig,
    PypiSource,
    Source,
)
from appliance.domain.errors import WeightsError
from appliance.weights import project
from appliance.weights.errors import as_weights_errors
from appliance.weights.fingerprint import fingerprint

#: What comes with the appliance.
BUILTIN: Final = Path(__file__).parents[1] / "assets"


def root(home: Path) -> Path:
    """The folder under the data folder ``home`` that holds everything about weights."""
    return home / "weights"


def source_of(model: ModelConfig) -> Source:
    """The model's source.

    Raises:
        WeightsError: its kind has no weights.
    """
    if model.source is None:
        raise WeightsError(f"model {model.name} has no weights to fetch: it has no source")
    return model.source


def folder(home: Path, model: ModelConfig) -> Path:
    """Return the folder of the model's weights, which may not exist yet.

    A local folder stays where it is. Everything else has a folder named after its content's identity, so that
    a changed source never finds the weights of the one before.
    """
    source = source_of(model)
    if isinstance(model, CogModel):
        return project.folder(home, model)
    if isinstance(source, BuiltinSource):
        return BUILTIN / source.builtin
    if isinstance(source, FolderSource) and not is_gguf(source):
        return source.path
    kind = {FolderSource: "local", HubSource: "hub", PypiSource: "pypi"}[type(source)]
    name = PurePosixPath(_member(source)).name
    name = f"{name[: -len('.gguf')]}-transformers" if is_gguf(source) else name.removesuffix(".zip")
    return root(home) / kind / f"{digest(source)}-{name}"


def present(home: Path, model: ModelConfig) -> bool:
    """Whether the weights are complete on disk; a downloaded folder exists only when it is complete.

    Raises:
        WeightsError: the files that identify the weights cannot be read.
    """
    with as_weights_errors(model.name):
        return folder(home, model).exists()


def revision(model: ModelConfig) -> str:
    """Return text that changes with the weights; it is part of the model's version.

    It names content, not places: a local folder counts by its fingerprint, ``missing`` where there is none.
    """
    if isinstance(model.options, BuiltCogOptions):
        return f"folder:{project.content(Path(model.options.build))}"
    match model.source:
        case None:
            return "none"
        case FolderSource():
            return f"folder:{identity(model.source)}"
        case HubSource():
            return f"hub:{identity(model.source)}"
        case PypiSource():
            return f"wheel:{identity(model.source)}"
        case BuiltinSource():
            return f"folder:{identity(model.source)}"
        case GitSource():
            return f"git:{identity(model.source)}"


def identity(source: Source) -> str:
    """Return text that identifies the content of a source."""
    match source:
        case FolderSource():
            return fingerprint(source.path)
        case HubSource():
            return f"{source.hub}@{source.revision}" + (f"/{source.file}" if source.file else "")
        case PypiSource():
            return f"{source.sha256}/{source.path}"
        case BuiltinSource():
            return fingerprint(BUILTIN / source.builtin)
        case GitSource():
            return f"{source.git}@{source.revision}/{source.path or ''}"


def digest(source: Source) -> str:
    """16 hex digits of ``identity``, for names of files and folders."""
    return hashlib.sha256(identity(source).encode()).hexdigest()[:16]


def is_gguf(source: Source) -> bool:
    """Return whether the source is a GGUF file, which is converted after the download."""
    return _member(source).lower().endswith(".gguf")


def _member(source: Source) -> str:
    """The path that the source names, inside of wherever it is."""
    match source:
        case FolderSource():
            return source.path.name
        case HubSource():
            return source.file or source.hub
        case PypiSource():
            return source.path.rstrip("/")
        case BuiltinSource():
            return source.builtin
        case GitSource():
            return source.git
