"""LoRA adapters in the catalogue: the versions of configured adapters, and the adapters that inputs name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from appliance import weights
from appliance.domain import input_schema
from appliance.domain.access import Access
from appliance.domain.errors import FieldProblem, InvalidInput, InvalidVersion, WeightsError
from appliance.gateway.catalogue.catalogue import (
    Catalogue,
    ModelCard,
    ServedVersion,
    interface_of,
    version_of_adapter,
)
from appliance.runners import adapters
from appliance.runners.adapters import AdaptableModel, AdapterConfig
from appliance.runners.model_config import FolderSource

_PROBLEM: Final = "adapter"  # type of the problems in error responses


def describe_adapter(
    adapter: AdapterConfig, home: Path, base: ServedVersion
) -> tuple[ModelCard, ServedVersion]:
    """Return the model card of a configured adapter, and its version, which runs on the loaded ``base``.

    Raises:
        WeightsError: the adapter is not downloaded, or cannot run on the model.
    """
    assert isinstance(base.model, AdaptableModel), "only these models have adapters"
    stand_in = adapter.as_model
    folder = weights.folder(home, stand_in)
    if not folder.exists() and not isinstance(adapter.source, FolderSource):
        raise WeightsError(f"the adapter is not downloaded: run `appliance pull {base.model.name}`")
    if reason := base.model.adapter_problem(folder):
        raise WeightsError(f"the adapter cannot run on {base.model.name}: {reason}")
    card = ModelCard(
        name=adapter.name,
        kind=base.kind,
        aliases=adapter.aliases,
        created_at=base.created_at,
        description=adapter.description,
        license_url=base.model.license_url,
    )
    interface = interface_of(base.model, own=True)
    entry = msgspec.structs.replace(
        base,
        name=adapter.name,
        version=version_of_adapter(adapter.name, base.version, weights.revision(stand_in)),
        interface=interface,
        document=input_schema.document(interface),
        adapter=str(folder),
    )
    return card, entry


def selected(
    catalogue: Catalogue, entry: ServedVersion, input: dict[str, Any], access: Access
) -> dict[str, Any]:
    """Return ``input`` with the paths of the adapters that it names.

    An adapter from a source that ``adapter_sources`` allows keeps its source: it is fetched later.

    Raises:
        InvalidInput: there is no such adapter, its source is not allowed, or it runs on another model.
    """
    model = entry.model
    given = {name: input[name] for name in adapters.INPUTS if name in input}
    if not given or entry.interface.verbatim or not isinstance(model, AdaptableModel):
        return input
    input = {name: value for name, value in input.items() if name not in given}
    for name, value in given.items():
        if value == adapters.NONE:
            continue
        if name == adapters.LORA and entry.adapter is not None:
            raise _refused(
                name,
                f"version {entry.version} of {entry.name} is an adapter and cannot be combined "
                f"with another one: remove {name}",
            )
        path = _path_of(catalogue, entry, value, access)
        source = adapters.remote(value)
        if path is None and source is not None and adapters.allowed(source, model.adapter_sources):
            path = value
        if path is None:
            raise _refused(name, _unknown(value, model))
        input[name] = path
    return input


def _path_of(catalogue: Catalogue, entry: ServedVersion, name: str, access: Access) -> str | None:
    """Return the path of the adapter with this name that runs on the base model of ``entry``."""
    assert isinstance(entry.model, AdaptableModel)
    if name in entry.model.local_adapters:
        return str(entry.model.local_adapters[name])
    try:
        found = catalogue.by_compat_name(name, access)
    except InvalidVersion:
        return None
    return found.adapter if found.origin == entry.origin else None


def _unknown(value: str, model: AdaptableModel) -> str:
    names = [*model.local_adapters, *(adapter.name for adapter in model.adapters)]
    known = f"the adapters of {model.name} are {', '.join(names)}" if names else f"{model.name} has none"
    sources = f"; allowed sources: {', '.join(model.adapter_sources)}" if model.adapter_sources else ""
    return f"{value!r} is no adapter that {model.name} may use: {known}{sources}"


def _refused(name: str, message: str) -> InvalidInput:
    return InvalidInput([FieldProblem(_PROBLEM, f"input.{name}", message)])
