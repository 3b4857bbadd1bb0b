"""Requests of a machine to the head: join the cluster, announce itself as a node, and leave."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from appliance.domain.errors import (
    ApplianceError,
    HeadUnreachable,
    JoinRefused,
    NodeError,
    TemporaryNodeError,
)
from appliance.nodes import identity
from appliance.nodes.channel import CONNECT_TIMEOUT, CONNECTION_ERRORS, Channel, reason, within
from appliance.nodes.identity import Identity, JoinToken
from appliance.nodes.messages import (
    Admitted,
    Announce,
    AskAuthority,
    AskMembership,
    Authority,
    Join,
    JoinAsStandby,
    Leave,
    Left,
    Membership,
    NodeFacts,
    Ok,
    StandbyAdmitted,
)

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

A = TypeVar("A", Admitted, StandbyAdmitted)

_ANNOUNCE_TIMEOUT: Final = 60.0  # seconds: the head connects to the node before it answers


async def join(
    folder: Path,
    token: JoinToken,
    host: str,
    port: int,
    *,
    name: str,
    version: str,
    device: str,
    own_address: str | None = None,
) -> tuple[Identity, Admitted]:
    """Check that the head is the one of the token, and get a certificate. Write it to ``folder``.

    Raises:
        HeadUnreachable: the head does not answer, or the connection broke.
        JoinRefused: the head is another one, or refuses this machine; the message has the reason.
        ApplianceError: the certificate cannot be written.
    """

    def message(request: bytes) -> Join:
        return Join(token.secret, name, version, device, request)

    return await _get_certificate(folder, token, host, port, own_address, message, Admitted)


async def join_as_standby(
    folder: Path, token: JoinToken, host: str, port: int, *, name: str, version: str, own_address: str
) -> None:
    """Check that the head is the one of the token, and write a certificate for this standby to ``folder``.

    Raises:
        HeadUnreachable: the head does not answer, or the connection broke.
        JoinRefused: the head is another one, or refuses this machine; the message has the reason.
        ApplianceError: the certificate cannot be written.
    """

    def message(request: bytes) -> JoinAsStandby:
        return JoinAsStandby(token.secret, name, version, request)

    await _get_certificate(folder, token, host, port, own_address, message, StandbyAdmitted)


async def _get_certificate(
    folder: Path,
    token: JoinToken,
    host: str,
    port: int,
    own_address: str | None,
    message: Callable[[bytes], msgspec.Struct],
    reply_type: type[A],
) -> tuple[Identity, A]:
    """Send the result of ``message``, which gets a certificate signing request; return the reply.

    Raises:
        HeadUnreachable: the head does not answer, or the connection broke.
        JoinRefused: the head is another one, or refuses this machine; the message has the reason.
        ApplianceError: the certificate cannot be written.
    """
    own = Identity(folder)
    try:
        channel = await Channel.open(host, port, identity.unauthenticated_context(), own_address)
        try:
            challenge = secrets.token_bytes(32)
            await channel.send(AskAuthority(challenge))
            reply = await channel.reply(Authority)
            _check_head(reply, challenge, channel.peer_certificate, token, f"{host}:{port}")
            authority = reply.certificate
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            await channel.send(message(identity.certificate_request(own)))
            admitted = await channel.reply(reply_type, seconds=120.0)
        finally:
            channel.close()
    except TemporaryNodeError as error:
        raise HeadUnreachable(f"the head at {host}:{port} cannot admit this machine now: {error}") from error
    except NodeError as error:
        raise JoinRefused(f"the head at {host}:{port} refuses this machine: {error}") from error
    except CONNECTION_ERRORS as error:
        raise HeadUnreachable(f"the head at {host}:{port} cannot be reached: {reason(error)}") from error
    try:
        identity.write_private(own.authority, authority)
        identity.write_private(own.certificate, admitted.certificate)
    except OSError as error:
        text = f"the certificate of this machine cannot be written to {folder}: {error.strerror}"
        raise ApplianceError(text) from error
    return own, admitted


def _check_head(
    reply: Authority, challenge: bytes, certificate: bytes, token: JoinToken, address: str
) -> None:
    """Check that the server is the head of the cluster that the token is for.

    Raises:
        JoinRefused: it is not, so the secret must not be sent to it.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    authority = reply.certificate
    proof = identity.proof(token.secret, challenge, certificate, authority)
    try:
        found = identity.fingerprint_of(authority)
        known = found == token.fingerprint if token.fingerprint else hmac.compare_digest(proof, reply.proof)
        issued = identity.issued_by(certificate, authority)
        leaf: Certificate = x509.load_der_x509_certificate(certificate)
        units = leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    except ValueError as error:
        raise JoinRefused(f"the certificate of {address} cannot be read: {error}") from error
    if not known or not issued or [unit.value for unit in units] != ["head"]:
        raise JoinRefused(
            f"the machine at {address} is not the head that this join token is for. Check the address. Print "
            "the current token on the head with `appliance nodes token`; if you chose the token, give "
            f"{identity.TOKEN_VARIABLE} the same value on the head and on this machine"
        )


class Head:
    """The head, as a node of the cluster calls it."""

    def __init__(self, own: Identity, name: str, host: str, port: int, own_address: str | None) -> None:
        self._identity = own
        self._name = name
        self._host = host
        self._port = port
        self._own_address = own_address

    async def announce(self, facts: NodeFacts, incarnation: str) -> None:
        """Become a member.

        Raises:
            JoinRefused: the head refuses; the message has the reason.
            HeadUnreachable: the head does not answer.
        """
        try:
            await self._ask(Announce(facts, incarnation), Ok, _ANNOUNCE_TIMEOUT)
        except NodeError as error:
            raise JoinRefused(str(error)) from error

    async def counts_as_member(self, incarnation: str) -> bool:
        """Return whether this node is a member.

        Raises:
            HeadUnreachable: the head does not answer.
        """
        try:
            return bool((await self._ask(AskMembership(incarnation), Membership, CONNECT_TIMEOUT)).is_member)
        except NodeError:
            return False

    async def leave(self, incarnation: str) -> None:
        """Ask that no more models are loaded here.

        Raises:
            HeadUnreachable: the head does not answer.
            NodeError: the head refuses.
        """
        await self._ask(Leave(incarnation), Ok, CONNECT_TIMEOUT)

    async def left(self, incarnation: str) -> None:
        """End the membership.

        Raises:
            HeadUnreachable: the head does not answer.
            NodeError: the head refuses.
        """
        await self._ask(Left(incarnation), Ok, CONNECT_TIMEOUT)

    async def is_listening(self, seconds: float) -> bool:
        """Return whether the port of the head's agent is open, also while no gateway answers there.

        It counts as closed if it does not accept a connection within ``seconds``.
        """
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                if self._own_address is not None:
                    probe.bind((self._own_address, 0))
                await within(seconds, loop.sock_connect(probe, (self._host, self._port)))
            except (OSError, TimeoutError):
                return False
        return True

    async def _ask(self, request: msgspec.Struct, reply: Any, seconds: float) -> Any:
        try:
            context = identity.client_context(self._identity)
            channel = await Channel.open(self._host, self._port, context, self._own_address)
            try:
                if channel.peer != ("head", self._name):
                    raise ConnectionError("another member of the cluster answers there")
                await channel.send(request)
                return await channel.reply(reply, seconds=seconds)
            finally:
                channel.close()
        except TemporaryNodeError as error:
            raise HeadUnreachable(
                f"the head at {self._host}:{self._port} could not answer: {error}"
            ) from error
        except CONNECTION_ERRORS as error:
            text = f"the head at {self._host}:{self._port} cannot be reached: {reason(error)}"
            raise HeadUnreachable(text) from error
