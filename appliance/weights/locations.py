"""Folders of weights, and identities of their content."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Final

from appliance.builds import project, project_image
from appliance.builds.fingerprint import fingerprint
from appliance.config import (
    BuiltCogOptions,
    BuiltinSource,
    CogModel,
    FolderSource,
    GitSource,
    HubSource,
    ImageCogOptions,
    ImageSource,
    ModelConfig,
    PypiSource,
    Source,
)
from appliance.domain.errors import WeightsError
from appliance.runners.cog.image import description
from appliance.weights import cog_image
from appliance.weights.errors import as_weights_errors

#: Folder of the weights that come with the appliance.
BUILTIN: Final = Path(__file__).parents[1] / "assets"


def root(home: Path) -> Path:
    return home / "weights"


def source_of(model: ModelConfig) -> Source:
    """Return the source of the model.

    Raises:
        WeightsError: models of its kind have no weights.
    """
    if model.source is None:
        raise WeightsError(f"model {model.name} has no weights to download, because its kind has no source")
    return model.source


def folder(home: Path, model: ModelConfig) -> Path:
    """Return the folder of the model's weights, which may not exist yet.

    For a local folder, this is the folder itself. Otherwise the folder's name contains a digest of the
    source, so that a changed source never gets the weights of the old source.
    """
    source = source_of(model)
    if isinstance(model.options, ImageCogOptions):
        return Path(model.options.image)
    if isinstance(source, ImageSource):
        return cog_image.folder(home, source)
    if isinstance(model, CogModel):
        if isinstance(model.options, BuiltCogOptions):
            return project.folder(home, model)
        image = project_image.source(home, model)
        return project.folder(home, model) if image is None else cog_image.folder(home, image)
    if isinstance(source, BuiltinSource):
        return BUILTIN / source.builtin
    if isinstance(source, FolderSource) and not is_gguf(source):
        return source.path
    kind = {FolderSource: "local", HubSource: "hub", PypiSource: "pypi"}[type(source)]
    name = PurePosixPath(_member(source)).name
    name = f"{name[: -len('.gguf')]}-transformers" if is_gguf(source) else name.removesuffix(".zip")
    found = root(home) / kind / f"{mark(model)}-{name}"
    plain = found.with_name(f"{digest(source)}-{name}")
    # Older releases downloaded all variants to one folder.
    if found != plain and not found.exists() and any(plain.rglob(f"*.{model.weight_variant}*.safetensors")):
        return plain
    return found


def present(home: Path, model: ModelConfig) -> bool:
    """Return whether the weights are complete on disk: a downloaded folder exists only when it is complete.

    Raises:
        WeightsError: the files that identify the weights cannot be read.
    """
    with as_weights_errors(model.name):
        return folder(home, model).exists()


def revision(model: ModelConfig) -> str:
    """Return text that identifies the content of the weights; the model's version is computed from it.

    For a local folder, this is the fingerprint, which does not depend on the folder's path.
    """
    if isinstance(model.options, ImageCogOptions):
        return f"image:{description(Path(model.options.image)).digest}"
    if isinstance(model.options, BuiltCogOptions):
        return f"folder:{project.content(Path(model.options.build))}"
    if model.source is None:
        return "none"
    prefixes: dict[type, str] = {HubSource: "hub", PypiSource: "wheel", GitSource: "git"}
    return f"{prefixes.get(type(model.source), 'folder')}:{identity(model.source)}"


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
        case ImageSource():
            return source.image


def digest(source: Source) -> str:
    """Return 16 hex digits of ``identity``, for names of files and folders."""
    return hashlib.sha256(identity(source).encode()).hexdigest()[:16]


def mark(model: ModelConfig) -> str:
    """Return 16 hex digits that identify the files that are downloaded for the model."""
    source = source_of(model)
    if isinstance(source, HubSource) and model.COMPANION_FILES:  # another kind downloads fewer files
        return hashlib.sha256(f"{identity(source)}:with companions".encode()).hexdigest()[:16]
    if model.weight_variant is None or not isinstance(source, HubSource):
        return digest(source)
    return hashlib.sha256(f"{identity(source)}:{model.weight_variant}".encode()).hexdigest()[:16]


def is_gguf(source: Source) -> bool:
    """Return whether the source is a GGUF file, which ``pull`` converts to a transformers folder."""
    return _member(source).lower().endswith(".gguf")


def _member(source: Source) -> str:
    """Return the path of the model in a wheel or repository, or the name of the source."""
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
        case ImageSource():
            return source.image
