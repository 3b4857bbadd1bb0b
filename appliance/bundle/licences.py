"""Licences of the models and packages of a bundle, as their authors state them."""

from __future__ import annotations

import email.parser
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from appliance.adding import catalogue
from appliance.adding.hub import list_repository
from appliance.bundle.models import Member
from appliance.config import Config, HubSource, ModelConfig
from appliance.domain.errors import WeightsError

_NAMES = ("licen", "copying", "notice", "authors")  # beginnings of the names of licence files


def of_models(
    config: Config, models: Sequence[ModelConfig], members: Sequence[Member], tops: dict[str, str]
) -> list[Any]:
    """Return name, source and licence of each model.

    ``tops`` has the folder of the weights in the bundle by the name of the model. The licence of a hub
    repository comes from the catalogue or else from the hub; it is None if the hub cannot be reached.
    """
    known = {model.hub: model.licence for model in catalogue(config)}
    described = []
    for model in models:
        hub = model.source.hub if isinstance(model.source, HubSource) else None
        top = tops.get(model.name)
        files = [member.name for member in members if top and member.name.startswith(f"{top}/")]
        described.append(
            {
                "name": model.name,
                "source": None if model.source is None else model.source.model_dump(mode="json"),
                "license_url": model.license_url,
                "licence": known.get(hub) or _on_the_hub(model) if hub else None,
                "files": [name for name in files if _is_licence(name.rpartition("/")[2])],
            }
        )
    return described


def unknown(described: list[Any]) -> list[str]:
    """Return a note for each model whose licence is stated nowhere; models without weights have none."""
    keys = ("license_url", "licence", "files")
    return [
        f"the licence of model {model['name']} is not known: read it at the source of its weights"
        for model in described
        if model["source"] is not None and not any(model[key] for key in keys)
    ]


def of_packages(wheels: Iterable[Path]) -> list[Any]:
    """Return name, version, licence and licence files of each wheel, from its metadata."""
    described = []
    for wheel in sorted(wheels):
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = [
                name
                for name in archive.namelist()
                if name.endswith(".dist-info/METADATA") and name.count("/") == 1
            ]
            headers = email.parser.BytesHeaderParser().parsebytes(archive.read(metadata))
            folder = metadata.rpartition("/")[0]
            files = [
                name
                for name in archive.namelist()
                if name.startswith(f"{folder}/") and _is_licence(name.removeprefix(f"{folder}/"))
            ]
        classifiers = [
            each.rpartition(" :: ")[2]
            for each in headers.get_all("Classifier", [])
            if each.startswith("License :: ")
        ]
        stated = headers.get("License-Expression") or headers.get("License")
        described.append(
            {
                "name": str(headers["Name"]),
                "version": str(headers["Version"]),
                # some packages have the whole text in this header
                "licence": str(stated).partition("\n")[0] if stated else " or ".join(classifiers) or None,
                "wheel": wheel.name,
                "files": files,
            }
        )
    return described


def _on_the_hub(model: ModelConfig) -> str | None:
    assert isinstance(model.source, HubSource)
    if model.license_url is not None:
        return None  # stated in models.yaml
    try:
        return list_repository(model.source.hub, model.source.revision).licence
    except WeightsError:
        return None


def _is_licence(name: str) -> bool:
    return name.lower().startswith(_NAMES)
