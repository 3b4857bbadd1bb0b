"""Self-signed certificates, for HTTPS without a certificate authority."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.domain.errors import ApplianceError

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

DAYS: Final = 825  # validity; some clients refuse certificates that are valid for longer
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def write(folder: Path, names: Iterable[str]) -> tuple[Path, Path]:
    """Create a key and a certificate for the loopback addresses and ``names``; return the two files.

    The files are ``certificate.pem`` and ``key.pem`` in ``folder``.

    Raises:
        ApplianceError: a file exists already, or cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "appliance")])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,  # clients import the certificate as a certificate authority
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    alternatives = [_general_name(name) for name in dict.fromkeys((*_LOOPBACK, *names))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _create(files[1], secret, 0o600)
    _create(files[0], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return files


def names(file: Path) -> list[str]:
    """Return the host names and IP addresses for which a PEM certificate is valid.

    Raises:
        ValueError: the file is not a PEM certificate.
    """
    from cryptography import x509

    extensions = x509.load_pem_x509_certificate(file.read_bytes()).extensions
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _general_name(name: str) -> GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _create(file: Path, content: bytes, mode: int) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(content)
    except FileExistsError as error:
        raise ApplianceError(f"{file} exists already: remove the file, or choose another folder") from error
    except OSError as error:
        raise ApplianceError(f"cannot write {file}: {error.strerror}: choose another folder") from error
