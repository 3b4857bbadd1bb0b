"""An appliance of its own that speaks HTTPS with a certificate the command made, and forgets soon."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, ROOT, TOKEN, Appliance, fetch, wait_for

pytestmark = pytest.mark.e2e

CALLER = ROOT / "tests" / "projects" / "caller"
COMMAND = str(ROOT / ".venv" / "bin" / "appliance")


class Secure(Appliance):
    """An appliance that speaks HTTPS."""

    def __init__(self, home: Path, config: Path) -> None:
        super().__init__(home, config)
        self.url = self.url.replace("http:", "https:")
        self.certificate = home / "certificate.pem"

    def answers(self) -> bool:
        """Whether its health route does, with a certificate that holds."""
        try:
            context = ssl.create_default_context(cafile=self.certificate)
            return fetch(f"{self.url}/healthz", verify=context).status_code == 200
        except httpx.ConnectError:
            return False


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    home = tmp_path_factory.mktemp("home")
    made = subprocess.run(
        [COMMAND, "certificate", str(home)], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    config = home / "models.yaml"
    config.write_text(
        f"server:\n  {made.stdout}"
        "retention:\n  predictions: 3s\n"
        "code: {cog: true}\n"
        "models:\n"
        f"  - {{name: cog/caller, kind: cog, memory: 256MiB, source: {{path: {CALLER}}}}}\n"
        "  - {name: test/echo, kind: echo, options: {stream: true}}\n"
        "  - {name: test/files, kind: echo, options: {files: true}}\n"
    )
    started = Secure(home, config)
    with started.running():
        yield started


def test_links_are_https_and_streams_work(secure: Secure) -> None:
    context = ssl.create_default_context(cafile=secure.certificate)
    with httpx.Client(base_url=secure.url, verify=context, timeout=PATIENCE, trust_env=False) as client:
        signed_in = {"Authorization": f"Bearer {TOKEN}"}
        body = {"version": "test/echo", "input": {"text": "a b "}}
        created = client.post("/v1/predictions", json=body, headers=signed_in).json()
        assert all(url.startswith(f"{secure.url}/") for url in created["urls"].values())
        assert "event: done" in client.get(created["urls"]["stream"]).text


def test_a_pipeline_trusts_the_certificate_of_its_appliance(secure: Secure) -> None:
    context = ssl.create_default_context(cafile=secure.certificate)
    with httpx.Client(base_url=secure.url, verify=context, timeout=PATIENCE, trust_env=False) as client:
        body = {"version": "cog/caller", "input": {"calls": json.dumps([("test/echo", {"text": "a b"})])}}
        headers = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait"}
        record = client.post("/v1/predictions", json=body, headers=headers).json()
    assert record["status"] == "succeeded", record
    assert "".join(record["output"]["outputs"][0]) == "a b"


def test_whoever_does_not_trust_it_does_not_talk_to_it(secure: Secure) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"{secure.url}/healthz")


def test_the_command_line_and_the_javascript_client_speak_it(secure: Secure) -> None:
    environment = {**secure.environment, "SSL_CERT_FILE": str(secure.certificate)}
    ran = subprocess.run(
        [COMMAND, "run", "test/echo", "-i", "text=hello there"],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "hello there\n"), ran.stderr
    script = f"""
        import Replicate from "replicate";
        const replicate = new Replicate({{ auth: {json.dumps(TOKEN)}, baseUrl: "{secure.url}/v1" }});
        console.log(JSON.stringify(await replicate.run("test/echo", {{ input: {{ text: "a b" }} }})));
    """
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        env={**os.environ, "NODE_EXTRA_CA_CERTS": str(secure.certificate)},
        cwd=ROOT / ".clients" / "js", capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == ["a ", "b"]


def test_files_that_do_not_belong_together_are_refused_before_anything_starts(
    secure: Secure, tmp_path: Path
) -> None:
    config = tmp_path / "models.yaml"
    same = str(secure.certificate)
    config.write_text(
        f"server:\n  tls: {{certificate: {same}, key: {same}}}\nmodels:\n  - {{name: a/b, kind: echo}}\n"
    )
    environment = {**os.environ, "APPLIANCE_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [COMMAND, "serve", "--config", str(config), "--port", str(secure.port + 1)],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "of one key pair" in " ".join(ran.stderr.split())


PYTHON = """
import json, replicate
(output,) = replicate.run("test/files", input={"text": "content"})
print(json.dumps([type(output).__name__, output.read().decode(), output.url]))
"""


def test_f17_python_reads_a_file_object(secure: Secure) -> None:
    environment = {**secure.environment, "SSL_CERT_FILE": str(secure.certificate)}
    ran = subprocess.run(
        [sys.executable, "-c", PYTHON],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    kind, content, address = json.loads(ran.stdout)
    assert (kind, content) == ("FileOutput", "content")
    assert address.startswith(f"{secure.url}/outputs/")


def test_f18_javascript_reads_a_blob(secure: Secure) -> None:
    script = f"""
        import Replicate from "replicate";
        const replicate = new Replicate({{ auth: {json.dumps(TOKEN)}, baseUrl: "{secure.url}/v1" }});
        const [file] = await replicate.run("test/files", {{ input: {{ text: "content" }} }});
        const blob = await file.blob();
        console.log(JSON.stringify([await blob.text(), blob.type, String(file.url())]));
    """
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        env={**os.environ, "NODE_EXTRA_CA_CERTS": str(secure.certificate)},
        cwd=ROOT / ".clients" / "js", capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    text, kind, address = json.loads(ran.stdout)
    assert (text, kind.partition(";")[0]) == ("content", "text/plain")
    assert address.startswith(f"{secure.url}/outputs/")


def test_p41_data_goes_after_a_while(secure: Secure) -> None:
    context = ssl.create_default_context(cafile=secure.certificate)
    headers = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait"}
    with httpx.Client(
        base_url=secure.url, verify=context, timeout=PATIENCE, trust_env=False, headers=headers
    ) as client:
        body = {"version": "test/files", "input": {"text": "secret", "print": "secret"}}
        record = client.post("/v1/predictions", json=body).json()
        (address,) = record["output"]
        assert client.get(address).text == "secret"

        def removed() -> bool:
            return bool(client.get(f"/v1/predictions/{record['id']}").json()["data_removed"])

        wait_for(removed, "the data to go")
        found = client.get(f"/v1/predictions/{record['id']}").json()
        assert (found["status"], found["output"], found["input"], found["logs"]) == (
            "succeeded",
            None,
            {},
            "",
        )
        assert client.get(address).status_code == 404
        assert "secret" not in json.dumps(found)
    wait_for(lambda: not list((secure.home / "files" / "outputs").glob("*/*/*")), "the bytes to go")
