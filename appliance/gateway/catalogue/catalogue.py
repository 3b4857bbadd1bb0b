"""The models that can be called: names, aliases, versions and interfaces.

Those of models.yaml are there from the start; others are made through the API and get versions from
trainings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from appliance.config import CollectionConfig, ModelConfig
from appliance.domain import input_schema
from appliance.domain.errors import InvalidVersion, NotFound
from appliance.domain.interface import Interface
from appliance.domain.model import Adapter, Model
from appliance.protocols import media
from appliance.runners import KINDS, operations, runner_class
from appliance.runners.base import LoadSpec

_HEX64: Final = re.compile(r"[0-9a-f]{64}")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a model."""

    name: str  # owner/name
    visibility: str = "public"
    kind: str | None = None  # of models.yaml; None for a model that was made through the API
    aliases: tuple[str, ...] = ()
    created_at: float = 0.0  # Unix seconds
    description: str = ""
    readme: str | None = None  # Markdown
    github_url: str | None = None
    paper_url: str | None = None
    license_url: str | None = None
    weights_url: str | None = None
    cover_image_url: str | None = None

    @property
    def owner(self) -> str:
        """The account that it belongs to."""
        return self.name.partition("/")[0]

    def visible(self, account: str | None) -> bool:
        """Whether ``account`` may know of it; None is the appliance itself.

        What models.yaml has is for everyone who has a token, private or not.
        """
        return self.kind is not None or self.visibility == "public" or account in {None, self.owner}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One version that can be run now."""

    name: str  # owner/name of the model it is a version of
    version: str  # 64 hex digits
    model: ModelConfig  # what runs it
    kind: str  # of runner
    runs_on: str  # what is loaded for it; several entries may share that
    interface: Interface
    document: dict[str, Any]  # the version's whole openapi_schema
    created_at: float  # when this version was first seen, Unix seconds
    origin: str  # the version that is loaded for it, with trained weights over it or not
    adapter: str | None = None  # absolute path of trained weights over those of `model`
    files_in: bool = False
    files_out: bool = False

    @property
    def calls_others(self) -> bool:
        """Whether it may call other models of this appliance."""
        return self.model.kind == "cog"


def version_of(model: ModelConfig, revision: str) -> str:
    """The id of what ``model`` computes: kind, weights and the options that change outputs.

    The name counts too, so that two models never share an id; memory, residency and descriptions do not, so
    that changing them keeps the version.
    """
    return _digest(
        {
            "model": model.name,
            "kind": model.kind,
            "weights": revision,
            "options": model.options.model_dump(mode="json", exclude=set(model.options.UNVERSIONED)),
        }
    )


def version_of_adapter(model: str, base_version: str, content: str) -> str:
    """The id of a version of ``model`` that has these trained weights over another version."""
    return _digest({"model": model, "base": base_version, "adapter": content})


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


class Catalogue:
    """Every model, found by name, alias or version. Changed on the gateway's loop only."""

    def __init__(
        self, cards: Iterable[Card], entries: Iterable[Entry], collections: Iterable[CollectionConfig] = ()
    ) -> None:
        """Names and aliases are unique; the config has checked that, and that collections name models."""
        self.cards = {card.name: card for card in cards}
        self.entries = tuple(entries)  # what is loaded for itself: of models.yaml in its order, then pushed
        self.collections = {collection.slug: collection for collection in collections}
        self._names = {name: card.name for card in self.cards.values() for name in (card.name, *card.aliases)}
        self._served: dict[str, list[Entry]] = {name: [] for name in self.cards}  # newest last
        self._versions: dict[str, Entry] = {}
        self._hosted = {entry.runs_on: entry for entry in self.entries}
        self._trainers: dict[str, Entry] = {}  # by the version that they begin with
        self.changes = 0  # how often something was made or removed
        for entry in self.entries:
            self.add_version(entry)
            self._add_trainer(entry)

    # -- what is made and removed

    def become(self, other: Catalogue) -> None:
        """Serve what ``other`` does; whoever holds this catalogue does so too from now on."""
        for entry in other._versions.values():
            if entry.runs_on not in other._hosted:  # apart from its base, and was loaded before
                other.host(entry)
        self.__dict__.update(other.__dict__)

    def put(self, model: Model) -> Card:
        """A model was made through the API, or is described anew."""
        self.changes += 1
        card = self.cards[model.name] = Card(
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
        self._names[model.name] = model.name
        self._served.setdefault(model.name, [])
        return card

    def remove(self, name: str) -> None:
        """A model without versions is no more."""
        self.changes += 1
        del self.cards[name], self._names[name], self._served[name]

    def add_version(self, entry: Entry) -> None:
        """A version can be run from now on; the newest of its model is the one that was made last."""
        self.changes += 1
        if entry in self._served[entry.name]:
            return
        self._served[entry.name].append(entry)
        self._served[entry.name].sort(key=lambda each: each.created_at)
        self._versions.setdefault(entry.version, entry)

    def add_pushed(self, entry: Entry) -> None:
        """The same of a version that is loaded for itself, and may have a trainer."""
        if entry not in self.entries:
            self.entries = (*self.entries, entry)
        self.host(entry)
        self.add_version(entry)
        self._add_trainer(entry)

    def _add_trainer(self, entry: Entry) -> None:
        trainer = trainer_of(entry)
        if trainer is not None:
            self._trainers[entry.version] = trainer
            self.host(trainer)

    def remove_version(self, entry: Entry) -> None:
        """A version cannot be run any more."""
        self.changes += 1
        self._served[entry.name].remove(entry)
        if entry in self.entries:
            self.entries = tuple(each for each in self.entries if each != entry)
            self._trainers.pop(entry.version, None)
        if self._versions.get(entry.version) == entry:
            del self._versions[entry.version]

    # -- what is found

    def public(self) -> list[Card]:
        """The models that lists and searches show, newest version first."""
        shown = [card for card in self.cards.values() if card.visibility == "public"]
        return sorted(shown, key=lambda card: self._newest(card.name), reverse=True)

    def _newest(self, name: str) -> float:
        latest = self.latest(name)
        return self.cards[name].created_at if latest is None else latest.created_at

    def search(self, query: str) -> list[tuple[Card, float]]:
        """The public models that ``query`` may mean, best first, with a score over 0 up to 1.

        A model is found when every word of the query is somewhere in what is said of it; a word in its name
        or an alias counts more than one in its description, and that more than one in its readme.
        """
        words = query.lower().split()
        found = [(card, _score(card, words)) for card in self.public()]
        return sorted((pair for pair in found if pair[1] > 0), key=lambda pair: pair[1], reverse=True)

    def card(self, name: str, account: str | None = None) -> Card:
        """The model called ``owner/name``, or standing in for it.

        Raises:
            NotFound: no model has this name or alias, or ``account`` may not know of it.
        """
        card = self.cards.get(self._names.get(name, ""))
        if card is None or not card.visible(account):
            raise NotFound
        return card

    def latest(self, name: str) -> Entry | None:
        """The newest version of a model that can be run."""
        served = self._served[name]
        return served[-1] if served else None

    def served(self, name: str) -> Sequence[Entry]:
        """All versions of a model that can be run, newest last."""
        return self._served[name]

    def resolve(self, name: str, account: str | None = None) -> Entry:
        """The newest version of the model called ``owner/name``, or standing in for it.

        Raises:
            NotFound: there is no such model, or it has no version yet.
        """
        entry = self.latest(self.card(name, account).name)
        if entry is None:
            raise NotFound
        return entry

    def by_version(self, version: str, account: str | None = None) -> Entry:
        """The model served as this version id.

        Raises:
            InvalidVersion: no model is, or ``account`` may not know of it.
        """
        entry = self._versions.get(version)
        if entry is None or not self.cards[entry.name].visible(account):
            raise InvalidVersion
        return entry

    def by_spec(self, spec: str, account: str | None = None) -> Entry:
        """The model meant by ``owner/name``, ``owner/name:version`` or a version id.

        Raises:
            InvalidVersion: nothing is meant by it; ``:latest`` is refused as on Replicate.
        """
        if _HEX64.fullmatch(spec):
            return self.by_version(spec, account)
        name, colon, version = spec.partition(":")
        try:
            card = self.card(name, account)
        except NotFound as error:
            raise InvalidVersion from error
        for entry in reversed(self._served[card.name]):
            if not colon or entry.version == version:
                return entry
        raise InvalidVersion

    def adapted(self, key: str) -> set[str]:
        """The trained versions that run on what is loaded under ``key``."""
        entries = (entry for served in self._served.values() for entry in served)
        return {entry.version for entry in entries if entry.runs_on == key and entry.adapter is not None}

    def host(self, entry: Entry) -> None:
        """Something more can be loaded, under the ``runs_on`` of ``entry``."""
        self._hosted[entry.runs_on] = entry

    def hosted(self, key: str) -> Entry:
        """What is loaded under ``runs_on``, for any of those that share it."""
        return self._hosted[key]

    @property
    def hosting(self) -> dict[str, Entry]:
        """Everything that can be loaded, by what it is loaded under."""
        return dict(self._hosted)

    def serves(self, entry: Entry) -> bool:
        """Whether what ``entry`` runs on would be loaded now as it was when the entry was found."""
        hosted = self._hosted.get(entry.runs_on)
        return hosted is not None and hosted.origin == entry.origin

    def hosts(self, spec: LoadSpec) -> bool:
        """Whether what is loaded so would be loaded so again."""
        entry = self._hosted.get(spec.model)
        return entry is not None and (entry.version, self.options(entry)) == (spec.version, spec.options)

    def options(self, entry: Entry) -> dict[str, Any]:
        """What the runner of ``entry`` is told."""
        adapted = entry.kind == entry.model.kind and bool(self.adapted(entry.model.name))
        apart = entry.adapter if entry.runs_on != entry.model.name else None
        return entry.model.options.runner_options(adapted=adapted, weights=apart)

    def loads_as(self, entry: Entry) -> str:
        """Hex digits that are the same as long as the same is loaded for ``entry``, with the same options."""
        return _digest({"version": entry.version, "kind": entry.kind, "options": self.options(entry)})

    def trainer(self, version: str) -> Entry | None:
        """What trains new versions that begin with this one; None if it cannot be trained."""
        return self._trainers.get(version)


def _score(card: Card, words: Sequence[str]) -> float:
    weighed = (
        (1.0, " ".join((card.name, *card.aliases))),
        (0.6, card.description),
        (0.3, card.readme or ""),
    )
    texts = [(weight, text.lower()) for weight, text in weighed]
    best = [max((weight for weight, text in texts if word in text), default=0.0) for word in words]
    return sum(best) / len(best) if best and all(best) else 0.0


def describe(model: ModelConfig, revision: str, created_at: float) -> tuple[Card, Entry]:
    """One configured model, and the version of it whose weights are at ``revision``."""
    card = Card(
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
    interface = runner_class(model.kind).interface(model.options.model_dump(mode="json"))
    version = version_of(model, revision)
    entry = Entry(
        name=model.name,
        version=version,
        origin=version,
        model=model,
        kind=model.kind,
        runs_on=model.name,
        interface=interface,
        document=input_schema.document(interface),
        created_at=created_at,
        files_in=bool(interface.file_inputs),
        files_out=interface.makes_files,
    )
    return card, entry


def describe_pushed(model: ModelConfig, revision: str, created_at: float) -> Entry:
    """A version that was pushed. Each is loaded for itself, under a name that no model can have."""
    _, entry = describe(model, revision, created_at)
    key = f"{model.name}@{entry.version[:16]}"
    return msgspec.structs.replace(entry, model=model.model_copy(update={"name": key}), runs_on=key)


def trainer_of(entry: Entry) -> Entry | None:
    """The entry that runs trainings of ``entry``; None if it cannot be trained."""
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


def trained(base: Entry, adapter: Adapter, place: str) -> Entry:
    """The version that a training made of ``base``; its weights are at ``place``, an absolute path.

    An adapter runs on what is loaded for its base; a Cog project is loaded once for each of its weights.
    """
    apart = base.kind == "cog"
    return msgspec.structs.replace(
        base,
        name=adapter.model,
        version=adapter.version,
        created_at=adapter.created_at,
        adapter=place,
        runs_on=f"{base.runs_on}@{adapter.version[:16]}" if apart else base.runs_on,
    )


def operating(entry: Entry, body: dict[str, Any]) -> Entry:
    """``entry`` as it answers the operation that ``body`` asks for."""
    return msgspec.structs.replace(
        entry,
        interface=operations.interface(body),
        files_in=next(media.addresses(body), None) is not None,
        files_out=False,
    )
