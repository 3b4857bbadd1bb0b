"""Keys, certificates and the join token of a cluster, in ``HOME/cluster``.

The head creates a certificate authority at its first start with a ``cluster`` section. Every node has a
certificate of this authority with its name and its IP address. Both ends of each connection check the
certificate of the other end. Ray uses the same certificates.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import msgspec

from appliance.domain.errors import ApplianceError, JoinRefused

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

Role = Literal["head", "node", "standby"]

#: Environment variable with the join token.
TOKEN_VARIABLE: Final = "APPLIANCE_CLUSTER_TOKEN"  # noqa: S105 - the name of a variable

_AUTHORITY_DAYS: Final = 3650
_CERTIFICATE_DAYS: Final = 397  # a node gets a new certificate each time that it joins
_SECRET_BYTES: Final = 24
_MIN_SECRET: Final = 32  # characters of a secret that an operator chooses
_PREFIX: Final = "appliance-join"
_FINGERPRINT: Final = 64  # hexadecimal digits of a SHA-256


class Identity(msgspec.Struct, frozen=True):
    """The files with which a process proves that it belongs to the cluster."""

    folder: Path  # HOME/cluster

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def authority_key(self) -> Path:
        """The key of the authority. Only the head has this file."""
        return self.folder / "authority-key.pem"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def secret(self) -> Path:
        """The secret that join tokens contain. Only the head has this file."""
        return self.folder / "join-secret"


class JoinToken(msgspec.Struct, frozen=True):
    """The secret that lets a machine join, and the fingerprint by which it recognizes the head."""

    secret: str
    #: SHA-256 of the authority's certificate, in hexadecimal digits. None if an operator chose the secret.
    fingerprint: str | None

    def __str__(self) -> str:
        return f"{_PREFIX}.{self.secret}.{self.fingerprint}" if self.fingerprint else self.secret

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Return the token: one that the head made, or a secret that an operator chose.

        Raises:
            JoinRefused: the text is not a join token.
        """
        text = text.strip()
        if not text.startswith(f"{_PREFIX}."):
            return cls(check_chosen_secret(text), None)
        parts = text.split(".")
        if len(parts) != 3 or parts[0] != _PREFIX or not parts[1] or len(parts[2]) != _FINGERPRINT:
            raise JoinRefused(
                "this is not a join token: copy the whole output of `appliance nodes token`, which must be "
                "run on the head"
            )
        return cls(parts[1], parts[2].lower())


def check_chosen_secret(secret: str) -> str:
    """Return a secret that an operator chose.

    Raises:
        JoinRefused: it is so short that others could guess it.
    """
    if len(secret) < _MIN_SECRET or secret.startswith(f"{_PREFIX}."):
        raise JoinRefused(
            f"the join token in {TOKEN_VARIABLE} is not usable: take the output of `appliance nodes token`, "
            f"or for the head and all nodes the same random text of at least {_MIN_SECRET} characters"
        )
    return secret


def create_head(folder: Path, name: str, addresses: list[str], secret: str | None = None) -> Identity:
    """Return the identity of the head. Create the authority and the join secret if they do not exist yet.

    The certificate of the head is made anew, for ``addresses``. ``secret`` replaces the join secret.

    Raises:
        ApplianceError: a file cannot be read or written.
    """
    from cryptography import x509

    identity = Identity(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not identity.authority_key.exists() or not identity.authority.exists():
            _create_authority(identity)
        if secret is not None:
            write_private(identity.secret, check_chosen_secret(secret).encode())
        elif not identity.secret.exists():
            write_private(identity.secret, secrets.token_urlsafe(_SECRET_BYTES).encode())
        key = _new_key(identity.key)
        request = x509.CertificateSigningRequestBuilder().subject_name(_name("head", name))
        signed = _sign(identity, request.sign(key, _sha256()), "head", name, addresses)
        write_private(identity.certificate, signed)
    except (OSError, ValueError) as error:
        raise ApplianceError(
            f"the keys of the cluster in {folder} cannot be used: {error}: correct the folder, or move it "
            "away, so that the next start creates new keys; then all nodes need a new join token"
        ) from error
    return identity


def join_token(folder: Path) -> JoinToken:
    """Return the token with which machines join the head whose keys are in ``folder``.

    Raises:
        ApplianceError: the head has not created its keys yet, or this user cannot read them.
    """
    identity = Identity(folder)
    try:
        return JoinToken(identity.secret.read_text().strip(), fingerprint(identity.authority))
    except FileNotFoundError as error:
        raise ApplianceError(
            f"{error.filename} does not exist: add the section `cluster` to models.yaml, start the appliance "
            "once, and run this command on the same machine with the same data folder"
        ) from error
    except (OSError, ValueError) as error:
        raise ApplianceError(
            f"the keys of the cluster in {folder} cannot be read: {error}: run the command as the user who "
            "runs the appliance"
        ) from error


def renew_secret(folder: Path) -> None:
    """Replace the secret of join tokens. Tokens that were printed before are refused from now on.

    Raises:
        ApplianceError: the head has not created its keys yet, or this user cannot write them.
    """
    join_token(folder)
    try:
        write_private(Identity(folder).secret, secrets.token_urlsafe(_SECRET_BYTES).encode())
    except OSError as error:
        raise ApplianceError(f"the join secret in {folder} cannot be written: {error.strerror}") from error


def certificate_request(identity: Identity) -> bytes:
    """Create a key, and return a certificate signing request in PEM. The head decides about the name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    key = _new_key(identity.key)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name("node", "node"))
    return request.sign(key, _sha256()).public_bytes(serialization.Encoding.PEM)


def sign_request(identity: Identity, request: bytes, role: Role, name: str, address: str) -> bytes:
    """Return a certificate in PEM for the machine ``name`` at ``address``.

    Only the key of the request is used.

    Raises:
        ValueError: the request is not a valid certificate signing request.
    """
    from cryptography import x509

    parsed = x509.load_pem_x509_csr(request)
    if not parsed.is_signature_valid:
        raise ValueError("the signature of the request is wrong")
    return _sign(identity, parsed, role, name, [address])


def fingerprint(certificate: Path) -> str:
    """Return the SHA-256 of a PEM certificate in hexadecimal digits."""
    return fingerprint_of(certificate.read_bytes())


def fingerprint_of(pem: bytes) -> str:
    """Return the SHA-256 of a certificate in hexadecimal digits.

    Raises:
        ValueError: ``pem`` is not a PEM certificate.
    """
    from cryptography import x509

    return x509.load_pem_x509_certificate(pem).fingerprint(_sha256()).hex()


def encoded(certificate: Path) -> bytes:
    """Return a PEM certificate in the form that TLS sends (DER)."""
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


def proof(secret: str, challenge: bytes, certificate: bytes, authority: bytes) -> bytes:
    """Return an HMAC over these certificates, as a proof that a process knows ``secret``.

    ``certificate`` is the one (DER) of the server in this TLS connection, so nobody between can pass it on.
    """
    parts = (b"appliance head", challenge, hashlib.sha256(certificate).digest(), authority)
    return hmac.digest(secret.encode(), b"\0".join(parts), "sha256")


def server_context(identity: Identity, *, unauthenticated: bool) -> ssl.SSLContext:
    """Return the TLS settings of an agent's server.

    If ``unauthenticated`` is true, clients without a certificate are accepted too, so that machines can join.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.certificate, identity.key, password="")
    context.load_verify_locations(identity.authority)
    context.verify_mode = ssl.CERT_OPTIONAL if unauthenticated else ssl.CERT_REQUIRED
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """Return the TLS settings with which a member connects to the agent of another member."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.certificate, identity.key, password="")
    context.load_verify_locations(identity.authority)
    context.check_hostname = False  # `peer` checks the name of the member instead
    return context


def unauthenticated_context() -> ssl.SSLContext:
    """Return the TLS settings of a machine that has no certificate yet. It checks the fingerprint itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer(certificate: dict[str, object] | None) -> tuple[Role, str] | None:
    """Return the role and name of the other end, from ``getpeercert()``; None without a certificate."""
    subject = (certificate or {}).get("subject", ())
    if not isinstance(subject, tuple):
        return None
    values = {key: value for pairs in subject for key, value in pairs}
    role = values.get("organizationalUnitName")
    return (cast("Role", role), values.get("commonName", "")) if role in get_args(Role) else None


def issued_by(certificate: bytes, authority: bytes) -> bool:
    """Return whether the certificate (DER) was issued by the authority (PEM)."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    issuer = x509.load_pem_x509_certificate(authority)
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def ray_variables(identity: Identity) -> dict[str, str]:
    """Return the environment variables that make Ray use TLS with these certificates."""
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(identity.certificate),
        "RAY_TLS_SERVER_KEY": str(identity.key),
        "RAY_TLS_CA_CERT": str(identity.authority),
    }


def write_private(file: Path, content: bytes) -> None:
    """Write a file that only this user can read. Another process sees the old content or the new one."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
    fresh.rename(file)


def _create_authority(identity: Identity) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import NameOID

    key = _new_key(identity.authority_key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "appliance cluster")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of nodes may differ
        .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _sha256())
    )
    write_private(identity.authority, certificate.public_bytes(serialization.Encoding.PEM))


def _sign(
    identity: Identity, request: x509.CertificateSigningRequest, role: Role, name: str, addresses: list[str]
) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority = x509.load_pem_x509_certificate(identity.authority.read_bytes())
    key = serialization.load_pem_private_key(identity.authority_key.read_bytes(), None)
    public = request.public_key()
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(public, ec.EllipticCurvePublicKey):
        raise ValueError("the keys must be elliptic curve keys")  # noqa: TRY004 - a wrong file, not a bug
    now = datetime.now(UTC)
    # Ray's processes connect to the IP address of a node, and those of the same machine to the loopback.
    hosts = dict.fromkeys((*addresses, "127.0.0.1", "localhost"))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(_name(role, name))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, _sha256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(role: Role, name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "appliance cluster"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key(file: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(file, encoded)
    return key


def _sha256() -> SHA256:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()
