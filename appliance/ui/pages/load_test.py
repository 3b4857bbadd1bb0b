"""The load test on the page of a model's settings."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import ApplianceError, Unauthenticated
from appliance.load_test.results import LoadTestResults
from appliance.load_test.run import LoadTest, example_input
from appliance.ui import markup, session, template_pages
from appliance.ui.languages import gettext as _

_MAX_CLIENTS: Final = 32
_MAX_SECONDS: Final = 60
_POLL: Final = 0.5  # seconds between two looks whether the browser still waits


async def run(request: Request) -> Response:
    """Run a load test, and return its results. It ends early if the browser stops waiting."""
    form = dict(parse_qsl((await request.body()).decode()))
    model = f"{request.path_params['owner']}/{request.path_params['name']}"
    caller = session.current(request).caller
    try:
        clients = _number(form, "clients", _MAX_CLIENTS)
        seconds = _number(form, "seconds", _MAX_SECONDS)
        input = _input(form.get("input", "")) or await example_input(caller, model)
        test = LoadTest(caller, model, input, clients=clients, seconds=seconds)
        await _while_connected(test, request)
    except Unauthenticated:
        raise
    except ApplianceError as error:
        return template_pages.fragment("wrong.html", problem=error.detail)
    results = test.results
    return template_pages.fragment(
        "load_test.html", results=results, facts=_facts(results), percentiles=_percentiles(results)
    )


async def _while_connected(test: LoadTest, request: Request) -> None:
    running = asyncio.create_task(test.run())
    try:
        while not running.done():
            await asyncio.wait([running], timeout=_POLL)
            if await request.is_disconnected():
                break
    finally:
        running.cancel()
        await asyncio.wait([running])
    if running.cancelled():
        raise ApplianceError(_("The load test was canceled."))
    running.result()


def _number(form: dict[str, str], name: str, largest: int) -> int:
    text = form.get(name, "")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= largest:
        raise ApplianceError(
            _("{field} must be a whole number from 1 to {largest}.").format(field=name, largest=largest)
        )
    return int(text)


def _input(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ApplianceError(_("The input is not valid JSON: {reason}").format(reason=error)) from error
    if not isinstance(given, dict):
        raise ApplianceError(_("The input must be a JSON object, such as {example}.").format(example="{}"))
    return given


def _facts(results: LoadTestResults) -> str:
    rows = [
        (_("Succeeded"), str(results.succeeded)),
        (_("Error rate"), f"{100 * results.error_rate:.1f} %"),
        (_("Requests per second"), f"{results.requests_per_second:.2f}"),
    ]
    if results.tokens_per_second is not None:
        rows.append((_("Output tokens per second"), f"{results.tokens_per_second:.1f}"))
    return markup.table((_("Measured"), _("Value")), rows)


def _percentiles(results: LoadTestResults) -> str:
    named = {
        _("Duration"): results.duration,
        _("Time to first token"): results.time_to_first_token,
        _("Inter-token latency"): results.inter_token_latency,
    }
    rows = [
        (name, *(f"{value:.3f}" for value in (spread.p50, spread.p90, spread.p99)))
        for name, spread in named.items()
        if spread is not None
    ]
    return markup.table((_("Seconds"), "p50", "p90", "p99"), rows)


ROUTES: Final = (Route("/models/{owner}/{name}/settings/load-test", run, methods=["POST"]),)
