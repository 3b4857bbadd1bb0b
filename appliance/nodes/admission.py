"""Checks which machines may join the cluster, and sends them a certificate and settings."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from appliance.domain.errors import NodeError
from appliance.nodes import identity
from appliance.nodes.channel import Channel
from appliance.nodes.identity import Identity, Role
from appliance.nodes.messages import (
    Admitted,
    AskAuthority,
    Authority,
    Join,
    JoinAsStandby,
    StandbyAdmitted,
)
from appliance.nodes.server import Peer

_log = logging.getLogger(__name__)

_REFUSAL_DELAY: Final = 2.0  # seconds before a wrong secret is answered, one answer at a time
_MAX_LOGGED_HOSTS: Final = 1000  # of which failed attempts are remembered
NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class JoinSettings(msgspec.Struct, frozen=True):
    """Settings that the head sends to a machine that joins."""

    head: str  # name of the head
    version: str  # of the appliance
    ray_address: str
    ray_token: str
    worker_ports: tuple[int, int]
    node_manager_port: int
    object_manager_port: int
    lost_after: Callable[[], float]  # seconds
    drain_timeout: Callable[[], float]  # seconds
    modules: Callable[[str], list[str]]  # for the zygote, by the kind of the first device


class Admission:
    """Answers machines that want to join."""

    def __init__(
        self,
        own: Identity,
        settings: JoinSettings,
        check_name: Callable[[str, str], Awaitable[None]],
        *,
        delay: float = _REFUSAL_DELAY,
    ) -> None:
        """``check_name`` raises ``NodeError`` if a node at another IP address has the name already."""
        self._identity = own
        self._settings = settings
        self._check_name = check_name
        self._delay = delay
        self._failing = asyncio.Lock()  # attempts with a wrong secret wait for each other
        self._logged: set[str] = set()  # hosts

    async def authority(self, request: AskAuthority, channel: Channel, _: Peer) -> None:
        authority = self._identity.authority.read_bytes()
        own = identity.encoded(self._identity.certificate)
        proof = identity.proof(self._secret(), request.challenge, own, authority)
        await channel.send(Authority(authority, proof))

    async def join(self, request: Join, channel: Channel, peer: Peer) -> None:
        await self._check(request, peer)
        settings = self._settings
        if request.name == settings.head:
            raise NodeError(f"{request.name} is the name of the head: choose another name with --name")
        await self._check_name(request.name, peer.host)
        certificate = await self._sign(request, "node", peer)
        await channel.send(
            Admitted(
                certificate=certificate,
                host=peer.host,
                head=settings.head,
                ray_address=settings.ray_address,
                ray_token=settings.ray_token,
                modules=settings.modules(request.device),
                lost_after=settings.lost_after(),
                drain_timeout=settings.drain_timeout(),
                worker_ports=settings.worker_ports,
                node_manager_port=settings.node_manager_port,
                object_manager_port=settings.object_manager_port,
            )
        )

    async def join_as_standby(self, request: JoinAsStandby, channel: Channel, peer: Peer) -> None:
        """Send a certificate for a standby, which may have the name of the head or of a node."""
        await self._check(request, peer)
        await channel.send(StandbyAdmitted(await self._sign(request, "standby", peer)))

    async def _check(self, request: Join | JoinAsStandby, peer: Peer) -> None:
        await self._check_secret(request.secret, peer)
        settings = self._settings
        if request.version != settings.version:
            raise NodeError(
                f"this machine has version {request.version} of the appliance, and the head has "
                f"{settings.version}: install the version of the head"
            )
        if not NODE_NAME.fullmatch(request.name):
            raise NodeError(
                f"{request.name!r} cannot be the name of a node: use at most 63 lower-case letters, digits "
                "and hyphens (--name)"
            )

    async def _sign(self, request: Join | JoinAsStandby, role: Role, peer: Peer) -> bytes:
        try:
            certificate = await asyncio.to_thread(
                identity.sign_request, self._identity, request.request, role, request.name, peer.host
            )
        except ValueError as error:
            raise NodeError(f"the certificate signing request is not valid: {error}") from error
        self._logged.discard(peer.host)
        _log.info("%s %s at %s gets a certificate of the cluster", role, request.name, peer.host)
        return certificate

    def _secret(self) -> str:
        return self._identity.secret.read_text().strip()  # `appliance nodes token --renew` replaces it

    async def _check_secret(self, secret: str, peer: Peer) -> None:
        if hmac.compare_digest(secret.encode(), self._secret().encode()):
            return
        if peer.host not in self._logged and len(self._logged) < _MAX_LOGGED_HOSTS:
            self._logged.add(peer.host)
            _log.warning("%s tried to join the cluster with a wrong secret", peer.host)
        async with self._failing:
            await asyncio.sleep(self._delay)
        raise NodeError(
            "the secret of the join token is wrong: print the current token with `appliance nodes token` on "
            "the head"
        )
