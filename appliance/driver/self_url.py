"""How models that call other models of this appliance reach it from this machine."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import httpx

from appliance.config import Config
from appliance.driver import certificate
from appliance.runners.cog.runner import CERTIFICATES

__all__ = ["ADDRESS", "CERTIFICATES", "environment", "reachable"]

#: Read by Replicate's clients.
ADDRESS: Final = "REPLICATE_BASE_URL"
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where such a listener is reached


def reachable(host: str) -> str:
    """Where something that listens on ``host`` is reached from this machine, as it stands in an address."""
    found = _ANY.get(host, host)
    return f"[{found}]" if ":" in found else found


def environment(config: Config, host: str, port: int, folder: Path) -> dict[str, str]:
    """The variables that say so, for the processes of models; a file they name is written to ``folder``.

    With TLS the address is one that the certificate is for: the loopback if it can be, else
    ``server.public_url``, else the first name in the certificate.
    """
    tls = config.server.tls
    if tls is None:
        return {ADDRESS: f"http://{reachable(host)}:{port}"}
    bundle = folder / "certificates.pem"
    trusted = httpx.create_ssl_context(trust_env=False).get_ca_certs(binary_form=True)
    folder.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(map(ssl.DER_cert_to_PEM_cert, trusted)) + tls.certificate.read_text())
    return {ADDRESS: _named(config, host, port, tls.certificate), CERTIFICATES: str(bundle)}


def _named(config: Config, host: str, port: int, file: Path) -> str:
    known = certificate.names(file)
    here = _ANY.get(host, host)
    wished = [here, "localhost"] if here in _ANY.values() else [here]
    for name in wished:
        if name in known:
            return f"https://{reachable(name)}:{port}"
    if config.server.public_url is not None:
        return config.server.public_url.rstrip("/")
    plain = [name for name in known if "*" not in name]
    return f"https://{reachable(plain[0]) if plain else reachable(host)}:{port}"
