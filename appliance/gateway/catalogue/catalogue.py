"""The models that can be called: names, aliases, versions and interfaces.

Models of models.yaml are in the catalogue from the start. Models created through the API get their versions
from trainings and builds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from appliance.config import CollectionConfig, ModelConfig
from appliance.domain import input_schema
from appliance.domain.access import Access
from appliance.domain.errors import InvalidVersion, NotFound
from appliance.domain.interface import Interface
from appliance.domain.model import Adapter, Model
from appliance.protocols import media
from appliance.runners import KINDS, operations, runner_class
from appliance.runners.adapters import AdaptableModel, interface_with
from appliance.runners.base import LoadSpec

_HEX64: Final = re.compile(r"[0-9a-f]{64}")


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The description of a model in API responses, apart from its versions."""

    name: str  # owner/name
    visibility: str = "public"
    kind: str | None = None  # of models.yaml; None for a model that was created through the API
    aliases: tuple[str, ...] = ()
    created_at: float  # Unix seconds
    description: str = ""
    readme: str | None = None  # Markdown
    github_url: str | None = None
    paper_url: str | None = None
    license_url: str | None = None
    weights_url: str | None = None
    cover_image_url: str | None = None

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    @property
    def short_names(self) -> tuple[str, ...]:
        """Return the aliases without a slash, which only OpenAI's and Anthropic's API know."""
        return tuple(alias for alias in self.aliases if "/" not in alias)

    def visible(self, access: Access) -> bool:
        """Return whether a caller may see the model.

        Models of models.yaml are visible to every caller that they are not denied to, private or not.
        """
        public = self.kind is not None or self.visibility == "public"
        return (public or access.account in {None, self.owner}) and access.allows(self.name)


class ServedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version that can run predictions."""

    name: str  # owner/name of the model
    version: str  # 64 hex digits
    model: ModelConfig  # the config that it runs with
    kind: str  # of runner
    runs_on: str  # key of the loaded model that runs it; several entries may share one
    interface: Interface
    document: dict[str, Any]  # the version's whole openapi_schema
    created_at: float  # when this version was first seen, Unix seconds
    origin: str  # the version that is loaded to run it: itself, or the base of a trained version
    adapter: str | None  # absolute path of trained weights that apply to those of `model`
    files_in: bool  # whether an input may be a file
    files_out: bool

    @property
    def calls_others(self) -> bool:
        return self.model.kind == "cog"


def version_of(model: ModelConfig, revision: str) -> str:
    """Return the version id: a digest of name, kind, weights, environment and options that change outputs.

    The name is included so that two models never share an id. Memory, residency and descriptions are not, so
    changing them keeps the version.
    """
    return _digest(
        {
            "model": model.name,
            "kind": model.kind,
            "weights": revision,
            "options": model.options.model_dump(mode="json", exclude=set(model.options.UNVERSIONED)),
            **(
                {}
                if model.environment is None
                else {"environment": model.environment.model_dump(mode="json")}
            ),
        }
    )


def version_of_adapter(model: str, base_version: str, content: str) -> str:
    return _digest({"model": model, "base": base_version, "adapter": content})


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


class _Index:
    """The look-up tables of a catalogue."""

    def __init__(self, cards: Iterable[ModelCard], collections: Iterable[CollectionConfig]) -> None:
        self.cards = {card.name: card for card in cards}
        #: Versions that are loaded under their own key: those of models.yaml in its order, then pushed ones.
        self.entries: tuple[ServedVersion, ...] = ()
        self.collections = {collection.slug: collection for collection in collections}
        names = {name: card.name for card in self.cards.values() for name in (card.name, *card.aliases)}
        self.names = {name: model for name, model in names.items() if "/" in name}
        self.short_names = {name: model for name, model in names.items() if "/" not in name}
        self.served: dict[str, list[ServedVersion]] = {
            name: [] for name in self.cards
        }  # by model, newest last
        self.versions: dict[str, ServedVersion] = {}
        self.by_key: dict[str, ServedVersion] = {}  # by `runs_on`
        self.trainers: dict[str, ServedVersion] = {}  # by the version that they train
        self.changes = 0  # number of additions and removals


class Catalogue:
    """All models, found by name, alias or version id. Changed on the gateway's event loop only."""

    def __init__(
        self,
        cards: Iterable[ModelCard],
        entries: Iterable[ServedVersion],
        collections: Iterable[CollectionConfig],
    ) -> None:
        """Names and aliases are unique, and collections name existing models: the config has checked both."""
        self._index = _Index(cards, collections)
        entries = tuple(entries)
        self._index.entries = tuple(entry for entry in entries if entry.adapter is None)
        self._index.by_key = {entry.runs_on: entry for entry in self._index.entries}
        for entry in entries:
            self.add_version(entry)
        for entry in self._index.entries:
            self._add_trainer(entry)

    @property
    def cards(self) -> dict[str, ModelCard]:
        """The models by name. Callers must not change the dict."""
        return self._index.cards

    @property
    def entries(self) -> tuple[ServedVersion, ...]:
        """The versions of models.yaml in file order, then pushed versions."""
        return self._index.entries

    @property
    def collections(self) -> dict[str, CollectionConfig]:
        return self._index.collections

    @property
    def changes(self) -> int:
        return self._index.changes

    # -- changes

    def replace_with(self, other: Catalogue) -> None:
        """Take over all models and versions of ``other``, which must not be used afterwards."""
        for entry in other._index.versions.values():
            if entry.runs_on not in other._index.by_key:  # a trained version with a copy of its own
                other.set_entry(entry)
        self._index = other._index

    def put(self, model: Model) -> ModelCard:
        """Add a model created through the API, or replace its description."""
        self._index.changes += 1
        card = self._index.cards[model.name] = ModelCard(
            name=model.name,
            visibility=model.visibility,
            created_at=model.created_at,
            description=model.description or "",
            readme=model.readme,
            github_url=model.github_url,
            paper_url=model.paper_url,
            license_url=model.license_url,
            weights_url=model.weights_url,
            cover_image_url=model.cover_image_url,
        )
        self._index.names[model.name] = model.name
        self._index.served.setdefault(model.name, [])
        return card

    def remove(self, name: str) -> None:
        """Remove a model that has no versions."""
        self._index.changes += 1
        del self._index.cards[name], self._index.names[name], self._index.served[name]

    def add_version(self, entry: ServedVersion) -> None:
        """Add a version; the version of a model with the highest ``created_at`` is the newest."""
        self._index.changes += 1
        if entry in self._index.served[entry.name]:
            return
        self._index.served[entry.name].append(entry)
        self._index.served[entry.name].sort(key=lambda each: each.created_at)
        self._index.versions.setdefault(entry.version, entry)

    def add_pushed(self, entry: ServedVersion) -> None:
        """Add a version that is loaded under its own key, and its trainer if the version can be trained."""
        if entry not in self._index.entries:
            self._index.entries = (*self._index.entries, entry)
        self.set_entry(entry)
        self.add_version(entry)
        self._add_trainer(entry)

    def _add_trainer(self, entry: ServedVersion) -> None:
        trainer = trainer_of(entry)
        if trainer is not None:
            self._index.trainers[entry.version] = trainer
            self.set_entry(trainer)

    def remove_version(self, entry: ServedVersion) -> None:
        self._index.changes += 1
        self._index.served[entry.name].remove(entry)
        if entry in self._index.entries:
            self._index.entries = tuple(each for each in self._index.entries if each != entry)
            self._index.trainers.pop(entry.version, None)
        if self._index.versions.get(entry.version) == entry:
            del self._index.versions[entry.version]

    # -- lookup

    def public(self, access: Access) -> list[ModelCard]:
        """Return the models that lists and searches show to a caller, newest version first."""
        cards = self._index.cards.values()
        public = [card for card in cards if card.visibility == "public" and access.allows(card.name)]
        return sorted(public, key=lambda card: self._newest(card.name), reverse=True)

    def _newest(self, name: str) -> float:
        latest = self.latest(name)
        return self._index.cards[name].created_at if latest is None else latest.created_at

    def search(self, query: str, access: Access) -> list[tuple[ModelCard, float]]:
        """Return the public models that match ``query``, best first, each with a score over 0 up to 1.

        A model matches if its name, aliases, description and readme together contain every word of the query.
        A word in a name or alias counts most, one in the description less, one in the readme least.
        """
        words = query.lower().split()
        found = [(card, _score(card, words)) for card in self.public(access)]
        return sorted((pair for pair in found if pair[1] > 0), key=lambda pair: pair[1], reverse=True)

    def card(self, name: str, access: Access) -> ModelCard:
        """Return the model with the name or alias ``owner/name``.

        Raises:
            NotFound: no model has this name or alias, or the caller may not see it.
        """
        card = self._index.cards.get(self._index.names.get(name, ""))
        if card is None or not card.visible(access):
            raise NotFound
        return card

    def latest(self, name: str) -> ServedVersion | None:
        served = self._index.served[name]
        return served[-1] if served else None

    def served(self, name: str) -> Sequence[ServedVersion]:
        """Return all versions of a model that can run, newest last."""
        return self._index.served[name]

    def resolve(self, name: str, access: Access) -> ServedVersion:
        """Return the newest version of the model with the name or alias ``owner/name``.

        Raises:
            NotFound: there is no such model, or it has no version yet.
        """
        entry = self.latest(self.card(name, access).name)
        if entry is None:
            raise NotFound
        return entry

    def by_version(self, version: str, access: Access) -> ServedVersion:
        """Return the version with this id.

        Raises:
            InvalidVersion: no version has this id, or the caller may not see its model.
        """
        entry = self._index.versions.get(version)
        if entry is None or not self._index.cards[entry.name].visible(access):
            raise InvalidVersion
        return entry

    def by_spec(self, spec: str, access: Access) -> ServedVersion:
        """Return the version for ``owner/name``, ``owner/name:version`` or a version id.

        Raises:
            InvalidVersion: no such version; ``:latest`` is refused, as on Replicate.
        """
        if _HEX64.fullmatch(spec):
            return self.by_version(spec, access)
        name, colon, version = spec.partition(":")
        try:
            card = self.card(name, access)
        except NotFound as error:
            raise InvalidVersion from error
        for entry in reversed(self._index.served[card.name]):
            if not colon or entry.version == version:
                return entry
        raise InvalidVersion

    def by_compat_name(self, name: str, access: Access) -> ServedVersion:
        """Return the version for a name in OpenAI's and Anthropic's API: a short name, or as in ``by_spec``.

        Raises:
            InvalidVersion: there is no such model or version, or the caller may not see it.
        """
        return self.by_spec(self._index.short_names.get(name, name), access)

    def adapted(self, key: str) -> set[str]:
        """Return the version ids of the adapters that run on the model loaded under ``key``."""
        entries = (entry for served in self._index.served.values() for entry in served)
        return {entry.version for entry in entries if entry.runs_on == key and entry.adapter is not None}

    def set_entry(self, entry: ServedVersion) -> None:
        """Load the version ``entry`` under its key ``runs_on`` from now on."""
        self._index.by_key[entry.runs_on] = entry

    def entry_for(self, key: str) -> ServedVersion:
        """Return the version that is loaded under ``key``."""
        return self._index.by_key[key]

    @property
    def entries_by_key(self) -> dict[str, ServedVersion]:
        """Return a copy of the versions that can be loaded, by the key under which each is loaded."""
        return dict(self._index.by_key)

    def serves(self, entry: ServedVersion) -> bool:
        """Return whether the version that runs ``entry`` is still the version that would be loaded."""
        current = self._index.by_key.get(entry.runs_on)
        return current is not None and current.origin == entry.origin

    def would_load(self, spec: LoadSpec) -> bool:
        """Return whether ``spec`` has the version and options that would be loaded now."""
        entry = self._index.by_key.get(spec.model)
        return entry is not None and (entry.version, self.options(entry)) == (spec.version, spec.options)

    def options(self, entry: ServedVersion) -> dict[str, Any]:
        fetches = isinstance(entry.model, AdaptableModel) and bool(entry.model.adapter_sources)
        adapted = entry.kind == entry.model.kind and (fetches or bool(self.adapted(entry.model.name)))
        apart = entry.adapter if entry.runs_on != entry.model.name else None
        return entry.model.options.runner_options(adapted=adapted, weights=apart)

    def loads_as(self, entry: ServedVersion) -> str:
        """Return a hex digest of the version, kind and options that are loaded for ``entry``.

        A model on several machines needs less memory on each of them, so their number is included.
        """
        facts = {"version": entry.version, "kind": entry.kind, "options": self.options(entry)}
        machines = entry.model.machines
        return _digest(facts if machines == 1 else {**facts, "machines": machines})

    def trainer(self, version: str) -> ServedVersion | None:
        """Return the trainer of this version; None if the version cannot be trained."""
        return self._index.trainers.get(version)


def _score(card: ModelCard, words: Sequence[str]) -> float:
    weighed = ((1.0, " ".join((card.name, *card.aliases))), (0.6, card.description), (0.3, card.readme or ""))
    texts = [(weight, text.lower()) for weight, text in weighed]
    best = [max((weight for weight, text in texts if word in text), default=0.0) for word in words]
    return sum(best) / len(best) if best and all(best) else 0.0


def describe(model: ModelConfig, revision: str, created_at: float) -> tuple[ModelCard, ServedVersion]:
    """Return the model card of a configured model, and its version with the weights at ``revision``."""
    card = ModelCard(
        name=model.name,
        visibility=model.visibility,
        kind=model.kind,
        aliases=model.aliases,
        created_at=created_at,
        description=model.description,
        readme=None if model.readme is None else model.readme.read_text(encoding="utf-8"),
        github_url=model.github_url,
        paper_url=model.paper_url,
        license_url=model.license_url,
        cover_image_url=model.cover_image_url,
    )
    interface = interface_of(model)
    version = version_of(model, revision)
    entry = ServedVersion(
        name=model.name,
        version=version,
        origin=version,
        model=model,
        kind=model.kind,
        runs_on=model.name,
        interface=interface,
        document=input_schema.document(interface),
        created_at=created_at,
        adapter=None,
        files_in=bool(interface.file_inputs),
        files_out=interface.makes_files,
    )
    return card, entry


def interface_of(model: ModelConfig, *, own: bool = False) -> Interface:
    """Return the interface of a model; with ``own`` that of an adapter of the model."""
    interface = runner_class(model.kind).interface(model.options.model_dump(mode="json"))
    return interface_with(interface, model, own=own)


def describe_pushed(model: ModelConfig, revision: str, created_at: float) -> ServedVersion:
    """Return a pushed version. Its load key is unique and cannot be the name of a model."""
    _, entry = describe(model, revision, created_at)
    key = f"{model.name}@{entry.version[:16]}"
    return msgspec.structs.replace(entry, model=model.model_copy(update={"name": key}), runs_on=key)


def trainer_of(entry: ServedVersion) -> ServedVersion | None:
    """Return the trainer of a version; None if the version cannot be trained."""
    kind = KINDS[entry.kind].trainer
    if kind is None or not entry.model.options.trainable:
        return None
    interface = runner_class(kind).interface(entry.model.options.model_dump(mode="json"))
    return msgspec.structs.replace(
        entry,
        kind=kind,
        runs_on=entry.model.training_key,
        interface=interface,
        files_in=bool(interface.file_inputs),
        files_out=True,
    )


def trained(base: ServedVersion, adapter: Adapter, path: str) -> ServedVersion:
    """Return the version that a training made from ``base``, with weights at the absolute path ``path``.

    An adapter runs on the loaded base model. A Cog project is loaded once for each set of weights.
    """
    apart = base.kind == "cog"
    return msgspec.structs.replace(
        base,
        name=adapter.model,
        version=adapter.version,
        created_at=adapter.created_at,
        adapter=path,
        runs_on=f"{base.runs_on}@{adapter.version[:16]}" if apart else base.runs_on,
    )


def operating(entry: ServedVersion, operation: str, body: dict[str, Any]) -> ServedVersion:
    """Return ``entry`` with the interface of the operation that ``body`` requests."""
    interface = operations.interface(operation, body, entry.interface)
    media_given = interface.verbatim and next(media.urls(body), None) is not None
    return msgspec.structs.replace(
        entry,
        interface=interface,
        files_in=media_given or bool(interface.file_inputs),
        files_out=False,
    )
