"""What an appliance leaves of its users' data: in its logs, and after an erasure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, Appliance, http_client, wait_for
from tests.support.trace_collector import Collector
from tests.support.web_server import Answer, Origin, serving
from tests.support.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.integration

MARKER = "Zebra-7391-of-ada"  # in everything that ada sends
TOKEN_NAME = f"{MARKER} laptop"
CONFIG = """
server: {account: me}
egress: {allow: [127.0.0.0/8]}
logging: {level: debug, slow_after: 0.000001}
models:
  - {name: test/echo, kind: echo}
  - {name: test/files, kind: echo, options: {files: true}}
  - {name: test/slow, kind: echo, options: {stream: true, concurrency: 64}}
"""
#: The data of this model and of this account is removed at once.
RETENTION = """
  - {name: test/brief, kind: echo, options: {files: true}}
retention: {models: {test/brief: 0}, accounts: {brief: 0}}
"""


def traces(folder: Path, text: str) -> list[str]:
    """Return the files below ``folder`` whose content or path contains ``text``, except in ``TOKEN_NAME``.

    The audit log has the names of tokens, and is never changed.
    """
    wanted, kept = text.encode(), TOKEN_NAME.encode()
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(
        str(path) for path in files if text in path.name or wanted in path.read_bytes().replace(kept, b"")
    )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Appliance]:
    """Runs before and after each test, which uses accounts of its own."""
    folder = tmp_path_factory.mktemp("appliance")
    config = folder / "models.yaml"
    config.write_text(f"{CONFIG.rstrip()}{RETENTION}telemetry: {{otlp_endpoint: '{collector.url}'}}\n")
    appliance = Appliance(folder / "home", config)
    appliance.start()
    try:
        yield appliance
        assert appliance.stop() == 0
    finally:
        appliance.kill()


def client_of(appliance: Appliance, owner: str) -> httpx.Client:
    made = json.loads(appliance.command("token", "create", TOKEN_NAME, "--owner", owner, "--json"))
    headers = {"Authorization": f"Bearer {made['token']}"}
    return http_client(appliance.url, headers=headers)


def predict(client: httpx.Client, model: str, webhook: str | None = None, **input: Any) -> dict[str, Any]:
    body = {"input": input} | ({"webhook": webhook} if webhook else {})
    created = client.post(f"/v1/models/test/{model}/predictions", json=body).json()

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/v1/predictions/{created['id']}").json()
        return found if found["status"] not in {"starting", "processing"} else None

    done: dict[str, Any] = wait_for(ended, f"prediction {created['id']}")
    return done


def use(client: httpx.Client, receiver: Receiver, origin: Origin) -> None:
    """Send requests of each kind, right and wrong ones."""
    origin.answers[f"/{MARKER}.txt"] = Answer(MARKER.encode())
    origin.answers[f"/{MARKER}-missing"] = Answer(MARKER.encode(), status=404)
    for name, status in ((f"{MARKER}.txt?key={MARKER}", "succeeded"), (f"{MARKER}-missing", "failed")):
        done = predict(client, "files", text=MARKER, file=f"{origin.url}/{name}")
        assert done["status"] == status, done
    webhook = f"{receiver.url}/{MARKER}?key={MARKER}"
    receiver.answer = lambda received: 500  # it is tried again later
    assert predict(client, "echo", webhook, text=MARKER, print=MARKER)["logs"] == f"{MARKER}\n"
    crashed = predict(client, "slow", text=f"{MARKER} {MARKER}", print=MARKER, after=1, crash=True)
    assert crashed["status"] == "failed"
    upload = client.post("/v1/files", files={"content": (f"{MARKER}.txt", MARKER.encode(), "text/plain")})
    assert upload.status_code == 201, upload.text
    assert predict(client, "echo", text=MARKER)["output"] == MARKER
    assert predict(client, "files", text=MARKER)["status"] == "succeeded"
    assert predict(client, "echo", text=MARKER, fail=f"{MARKER} broke")["status"] == "failed"
    assert predict(client, "slow", text=f"{MARKER} {MARKER}")["status"] == "succeeded"
    for path, body in {
        "/v1/models/test/echo/predictions": {"input": {"text": 5, "repeat": MARKER}},
        "/v1/predictions": {"version": MARKER, "input": {"text": MARKER}},
        "/openai/v1/chat/completions": {"model": MARKER, "messages": [{"role": "user", "content": MARKER}]},
    }.items():
        assert client.post(path, json=body).status_code in {400, 404, 422}, path
    assert client.post("/v1/predictions", content=f'{{"input": "{MARKER}').status_code == 400
    chat = {"title": MARKER, "model": "test/slow", "settings": {}, "messages": []}
    assert client.post("/admin/conversations", json=chat).status_code == 201
    assert client.get("/admin/predictions", params={"search": MARKER}).status_code == 200


def test_no_input_is_in_a_log_and_an_erasure_leaves_nothing(
    appliance: Appliance, collector: Collector
) -> None:
    with client_of(appliance, "ada") as ada, receiving() as receiver, serving() as origin:
        use(ada, receiver, origin)
        wait_for(lambda: any(MARKER in each.path for each in receiver.received), "the webhook")
    assert traces(appliance.home, MARKER)
    logs = [*(appliance.home / "logs").rglob("*"), appliance.output]
    lines = [path for path in logs if path.is_file() and MARKER in path.read_text(errors="replace")]
    assert lines == []
    written = "".join(path.read_text(errors="replace") for path in logs if path.is_file())
    assert " DEBUG " in written
    assert "other 0." in written  # from the log of slow predictions
    wait_for(lambda: len(collector.spans) > 20, "the traces")
    assert [span.name for span in collector.spans if MARKER in str(span)] == []
    audit = [json.dumps(each) for each in json.loads(appliance.command("audit", "list", "--json"))]
    assert [each for each in audit if MARKER in each and "token.create" not in each] == []

    assert "8  predictions" in appliance.command("erase", "ada", "--dry-run")
    with client_of(appliance, "ben") as ben:
        kept = predict(ben, "echo", text="of ben")
        running = json.loads(appliance.command("erase", "ada", "--yes", "--json"))
        assert (running["predictions"], running["uploads"], running["conversations"]) == (8, 1, 1)
        assert ben.get(f"/v1/predictions/{kept['id']}").json()["output"] == "of ben"
    assert traces(appliance.home, MARKER) == []


def test_the_next_gateway_continues_to_erase(appliance: Appliance) -> None:
    with client_of(appliance, "carl") as carl:
        for _ in range(30):
            body: dict[str, Any] = {"input": {"text": "x", "delay": 300}}
            assert carl.post("/v1/models/test/slow/predictions", json=body).status_code == 201
        for _ in range(300):
            headers = {"Prefer": "wait"}
            body = {"input": {"text": MARKER * 100}}
            reply = carl.post("/v1/models/test/echo/predictions", json=body, headers=headers)
            assert reply.status_code == 201
    program = str(Path(sys.executable).parent / "appliance")
    erasing = subprocess.Popen(
        [program, "erase", "carl", "--yes"], env=appliance.environment, stdout=subprocess.DEVNULL
    )

    def recorded(action: str) -> bool:
        """Return whether the audit log has ``action`` on the account carl."""
        with appliance.client() as client:
            reply = client.get("/admin/audit", params={"action": action}).raise_for_status()
        return any(each["object"] == "carl" for each in reply.json()["results"])

    wait_for(lambda: recorded("account.erase"), "the erasure to begin")
    appliance.kill_gateway()
    erasing.wait(PATIENCE)
    wait_for(appliance.answers, "the next gateway")
    wait_for(lambda: recorded("account.erased"), "the erasure to end")
    found = json.loads(appliance.command("erase", "carl", "--dry-run", "--json"))
    assert not any(count for name, count in found.items() if isinstance(count, int)), found
    assert MARKER * 2 not in (appliance.home / "appliance.db").read_text(errors="replace")


def test_data_of_some_accounts_and_models_is_removed_at_once(appliance: Appliance) -> None:
    with client_of(appliance, "brief") as brief, client_of(appliance, "ben") as ben:
        made = {}
        for client, model in ((brief, "echo"), (ben, "brief"), (ben, "echo")):
            body, headers = {"input": {"text": "removed or kept"}}, {"Prefer": "wait"}
            reply = client.post(f"/v1/models/test/{model}/predictions", json=body, headers=headers)
            assert reply.json()["output"], reply.text
            made[client, model] = reply.json()

        def removed(client: httpx.Client, model: str) -> bool:
            found = client.get(f"/v1/predictions/{made[client, model]['id']}").json()
            assert found["status"] == "succeeded"
            return bool(found["data_removed"]) and not found["input"] and not found["output"]

        wait_for(lambda: removed(brief, "echo") and removed(ben, "brief"), "the data to be removed")
        assert not removed(ben, "echo")
        assert httpx.get(made[ben, "brief"]["output"][0], trust_env=False).status_code == 404


def in_clear(outputs: Path) -> list[Path]:
    """Return the output files that are not encrypted yet, or whose encrypted copy is being written."""
    files = [path for path in outputs.rglob("*") if path.is_file()]
    return [path for path in files if path.name.startswith(".") or MARKER.encode() in path.read_bytes()]


def output_files(home: Path) -> dict[Path, bytes]:
    folder = home / "files" / "outputs"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_encrypted_appliance_stores_nothing_in_clear(appliance: Appliance, tmp_path: Path) -> None:
    """The last test: it stops the appliance, and encrypts its data."""
    with client_of(appliance, "dora") as dora, receiving() as receiver, serving() as origin:
        use(dora, receiver, origin)
    home = appliance.home
    assert traces(home, MARKER)
    assert appliance.stop() == 0

    key = tmp_path / "key"
    key.write_text(b64encode(os.urandom(32)).decode())
    appliance.variables = {"APPLIANCE_ENCRYPTION_KEY_FILE": str(key)}
    config = ("--config", str(appliance.config))
    assert "is encrypted with the key" in appliance.command("encryption", "enable", *config)
    earlier = traces(home, MARKER)  # names of output files only
    assert [path for path in earlier if MARKER.encode() in Path(path).read_bytes()] == []
    appliance.start()
    with client_of(appliance, "dora") as dora, receiving() as receiver, serving() as origin:
        use(dora, receiver, origin)
        found = dora.get("/admin/predictions", params={"search": MARKER}).json()["results"]
        assert len(found) == 16
        file = next(each for each in found if each["model"] == "test/files" and each["preview"]["output"])
        record = dora.get(f"/v1/predictions/{file['id']}").json()
        assert MARKER.encode() in dora.get(record["output"][0]).content
    wait_for(lambda: not in_clear(home / "files" / "outputs"), "all output files to be encrypted")
    assert [path for path in traces(home, MARKER) if path not in earlier] == []
    backup = tmp_path / "backup.tar.gz"
    appliance.command("backup", str(backup), *config)
    assert appliance.stop() == 0
    refused = subprocess.run(
        [str(appliance.program), "serve", *config],
        env={**appliance.environment, "APPLIANCE_ENCRYPTION_KEY_FILE": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert refused.returncode == 1
    assert "the database is encrypted with the key" in " ".join(refused.stderr.split())
    restored = Appliance(tmp_path / "restored", appliance.config, variables=appliance.variables)
    restored.output.unlink(missing_ok=True)
    restored.command("restore", str(backup))
    exported = tmp_path / "predictions.jsonl"
    restored.command("export", str(exported), *config)
    lines = exported.read_text().splitlines()
    (line,) = (line for line in lines if json.loads(line)["id"] == file["id"])
    assert MARKER in line
    assert output_files(restored.home) == output_files(home)
