"""A certificate authority for clients, and the files of its certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM


class Authority:
    """Issues and revokes certificates of clients; ``file`` has its own certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._serials: dict[str, int] = {}
        self._begin = datetime.now(UTC) - timedelta(hours=1)
        self.file = folder / f"{name}.pem"
        made = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(_PEM))

    def issue(self, name: str) -> Path:
        """Return a file with a new certificate of a client, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = self._builder(subject, key).add_extension(usage, critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        self._serials[name] = made.serial_number
        file = self._folder / f"{name}.pem"
        secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(made.public_bytes(_PEM) + secret)
        return file

    def revoke(self, name: str) -> Path:
        """Return a file with a certificate revocation list that has only this certificate."""
        revoked = x509.RevokedCertificateBuilder().serial_number(self._serials[name])
        listed = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(self._begin)
            .next_update(self._begin + timedelta(days=30))
            .add_revoked_certificate(revoked.revocation_date(self._begin).build())
            .sign(self._key, hashes.SHA256())
        )
        file = self._folder / "revoked.pem"
        file.write_bytes(listed.public_bytes(_PEM))
        return file

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(self._begin + timedelta(days=30))
        )
