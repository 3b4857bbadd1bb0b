"""Tokens/s and time to the first token of a loaded model, compared with vLLM's own server."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import servers
from scripts.benchmarks.cold_start import LANGUAGE
from tests.support.appliance_process import TOKEN

STREAMS: Final = (1, 4, 16)
ROUNDS: Final = 5
TOKENS: Final = 64
THROUGHPUT_TARGET: Final = 0.97
FIRST_TOKEN_TARGET: Final = 1.1


class Stream(NamedTuple):
    """One stream that was read to its end."""

    first: float  # seconds to the first token
    tokens: int


Read = Callable[[httpx.AsyncClient, str], Awaitable[Stream]]


def measure(console: Console) -> dict[str, Any]:
    """Both servers in turn, each idle while the other is measured; medians over the rounds."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {"appliance": {}, "vllm": {}}
    with ExitStack() as stack:
        ours = stack.enter_context(servers.appliance(shipped=True))
        stock = stack.enter_context(servers.vllm(servers.shipped_weights("vllm"), servers.BENCH / "vllm.log"))
        readers = {"appliance": _ours(ours.url), "vllm": _stock(stock.url)}
        for read in readers.values():
            asyncio.run(_together(read, 2, "warm"))
        for number in range(ROUNDS):
            for streams in STREAMS:
                for name in sorted(readers, reverse=bool(number % 2)):
                    console.print(f"round {number + 1} of {ROUNDS}: {name}, {streams} streams", style="dim")
                    measured = asyncio.run(_together(readers[name], streams, f"{number}"))
                    found[name].setdefault(streams, []).append(measured)
    return _report(found, console)


async def _together(read: Read, streams: int, salt: str) -> tuple[float, float]:
    """Tokens a second of all streams, and the median time to a first token in seconds."""
    async with httpx.AsyncClient(
        timeout=600, trust_env=False, limits=httpx.Limits(max_connections=64)
    ) as client:
        prompts = [f"Write a story about number {salt}{index}." for index in range(streams)]
        began = time.perf_counter()
        done = await asyncio.gather(*(read(client, prompt) for prompt in prompts))
        took = time.perf_counter() - began
    return sum(one.tokens for one in done) / took, statistics.median(one.first for one in done)


async def lines(reply: httpx.Response) -> AsyncIterator[str]:
    """Lines of a response, split at line feeds only; httpx also splits at characters of a model's output."""
    rest = b""
    async for part in reply.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line.decode()


def _ours(url: str) -> Read:
    async def read(client: httpx.AsyncClient, prompt: str) -> Stream:
        began = time.perf_counter()
        asked = {"prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "min_tokens": TOKENS}
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
    async def read(client: httpx.AsyncClient, prompt: str) -> Stream:
        began = time.perf_counter()
        body = {
            "model": "model",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": prompt},
            ],
            "temperature": 0,
            "max_tokens": TOKENS,
            "min_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        first, tokens = 0.0, 0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
            async for line in lines(reply):
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line[6:])
                if not first and part["choices"] and part["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - began
                if part.get("usage"):
                    tokens = part["usage"]["completion_tokens"]
        return Stream(first, tokens)

    return read


def _report(found: dict[str, dict[int, list[tuple[float, float]]]], console: Console) -> dict[str, Any]:
    def middle(name: str, streams: int, part: int) -> float:
        return statistics.median(measured[part] for measured in found[name][streams])

    table = Table(
        "streams", "tokens/s", "vLLM's server", "ratio", "first token", "vLLM's server", "ratio", title="llm"
    )
    ratios: dict[str, dict[str, float]] = {}
    for streams in STREAMS:
        rate, stock_rate = middle("appliance", streams, 0), middle("vllm", streams, 0)
        first, stock_first = middle("appliance", streams, 1), middle("vllm", streams, 1)
        ratios[str(streams)] = {"throughput": rate / stock_rate, "first_token": first / stock_first}
        table.add_row(
            str(streams),
            f"{rate:.1f}",
            f"{stock_rate:.1f}",
            f"{rate / stock_rate:.2f}",
            f"{first * 1000:.0f} ms",
            f"{stock_first * 1000:.0f} ms",
            f"{first / stock_first:.2f}",
        )
    console.print(table)
    console.print(
        f"targets: throughput at least {THROUGHPUT_TARGET}, first token at most {FIRST_TOKEN_TARGET}"
    )
    return {
        "measured": {
            name: {str(streams): rounds for streams, rounds in by.items()} for name, by in found.items()
        },
        "ratios": ratios,
    }
