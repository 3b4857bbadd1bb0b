"""The models of a bundle: their config files without secrets, and their weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from appliance import config as configuration
from appliance.bundle import environment_wheels
from appliance.config import CogModel, Config, FolderSource, ModelConfig, includes, text_file, yaml_source
from appliance.config import variables as references
from appliance.config.edit import change_entry, remove_entry
from appliance.config.redact import secret_keys
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.runners.adapters import adapters_of
from appliance.weights import locations

#: Folder of the config files in a bundle, and of weights whose source in models.yaml is a path.
CONFIG: Final = "config"
LOCAL: Final = "local"
WEIGHTS: Final = "weights"
_REFERENCE: Final = re.compile(r"\$\{\w+(:-)?\}")


class Member(NamedTuple):
    """A file of the bundle: its path in the bundle, and on this machine."""

    name: str
    path: Path


class Files(NamedTuple):
    """Config files for the other machine, and notes about files that the user has to copy there."""

    texts: dict[str, str]  # by their path relative to models.yaml
    notes: list[str]


class Weights(NamedTuple):
    """Weights that a model loads: its own, those of a component such as a ControlNet, or of an adapter."""

    model: ModelConfig  # with the name and the source of the weights
    path_key: tuple[str | int, ...]  # key in the model's entry in models.yaml that has the path, if any


def choose(config: Config, names: Sequence[str]) -> list[ModelConfig]:
    """Return the models with these names or aliases; all models if there are no names.

    Raises:
        ConfigError: models.yaml has no such model.
        ApplianceError: a model is a Cog project, or has an environment that cannot be bundled.
    """
    by_name = {name: model for model in config.models for name in (model.name, *model.aliases)}
    for name in names:
        if name not in by_name:
            known = ", ".join(model.name for model in config.models)
            raise ConfigError(f"models.yaml has no model {name}: choose among {known}")
    wanted = {by_name[name].name for name in names or by_name}  # models are not hashable
    chosen = [model for model in config.models if model.name in wanted]
    for model in chosen:
        if isinstance(model, CogModel):
            raise ApplianceError(
                f"model {model.name} is a Cog project, and the environment of a built project works on this "
                "machine only: leave it out by naming the other models with --models"
            )
        environment_wheels.check(model)
    return chosen


def weights_of(model: ModelConfig) -> Iterator[Weights]:
    """Yield the weights of the model, of its components, of its adapters, and at paths in its options."""
    yield Weights(model, ("source", "path"))
    for key, component in model.extra_weights.items():
        yield Weights(component, (*key.split("."), "path"))
    for at, adapter in enumerate(adapters_of(model)):
        yield Weights(adapter.as_model, ("adapters", at, "source", "path"))
    for option, path in _option_paths(model):
        name = f"{model.name}, {'.'.join(option)}"
        source = FolderSource.model_construct(path=path)
        yield Weights(ModelConfig.model_construct(name=name, kind="component", source=source), option)


def _option_paths(model: ModelConfig) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Yield the paths in the model's options, such as those of ``gguf`` and ``loras``, with their keys."""
    for option, value in model.options:
        if isinstance(value, Path):
            yield ("options", option), value
        elif isinstance(value, dict):
            yield from (
                (("options", option, name), path) for name, path in value.items() if isinstance(path, Path)
            )


def all_weights(models: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Return everything that ``weights_of`` yields for the models."""
    return [weights.model for model in models for weights in weights_of(model)]


def weights_folder(home: Path, model: ModelConfig) -> Path | None:
    """Return the file or folder of the weights that a bundle must contain; None if there is none.

    A GGUF file at a path is not converted for the bundle: the appliance converts it on the other machine.
    """
    source = model.source
    if source is None or isinstance(source, configuration.BuiltinSource):
        return None
    return source.path if isinstance(source, FolderSource) else locations.folder(home, model)


def weights_name(home: Path, model: ModelConfig) -> str | None:
    """Return the path of the weights in the bundle; None if it contains none of this model."""
    folder = weights_folder(home, model)
    if folder is None:
        return None
    is_path = isinstance(model.source, FolderSource)
    return local_name(model) if is_path else f"{WEIGHTS}/{folder.parent.name}/{folder.name}"


def weight_files(home: Path, models: Sequence[ModelConfig]) -> list[Member]:
    """Return the files of the weights of ``models``, which are from ``all_weights``: each file once.

    Raises:
        ApplianceError: weights are missing.
    """
    members: dict[str, Path] = {}
    for model in models:
        folder, top = weights_folder(home, model), weights_name(home, model)
        if folder is None or top is None:
            continue
        if not folder.exists():
            raise ApplianceError(f"the weights of model {model.name} are missing: {folder} does not exist")
        for file in _files(folder):
            relative = file.relative_to(folder).as_posix()
            members[top if relative == "." else f"{top}/{relative}"] = file
    return [Member(name, path) for name, path in members.items()]


def local_name(model: ModelConfig) -> str:
    """Return the path, relative to models.yaml, at which a bundle has the weights of a path."""
    assert isinstance(model.source, FolderSource)
    return f"{LOCAL}/{locations.digest(model.source)}-{model.source.path.name}"


def config_files(path: Path, config: Config, models: Sequence[ModelConfig]) -> Files:
    """Return models.yaml, its included files and readme files, with only the chosen models.

    References to environment variables stay as they are.

    Raises:
        ConfigError: a file cannot be edited.
        ApplianceError: a file contains a secret, or needs a file that the bundle cannot contain.
    """
    chosen = {model.name: model for model in models}
    folder = path.absolute().parent
    texts: dict[str, str] = {}
    for file in (path, *includes.files(path)):
        text = text_file.read(file)
        for name in _names(text, file):
            expanded = references.expand(name, os.environ)
            if expanded not in chosen:
                text = remove_entry(text, name, str(file))
                continue
            model = chosen[expanded]
            for weights in weights_of(model):
                if isinstance(weights.model.source, FolderSource):
                    text = change_entry(text, name, weights.path_key, local_name(weights.model), str(file))
            if model.readme is not None:
                name_of_readme = _readme_name(model, model.readme, folder)
                texts[name_of_readme] = text_file.read(model.readme)
        _refuse_secrets(text, file)
        texts[configuration.CONFIG_FILE if file == path else f"{includes.FOLDER}/{file.name}"] = text
    return Files(texts, list(_notes(config)))


def check_written(folder: Path, config: Config) -> None:
    """Check the config files that were written to ``folder`` as the other machine will see them.

    Raises:
        ApplianceError: models.yaml is not valid without the models that were not chosen.
    """
    document = includes.read(folder / configuration.CONFIG_FILE, os.environ)
    if isinstance(document.data, dict) and config.server.tls is not None:
        document.data["server"].pop("tls")  # its files are not in the bundle
    try:
        configuration.validated(document, folder / configuration.CONFIG_FILE)
    except ConfigError as error:
        raise ApplianceError(
            f"models.yaml is not valid with only the models of the bundle: {error}: choose other models with "
            "--models, or another file with --config"
        ) from error


def _files(folder: Path) -> Iterator[Path]:
    """Yield the regular files of a folder, or the file itself; links are followed."""
    if folder.is_file():
        yield folder
        return
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names) if (Path(parent) / name).is_file())


def _names(text: str, file: Path) -> list[str]:
    data = yaml_source.parse(text, str(file)).data
    listed = data.get("models") if isinstance(data, dict) else None
    return [str(each["name"]) for each in listed or ()]


def _readme_name(model: ModelConfig, readme: Path, folder: Path) -> str:
    """Return the path of a readme file relative to models.yaml."""
    if not readme.is_relative_to(folder) or ".." in readme.relative_to(folder).parts:
        raise ApplianceError(
            f"model {model.name}: the readme {readme} is not in the folder of models.yaml, so the bundle "
            "cannot contain it: move it there, and use a relative path"
        )
    return readme.relative_to(folder).as_posix()


def _refuse_secrets(text: str, file: Path) -> None:
    data = yaml_source.parse(text, str(file)).data
    for key, value in secret_keys(data):
        if _REFERENCE.sub("", value).strip(":"):
            raise ApplianceError(
                f"{file}: key {key} contains a secret, and a bundle must not: replace it with a reference to "
                "an environment variable, such as ${SECRET}"
            )


def _notes(config: Config) -> Iterator[str]:
    if config.server.tls is not None:
        names = f"{config.server.tls.certificate} and {config.server.tls.key}"
        yield f"server.tls names {names}, which are not in the bundle: copy them to the other machine"
    if config.server.data is not None:
        yield f"server.data is {config.server.data}: ./install --home chooses another data folder there"
