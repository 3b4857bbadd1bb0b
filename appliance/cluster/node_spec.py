"""Translates what a model needs between this machine and another node. No I/O.

The engine names devices as the scheduler does (``node/cuda:0``), and paths as on this machine. A worker
process gets the names and paths of its own machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from appliance.machine import local_name
from appliance.runners.base import LoadSpec, Part


def node_of(device: str) -> str:
    """Return the node in the name of a device of a cluster."""
    return device.partition("/")[0]


def nodes_of(spec: LoadSpec) -> list[str]:
    """Return the names of the nodes whose devices were chosen for the model. The first one leads."""
    return list(dict.fromkeys(map(node_of, spec.placement)))


def on_node(spec: LoadSpec, node: str, part: Part | None = None) -> LoadSpec:
    """Return the spec of one part of a model on several machines: with the devices of ``node`` only."""
    # On CPUs the device is "cpu", without a node.
    device = [each for each in spec.device.split(",") if "/" not in each or node_of(each) == node]
    placement = tuple(each for each in spec.placement if node_of(each) == node)
    return msgspec.structs.replace(spec, device=",".join(device), placement=placement, part=part)


def with_local_devices(spec: LoadSpec, node: str) -> LoadSpec:
    """Return ``spec`` with the names that the devices have on their own machine."""
    device = ",".join(local_name(each, node) for each in spec.device.split(","))
    placement = tuple(local_name(each, node) for each in spec.placement)
    return msgspec.structs.replace(spec, device=device, placement=placement)


def for_node(spec: LoadSpec, node: str, cache: Path, copied: Mapping[str, str]) -> LoadSpec:
    """Return ``spec`` with the devices and paths of a node, whose compile caches are below ``cache``.

    ``copied`` maps the paths of ``paths_of`` to the paths of their copies on the node.
    """
    return msgspec.structs.replace(
        with_local_devices(spec, node),
        weights=None if spec.weights is None else copied[spec.weights],
        options=replaced(spec.options, copied),
        paths=tuple(copied.get(path, path) for path in spec.paths),
        cache=str(cache / PurePosixPath(spec.cache).name),
    )


def paths_of(spec: LoadSpec) -> list[Path]:
    """Return the files and folders that the worker process reads: weights, and paths in the options."""
    return [Path(path) for path in paths_in(spec) if path != "/"]


def paths_in(spec: LoadSpec) -> list[str]:
    """Return the path of the weights, and the paths in the options."""
    return list(dict.fromkeys([*([] if spec.weights is None else [spec.weights]), *spec.paths]))


def replaced(value: Any, strings: Mapping[str, str]) -> Any:
    """Return ``value`` with every string that is a key of ``strings``, at any depth, replaced."""
    match value:
        case str():
            return strings.get(value, value)
        case dict():
            return {key: replaced(item, strings) for key, item in value.items()}
        case list() | tuple():
            return [replaced(item, strings) for item in value]
    return value


def strings_in(value: Any) -> Iterator[str]:
    """Yield the strings in ``value``, at any depth."""
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from strings_in(item)
        case list() | tuple():
            for item in value:
                yield from strings_in(item)
