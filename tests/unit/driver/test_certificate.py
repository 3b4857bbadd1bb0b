"""Self-signed certificates, as clients check them."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from appliance.domain.errors import ApplianceError
from appliance.driver import certificate


def handshake(folder: Path, name: str) -> None:
    """A client that trusts the certificate greets a server that has it as ``name``; or raises."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=folder / "certificate.pem")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:  # the client would not
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def test_a_certificate_is_valid_for_its_names_only(tmp_path: Path) -> None:
    certificate.write(tmp_path, ["models.example.org", "10.1.2.3"])
    for name in ("localhost", "127.0.0.1", "::1", "models.example.org", "10.1.2.3"):
        handshake(tmp_path, name)
    for name in ("example.org", "10.1.2.4"):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(tmp_path, name)


def test_only_the_owner_may_read_the_key_and_nothing_is_overwritten(tmp_path: Path) -> None:
    _, key = certificate.write(tmp_path, [])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(ApplianceError, match=r"key\.pem exists already"):
        certificate.write(tmp_path, [])
    assert key.read_bytes() == before
