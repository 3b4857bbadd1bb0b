"""The certificates that the gateway accepts from clients, and the appliance's own client certificate.

The UI and the commands on this machine call the gateway like any client. Each start creates a certificate for
them, which the gateway accepts besides those of ``server.tls.client_ca``.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from appliance.config import TlsConfig
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.gateway.settings import client_files

_VALID: Final = timedelta(days=3650)  # the next start replaces it


def check(tls: TlsConfig) -> None:
    """Check that the files of certificates and revocations can be read.

    Raises:
        ConfigError: names the key.
    """
    for key in ("client_ca", "client_crl"):
        file: Path | None = getattr(tls, key)
        if file is None:
            continue
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_verify_locations(file)
            certificates = context.cert_store_stats()["x509" if key == "client_ca" else "crl"]
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{file} cannot be used: {error}: it must be PEM", key=f"server.tls.{key}"
            ) from error
        if not certificates:
            kind = "certificate" if key == "client_ca" else "certificate revocation list"
            raise ConfigError(f"{file} has no {kind}: it must be PEM", key=f"server.tls.{key}")


def create(tls: TlsConfig, run_dir: Path) -> None:
    """Create the appliance's own client certificate, and the files for the gateway, in ``run_dir``.

    Does nothing if clients need no certificate.

    Raises:
        ApplianceError: a file cannot be read or written.
    """
    if tls.client_ca is None:
        return
    files = client_files(run_dir)
    certificate, key, revocations = _own()
    try:
        _write(files.own, certificate + key)
        _write(files.accepted, tls.client_ca.read_bytes() + b"\n" + certificate)
        if tls.client_crl is not None:
            _write(files.revoked, tls.client_crl.read_bytes() + b"\n" + revocations)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}: correct server.tls in models.yaml"
        raise ApplianceError(text) from error


def _own() -> tuple[bytes, bytes, bytes]:
    """Return a new self-signed certificate, its key, and an empty list of revocations, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "appliance: UI and commands")])
    begin = datetime.now(UTC) - timedelta(hours=1)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,  # OpenSSL looks for revocations of every certificate, also of this one
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    revocations = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(subject)
        .last_update(begin)
        .next_update(begin + _VALID)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(encoding), secret, revocations.public_bytes(encoding)


def _write(file: Path, content: bytes) -> None:
    """Replace a file, which only this user can read. Another process sees the old or the new content."""
    new = file.with_name(f".{file.name}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
    new.replace(file)
