"""`appliance bench`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.options import JsonOption, finite, print_json
from appliance.cli.remote import UrlOption, appliance_url, connected, input_properties

if TYPE_CHECKING:
    from appliance.load_test.results import LoadTestResults, Percentiles
    from appliance.load_test.run import LoadTest


def bench(
    model: Annotated[str, typer.Argument(help="owner/name, owner/name:version, a version id or an alias.")],
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Number of clients at the same time.")] = 8,
    seconds: Annotated[
        float,
        typer.Option(min=0.1, callback=finite, help="How long the clients create predictions."),
    ] = 30.0,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            help="key=value, or key=@file for a file's content. May be repeated. Default: the input of the "
            "model's first example.",
        ),
    ] = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model under load: run it from several clients, and print durations, errors and throughput.

    The predictions are real ones: they are stored, and count in the usage. Ctrl-C cancels them and prints
    what was measured until then.

    Example: appliance bench meta/meta-llama-3-8b-instruct --clients 16 -i prompt="Hello!" -i max_tokens=100
    """
    from appliance.cli.client import parse_input
    from appliance.load_test.run import LoadTest, example_input
    from appliance.ui.client import Api

    properties = input_properties(connected(url), model)
    given = dict(parse_input(each, properties) for each in inputs or [])
    address, certificate, client_certificate = appliance_url(url)
    address = address.rstrip("/").removesuffix("/v1")
    trusted = certificate or os.environ.get("SSL_CERT_FILE")
    token = os.environ.get("APPLIANCE_TOKEN") or os.environ.get("REPLICATE_API_TOKEN") or ""

    async def measure() -> tuple[LoadTest, bool]:
        """Return the test, and whether Ctrl-C ended it."""
        api = Api(address, None if trusted is None else Path(trusted), client_certificate)
        try:
            caller = api.caller(token, address)
            test = LoadTest(
                caller, model, given or await example_input(caller, model), clients=clients, seconds=seconds
            )
            return test, await _run(test, seconds, shown=not as_json)
        finally:
            await api.close()

    test, interrupted = asyncio.run(measure())
    if test.results.warm_up is None:
        typer.echo("nothing was measured: the first prediction had not ended", err=True)
        raise typer.Exit(128 + signal.SIGINT)
    if as_json:
        import msgspec

        print_json(msgspec.to_builtins(test.results))
    else:
        _print(test.results)
    if interrupted:
        raise typer.Exit(128 + signal.SIGINT)


async def _run(test: LoadTest, seconds: float, *, shown: bool) -> bool:
    """Run the test with a progress bar on standard error; return whether Ctrl-C ended it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        shown_test = bar.add_task("first prediction, not counted", total=None)

        async def draw() -> None:
            while True:
                if test.elapsed > 0:
                    count = test.results.requests
                    done = min(test.elapsed, seconds)
                    bar.update(shown_test, description=f"{count} requests", completed=done, total=seconds)
                await asyncio.sleep(0.2)

        drawing = asyncio.create_task(draw())
        running = asyncio.create_task(test.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            return True
        finally:
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await drawing
    return False


def _print(results: LoadTestResults) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{results.model}, {results.clients} clients, {results.seconds:.1f} s "
        f"(after a first prediction of {results.warm_up or 0:.2f} s)",
        markup=False,
    )
    facts = Table(box=None, show_header=False)
    facts.add_column()
    facts.add_column(justify="right")
    for name, value in _facts(results):
        facts.add_row(name, value)
    console.print(facts)
    percentiles = Table("seconds", box=None)
    for column in ("p50", "p90", "p99"):
        percentiles.add_column(column, justify="right")
    for name, spread in _percentiles(results):
        percentiles.add_row(name, f"{spread.p50:.3f}", f"{spread.p90:.3f}", f"{spread.p99:.3f}")
    if percentiles.row_count:
        console.print()
        console.print(percentiles)
    for message, count in results.errors.items():
        console.print(f"{count} x {message}", style="red", markup=False, soft_wrap=True)


def _facts(results: LoadTestResults) -> list[tuple[str, Any]]:
    facts = [
        ("requests", str(results.requests)),
        ("succeeded", str(results.succeeded)),
        ("error rate", f"{100 * results.error_rate:.1f} %"),
        ("requests/s", f"{results.requests_per_second:.2f}"),
    ]
    if results.tokens_per_second is not None:
        facts.append(("output tokens", str(results.output_tokens)))
        facts.append(("output tokens/s", f"{results.tokens_per_second:.1f}"))
    return facts


def _percentiles(results: LoadTestResults) -> list[tuple[str, Percentiles]]:
    named = {
        "duration": results.duration,
        "time to first token": results.time_to_first_token,
        "inter-token latency": results.inter_token_latency,
    }
    return [(name, spread) for name, spread in named.items() if spread is not None]
