"""The command line: its output and exit codes, against a small HTTP server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import yaml

from appliance import __version__, config
from appliance.cli import main, options
from appliance.domain import token
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.gateway.catalogue.servable import servable
from appliance.protocols.admin_types import AdminPredictionResponse, ApplianceStatusResponse, UsageResponse
from appliance.protocols.response_types import (
    BuildResponse,
    FileResponse,
    ModelResponse,
    PredictionResponse,
)
from appliance.scheduler import MARGIN
from appliance.store import MemoryProfileRow
from tests.support.engine_bench import HARDWARE
from tests.support.response_examples import completed
from tests.support.store_files import opened
from tests.unit.gateway.catalogue.test_servable import nested_header

SECRET = "a secret with spaces"
CONFIG = """
models:
  - {name: test/echo, kind: echo, aliases: [other/name]}
  - {name: test/large, kind: echo, memory: 900TiB}
"""
INPUTS = {"prompt": {"type": "string"}, "count": {"type": "integer"}}


class Ran(NamedTuple):
    """The result of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs the command line in a folder with a models.yaml, and a data folder below it."""
    for name in [name for name in os.environ if name.startswith(("APPLIANCE_", "REPLICATE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "models.yaml").write_text(CONFIG)

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["appliance", *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Ran(code, *capsys.readouterr())

    return run


class Server:
    """Gives the responses in ``answers``, and records the requests."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, str, bytes]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: list[str | None] = []
        self.queries: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                content = self.rfile.read(length)
                is_json = "json" in (self.headers.get("content-type") or "")
                body = json.loads(content) if content and is_json else None
                path, _, query = self.path.partition("?")
                server.queries.append(query)
                server.asked.append((self.command, path, body))
                server.tokens.append(self.headers.get("authorization"))
                missing = (404, "application/json", b'{"detail": "There is none."}')
                status, kind, answer = server.answers.get((self.command, path), missing)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_DELETE = do_GET  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: stderr is what tests look at."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, method: str, path: str, value: Any, status: int = 200) -> None:
        """Answer with JSON, or with bytes as an event stream."""
        if isinstance(value, bytes):
            self.answers[method, path] = (status, "text/event-stream", value)
        else:
            self.answers[method, path] = (status, "application/json", json.dumps(value).encode())

    def predict(self, events: bytes, **final: Any) -> None:
        """Answer everything about one model and its one prediction."""
        schemas = {"Input": {"properties": INPUTS}}
        version = {"id": "f" * 64, "openapi_schema": {"components": {"schemas": schemas}}}
        self.answer("GET", "/v1/models/test/echo", {"latest_version": version})
        self.answer("GET", f"/v1/models/test/echo/versions/{'f' * 64}", version)
        created = {"id": "one", "status": "starting", "urls": {"stream": f"{self.url}/v1/streams/secret"}}
        self.answer("POST", "/v1/predictions", created, 201)
        self.answer("GET", "/v1/streams/secret", events)
        self.answer("GET", "/v1/predictions/one", {**created, "error": None, **final})
        self.answer("POST", "/v1/predictions/one/cancel", {**created, "status": "canceled"})

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(command: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the environment names as the appliance."""
    running = Server()
    monkeypatch.setenv("APPLIANCE_URL", running.url)
    monkeypatch.setenv("APPLIANCE_TOKEN", SECRET)
    yield running
    running.close()


def sse(*events: tuple[str, str]) -> bytes:
    return "".join(
        f"event: {name}\nid: 1:{n}\n" + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"
        for n, (name, data) in enumerate(events)
    ).encode()


# -- run -----------------------------------------------------------------------------------------------------


def test_run_prints_exactly_the_output(command: Command, server: Server) -> None:
    pieces = ("Hel", "lo ", " there\n", "\u2028 and: so on", "")
    server.predict(
        b": hi\n\n" + sse(*(("output", piece) for piece in pieces), ("done", "{}")), status="succeeded"
    )
    ran = command("run", "test/echo", "-i", "prompt=12", "-i", "count=12")
    assert ran == Ran(0, "".join(pieces) + "\n", "")
    assert ("POST", "/v1/predictions", {"version": "test/echo", "input": {"prompt": "12", "count": 12}}) in (
        server.asked
    )


def test_bench_prints_the_figures_of_a_load_test(command: Command, server: Server) -> None:
    events = sse(("output", "one"), ("output", "two"), ("done", "{}"))
    server.predict(events, status="succeeded", metrics={"output_token_count": 2})
    asked = ("bench", "test/echo", "-i", "count=12", "--clients", "2", "--seconds", "0.2")
    ran = command(*asked)
    assert (ran.code, ran.err.strip()) == (0, "")
    for shown in ("test/echo, 2 clients", "requests/s", "output tokens/s", "error rate     0.0 %", "p99"):
        assert " ".join(shown.split()) in " ".join(ran.out.split())
    assert ("POST", "/v1/predictions", {"version": "test/echo", "input": {"count": 12}}) in server.asked
    found = json.loads(command(*asked, "--json").out)
    assert found["succeeded"] == found["requests"] >= 1
    assert set(found["inter_token_latency"]) == {"p50", "p90", "p99"}


def test_bench_takes_the_input_of_an_example(command: Command, server: Server) -> None:
    server.predict(sse(("done", "{}")), status="succeeded")
    server.answer("GET", "/v1/models/test/echo/examples", {"results": [{"input": {"prompt": "an example"}}]})
    assert command("bench", "test/echo", "--seconds", "0.1", "--json").code == 0
    created = [body for method, path, body in server.asked if (method, path) == ("POST", "/v1/predictions")]
    assert {each["input"]["prompt"] for each in created} == {"an example"}


def test_bench_tells_why_the_first_prediction_failed(command: Command, server: Server) -> None:
    server.predict(sse(("done", "{}")), status="failed", error="out of luck")
    ran = command("bench", "test/echo", "-i", "count=1")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[-1] == "appliance: out of luck"


def test_run_tells_a_failure_on_stderr(command: Command, server: Server) -> None:
    events = sse(("output", "half"), ("error", '{"detail": "no more"}'), ("done", '{"reason": "error"}'))
    server.predict(events, status="failed", error="no more")
    ran = command("run", f"test/echo:{'f' * 64}")
    assert (ran.code, ran.out) == (1, "half\n")
    assert ran.err == "appliance: prediction one failed: no more\n"


def test_run_as_json_prints_the_record_alone(command: Command, server: Server) -> None:
    server.predict(sse(("output", "text"), ("done", "{}")), status="succeeded", output=["text"])
    ran = command("run", "test/echo", "--json")
    assert json.loads(ran.out)["output"] == ["text"]
    server.predict(sse(("done", '{"reason": "error"}')), status="failed", error="no more")
    ran = command("run", "test/echo", "--json")
    assert (ran.code, json.loads(ran.out)["error"]) == (1, "no more")


def test_ctrl_c_cancels_the_prediction(
    command: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.predict(sse(("output", "text"), ("done", "{}")))

    def interrupted(text: str) -> None:
        if text == "text":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sys.stdout.write", interrupted)
    ran = command("run", "test/echo")
    assert ran.code == 130
    assert "one is canceled" in ran.err
    assert ("POST", "/v1/predictions/one/cancel", None) in server.asked


def test_the_token_goes_to_the_api_and_not_to_streams(command: Command, server: Server) -> None:
    server.predict(sse(("done", "{}")), status="succeeded")
    command("run", "test/echo")
    sent = {path: given for (_, path, _), given in zip(server.asked, server.tokens, strict=True)}
    assert sent.pop("/v1/streams/secret") is None
    assert set(sent.values()) == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("arguments", [("run", "no/such", "-i", "prompt=x"), ("demo", "no/such")])
def test_an_unknown_model_is_named(command: Command, server: Server, arguments: tuple[str, ...]) -> None:
    ran = command(*arguments)
    assert ran.code == 1
    assert ran.err == "appliance: there is no model no/such: `appliance models` lists the models\n"


def test_a_demo_needs_sizes_that_are_sizes(command: Command, server: Server) -> None:
    ran = command("demo", "test/echo", "--max-upload", "much")
    assert ran.code == 2
    assert "--max-upload" in ran.err


def test_an_error_of_the_api_is_printed(command: Command, server: Server) -> None:
    server.predict(b"")
    server.answer("POST", "/v1/predictions", {"detail": "- input.count: Invalid type\n"}, 422)
    ran = command("run", "test/echo", "-i", "count=many")
    assert (ran.code, ran.err) == (1, "appliance: - input.count: Invalid type (HTTP 422)\n")


# -- errors of the connection --------------------------------------------------------------------------------


def test_no_token_says_how_to_get_one(command: Command) -> None:
    ran = command("models", "--url", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "APPLIANCE_TOKEN" in ran.err
    assert "appliance token create" in ran.err


def test_without_a_server_the_error_says_how_to_start_one(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", SECRET)
    server = Server()
    server.close()
    monkeypatch.setenv("APPLIANCE_PORT", server.url.rpartition(":")[2])  # of the URL from models.yaml
    ran = command("models")
    assert (ran.code, ran.out) == (1, "")
    assert f"cannot connect to {server.url}: start the appliance with `appliance serve`" in ran.err


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://a:b", "ftp://127.0.0.1"])
def test_an_invalid_url_is_reported(command: Command, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("APPLIANCE_TOKEN", SECRET)
    ran = command("models", "--url", url)
    assert ran.code == 1
    assert "is not a URL" in ran.err


def test_another_server_is_recognised(command: Command, server: Server) -> None:
    server.answers["GET", "/v1/models"] = (200, "text/html", b"<html>")
    assert "is not an appliance" in command("models").err


def test_the_token_is_never_printed(
    command: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer("GET", "/v1/models", {"detail": "no"}, 401)
    refused = command("models")
    monkeypatch.setenv("APPLIANCE_TOKEN", "two\nlines")
    broken = command("models")
    assert refused.code == broken.code == 1
    assert "does not accept this token" in refused.err
    assert "control character" in broken.err
    for said in (*refused[1:], *broken[1:]):
        assert SECRET not in said
        assert "two" not in said


def test_urls_may_end_in_v1(command: Command, server: Server) -> None:
    server.answer("GET", "/v1/models", {"results": []})
    assert command("models", "--url", f"{server.url}/v1").code == 0
    assert server.asked == [("GET", "/v1/models", None)]


# -- models, predictions, status -----------------------------------------------------------------------------


def filled(type: type[msgspec.Struct], fields: dict[str, Any]) -> dict[str, Any]:
    """Return a complete response as JSON, with these ``fields`` replaced."""
    made: dict[str, Any] = json.loads(msgspec.json.encode(completed(type, fields)))
    return made


def test_models(command: Command, server: Server) -> None:
    model = {"owner": "test", "name": "echo", "run_count": 3, "description": None}
    model = filled(ModelResponse, model)
    server.answer("GET", "/v1/models", {"results": [model]})
    assert command("models").out.split() == ["test/echo", "3", "runs"]
    assert json.loads(command("models", "--json").out) == [model]


def test_predictions(command: Command, server: Server) -> None:
    records = [
        {"id": f"id{n}", "status": "succeeded", "created_at": "2026-01-01T00:00:00.000000Z", "model": "a/b"}
        for n in range(3)
    ]
    records = [filled(PredictionResponse, record) for record in records]
    server.answer("GET", "/v1/predictions", {"results": records})
    server.answer("GET", "/v1/predictions/id1", records[1])
    server.answer("POST", "/v1/predictions/id1/cancel", {**records[1], "status": "canceled"})
    assert [line.split()[0] for line in command("predictions", "--limit", "2").out.splitlines()] == [
        "id0",
        "id1",
    ]
    assert json.loads(command("predictions", "id1").out) == records[1]
    assert json.loads(command("predictions", "id1", "--cancel").out)["status"] == "canceled"
    item = filled(AdminPredictionResponse, {**records[2], "data_removed": False})
    for left_out in ("input", "output", "logs"):  # the list has previews of these
        item.pop(left_out, None)
    server.answer("GET", "/admin/predictions", {"results": [item]})
    slow = command("predictions", "--slower-than", "10s", "--model", "a/b")
    assert slow.out.split()[0] == "id2"
    assert server.queries[-1] == "limit=20&model=a%2Fb&slower_than=10s"
    nameless = command("predictions", "--cancel")
    assert nameless.code == 1
    assert "ID --cancel" in nameless.err


def node(**facts: Any) -> dict[str, Any]:
    return {
        "name": "box", "role": "node", "address": "10.0.0.2:8770", "state": "draining",
        "since": "2026-01-02T03:04:05Z", "reason": None, "version": "1", "threads": 3, "devices": [], **facts,
    }  # fmt: skip


def test_nodes_tell_why_a_node_gets_no_parts_of_models(command: Command, server: Server) -> None:
    outside = node(no_parts_reason="its address 10.0.0.2 is outside of cluster.private_network (10.9.0.0/24)")
    server.answer("GET", "/admin/nodes", {"nodes": [outside]})
    assert (
        "box gets no parts of models on several machines: its address 10.0.0.2 is outside of "
        "cluster.private_network (10.9.0.0/24)"
    ) in command("nodes").out


def test_nodes_and_drain_tell_why_models_are_still_on_a_draining_node(
    command: Command, server: Server
) -> None:
    draining = node(staying={"test/echo": "2 predictions are running"})
    server.answer("GET", "/admin/nodes", {"nodes": [draining]})
    assert "test/echo is still on box: 2 predictions are running" in command("nodes").out
    server.answer("POST", "/admin/nodes/box/drain", draining, 202)
    assert command("drain", "box").out.splitlines() == [
        "no more models are loaded on node box",
        "test/echo is still there: 2 predictions are running",
    ]
    server.answer("DELETE", "/admin/nodes/box/drain", node(state="ready"), 202)
    assert command("drain", "box", "--undo").out == "models can be loaded on node box again\n"


def test_a_token_from_the_environment_is_not_renewed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_CLUSTER_TOKEN", "x" * 32)
    refused = command("nodes", "token", "--renew")
    assert refused.code != 0
    assert "change the variable on all machines" in refused.err


def test_status(command: Command, server: Server) -> None:
    found = {
        "version": "1",
        "uptime": 3.0,
        "draining": True,
        "devices": [
            {
                "name": "cpu",
                "memory": 2**30,
                "free": 2**28,
                "foreign": 2**28,
                "reserved": {"test/echo": 2**29},
            }
        ],
        "models": [
            {
                "name": "test/echo",
                "state": "ready",
                "running": 1,
                "queued": 2,
                "devices": ["cpu"],
                "memory": {
                    "bytes": 2**29,
                    "share": None,
                    "from": "declared",
                    "peak": 2**30,
                    "exceeds": True,
                    "out_of_memory": 3,
                    "problem": None,
                },
                "fits_nowhere": "2.0 GiB are missing",
            }
        ],
        "not_served": [{"name": "test/broken", "problem": "[its header] is damaged"}],
        "decisions": [{"at": "2026-01-02T03:04:05.000000Z", "text": "model test/echo is ready after 1.0 s"}],
    }
    found = filled(ApplianceStatusResponse, found)
    server.answer("GET", "/admin/status", {**found, "added_in_a_newer_version": 1})
    shown = command("status").out
    for part in (
        "draining",
        "1.0 GiB",
        "test/echo 512.0 MiB, other programs 256.0 MiB",
        "512.0 MiB declared; used 1.0 GiB, more than its limit; ran out of memory 3 times",
        "ready",
        "03:04:05  model test/echo is ready after 1.0 s",
        "test/broken is not served: [its header] is damaged",
        "test/echo fits on no node: 2.0 GiB are missing",
    ):
        assert part in shown
    assert json.loads(command("status", "--json").out) == {**found, "added_in_a_newer_version": 1}
    server.answer("GET", "/admin/status", {"version": "0"})
    assert "run this command with the server's version" in command("status").err


def test_usage(command: Command, server: Server) -> None:
    amounts = {
        "predictions": 3, "predict_time": 1.5, "cold_start": 0.25, "input_tokens": 7, "output_tokens": 9,
        "cost": None, "unpriced_time": 1.0,
    }  # fmt: skip
    rows = [
        {"model": "a/b", "token": "t1", "token_name": "[laptop]", **amounts, "cost": 0.125},
        {"model": "a/c", "token": "", "token_name": None, **amounts},
    ]
    total = {**amounts, "predictions": 6}
    days = {"from": "2026-01-01", "to": "2026-01-31"}
    found = {**days, "by": ["model", "token"], "currency": "EUR", "rows": rows, "total": total}
    found = filled(UsageResponse, found)
    server.answer("GET", "/admin/usage", found)
    server.answer("GET", "/admin/limits", {"currency": "EUR", "budgets": []})
    lines = [line.split() for line in command("usage", "--by", "model,token").out.splitlines()]
    assert ["a/b", "[laptop]", "3", "1.500000", "0.250000", "7", "9", "0.125000"] in lines
    assert ["a/c", "-", "3", "1.500000", "0.250000", "7", "9", "-"] in lines
    assert ["total", "6", "1.500000", "0.250000", "7", "9", "-"] in lines
    assert "not in the cost: 1.000000 s on hardware without a price" in " ".join(lines[-1])
    assert json.loads(command("usage", "--json").out) == found
    limited = [
        {"name": "cost", "used": 1.5, "limit": 2.0, "left": 0.5, "state": "warning"},
        {"name": "concurrent", "used": 3.0, "limit": 3.0, "left": 0.0, "state": "spent"},
    ]
    subject = {"account": None, "group": "[vision]", "token": "t1", "token_name": "laptop", "model": None}
    budget = {**subject, "per": "month", "resets_at": "2026-02-01T00:00:00.000000Z", "amounts": limited}
    server.answer("GET", "/admin/limits", {"currency": "EUR", "budgets": [budget]})
    shown = " ".join(command("usage", "--by", "model,token").out.split())
    assert "group [vision], token laptop 2 EUR per month 1.5 0.5 2026-02-01 00:00" in shown
    assert "3 unfinished 3 0 -" in shown
    server.answers["GET", "/admin/usage.csv"] = (200, "text/csv", b"model,cost\r\n")
    assert command("usage", "--csv").out.split() == ["model,cost"]


# -- tokens --------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_can_be_revoked(command: Command, tmp_path: Path) -> None:
    made = command("token", "create", "laptop")
    secret = made.out.strip()
    assert secret.startswith(token.PREFIX)
    assert secret not in made.err
    assert secret.encode() not in (tmp_path / "home" / "appliance.db").read_bytes()
    (listed,) = json.loads(command("token", "list", "--json").out)
    assert (listed["name"], listed["owner"], listed["revoked_at"]) == ("laptop", "appliance", None)
    assert command("token", "revoke", listed["id"]).code == 0
    line = command("token", "list").out
    assert "revoked" in line
    assert secret not in line
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0


def test_a_token_with_limits_is_listed_with_them(command: Command) -> None:
    limits = ("--expires", "1h", "--network", "10.0.0.1/8", "--model", "a/*", "--description", "the robot's")
    assert command("token", "create", "robot", "--scope", "read", "--owner", "guest", *limits).code == 0
    (listed,) = json.loads(command("token", "list", "--json").out)
    assert (listed["scope"], listed["owner"]) == ("read", "guest")
    assert (listed["networks"], listed["models"]) == (["10.0.0.0/8"], ["a/*"])
    assert 3590 < listed["expires_at"] - listed["created_at"] <= 3600
    line = command("token", "list").out
    assert "from 10.0.0.0/8; models a/*; the robot's" in line
    refused = command("token", "create", "--network", "the office")
    assert refused.code == 1
    assert "'the office' is no IP address or network" in refused.err


def test_a_token_for_scripts(command: Command) -> None:
    made = json.loads(command("token", "create", "--json").out)
    assert made["token"].startswith(token.PREFIX)
    assert made["name"] == "token"


def test_revoking_no_token_is_an_error(command: Command) -> None:
    ran = command("token", "revoke", "nothing")
    assert ran.code == 1
    assert "there is no token with the id nothing" in ran.err


# -- check, pull, schema, version ----------------------------------------------------------------------------


def test_the_rights_of_an_account_are_explained(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "groups.yaml"
    file.write_text(
        "access:\n"
        "  everybody: {models: [a/open], may: [run]}\n"
        "  groups: {vision: {members: [anna], models: [a/image], may: [train, run], priority: 2}}\n"
        "limits: {budgets: [{account: '*', predictions: 9, concurrent: 2}, {account: ben},"
        " {group: vision, per: month, tokens: 5}]}\n"
        "models:\n" + "".join(f"  - {{name: a/{name}, kind: echo}}\n" for name in ("open", "image", "secret"))
    )

    def rights(account: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            command("check", "--config", str(file), "--as", account, "--json").out
        )
        return found

    assert rights("anna") == {
        "account": "anna",
        "rights": {"run": ["everybody", "vision"], "train": ["vision"]},
        "models": {"a/open": ["everybody"], "a/image": ["vision"]},
        "denied": ["a/secret"],
        "priority": 2,
        "limits": [
            {"account": "*", "period": "day", "predictions": 9, "concurrent": 2, "warn_at": 0.8},
            {"group": "vision", "period": "month", "tokens": 5, "warn_at": 0.8},
        ],
    }
    assert rights("ben")["limits"] == [{"account": "ben", "period": "day", "warn_at": 0.8}]
    assert rights("ben")["denied"] == ["a/image", "a/secret"]
    assert rights("appliance")["denied"] == []
    shown = command("check", "--config", str(file), "--as", "anna").out
    assert "a/image  (from vision)" in shown
    assert "denied models: a/secret" in shown
    assert "priority: 2" in shown
    assert "account *  (per day: 9 predictions; 2 unfinished predictions)" in shown
    assert "group vision  (per month: 5 tokens)" in shown


def test_check_says_what_fits_where(command: Command, tmp_path: Path) -> None:
    ran = command("check", "--json")
    report = json.loads(ran.out)
    small, large = report["models"]
    assert (small["fits"], small["problem"]) == (True, None)
    assert small["fits_on"] == [device["name"] for device in report["devices"]]
    assert (large["fits"], large["fits_on"]) == (False, [])
    assert "test/large" in large["problem"]
    assert ran.code == 1
    assert (small["from"], large["from"], small["peak"]) == ("estimated", "declared", None)
    assert "no device: " in command("check").out
    (tmp_path / "models.yaml").write_text("models: [{name: test/echo, kind: echo}]")
    assert command("check").code == 0


def test_check_says_which_models_cannot_be_served_and_why(command: Command, tmp_path: Path) -> None:
    nested_header(tmp_path)
    broken = f"{{name: test/broken, kind: embeddings, source: {{path: {tmp_path}}}}}"
    (tmp_path / "models.yaml").write_text(f"models: [{broken}, {{name: test/echo, kind: echo}}]")
    ran = command("check", "--json")
    left_out, echo = json.loads(ran.out)["models"]
    assert (ran.code, left_out["fits"], echo["fits"]) == (1, False, True)
    assert "model.safetensors is damaged" in left_out["problem"]
    shown = command("check").out
    assert f"test/broken is not served: {left_out['problem']}" in shown


def test_check_says_whether_one_machine_can_hold_a_part_of_a_model(command: Command, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1024**2))
    section = "cluster: {address: 127.0.0.5, private_network: 127.0.0.0/8}"
    model = f"{{name: a/large, kind: vllm, source: {{path: {tmp_path}}}, memory: 1GiB, machines: 3}}"
    (tmp_path / "models.yaml").write_text(f"{section}\nmodels: [{model}]\n")
    ran = command("check", "--json")
    (found,) = json.loads(ran.out)["models"]
    assert (ran.code, found["fits"], found["machines"]) == (0, True, 3)
    assert "1.0 GiB on each of 3 machines" in command("check").out


def test_check_says_which_models_run_on_the_head_of_a_cluster_only(command: Command, tmp_path: Path) -> None:
    models = "[{name: test/echo, kind: echo}, {name: test/own, kind: echo, environment: {python: '3.11'}}]"
    (tmp_path / "models.yaml").write_text(f"models: {models}")
    assert [model["head_only"] for model in json.loads(command("check", "--json").out)["models"]] == [
        None
    ] * 2
    (tmp_path / "models.yaml").write_text(f"cluster: {{address: 127.0.0.2}}\nmodels: {models}")
    found = json.loads(command("check", "--json").out)["models"]
    assert [model["head_only"] for model in found] == [None, "environment of its own"]
    assert "test/own runs on the head of the cluster only: environment of its own" in command("check").out


def test_check_on_a_head_that_runs_no_models_does_not_know_what_fits(
    command: Command, tmp_path: Path
) -> None:
    models = "[{name: test/echo, kind: echo, pin: true}, {name: test/own, kind: echo, environment: {python: "
    (tmp_path / "models.yaml").write_text(
        "hardware: {devices: none}\ncluster: {address: 127.0.0.2, devices: cpu}\n"
        f"models: {models}'3.11'}}}}]"
    )
    ran = command("check", "--json")
    found = json.loads(ran.out)
    echo, own = found["models"]
    assert (found["runs_models"], found["devices"]) == (False, [])
    assert (echo["fits"], echo["problem"]) == (None, None)
    assert (own["fits"], own["problem"].partition(":")[0]) == (False, "environment of its own")
    shown = command("check")
    assert shown.code == 1  # because of test/own
    assert "this machine runs no models (hardware.devices: none)" in shown.out
    assert "not known" in shown.out
    assert "test/own is not served: environment of its own: it runs only on the head" in shown.out


def test_status_of_a_head_that_runs_no_models(command: Command, server: Server) -> None:
    found = filled(ApplianceStatusResponse, {"devices": [], "models": [], "runs_models": False})
    server.answer("GET", "/admin/status", found)
    shown = command("status").out
    assert "this machine runs no models: the nodes of its cluster do, and no node is ready" in shown


def test_check_knows_what_was_measured_and_what_is_pinned(command: Command, tmp_path: Path) -> None:
    declared = "hardware: {devices: [{name: one, memory: 1GiB}]}\nmodels:\n"
    declared += "  - {name: test/echo, kind: echo}\n"
    declared += "  - {name: test/pinned, kind: echo, memory: 600MiB, pin: true}\n"
    declared += "  - {name: test/large, kind: echo, memory: 500MiB}\n"
    (tmp_path / "models.yaml").write_text(declared)
    found = servable(config.load(tmp_path / "models.yaml"), tmp_path, HARDWARE, 0.0)
    built = Catalogue([card for card, _ in found.described], [entry for _, entry in found.described], ())
    loaded = built.loads_as(built.entry_for("test/echo"))
    row = MemoryProfileRow(
        loaded=loaded, device="cpu", model="test/echo", peak=100 << 20, main=100 << 20, measured_at=0.0
    )

    async def remember() -> None:
        (tmp_path / "home").mkdir()
        store = await opened(tmp_path / "home" / "appliance.db")
        await store.memory_profiles.put(row)
        await store.close()

    asyncio.run(remember())
    ran = command("check", "--json")
    measured, pinned, large = json.loads(ran.out)["models"]
    assert (measured["from"], measured["peak"]) == ("measured", 100 << 20)
    assert measured["memory"] == int((100 << 20) * MARGIN)
    assert (pinned["fits"], pinned["fits_on"]) == (True, ["one"])
    assert (large["fits"], large["fits_on"]) == (False, [])
    assert "reserved for the pinned models test/pinned" in large["problem"]
    assert "measured, took 100.0 MiB" in command("check").out


def test_a_wrong_config_is_refused_with_its_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models:\n  - {name: test/echo, kind: echo, pinn: true}\n")
    for arguments in (("check",), ("token", "list"), ("doctor",)):
        ran = command(*arguments)
        assert ran.code == 2
        assert "models.yaml:2" in ran.err
        assert "pinn" in ran.err
        assert "Traceback" not in ran.err


def test_a_missing_config_is_named(command: Command) -> None:
    ran = command("check", "--config", "other.yaml")
    assert ran.code == 2
    assert "other.yaml" in ran.err


def test_pull_refuses_a_model_that_is_not_there(command: Command) -> None:
    ran = command("pull", "no/such")
    assert ran.code == 2
    assert "no/such" in ran.err
    assert "test/echo" in ran.err


def test_pull_has_nothing_to_do_for_models_without_weights(command: Command, tmp_path: Path) -> None:
    assert command("pull").code == command("pull", "other/name").code == 0
    assert not (tmp_path / "home" / "weights").exists()


def test_pull_takes_models_whose_options_hold_mappings_once(command: Command, tmp_path: Path) -> None:
    """The shipped models.yaml has two of those kinds."""
    (tmp_path / "voices").mkdir()
    builtin = "{name: a/shapes, kind: diffusers, source: {builtin: tiny-shapes}, aliases: [b/shapes]}"
    voices = f"{{name: a/voices, kind: piper, source: {{path: {tmp_path / 'voices'}}}}}"
    (tmp_path / "models.yaml").write_text(f"models: [{builtin}, {voices}]")
    everything = command("pull")
    assert everything.code == 0, everything.err
    assert ("a/shapes" in everything.out, "a/voices" in everything.out) == (True, True)
    assert command("pull", "b/shapes", "a/shapes").out.count("a/shapes") == 1


def test_pull_tells_what_cannot_be_had(command: Command, tmp_path: Path) -> None:
    nowhere = "models: [{name: a/b, kind: vllm, source: {path: /no/such/weights.gguf}}]"
    (tmp_path / "models.yaml").write_text(nowhere)
    ran = command("pull")
    assert ran.code == 1
    assert "/no/such/weights.gguf" in ran.err


def test_schema_and_version(command: Command) -> None:
    assert "models" in json.loads(command("schema").out)["properties"]
    assert command("--version").out.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [("--no-such",), ("nosuch",), ("run",), ("predictions", "--limit", "0")]
)
def test_a_wrong_command_line_is_exit_code_2(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).code == 2


# -- serve ---------------------------------------------------------------------------------------------------


class Executed(Exception):
    """Instead of becoming the driver."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What `serve` would have become: arguments and environment."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        calls.append((arguments, environment))
        raise Executed

    monkeypatch.setattr(os, "execve", execve)
    return calls


Calls = list[tuple[list[str], dict[str, str]]]


def test_serve_becomes_the_driver(
    command: Command, executed: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APPLIANCE_PORT", "8123")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        with pytest.raises(Executed):
            command("serve")
    (arguments, environment), (_, second) = executed
    assert arguments[1:] == [
        *("-m", "appliance.driver.main", "--config", str(tmp_path / "models.yaml")),
        *("--port", "8123"),
    ]
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert environment["MALLOC_ARENA_MAX"] == "4"  # the user's own value wins
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "count", "policy"],
)
def test_waiting_threads_sleep_soon_unless_the_user_chose(
    command: Command,
    executed: Calls,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    count: str | None,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Executed):
        command("serve")
    ((_, environment),) = executed
    assert environment.get("GOMP_SPINCOUNT") == count


def test_serve_passes_its_options_on(command: Command, executed: Calls, tmp_path: Path) -> None:
    with pytest.raises(Executed):
        command("serve", "--host", "0.0.0.0", "--port", "1234", "--home", "there", "--no-pull")
    ((arguments, _),) = executed
    assert arguments[5:] == [
        *("--home", str(tmp_path / "there"), "--port", "1234", "--host", "0.0.0.0", "--no-pull")
    ]


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The models.yaml of a package that is not in a checkout; the folder of the command has none."""
    shipped = tmp_path / "package" / "models.yaml"
    shipped.parent.mkdir()
    shipped.write_text(f"# explains\n{CONFIG}")
    monkeypatch.setattr(options, "_CHECKOUT", tmp_path / "nothing.yaml")
    monkeypatch.setattr(options, "_SHIPPED", shipped)
    (tmp_path / "models.yaml").unlink()
    return shipped


def test_the_first_serve_writes_models_yaml(
    command: Command, executed: Calls, packaged: Path, tmp_path: Path
) -> None:
    written = tmp_path / "models.yaml"
    command("doctor")  # a command that only reads leaves the folder as it is
    assert not written.exists()
    with pytest.raises(Executed):
        command("serve")
    assert written.read_bytes() == packaged.read_bytes()
    written.write_text(f"# mine\n{CONFIG}")
    with pytest.raises(Executed):
        command("serve")
    assert written.read_text().startswith("# mine")
    assert [arguments[4] for arguments, _ in executed] == [str(written)] * 2


def test_serve_with_a_config_writes_none(
    command: Command, executed: Calls, packaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(Executed):
        command("serve", "--config", str(packaged))
    assert not (tmp_path / "models.yaml").exists()


def test_a_models_yaml_that_cannot_be_written_is_named(
    command: Command, executed: Calls, packaged: Path, tmp_path: Path
) -> None:
    (tmp_path / "models.yaml").symlink_to(tmp_path / "no" / "such" / "folder")
    ran = command("serve")
    assert (ran.code, executed) == (2, [])
    assert f"{tmp_path / 'models.yaml'}: models.yaml cannot be created: File exists" in ran.err


@pytest.mark.parametrize("port", ["none", "0", "65536", "-1", "٣"])
def test_a_wrong_port_in_the_environment_is_refused(
    command: Command, executed: Calls, monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setenv("APPLIANCE_PORT", port)
    ran = command("serve")
    assert ran.code == 2
    assert "APPLIANCE_PORT" in ran.err
    assert executed == []


def test_ctrl_c_cancels_the_build(
    command: Command, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "cog.yaml").write_text("run: run.py:Runner\n")
    build = {"id": "one", "status": "processing", "logs": "==> unpacking\n", "completed_at": None}
    build = filled(BuildResponse, build)
    file = filled(FileResponse, {"id": "file", "urls": {"get": f"{server.url}/v1/files/file"}})
    server.answer("GET", "/v1/models/me/mine", {})
    server.answer("POST", "/v1/files", file, 201)
    server.answer("POST", "/v1/models/me/mine/versions", build, 202)
    server.answer("POST", "/v1/builds/one/cancel", {**build, "status": "canceled", "completed_at": "now"})
    server.answer("DELETE", "/v1/files/file", {})
    monkeypatch.setattr(time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    ran = command("push", "project", "me/mine")
    assert ran.code == 130, ran.err
    assert "==> unpacking" in ran.err
    assert "build one is canceled" in ran.err
    assert [(method, path) for method, path, _ in server.asked][-2:] == [
        ("POST", "/v1/builds/one/cancel"),
        ("DELETE", "/v1/files/file"),
    ]


def test_help_imports_nothing_heavy() -> None:
    look = (
        "import sys\n"
        "sys.argv = ['appliance', '--help']\n"
        "from appliance.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'ray', 'torch', 'vllm', 'transformers', 'pydantic', 'httpx', 'starlette', 'uvicorn'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert "Exit codes" in ran.stdout


def test_the_key_of_the_account_that_is_named_is_shown_and_replaced(command: Command) -> None:
    def key(*arguments: str) -> str:
        ran = command("webhook", *arguments)
        assert ran.code == 0, ran.err
        return ran.out.strip()

    account = config.Config.model_validate({"models": [{"name": "a/b", "kind": "echo"}]}).server.account
    mine, theirs = key("secret"), key("secret", "--owner", "you")
    assert mine != theirs
    made = key("rotate", "--owner", "you")
    assert made == key("secret", "--owner", "you") != theirs
    assert mine == key("secret") == key("secret", "--owner", account)


def test_systemd_prints_a_unit_and_what_is_left_to_do(command: Command, tmp_path: Path) -> None:
    ran = command("systemd", "--user", "daemon", "--home", str(tmp_path / "data"), "--port", "81")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    program = Path(sys.executable).with_name("appliance")
    start = f"ExecStart={program} serve --config {tmp_path}/models.yaml --home {tmp_path}/data --port 81"
    assert {"User=daemon", "Type=notify", start, f"ReadWritePaths={tmp_path}/data"} <= set(lines)
    assert ran.err == f"create the data folder: sudo install -d -o daemon -m 700 '{tmp_path}/data'\n"
    (tmp_path / "data").mkdir()
    assert command("systemd", "--user", "daemon", "--home", str(tmp_path / "data")).err == ""


def test_monitoring_prints_the_files_for_prometheus_and_grafana(command: Command) -> None:
    alerts = yaml.safe_load(command("monitoring", "alerts").out)
    assert "ApplianceDown" in [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
    assert json.loads(command("monitoring", "dashboard").out)["uid"] == "appliance"


def test_systemd_for_another_user_needs_a_data_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPLIANCE_HOME")
    ran = command("systemd", "--user", "another")
    assert ran.code == 2
    assert "not to another: name one with --home, such as /var/lib/appliance" in ran.err
