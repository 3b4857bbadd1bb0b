"""Further models in the files ``models.d/*.yaml`` beside models.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from appliance.config import text_file, yaml_source
from appliance.config.yaml_source import Document, Place
from appliance.domain.errors import ConfigError

FOLDER: Final = "models.d"


def files(path: Path) -> list[Path]:
    """Return the included files of the config file ``path``, sorted by name, without hidden files."""
    found = (path.absolute().parent / FOLDER).glob("*.yaml")
    return sorted(file for file in found if not file.name.startswith("."))


def find_model(path: Path, name: str) -> Path | None:
    """Return the included file that defines a model; None if no included file defines it.

    Raises:
        ConfigError: a file cannot be read, or is not YAML.
    """
    return next((file for file in files(path) if name in _model_names(yaml_source.read(file).data)), None)


def _model_names(data: Any) -> list[Any]:
    models = data.get("models") if isinstance(data, dict) else None
    return [each.get("name") for each in models if isinstance(each, dict)] if isinstance(models, list) else []


def read(path: Path, environment: Mapping[str, str]) -> Document:
    """Read a config file, with the models of its included files after its own.

    Raises:
        ConfigError: a file cannot be read, is not YAML, or an included file has other keys than `models`.
    """
    return with_included(yaml_source.read(path, environment), path, environment)


def with_included(
    document: Document,
    path: Path,
    environment: Mapping[str, str],
    texts: Mapping[Path, str] = MappingProxyType({}),
) -> Document:
    """Return the content of the config file ``path`` with the models of its included files, as ``read``.

    ``texts`` are used instead of the content of included files.
    """
    included = files(path)
    if not included or not isinstance(document.data, dict):
        return document
    models = document.data.get("models")
    if models is not None and not isinstance(models, list):
        return document  # reported by the validation
    merged = Document(
        {**document.data, "models": list(models or [])},
        dict(document.lines),
        dict(document.written),
        document.problems,
        {},
    )
    for file in included:
        text = texts[file] if file in texts else text_file.read(file)
        merged = _with_models(merged, yaml_source.parse(text, str(file), environment), str(file))
    repeated = tuple(_repeated(merged, str(path)))
    return msgspec.structs.replace(merged, problems=(*merged.problems, *repeated))


def _with_models(merged: Document, added: Document, file: str) -> Document:
    if added.data is None:  # only comments
        return merged
    if not isinstance(added.data, dict) or not isinstance(added.data.get("models"), list):
        raise ConfigError("should have the key models with a list of models: add it", file=file, line=1)
    for key in added.data:
        if key != "models":
            message = "an included file has only the key models: move this key to models.yaml"
            raise ConfigError(message, file=file, line=added.line((key,)), key=key)
    first = len(merged.data["models"])

    def moved(place: Place) -> Place:
        return ("models", first + int(place[1]), *place[2:]) if len(place) > 1 else place

    merged.data["models"].extend(added.data["models"])
    merged.lines.update((moved(place), line) for place, line in added.lines.items() if len(place) > 1)
    merged.written.update((moved(place), text) for place, text in added.written.items())
    merged.files.update((("models", first + index), file) for index in range(len(added.data["models"])))
    problems = tuple((moved(place), message) for place, message in added.problems)
    return msgspec.structs.replace(merged, problems=(*merged.problems, *problems))


def _repeated(document: Document, main: str) -> Iterator[tuple[Place, str]]:
    """Yield names and aliases that are in two files; those in one file are found by the validation."""
    seen: dict[str, Place] = {}
    for index, model in enumerate(document.data["models"]):
        for place, name in _names(index, model):
            earlier = seen.setdefault(name, place)
            if document.file(earlier, main) != document.file(place, main):
                where = f"{document.file(earlier, main)}:{document.line(earlier)}"
                yield place, f"this name is also in {where}: remove one of the two"


def _names(index: int, model: Any) -> Iterator[tuple[Place, str]]:
    if not isinstance(model, dict):
        return
    if isinstance(model.get("name"), str):
        yield ("models", index, "name"), model["name"]
    aliases = model.get("aliases")
    for position, alias in enumerate(aliases if isinstance(aliases, list) else ()):
        if isinstance(alias, str):
            yield ("models", index, "aliases", position), alias
    adapters = model.get("adapters")
    for number, adapter in enumerate(adapters if isinstance(adapters, list) else ()):
        for place, name in _names(index, adapter):
            yield ("models", index, "adapters", number, *place[2:]), name
