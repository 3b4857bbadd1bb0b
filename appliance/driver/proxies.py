"""Environment variables for proxies: for downloads, but not for calls within the appliance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
#: Variables for a process that only calls the appliance. An empty lower-case variable overrides the
#: upper-case variable: https://docs.python.org/3/library/urllib.request.html#urllib.request.getproxies
NO_PROXIES: Final = {"http_proxy": "", "https_proxy": "", "all_proxy": ""}


def bypass(environment: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """Return environment variables that exempt ``hosts`` and the loopback addresses from proxies.

    Hosts that ``environment`` exempts remain exempt. gRPC uses ``http_proxy`` too, and has its own variable
    for exemptions: https://grpc.github.io/grpc/core/md_doc_environment_variables.html
    """
    own = list(dict.fromkeys([*_LOOPBACK, *hosts]))
    given = _entries(environment.get("no_proxy") or environment.get("NO_PROXY") or "")
    # A "*" exempts every host. urllib accepts it only as the whole value; gRPC does not support it.
    exempt = "*" if "*" in given else ",".join(dict.fromkeys([*given, *own]))
    for_grpc = _entries(environment.get("no_grpc_proxy") or "") or given
    return {
        "no_proxy": exempt,
        "NO_PROXY": exempt,
        "no_grpc_proxy": ",".join(dict.fromkeys([*for_grpc, *own])),
    }


def _entries(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",") if entry.strip()]
