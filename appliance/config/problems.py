"""Turn problems of a config into error messages with file, line, model and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from appliance.config import text_file
from appliance.config.account_sections import BudgetConfig
from appliance.config.redact import CREDENTIALS, HIDDEN
from appliance.config.sections import MODELS, Config, DeviceConfig, HardwareConfig, TlsConfig
from appliance.config.yaml_source import Document, Place
from appliance.domain.errors import ConfigError
from appliance.domain.local_url import is_loopback
from appliance.domain.section import Section
from appliance.domain.units import readable_bytes
from appliance.runners.adapters import adapters_of
from appliance.runners.cog.options import CogModel
from appliance.runners.model_config import (
    FolderSource,
    GitSource,
    HubSource,
    ImageSource,
    ModelConfig,
    PypiSource,
)
from appliance.runners.onnx import options as onnx_options

#: Name of the device for models in main memory.
_CPU: Final = "cpu"
_SOURCES: Final = {
    kind.__name__: kind for kind in (FolderSource, GitSource, HubSource, ImageSource, PypiSource)
}
_UNION_MEMBERS: Final[dict[str, type[Section]]] = {**_SOURCES, **onnx_options.SECTIONS}
_SECRET: Final = 4  # characters from which a value of a variable is looked for in messages
_SHOWN: Final = 200  # characters of an invalid value in a message


class Problem(NamedTuple):
    """One problem of a config, at a path of keys; the key may be missing in the file."""

    place: Place
    message: str


def config_error(problems: Iterable[Problem], document: Document, file: str) -> ConfigError:
    errors = []
    problems = [Problem(place, _without_values(message, place, document)) for place, message in problems]
    for place, message in sorted(problems, key=lambda problem: _position(problem.place, document)):
        model, key = _names(place, document)
        found_in = document.file(place, file)
        errors.append(ConfigError(message, file=found_in, line=document.line(place), model=model, key=key))
    first, *others = errors
    message = "\n".join([first.message, *map(str, others)])
    error = ConfigError(message, file=first.file, line=first.line, model=first.model, key=first.key)
    error.problems = tuple(errors)
    return error


def _position(place: Place, document: Document) -> tuple[str, int]:
    return document.file(place, ""), document.line(place)


def _without_values(message: str, place: Place, document: Document) -> str:
    """Replace the values of environment variables at ``place``, which may be secret, as they are written."""
    for each, written in document.written.items():
        if each[: len(place)] == place:
            value: Any = document.data
            for key in each:
                value = value[key]
            if isinstance(value, str):
                message = message.replace(repr(value), repr(written))
                if len(value) >= _SECRET:  # shorter text may be a part of other words
                    message = message.replace(value, written)
    return message


def _names(place: Place, document: Document) -> tuple[str | None, str | None]:
    """Return the name of the model and its key, such as ``options.max_tokens`` or ``aliases[1]``."""
    model = None
    if len(place) > 1 and place[0] == "models":
        entry = document.data["models"][place[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        name = document.written.get(("models", place[1], "name"), name)
        model = name if isinstance(name, str) else f"number {int(place[1]) + 1}"
        place = place[2:]
    key = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place).lstrip(".")
    return model, key or None


# -- problems of one value ---------------------------------------------------------------------------------


def from_pydantic(error: ValidationError, document: Document) -> Iterator[Problem]:
    """Yield the problems that pydantic found, with messages that name a remedy."""
    for detail in error.errors(include_url=False):
        kind = detail["type"]
        if kind == "too_short" and detail["input"]:
            continue  # pydantic does not count invalid items; these have errors of their own
        place = _place(detail["loc"])
        if kind in {"union_tag_not_found", "union_tag_invalid"}:
            place = (*place, "kind")
        if any(each[: len(place)] == place for each in document.written):
            written = document.written.get(place, "the value")  # never the value of a variable
            yield Problem(place, _message({**detail, "input": written}))
            continue
        yield Problem(place, _message(detail))


def _place(loc: Place) -> Place:
    """Return the path in the file: pydantic's path without the names that pydantic adds for union members."""
    match loc:
        case ("models", int(index), str(), *rest):
            loc = ("models", index, *rest)
        case ("hardware", "devices", str(), *rest):
            loc = ("hardware", "devices", *rest)
        case _:
            return loc
    return tuple(each for each in loc if each not in _UNION_MEMBERS)


def _section(loc: Place) -> type[Section] | None:
    """Return the section of models.yaml that contains the last key of ``loc``; None if unknown."""
    match loc:
        case ("models", int(), str(), "source", str(source), str()):
            return _SOURCES.get(source)
        case ("models", int(), "onnx", "options", "inputs" | "outputs", str(), str(section), str()):
            return onnx_options.SECTIONS.get(section)
        case ("models", int(), str(kind), "options", str()):
            return _options(kind)
        case ("models", int(), str(kind), str()):
            return MODELS[kind]
        case ("hardware", "devices", str(), int(), str()):
            return DeviceConfig
        case ("limits", "budgets", int(), str()):
            return BudgetConfig
        case (str(section), str()):
            annotation = Config.model_fields[section].annotation
            return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
        case (str(),):
            return Config
        case _:
            return None


def _options(kind: str) -> type[Section]:
    return cast("type[Section]", MODELS[kind].model_fields["options"].annotation)


#: By pydantic's type of the error.
_MESSAGES: Final = {"missing": "is missing: add it", "too_short": "should have at least one item: add one"}


def _message(detail: ErrorDetails) -> str:
    loc, value = detail["loc"], detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(loc)
        case "union_tag_not_found":
            return f"is missing: add one of {', '.join(MODELS)}"
        case "union_tag_invalid":
            kind = str(value.get("kind")) if isinstance(value, dict) else "?"
            return f"there is no kind {_shown(kind)}{_nearest(kind, MODELS)} (known: {', '.join(MODELS)})"
        case "string_type" if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{_shown(value)} should be text: put it in quotes"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{_shown(value)} should be a mapping of keys to values"
        case "tuple_type":
            return f"{_shown(value)} should be a list"
        case "missing" | "too_short" as what:
            return _MESSAGES[what]
        case "none_required" if loc[-1] == "source":
            return "an echo model has no weights: remove the key"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
        case _:
            message = detail["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value ")
            return message if isinstance(value, dict | list) else f"{_shown(value)} {message}"


def _shown(value: Any) -> str:
    text = CREDENTIALS.sub(HIDDEN, repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _unknown_key(loc: Place) -> str:
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


# -- conflicts between values ------------------------------------------------------------------------------


def conflicts(config: Config) -> Iterator[Problem]:
    """Yield conflicts between values, such as duplicate names, or a model that fits on no declared device."""
    yield from _duplicates(config)
    yield from _device_names(config.hardware)
    yield from _no_devices(config)
    yield from _collections(config)
    yield from _budgets(config)
    yield from _retention(config)
    if config.server.tls is not None:
        yield from _tls(config.server.tls)
    for place, message in _sign_on(config):
        yield Problem(("sign_on", "oidc", *place), message)
    for index, model in enumerate(config.models):
        if isinstance(model, CogModel) and not config.code.cog:
            message = "Cog projects run other people's code: set code.cog to true to allow that"
            yield Problem(("models", index, "kind"), message)
        if model.readme is not None and (reason := _unreadable(model.readme)):
            yield Problem(("models", index, "readme"), reason)
        for key, message in (*model.conflicts(), *_machines(model, config), *_too_large(model, config)):
            yield Problem(("models", index, *key.split(".")), message)


def _sign_on(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the keys of ``sign_on.oidc`` that conflict with other keys, each with a message."""
    oidc = config.sign_on.oidc
    if oidc is None:
        return
    if config.server.public_url is None:
        yield (), "set server.public_url too: the provider sends browsers back to /signin/callback there"
    url = urlsplit(oidc.issuer)
    if url.scheme != "https" and not is_loopback(url.hostname or ""):
        yield ("issuer",), "should begin with https://, because others could answer for the provider"
    if oidc.client_secret is not None and oidc.client_secret_file is not None:
        yield ("client_secret",), "client_secret_file is set too: remove one of them"
    if oidc.client_secret_file is not None and (reason := _unreadable(oidc.client_secret_file)):
        yield ("client_secret_file",), reason
    known = {} if config.access is None else config.access.groups
    for value, group in oidc.groups.items():
        if group not in known:
            yield ("groups", value), f"there is no group {group!r} in access.groups{_nearest(group, known)}"
    if oidc.groups and oidc.groups_claim is None:
        yield ("groups",), "set groups_claim too: the claim that has these values"
    if oidc.scope == "admin" and config.access is None:
        yield ("scope",), "add the section access: without it, everybody at the provider could do everything"


def _retention(config: Config) -> Iterator[Problem]:
    groups = {} if config.access is None else config.access.groups
    for name in config.retention.groups:
        if name not in groups:
            near = _nearest(name, groups) or ": correct or remove it"
            yield Problem(("retention", "groups", name), f"access.groups has no group {name!r}{near}")


def _tls(tls: TlsConfig) -> Iterator[Problem]:
    for key in ("certificate", "key"):
        if reason := _unreadable(getattr(tls, key)):
            yield Problem(("server", "tls", key), f"{reason}; `appliance certificate` makes both files")
    for key in ("client_ca", "client_crl"):
        file = getattr(tls, key)
        if file is not None and (reason := _unreadable(file)):
            yield Problem(("server", "tls", key), reason)
    if tls.client_crl is not None and tls.client_ca is None:
        yield Problem(("server", "tls", "client_crl"), "needs client_ca: set it, or remove client_crl")


def _duplicates(config: Config) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for index, model in enumerate(config.models):
        if model.name in owners:
            yield Problem(("models", index, "name"), "another model has this name: choose a unique name")
        owners.setdefault(model.name, model.name)
    for index, model in enumerate(config.models):
        for position, alias in enumerate(model.aliases):
            if alias in owners:
                yield Problem(
                    ("models", index, "aliases", position),
                    f"{alias!r} is already a name of model {owners[alias]}: remove one of the two",
                )
            owners.setdefault(alias, model.name)
    for index, model in enumerate(config.models):
        for number, adapter in enumerate(adapters_of(model)):
            names: list[tuple[Place, str]] = [(("name",), adapter.name)]
            names += [(("aliases", position), alias) for position, alias in enumerate(adapter.aliases)]
            for key, name in names:
                if name in owners:
                    yield Problem(
                        ("models", index, "adapters", number, *key),
                        f"{name!r} is already a name of model {owners[name]}: choose a unique name",
                    )
                owners.setdefault(name, adapter.name)


def _collections(config: Config) -> Iterator[Problem]:
    names = {model.name for model in config.models}
    slugs: set[str] = set()
    for index, collection in enumerate(config.collections):
        if collection.slug in slugs:
            message = "another collection has this slug: choose a unique slug"
            yield Problem(("collections", index, "slug"), message)
        slugs.add(collection.slug)
        for position, name in enumerate(collection.models):
            if name not in names:
                near = _nearest(name, names) or ": correct or remove it"
                yield Problem(("collections", index, "models", position), f"there is no model {name!r}{near}")


def _budgets(config: Config) -> Iterator[Problem]:
    groups = ["everybody", *config.access.groups] if config.access is not None else []
    for index, budget in enumerate(config.limits.budgets):
        place: Place = ("limits", "budgets", index)
        if all(each is None for each in (budget.account, budget.group, budget.token, budget.model)):
            yield Problem(place, "has none of the keys account, group, token and model: add one of them")
        if budget.group is not None and budget.group not in groups:
            near = _nearest(budget.group, groups) or ": add it to access.groups, or correct the name"
            yield Problem((*place, "group"), f"there is no group {budget.group!r}{near}")
        if budget.cost is not None and not config.prices.per_second:
            message = "without prices nothing costs anything: add prices.per_second, or remove the key"
            yield Problem((*place, "cost"), message)


def _no_devices(config: Config) -> Iterator[Problem]:
    if config.hardware.devices != "none":
        return
    if config.cluster is None:
        message = (
            "none means that only other machines run models, but there is no section cluster: add it, or "
            "remove this key to use the devices of this machine"
        )
        yield Problem(("hardware", "devices"), message)
    if config.hardware.host_memory is not None:
        message = "hardware.devices is none, so this machine runs no models: remove host_memory"
        yield Problem(("hardware", "host_memory"), message)


def _device_names(hardware: HardwareConfig) -> Iterator[Problem]:
    if isinstance(hardware.devices, str):
        return
    seen: set[str] = set()
    for position, device in enumerate(hardware.devices):
        if device.name in seen:
            yield Problem(
                ("hardware", "devices", position, "name"),
                f"another device has the name {device.name!r}: choose a unique name",
            )
        seen.add(device.name)
        if device.name == _CPU and hardware.host_memory is not None:
            yield Problem(
                ("hardware", "devices", position, "name"),
                f"{_CPU} is the name of main memory (see host_memory): choose another name",
            )


def _unreadable(file: Path) -> str | None:
    try:
        text_file.read(file)
    except ConfigError as error:
        return f"the file {error}"
    return None


def _machines(model: ModelConfig, config: Config) -> Iterator[tuple[str, str]]:
    """Yield the key ``machines`` if the section ``cluster`` does not allow models on several machines."""
    if model.machines == 1 or not model.ACROSS_MACHINES:
        return
    if config.cluster is None:
        yield "machines", "needs a cluster: add the section cluster (docs/cluster.md), or remove machines"
    elif config.cluster.private_network is None:
        network = "a network that only the machines of the cluster can reach"
        why = "whoever reaches the ports between the machines can run code on them"
        yield "machines", f"set cluster.private_network too, to {network}: {why}"


def _too_large(model: ModelConfig, config: Config) -> Iterator[tuple[str, str]]:
    """Yield keys that need more memory or devices than ``hardware.devices`` declares.

    In a cluster, other machines may have larger devices.
    """
    hardware = config.hardware
    if isinstance(hardware.devices, str) or config.cluster is not None:
        return
    largest = max(hardware.devices, key=lambda device: device.memory)
    if model.memory is not None and model.memory > largest.memory:
        available = f"the largest, {largest.name}, has {readable_bytes(largest.memory)}"
        yield "memory", f"{readable_bytes(model.memory)} do not fit on any device: {available}; lower memory"
    if model.gpu is not None and model.gpu > len(hardware.devices):
        message = f"{model.gpu:g} devices are needed, and hardware.devices has {len(hardware.devices)}"
        yield "gpu", f"{message}: lower gpu, or add devices"
