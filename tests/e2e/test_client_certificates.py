"""An appliance that demands certificates of its clients: who gets in, and who is refused."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, ROOT, TOKEN, Appliance, wait_for
from tests.support.client_authority import Authority

pytestmark = pytest.mark.e2e

COMMAND = str(ROOT / ".venv" / "bin" / "appliance")


def command(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False, **more
    )


class Guarded(Appliance):
    """An appliance that demands certificates of ``authority``."""

    def __init__(self, home: Path) -> None:
        folder = home.parent
        authority, stranger = Authority(folder, "authority"), Authority(folder, "stranger")
        self.accepted = authority.issue("anna")
        self.revoked = authority.issue("ben")
        self.foreign = stranger.issue("eve")
        made = command("certificate", str(folder))
        self.certificate = folder / "certificate.pem"
        more = f"client_ca: {authority.file}, client_crl: {authority.revoke('ben')}"
        tls = made.stdout.strip().replace("}", f", {more}}}")
        models = "models:\n  - {name: test/echo, kind: echo}\n"
        (folder / "models.yaml").write_text(f"server:\n  {tls}\n{models}")
        super().__init__(home, folder / "models.yaml", ui=True)
        self.url = self.url.replace("http:", "https:")

    def context(self, file: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.certificate)
        if file is not None:
            context.load_cert_chain(file)
        return context

    def client_with(self, file: Path | None) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.context(file), timeout=PATIENCE, trust_env=False)

    def answers(self) -> bool:
        try:
            with self.client_with(self.accepted) as client:
                return client.get("/healthz").status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    running = Guarded(tmp_path_factory.mktemp("guarded") / "home")
    running.start()
    yield running
    assert running.stop() == 0


def test_a_certificate_of_the_authority_is_accepted_besides_the_token(guarded: Guarded) -> None:
    with guarded.client_with(guarded.accepted) as client:
        assert client.get("/v1/account").status_code == 401
        signed_in = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait"}
        body = {"version": "test/echo", "input": {"text": "hello"}}
        assert client.post("/v1/predictions", json=body, headers=signed_in).json()["output"] == "hello"


@pytest.mark.parametrize("which", ["none", "foreign", "revoked"])
def test_all_others_are_refused_before_a_request_is_read(guarded: Guarded, which: str) -> None:
    file = {"none": None, "foreign": guarded.foreign, "revoked": guarded.revoked}[which]
    with guarded.client_with(file) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")  # Python's server closes the connection, some versions with the reason


def test_the_ui_and_the_commands_have_a_certificate_of_their_own(guarded: Guarded) -> None:
    with guarded.client_with(guarded.accepted) as browser:
        wait_for(lambda: browser.get("/signin").status_code == 200, "the UI")
        signed_in = browser.post("/signin", data={"token": TOKEN}, headers={"Origin": guarded.url})
        assert signed_in.status_code == 303, signed_in.text
        assert "test/echo" in browser.get("/", follow_redirects=True).text
    environment = {name: value for name, value in guarded.environment.items() if not name.endswith("_URL")}
    environment |= {"APPLIANCE_PORT": str(guarded.port)}
    ran = command("status", env=environment, cwd=guarded.config.parent)
    assert ran.returncode == 0, ran.stderr
    assert "test/echo" in ran.stdout
    own = guarded.home / "run" / "own-client.pem"
    assert own.stat().st_mode & 0o077 == 0


def test_commands_on_another_machine_name_their_certificate(guarded: Guarded) -> None:
    for file, code in ((guarded.accepted, 0), (guarded.foreign, 1), (Path("/missing.pem"), 1)):
        environment = {
            **guarded.environment,
            "SSL_CERT_FILE": str(guarded.certificate),
            "APPLIANCE_CLIENT_CERTIFICATE": str(file),
        }
        ran = command("models", env=environment)
        assert ran.returncode == code, ran.stderr
        assert "Traceback" not in ran.stderr
        assert code == 0 or "certificate" in ran.stderr, ran.stderr


def test_a_file_without_certificates_is_named_before_anything_starts(
    guarded: Guarded, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("no certificate\n")
    config = tmp_path / "models.yaml"
    text = guarded.config.read_text()
    start, end = text.index("client_ca:"), text.index(", client_crl")
    config.write_text(f"{text[:start]}client_ca: {tmp_path / 'empty.pem'}{text[end:]}")
    environment = {**os.environ, "APPLIANCE_HOME": str(tmp_path / "home")}
    ran = command("serve", "--config", str(config), "--port", str(guarded.port + 1), env=environment)
    assert ran.returncode == 2
    assert "server.tls.client_ca" in " ".join(ran.stderr.split())
