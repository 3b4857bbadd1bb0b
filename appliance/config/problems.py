"""Turns problems of a config into error messages with file, line, model and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from appliance.config import text_file
from appliance.config.sections import MODELS, Config, DeviceConfig, HardwareConfig
from appliance.config.yaml_source import Document, Place
from appliance.domain.errors import ConfigError
from appliance.domain.section import Section
from appliance.runners.cog.options import CogModel
from appliance.runners.model_config import FolderSource, GitSource, HubSource, ModelConfig, PypiSource
from appliance.runners.vllm.options import VllmModel

_SOURCES = {kind.__name__: kind for kind in (FolderSource, GitSource, HubSource, PypiSource)}


#: Name of the device that is main memory.
HOST: Final = "cpu"

_SHOWN: Final = 200  # characters of a wrong value


class Problem(NamedTuple):
    """One problem. ``place`` may name a key that is missing from the file."""

    place: Place
    message: str


def refusal(problems: Iterable[Problem], document: Document, file: str) -> ConfigError:
    """All ``problems`` in one error, in the order of the file; line, model and key are the first one's."""
    errors = []
    for place, message in sorted(problems, key=lambda problem: document.line(problem.place)):
        model, key = _names(place, document.data)
        errors.append(ConfigError(message, file=file, line=document.line(place), model=model, key=key))
    first = errors[0]
    return ConfigError(
        "\n".join([first.message, *map(str, errors[1:])]),
        file=first.file,
        line=first.line,
        model=first.model,
        key=first.key,
    )


def _names(place: Place, data: Any) -> tuple[str | None, str | None]:
    """The model and the key inside it, as people call them: ``options.max_tokens``, ``aliases[1]``."""
    model = None
    if len(place) > 1 and place[0] == "models":
        entry = data["models"][place[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        model = name if isinstance(name, str) else f"number {int(place[1]) + 1}"
        place = place[2:]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return model, key or None


# -- one value at a time ---------------------------------------------------------------------------------


def translate(error: ValidationError) -> Iterator[Problem]:
    """Yield the errors that pydantic reports, in our words."""
    for detail in error.errors(include_url=False):
        kind, given = detail["type"], detail["input"]
        if kind == "too_short" and given:
            continue  # only because entries that are refused on their own are not counted
        place = _place(detail["loc"])
        if kind in {"union_tag_not_found", "union_tag_invalid"}:
            place = (*place, "kind")
        yield Problem(place, _message(detail))


def _place(loc: Place) -> Place:
    """``loc`` without the names of the union members that pydantic tried."""
    match loc:
        case ("models", int(index), str(), *rest):
            loc = ("models", index, *rest)
        case ("hardware", "devices", str(), *rest):
            loc = ("hardware", "devices", *rest)
        case _:
            return loc
    return tuple(part for part in loc if part not in _SOURCES)


def _section(loc: Place) -> type[Section] | None:
    """The section in which the last part of ``loc`` is a key; None if that is not one of ours."""
    match loc:
        case ("models", int(), str(), "source", str(source), str()):
            return _SOURCES.get(source)
        case ("models", int(), str(kind), "options", str()):
            return _options(kind)
        case ("models", int(), str(kind), str()):
            return MODELS[kind]
        case ("hardware", "devices", str(), int(), str()):
            return DeviceConfig
        case (str(section), str()):
            annotation = Config.model_fields[section].annotation
            return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
        case (str(),):
            return Config
        case _:
            return None


def _options(kind: str) -> type[Section]:
    return cast("type[Section]", MODELS[kind].model_fields["options"].annotation)


def _message(detail: ErrorDetails) -> str:
    loc, given = detail["loc"], detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(loc)
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return f"is missing: give one of {', '.join(MODELS)}"
        case "union_tag_invalid":
            kind = str(given.get("kind")) if isinstance(given, dict) else "?"
            return f"there is no kind {_shown(kind)}{_nearest(kind, MODELS)} (known: {', '.join(MODELS)})"
        case "string_type" if isinstance(given, int | float) and not isinstance(given, bool):
            return f"{_shown(given)} should be text: put it in quotes"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{_shown(given)} should be a mapping of keys to values"
        case "tuple_type":
            return f"{_shown(given)} should be a list"
        case "too_short":
            return "should have at least one entry"
        case "none_required" if loc[-1] == "source":
            return "an echo model has no weights: remove the key"
        case _:
            said = detail["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value ")
            return said if isinstance(given, dict | list) else f"{_shown(given)} {said}"


def _shown(given: Any) -> str:
    """A value as it stands in the file, shortened to one line."""
    text = repr(given)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _unknown_key(loc: Place) -> str:
    """The refusal of a key, with the key that was probably meant or the section where it belongs."""
    key = str(loc[-1])
    section = _section(loc)
    if section is None:
        return "unknown key: remove it"
    near = _nearest(key, section.model_fields)
    if not near and issubclass(section, ModelConfig):
        near = _nearest(key, _options(str(loc[2])).model_fields, "options.")
    return f"unknown key{near or ': remove it'} (known here: {', '.join(section.model_fields)})"


def _nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


# -- values that must agree with each other -----------------------------------------------------------------


def disagreements(config: Config) -> Iterator[Problem]:
    """Yield the conflicts between values: duplicate names, sizes that fit on no device, excluding keys."""
    yield from _duplicates(config)
    yield from _device_names(config.hardware)
    yield from _collections(config)
    if config.server.tls is not None:
        for key in ("certificate", "key"):
            if said := _unreadable(getattr(config.server.tls, key)):
                yield Problem(("server", "tls", key), f"{said}; `appliance certificate` makes both")
    for index, model in enumerate(config.models):
        if isinstance(model, CogModel) and not config.code.cog:
            reason = "Cog projects run their own code: set cog to true under code to allow it"
            yield Problem(("models", index, "kind"), reason)
        for key, message in (*_at_odds(model), *_impossible(model, config.hardware)):
            yield Problem(("models", index, *key.split(".")), message)


def _duplicates(config: Config) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for index, model in enumerate(config.models):
        if model.name in owners:
            yield Problem(("models", index, "name"), "another model has this name: names are unique")
        owners.setdefault(model.name, model.name)
    for index, model in enumerate(config.models):
        for position, alias in enumerate(model.aliases):
            if alias in owners:
                yield Problem(
                    ("models", index, "aliases", position),
                    f"{alias!r} already means {owners[alias]}: each name means one model and is given once",
                )
            owners.setdefault(alias, model.name)


def _collections(config: Config) -> Iterator[Problem]:
    names = {model.name for model in config.models}
    slugs: set[str] = set()
    for index, collection in enumerate(config.collections):
        if collection.slug in slugs:
            yield Problem(("collections", index, "slug"), "another collection has this slug")
        slugs.add(collection.slug)
        for position, name in enumerate(collection.models):
            if name not in names:
                yield Problem(
                    ("collections", index, "models", position),
                    f"no model is called {name!r}{_nearest(name, names)}",
                )


def _device_names(hardware: HardwareConfig) -> Iterator[Problem]:
    if hardware.devices == "auto":
        return
    seen: set[str] = set()
    for position, device in enumerate(hardware.devices):
        if device.name in seen:
            yield Problem(
                ("hardware", "devices", position, "name"),
                f"another device has the name {device.name!r}: names are unique",
            )
        seen.add(device.name)
        if device.name == HOST and hardware.host_memory is not None:
            yield Problem(
                ("hardware", "devices", position, "name"),
                f"{HOST} is the name of main memory (see host_memory): give this device another name",
            )


def _at_odds(model: ModelConfig) -> Iterator[tuple[str, str]]:
    if model.gpu is not None and model.memory is not None:
        yield "memory", "gpu and memory exclude each other: remove one of them"
    if model.readme is not None and (said := _unreadable(model.readme)):
        yield "readme", said
    if model.pin and model.idle_unload_after is not None:
        yield "idle_unload_after", "a pinned model is never unloaded: remove pin or idle_unload_after"
    if not isinstance(model, VllmModel):
        return
    options = model.options
    if options.max_model_len is not None and options.max_tokens >= options.max_model_len:
        yield (
            "options.max_tokens",
            (
                f"{options.max_tokens} leaves no room for a prompt: it should be below "
                f"max_model_len ({options.max_model_len})"
            ),
        )
    if model.memory is not None and options.kv_cache >= model.memory:
        yield (
            "options.kv_cache",
            f"{options.kv_cache:,} bytes leave no room for weights: it is part of memory ({model.memory:,})",
        )


def _unreadable(file: Path) -> str | None:
    """Why ``file`` cannot be read as text; None if it can."""
    try:
        text_file.read(file)
    except ConfigError as error:
        return f"the file {error}"
    return None


def _impossible(model: ModelConfig, hardware: HardwareConfig) -> Iterator[tuple[str, str]]:
    """Yield demands that no declared device fits; the scheduler checks the machine's own devices."""
    if hardware.devices == "auto":
        return
    largest = max(hardware.devices, key=lambda device: device.memory)
    if model.memory is not None and model.memory > largest.memory:
        yield (
            "memory",
            f"{model.memory:,} bytes fit on no device: the largest, {largest.name}, has {largest.memory:,}",
        )
    if model.gpu is not None and model.gpu > len(hardware.devices):
        yield "gpu", f"{model.gpu:g} devices are asked for, but {len(hardware.devices)} are declared"
