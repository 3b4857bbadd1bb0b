"""The Cog runner, with a runtime that sends the events of the test."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Job, Output
from appliance.runners.base import LoadSpec
from appliance.runners.cog.runner import CogRunner, error_detail

RUNTIME = f"""#!{sys.executable}
import http.server, json, os, signal
busy = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer("application/json", json.dumps({{"status": "READY"}}).encode())
    def do_POST(self):
        global busy
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["input"].get("busy", 0) > busy:
            busy += 1
            refusal = b'{{"error": "At capacity - all prediction slots busy", "status": "failed"}}'
            self.answer("application/json", refusal, 409)
        else:
            self.answer("text/event-stream", body["input"]["events"].encode())
    def answer(self, kind, content, status=200):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
INTERFACE = {
    "input": {"type": "object", "properties": {"events": {"type": "string"}}},
    "output": {"type": "array", "items": {"type": "string"}, "x-cog-array-type": "iterator"},
}
STRANGE = "a\u2028b\u2029c\x85d"


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[CogRunner]:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RUNTIME)
    python.chmod(0o755)
    (tmp_path / "project").mkdir()
    (tmp_path / "venv" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    description = {"interface": INTERFACE, "handler": "run.py:Runner", "environment": {}}
    (tmp_path / "build.json").write_text(json.dumps(description))
    runner = CogRunner(
        LoadSpec(
            model="cog/said",
            version="0" * 64,
            kind="cog",
            options={"build": str(tmp_path), "environment": {}},
            weights=None,
            device="cpu",
            memory=1,
            threads=1,
            concurrency=1,
            cache=str(tmp_path),
        )
    )
    await runner.setup()
    yield runner
    await runner.close()
    # These end with the worker process otherwise.
    await runner._process.wait()
    await asyncio.to_thread(runner._files._server.shutdown)
    runner._files._server.server_close()


def event(name: str, **data: object) -> str:
    """An event in the form of Cog's runtime, which does not escape characters that are not ASCII."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def outputs(runner: CogRunner, events: str, busy: int = 0) -> list[object]:
    """The outputs of a prediction with these ``events``, which the runtime refuses ``busy`` times before."""
    async with asyncio.timeout(60):
        job = Job("id", 1, {"events": events, "busy": busy})
        return [value async for each in runner.run(job) if isinstance(each, Output) for value in each.values]


async def test_events_are_lines_that_end_in_line_feeds(runner: CogRunner) -> None:
    events = event("output", chunk=STRANGE, index=0) + event("completed", status="succeeded", metrics={})
    assert await outputs(runner, events) == [STRANGE]
    failed = event("completed", status="failed", error=f"Prediction failed: ValueError: {STRANGE}")
    with pytest.raises(PredictionFailed, match=f"^{STRANGE}$"):
        await outputs(runner, failed)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (event("error", error="SSE stream lagged; events were dropped", skipped=4), "events were dropped"),
        ("event: output\ndata: {\n\n", "JSONDecodeError"),
    ],
)
async def test_a_prediction_whose_events_cannot_be_read_fails_alone(
    runner: CogRunner, events: str, reason: str
) -> None:
    with pytest.raises(
        PredictionFailed, match=f"^the output of the prediction could not be read: .*{reason}"
    ):
        await outputs(runner, events)
    next_one = event("output", chunk="next", index=0) + event("completed", status="succeeded")
    assert await outputs(runner, next_one) == ["next"]


async def test_a_prediction_waits_for_a_free_slot(runner: CogRunner) -> None:
    events = event("output", chunk="late", index=0) + event("completed", status="succeeded")
    assert await outputs(runner, events, busy=2) == ["late"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"detail": [{"loc": ["body", "input", "n"], "msg": "too large"}]}', "input.n: too large"),
        (b'{"detail": "busy"}', "busy"),
        (b'{"detail": ["too large"]}', '{"detail": ["too large"]}'),
        (b'{"detail": [{"loc": 1, "msg": "x"}]}', '{"detail": [{"loc": 1, "msg": "x"}]}'),
        (b"[1]", "[1]"),
        (b"Bad Gateway", "Bad Gateway"),
    ],
)
def test_the_reason_in_an_error_response_of_any_form(body: bytes, detail: str) -> None:
    assert error_detail(body) == detail
