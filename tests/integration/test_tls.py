"""HTTPS with a certificate of one's own: the command makes it, the appliance speaks it, clients trust it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import ROOT, TOKEN, Appliance

pytestmark = pytest.mark.integration

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
            return httpx.get(f"{self.url}/healthz", verify=context, trust_env=False).status_code == 200
        except httpx.ConnectError:
            return False


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    home = tmp_path_factory.mktemp("home")
    made = subprocess.run(
        [COMMAND, "certificate", str(home)], capture_output=True, text=True, check=True, timeout=60
    )
    config = home / "models.yaml"
    config.write_text(
        f"server:\n  {made.stdout}models:\n  - {{name: test/echo, kind: echo, options: {{stream: true}}}}\n"
    )
    running = Secure(home, config)
    running.start()
    yield running
    running.stop()
    assert running.processes() == []


def test_links_are_https_and_streams_work(appliance: Secure) -> None:
    context = ssl.create_default_context(cafile=appliance.certificate)
    with httpx.Client(base_url=appliance.url, verify=context, trust_env=False) as client:
        signed_in = {"Authorization": f"Bearer {TOKEN}"}
        body = {"version": "test/echo", "input": {"text": "a b "}}
        created = client.post("/v1/predictions", json=body, headers=signed_in).json()
        assert all(url.startswith(f"{appliance.url}/") for url in created["urls"].values())
        assert "event: done" in client.get(created["urls"]["stream"]).text


def test_whoever_does_not_trust_it_does_not_talk_to_it(appliance: Secure) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{appliance.url}/healthz", trust_env=False)


def test_the_command_line_and_the_javascript_client_speak_it(appliance: Secure) -> None:
    environment = {**appliance.environment, "SSL_CERT_FILE": str(appliance.certificate)}
    ran = subprocess.run(
        [COMMAND, "run", "test/echo", "-i", "text=hello there"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "hello there\n"), ran.stderr
    script = f"""
        import Replicate from "replicate";
        const replicate = new Replicate({{ auth: {json.dumps(TOKEN)}, baseUrl: "{appliance.url}/v1" }});
        console.log(JSON.stringify(await replicate.run("test/echo", {{ input: {{ text: "a b" }} }})));
    """
    ran = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        env={**os.environ, "NODE_EXTRA_CA_CERTS": str(appliance.certificate)},
        cwd=ROOT / ".clients" / "js", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == ["a ", "b"]


def test_files_that_do_not_belong_together_are_refused_before_anything_starts(
    appliance: Secure, tmp_path: Path
) -> None:
    config = tmp_path / "models.yaml"
    same = str(appliance.certificate)
    config.write_text(
        f"server:\n  tls: {{certificate: {same}, key: {same}}}\nmodels:\n  - {{name: a/b, kind: echo}}\n"
    )
    environment = {**os.environ, "APPLIANCE_HOME": str(tmp_path / "home")}
    ran = subprocess.run(
        [COMMAND, "serve", "--config", str(config), "--port", str(appliance.port + 1)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "belong together" in " ".join(ran.stderr.split())
