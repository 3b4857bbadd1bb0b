"""The URL at which models of this appliance call other models of this appliance."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import httpx

from appliance.config import Config
from appliance.domain.local_url import LOOPBACK, local_host, local_url
from appliance.driver import certificate
from appliance.runners.cog.runner import CERTIFICATES

__all__ = ["CERTIFICATES", "URL_VARIABLE", "environment"]

#: Environment variable that Replicate's clients read.
URL_VARIABLE: Final = "REPLICATE_BASE_URL"


def environment(config: Config, bind_address: str, port: int, folder: Path) -> dict[str, str]:
    """Return environment variables with the URL of this appliance, for worker processes.

    With TLS, a second variable names a file of trusted certificates, which is written to ``folder``. The URL
    then has a host for which the certificate is valid: the loopback address if possible, else the host of
    ``server.public_url``, else the first name in the certificate.
    """
    tls = config.server.tls
    if tls is None:
        return {URL_VARIABLE: local_url(bind_address, port, tls=False)}
    bundle = folder / "certificates.pem"
    trusted = httpx.create_ssl_context(trust_env=False).get_ca_certs(binary_form=True)
    folder.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(map(ssl.DER_cert_to_PEM_cert, trusted)) + tls.certificate.read_text())
    url = _certified_url(config, bind_address, port, certificate.names(tls.certificate))
    return {URL_VARIABLE: url, CERTIFICATES: str(bundle)}


def _certified_url(config: Config, bind_address: str, port: int, certified: list[str]) -> str:
    local = local_host(bind_address)
    for host in (local, "localhost") if local in LOOPBACK else (local,):
        if host in certified:
            return local_url(host, port, tls=True)
    if config.server.public_url is not None:
        return config.server.public_url.rstrip("/")
    plain = (name for name in certified if "*" not in name)
    return local_url(next(plain, bind_address), port, tls=True)
