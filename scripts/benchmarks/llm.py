"""Tokens/s and time to the first token of a loaded model, compared with vLLM's own server.

Measured on the quiet machine, and beside one other process that computes all the time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import servers
from scripts.benchmarks.cold_start import LANGUAGE
from scripts.benchmarks.statistic import Spread, ratios
from tests.support.appliance_process import TOKEN

ROUNDS: Final = 5
QUIET: Final = "quiet"
BUSY: Final = "busy"
#: Condition -> least ratio of tokens/s, and highest ratio of the times to the first token.
TARGETS: Final = {QUIET: (1.1, 1.0), BUSY: (0.97, 1.1)}


class Case(NamedTuple):
    """Streams that are opened together, and the length of each answer."""

    streams: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.streams} x {self.tokens} tokens"


CASES: Final = (Case(1, 64), Case(4, 64), Case(16, 64), Case(64, 8))


class Round(NamedTuple):
    """One case on one server."""

    rate: float  # tokens a second of all streams together
    first_token: float  # seconds; the median of the streams


class Stream(NamedTuple):
    """One stream that was read to its end."""

    first: float  # seconds to the first token
    tokens: int


Read = Callable[[httpx.AsyncClient, str, int], Awaitable[Stream]]
#: Condition -> case -> server -> rounds.
Found = dict[str, dict[Case, dict[str, list[Round]]]]


def measure(console: Console, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure both servers in turn, each idle while the other is measured; medians of the rounds count."""
    found: Found = {
        condition: {case: {"appliance": [], "vllm": []} for case in CASES} for condition in TARGETS
    }
    with ExitStack() as stack:
        ours = stack.enter_context(servers.appliance(shipped=True))
        stock = stack.enter_context(servers.vllm(servers.shipped_weights("vllm"), servers.BENCH / "vllm.log"))
        readers = {"appliance": _ours(ours.url), "vllm": _stock(stock.url)}
        for read in readers.values():
            asyncio.run(_together(read, Case(2, 64), "warm"))
        for number in range(rounds):
            for condition, by_case in found.items():
                console.print(f"round {number + 1} of {rounds}, {condition}", style="dim")
                with _other_process(computes=condition == BUSY):
                    for case, by_server in by_case.items():
                        for name in sorted(readers, reverse=bool(number % 2)):
                            by_server[name].append(
                                asyncio.run(_together(readers[name], case, f"{number}{condition}"))
                            )
    return report(found, console)


@contextmanager
def _other_process(*, computes: bool) -> Iterator[None]:
    """A process that occupies one processor, or none."""
    if not computes:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) as process:
        try:
            yield
        finally:
            process.kill()


async def _together(read: Read, case: Case, salt: str) -> Round:
    async with httpx.AsyncClient(
        timeout=600, trust_env=False, limits=httpx.Limits(max_connections=128)
    ) as client:
        prompts = [f"Write a story about number {salt}{index}." for index in range(case.streams)]
        began = time.perf_counter()
        done = await asyncio.gather(*(read(client, prompt, case.tokens) for prompt in prompts))
        took = time.perf_counter() - began
    return Round(sum(one.tokens for one in done) / took, statistics.median(one.first for one in done))


async def lines(reply: httpx.Response) -> AsyncIterator[str]:
    """Lines of a response, split at line feeds only; httpx also splits at characters of a model's output."""
    rest = b""
    async for part in reply.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode()


def _ours(url: str) -> Read:
    async def read(client: httpx.AsyncClient, prompt: str, tokens: int) -> Stream:
        began = time.perf_counter()
        asked = {"prompt": prompt, "temperature": 0, "max_tokens": tokens, "min_tokens": tokens}
        signed_in = {"Authorization": f"Bearer {TOKEN}"}
        address = f"{url}/v1/models/{LANGUAGE.model}/predictions"
        created = (await client.post(address, json={"input": asked}, headers=signed_in)).json()
        first = 0.0
        async with client.stream("GET", created["urls"]["stream"]) as reply:
            async for line in lines(reply):
                if line == "event: output" and not first:
                    first = time.perf_counter() - began
        record = (await client.get(created["urls"]["get"], headers=signed_in)).json()
        return Stream(first, record["metrics"]["output_token_count"])

    return read


def _stock(url: str) -> Read:
    async def read(client: httpx.AsyncClient, prompt: str, tokens: int) -> Stream:
        began = time.perf_counter()
        body = {
            "model": "model",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": prompt},
            ],
            "temperature": 0,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        first, counted = 0.0, 0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
            async for line in lines(reply):
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line[6:])
                if not first and part["choices"] and part["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - began
                if part.get("usage"):
                    counted = part["usage"]["completion_tokens"]
        return Stream(first, counted)

    return read


def report(found: Found, console: Console) -> dict[str, Any]:
    """Print both servers and the ratios of their rounds; return them."""
    table = Table(
        "machine", "case", "tokens/s", "vLLM's server", "ratio", "first token", "vLLM's server", "ratio",
        title="llm: medians, and the lowest and highest ratio of a round",
    )  # fmt: skip
    result: dict[str, Any] = {"targets": {}, "measured": {}, "ratios": {}}
    for condition, by_case in found.items():
        least, most = TARGETS[condition]
        result["targets"][condition] = {"tokens_per_second": least, "first_token": most}
        measured: dict[str, Any] = result["measured"].setdefault(condition, {})
        compared: dict[str, Any] = result["ratios"].setdefault(condition, {})
        for case, by_server in by_case.items():
            ours, stock = by_server["appliance"], by_server["vllm"]
            rates, stock_rates = [one.rate for one in ours], [one.rate for one in stock]
            firsts, stock_firsts = [one.first_token for one in ours], [one.first_token for one in stock]
            rate = Spread.of(ratios(rates, stock_rates))
            first = Spread.of(ratios(firsts, stock_firsts))
            measured[str(case)] = {name: [one._asdict() for one in each] for name, each in by_server.items()}
            compared[str(case)] = {
                "tokens_per_second": msgspec.to_builtins(rate),
                "first_token": msgspec.to_builtins(first),
            }
            table.add_row(
                condition,
                str(case),
                f"{statistics.median(rates):.1f}",
                f"{statistics.median(stock_rates):.1f}",
                str(rate),
                f"{statistics.median(firsts) * 1000:.0f} ms",
                f"{statistics.median(stock_firsts) * 1000:.0f} ms",
                str(first),
            )
    console.print(table)
    for condition, (least, most) in TARGETS.items():
        console.print(
            f"targets, {condition}: tokens/s at least {least}, time to the first token at most {most}"
        )
    return result
