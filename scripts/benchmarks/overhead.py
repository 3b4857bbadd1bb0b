"""Overhead of servers: sync predictions of a model that does nothing."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import servers
from scripts.benchmarks.load import Measured, Plan
from scripts.benchmarks.load import measure as measure_load
from scripts.benchmarks.statistic import Spread, ratios
from tests.support.appliance_process import TOKEN

CLIENTS: Final = (1, 4, 16)
LITSERVE: Final = "LitServe"
#: Cog's server has no queue: it answers 409 to what it cannot run at once.
ALONE: Final = frozenset({"Cog"})
ROUNDS: Final = 3
SECONDS: Final = 4.0


def measure(console: Console, rounds: int = ROUNDS) -> dict[str, Any]:
    """Every server at 1, 4 and 16 clients, in turn; the median of the rounds counts."""
    found: dict[str, dict[int, list[Measured]]] = {}
    with ExitStack() as stack:
        plans = _plans(stack, console)
        for number in range(rounds):
            for clients in CLIENTS:
                for name, (url, body, headers) in plans.items():
                    if clients > 1 and name in ALONE:
                        continue
                    console.print(f"round {number + 1} of {rounds}: {name}, {clients} clients", style="dim")
                    plan = Plan(url, json.dumps(body), headers, clients, SECONDS)
                    found.setdefault(name, {}).setdefault(clients, []).append(measure_load(plan))
    return _report(found, console)


def _plans(stack: ExitStack, console: Console) -> dict[str, tuple[str, Any, dict[str, str]]]:
    """Idle servers take no part of the machine, so all of them stay up for every round."""
    ours = stack.enter_context(servers.appliance(shipped=False))
    peers = {
        name: stack.enter_context(server).url
        for name, server in (
            (LITSERVE, servers.litserve(console)),
            (f"{LITSERVE}, fast queue", servers.litserve(console, fast_queue=True)),
            (f"{LITSERVE}, 2 workers", servers.litserve(console, workers=2)),
            ("BentoML", servers.bentoml(console)),
            ("Cog", servers.cog(console)),
        )
    }
    signed_in = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait"}
    text = {"input": {"text": "hello"}}
    return {
        "appliance": (f"{ours.url}/v1/models/appliance/echo/predictions", text, signed_in),
        **{name: (f"{url}/predict", text, {}) for name, url in peers.items() if name.startswith(LITSERVE)},
        "BentoML": (f"{peers['BentoML']}/predict", {"text": "hello"}, {}),
        "Cog": (f"{peers['Cog']}/predictions", text, {}),
    }


def _report(found: dict[str, dict[int, list[Measured]]], console: Console) -> dict[str, Any]:
    middle = {
        name: {
            clients: sorted(rounds, key=lambda one: one.rate)[len(rounds) // 2]
            for clients, rounds in by.items()
        }
        for name, by in found.items()
    }
    table = Table("server", *(f"{clients} clients" for clients in CLIENTS), title="sync predictions/s (p50)")
    for name, by in middle.items():
        shown = {clients: f"{one.rate:.0f} ({one.p50 * 1000:.1f} ms)" for clients, one in by.items()}
        table.add_row(name, *(shown.get(clients, "refuses them") for clients in CLIENTS))
    console.print(table)
    ours = found["appliance"]
    compared: dict[str, dict[str, Spread]] = {
        name: {
            str(clients): Spread.of(ratios([one.rate for one in ours[clients]], [one.rate for one in rounds]))
            for clients, rounds in by.items()
        }
        for name, by in found.items()
        if name != "appliance"
    }
    for name, by_clients in compared.items():
        text = ", ".join(f"{spread} at {clients}" for clients, spread in by_clients.items())
        console.print(f"appliance / {name}: {text}")
    console.print(
        "The appliance has committed every prediction to disk when it answers; the others keep none."
    )
    return {
        "servers": {
            name: {str(clients): msgspec.to_builtins(one) for clients, one in by.items()}
            for name, by in middle.items()
        },
        "ratios": msgspec.to_builtins(compared),
    }
