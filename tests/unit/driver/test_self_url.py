"""The URL with which models call this appliance, and the certificates that they trust."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from appliance.config import Config
from appliance.driver import certificate
from appliance.driver.self_url import environment

MODELS = [{"name": "test/echo", "kind": "echo"}]


@pytest.mark.parametrize(
    ("bind_address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("192.0.2.7", "http://192.0.2.7:8000"),
    ],
)
def test_plain_http(tmp_path: Path, bind_address: str, url: str) -> None:
    assert environment(Config.model_validate({"models": MODELS}), bind_address, 8000, tmp_path) == {
        "REPLICATE_BASE_URL": url
    }


def secure(folder: Path, public_url: str | None = None) -> Config:
    tls = {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}
    return Config.model_validate({"models": MODELS, "server": {"tls": tls, "public_url": public_url}})


def test_with_tls_the_certificate_is_valid_for_the_url_and_trusted(tmp_path: Path) -> None:
    file, _ = certificate.write(tmp_path, ["models.example.org"])
    variables = environment(secure(tmp_path), "0.0.0.0", 8000, tmp_path / "run")
    assert variables["REPLICATE_BASE_URL"] == "https://127.0.0.1:8000"
    trusted = ssl.create_default_context(cafile=variables["APPLIANCE_CERTIFICATES"])
    own = ssl.PEM_cert_to_DER_cert(file.read_text())
    assert own in trusted.get_ca_certs(binary_form=True)
    assert len(trusted.get_ca_certs()) > 20  # and the public certificate authorities


def test_a_certificate_for_other_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "_LOOPBACK", ())
    certificate.write(tmp_path, ["*.example.org", "models.example.org"])
    variables = environment(secure(tmp_path), "127.0.0.1", 8000, tmp_path)
    assert variables["REPLICATE_BASE_URL"] == "https://models.example.org:8000"
    variables = environment(secure(tmp_path, "https://public.example.org/"), "127.0.0.1", 8000, tmp_path)
    assert variables["REPLICATE_BASE_URL"] == "https://public.example.org"
