"""Compare an edited models.yaml with the config that the appliance runs with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from pydantic import BaseModel

from appliance.config.sections import Config
from appliance.runners.model_config import ModelConfig

#: Sections, and keys of the sections `server` and `files`, whose changes need a restart of the appliance.
SECTIONS: Final = ("cluster", "hardware", "logging", "store", "telemetry", "ui")
SERVER: Final = ("host", "port", "tls", "data")
FILES: Final = ("s3",)  # keys of the section `files`


class Changes(NamedTuple):
    """Differences between two configs. Keys are written as in ``limits.queue``."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]  # model -> its keys whose values differ
    settings: tuple[str, ...]  # changed keys outside of `models` that are applied at once
    needs_restart: tuple[str, ...]  # changed keys that keep their old values until a restart
    config: Config  # the new config, with the old values of `needs_restart`


def compare(old: Config, new: Config) -> Changes:
    """Return the changes from ``old``, the config in use, to ``new``, the edited file."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    changed = {name: _changed_keys(before[name], after[name]) for name in after if name in before}
    keys = tuple(_changed_settings(old, new))
    restart = tuple(key for key in keys if _needs_restart(key))
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed={name: found for name, found in changed.items() if found},
        settings=tuple(key for key in keys if key not in restart),
        needs_restart=restart,
        config=_without_restart(old, new),
    )


def _needs_restart(key: str) -> bool:
    section, _, name = key.partition(".")
    keys = {"server": SERVER, "files": FILES}
    return section in SECTIONS or name in keys.get(section, ())


def _without_restart(old: Config, new: Config) -> Config:
    server = new.server.model_copy(update={key: getattr(old.server, key) for key in SERVER})
    files = new.files.model_copy(update={key: getattr(old.files, key) for key in FILES})
    return new.model_copy(
        update={"server": server, "files": files, **{key: getattr(old, key) for key in SECTIONS}}
    )


def _changed_settings(old: Config, new: Config) -> Iterator[str]:
    for section in Config.model_fields:
        if section == "models":
            continue
        before, after = getattr(old, section), getattr(new, section)
        if before == after:
            continue
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _differing(before, after, f"{section}.")
        else:
            yield section


def _changed_keys(old: ModelConfig, new: ModelConfig) -> tuple[str, ...]:
    if old.kind != new.kind:
        return ("kind",)
    keys = [key for key in _differing(old, new, "") if key != "options"]
    return (*keys, *_differing(old.options, new.options, "options."))


def _differing(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[str]:
    for key in type(new).model_fields:
        if getattr(old, key) != getattr(new, key):
            yield f"{prefix}{key}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a reload, for the API and the log. Fields are as in ``Changes``, except the last."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: dict[str, tuple[str, ...]] = {}
    settings: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    not_served: dict[str, str] = {}  # model -> why it cannot be served

    def __str__(self) -> str:
        lines = [f"added {name}" for name in self.added]
        lines += [f"removed {name}" for name in self.removed]
        lines += [f"changed {name}: {', '.join(keys)}" for name, keys in self.changed.items()]
        if self.settings:
            lines.append(f"applied {', '.join(self.settings)}")
        if self.needs_restart:
            lines.append(f"will be applied after a restart: {', '.join(self.needs_restart)}")
        lines += [f"cannot be served yet: {name}: {reason}" for name, reason in self.not_served.items()]
        return "\n".join(lines or ["nothing has changed"])
