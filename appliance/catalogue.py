"""The models that can be called: names, aliases, versions and interfaces."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from appliance import schema, weights
from appliance.config import CollectionConfig, Config, ModelConfig
from appliance.errors import InvalidVersion, NotFound
from appliance.runners import runner_class
from appliance.runners.base import Interface

_HEX64: Final = re.compile(r"[0-9a-f]{64}")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model in the one version that is served now."""

    model: ModelConfig
    version: str  # 64 hex digits
    interface: Interface
    document: dict[str, Any]  # the version's whole openapi_schema
    created_at: float  # when this version was first seen, Unix seconds
    readme: str | None = None  # Markdown

    @property
    def name(self) -> str:
        """``owner/name``."""
        return self.model.name


def version_of(model: ModelConfig, revision: str) -> str:
    """The id of what ``model`` computes: kind, weights and the options that change outputs.

    The name counts too, so that two models never share an id; memory, residency and descriptions do not, so
    that changing them keeps the version.
    """
    facts = {
        "model": model.name,
        "kind": model.kind,
        "weights": revision,
        "options": model.options.model_dump(mode="json", exclude=set(model.options.RESOURCES)),
    }
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


class Catalogue:
    """Every configured model, found by name, alias or version."""

    def __init__(self, entries: Iterable[Entry], collections: Iterable[CollectionConfig] = ()) -> None:
        """Names and aliases are unique; the config has checked that, and that collections name models."""
        self.entries = tuple(entries)
        self.collections = {collection.slug: collection for collection in collections}
        self._names = {name: entry for entry in self.entries for name in (entry.name, *entry.model.aliases)}
        self._versions = {entry.version: entry for entry in reversed(self.entries)}

    @property
    def public(self) -> list[Entry]:
        """The models that lists and searches show, newest version first."""
        shown = [entry for entry in self.entries if entry.model.visibility == "public"]
        return sorted(shown, key=lambda entry: entry.created_at, reverse=True)

    def search(self, query: str) -> list[tuple[Entry, float]]:
        """The public models that ``query`` may mean, best first, with a score over 0 up to 1.

        A model is found when every word of the query is somewhere in what is said of it; a word in its name
        or an alias counts more than one in its description, and that more than one in its readme.
        """
        words = query.lower().split()
        found = [(entry, _score(entry, words)) for entry in self.public]
        return sorted((pair for pair in found if pair[1] > 0), key=lambda pair: pair[1], reverse=True)

    def resolve(self, name: str) -> Entry:
        """The model called ``owner/name``, or standing in for it.

        Raises:
            NotFound: no model has this name or alias.
        """
        entry = self._names.get(name)
        if entry is None:
            raise NotFound
        return entry

    def by_version(self, version: str) -> Entry:
        """The model served as this version id.

        Raises:
            InvalidVersion: no model is.
        """
        entry = self._versions.get(version)
        if entry is None:
            raise InvalidVersion
        return entry

    def by_spec(self, spec: str) -> Entry:
        """The model meant by ``owner/name``, ``owner/name:version`` or a version id.

        Raises:
            InvalidVersion: nothing is meant by it; ``:latest`` is refused as on Replicate.
        """
        if _HEX64.fullmatch(spec):
            return self.by_version(spec)
        name, colon, version = spec.partition(":")
        entry = self._names.get(name)
        if entry is None or (colon and version != entry.version):
            raise InvalidVersion
        return entry


def _score(entry: Entry, words: Sequence[str]) -> float:
    weighed = (
        (1.0, " ".join((entry.name, *entry.model.aliases))),
        (0.6, entry.model.description),
        (0.3, entry.readme or ""),
    )
    texts = [(weight, text.lower()) for weight, text in weighed]
    best = [max((weight for weight, text in texts if word in text), default=0.0) for word in words]
    return sum(best) / len(best) if best and all(best) else 0.0


def describe(model: ModelConfig, revision: str, created_at: float) -> Entry:
    """The entry of one configured model whose weights are at ``revision``."""
    interface = runner_class(model.kind).interface(model.options.model_dump(mode="json"))
    return Entry(
        model=model,
        version=version_of(model, revision),
        interface=interface,
        document=schema.document(interface),
        created_at=created_at,
        readme=None if model.readme is None else model.readme.read_text(encoding="utf-8"),
    )


def build(config: Config, now: float) -> Catalogue:
    """The catalogue of a checked config, every version first seen ``now``."""
    entries = (describe(model, weights.revision(model), now) for model in config.models)
    return Catalogue(entries, config.collections)
