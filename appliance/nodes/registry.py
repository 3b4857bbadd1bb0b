"""The registry of nodes on the head: nodes join, answer heartbeats, are drained, and get lost.

It runs in the gateway, together with the agent of the head. The members are also in a file, so that a new
gateway finds the nodes on which models run.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from appliance.domain.errors import ApplianceError, Conflict, NodeError, NodeLost, NotFound
from appliance.nodes import identity
from appliance.nodes.admission import Admission, JoinSettings
from appliance.nodes.channel import Channel
from appliance.nodes.client import NodeClient
from appliance.nodes.client_address import seen_by_head
from appliance.nodes.identity import Identity
from appliance.nodes.messages import (
    Announce,
    AskAuthority,
    AskMembership,
    GatewayOpened,
    HeadRequest,
    Join,
    JoinAsStandby,
    Leave,
    Left,
    Membership,
    NodeFacts,
    Ok,
    OpenGateway,
    ReadWeights,
    Source,
)
from appliance.nodes.server import AgentServer, Peer, RequestRoute, send_file
from appliance.nodes.weight_index import WeightIndex

_log = logging.getLogger(__name__)

HEARTBEAT: Final = 1.0  # seconds
_ADOPTION_TRIES: Final = 3  # requests of a new gateway to a node, before the node counts as lost
_MAX_ADOPTION: Final = 15.0  # seconds for these requests; the gateway does not answer HTTP meanwhile
_BACKLOG: Final = 2048  # connections that wait to be accepted, as many as at the port of the HTTP API
_FORWARDED_SHARE: Final = 0.5  # of the gateway's file descriptors: for HTTP clients of one node or standby

State = Literal["ready", "draining", "lost"]


class NodeListener(Protocol):
    """Gets notified when nodes join, leave and drain, on the gateway's event loop."""

    def joined(self, facts: NodeFacts, client: NodeClient) -> None:
        """A node is a member from now on.

        Raises:
            ApplianceError: the node cannot be a member; the node gets the message.
        """

    def lost(self, name: str, reason: str) -> None:
        """A node is no longer a member. Its client is already closed."""

    def draining(self, name: str, draining: bool) -> None:
        """No model may be loaded on a node from now on; or, if ``draining`` is false, models may again."""


#: Returns the protocol of the gateway's HTTP server for a connection whose bytes come through a node.
#: Raises ``NodeError`` if requests may not come through nodes.
Http = Callable[[OpenGateway, Channel], asyncio.Protocol]


class NodeStatus(msgspec.Struct, frozen=True):
    """A node as `appliance nodes` shows it."""

    facts: NodeFacts
    state: State
    since: float  # Unix time of the last change of ``state``
    reason: str | None = None  # why it was lost


class _Member(msgspec.Struct):
    facts: NodeFacts
    incarnation: str
    draining: bool
    since: float
    leaving: bool = False


class _Saved(msgspec.Struct):
    """Content of the file with the members."""

    session: str
    members: list[_Member]
    drained: list[str] = []  # nodes that operators have drained, also while they are not members


class NodeRegistry:
    """The members of the cluster. All methods must be called on the gateway's event loop."""

    def __init__(
        self,
        own: Identity,
        settings: JoinSettings,
        *,
        session: str,
        host: str,
        port: int,
        lost_after: Callable[[], float],
    ) -> None:
        """``session`` differs each time that Ray starts: nodes of an earlier Ray have to join again.

        The agent of the head listens on ``host`` and ``port``. ``lost_after`` returns seconds.
        """
        self.weights = WeightIndex(own.folder / "digests.json")
        self._identity = own
        self._session = session
        self._head = Source(settings.head, host, port)
        self._lost_after = lost_after
        self._file = own.folder / "nodes.json"
        self._members: dict[str, _Member] = {}
        self._drained: set[str] = set()  # see ``_Saved``
        self._clients: dict[str, NodeClient] = {}
        self._heartbeats: dict[str, asyncio.Task[None]] = {}
        self._lost: dict[str, NodeStatus] = {}
        self._listeners: list[NodeListener] = []
        self._adopting = True  # until ``start`` has asked all members of a previous gateway
        self._http: asyncio.Future[Http] | None = None
        #: Connections of HTTP clients by the role and name of the machine that forwards them.
        self._forwarded: dict[tuple[identity.Role | None, str], set[asyncio.WriteTransport]] = {}
        #: Keys of ``_forwarded`` that have ``max_forwarded`` connections.
        self._full: set[tuple[identity.Role | None, str]] = set()
        self.max_forwarded = int(_FORWARDED_SHARE * resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        admission = Admission(own, settings, self._check_name)
        anyone = frozenset[identity.Role | None]({None, "node"})
        nodes = frozenset[identity.Role | None]({"node"})
        routes = {
            AskAuthority: RequestRoute(admission.authority, anyone),
            Join: RequestRoute(admission.join, anyone),
            JoinAsStandby: RequestRoute(admission.join_as_standby, frozenset({None})),
            Announce: RequestRoute(self._announce, nodes),
            AskMembership: RequestRoute(self._ask_membership, nodes),
            Leave: RequestRoute(self._leave, nodes),
            Left: RequestRoute(self._left, nodes),
            ReadWeights: RequestRoute(self._read_weights, nodes),
            OpenGateway: RequestRoute(self._open_gateway, frozenset({"node", "standby"})),
        }
        context = identity.server_context(own, unauthenticated=True)
        self._server = AgentServer(routes, HeadRequest, context)

    def listen_to(self, listener: NodeListener) -> None:
        """Notify ``listener`` of changes. Call this before ``start``."""
        self._listeners.append(listener)

    def serve_http(self, http: Http) -> None:
        """Let the gateway's HTTP server answer requests that other machines forward, also those that wait."""
        self._http_server.set_result(http)

    async def start(self, listener: socket.socket) -> None:
        """Find the members of a previous gateway that still answer, then accept connections."""
        saved = [member for member in self._saved() if member.facts.name != self._head.name]
        await asyncio.gather(*map(self._adopt, saved))
        self._adopting = False
        self._save()
        await self._server.start(listener)

    async def close(self) -> None:
        """Close all connections. Members stay members for the new gateway."""
        await self._server.close()
        for task in self._heartbeats.values():
            task.cancel()
        for client in self._clients.values():
            await client.close()

    @property
    def head(self) -> Source:
        """The name and address of the head."""
        return self._head

    def members(self) -> dict[str, NodeFacts]:
        return {name: member.facts for name, member in self._members.items()}

    def client(self, name: str) -> NodeClient:
        """Return the client of a member.

        Raises:
            NodeLost: the node is not a member.
        """
        try:
            return self._clients[name]
        except KeyError:
            raise NodeLost(f"node {name} is not a member of the cluster") from None

    def statuses(self) -> list[NodeStatus]:
        """Return the members, and the nodes that were lost and have not joined again."""
        members = [
            NodeStatus(member.facts, "draining" if member.draining else "ready", member.since)
            for member in self._members.values()
        ]
        return sorted([*members, *self._lost.values()], key=lambda status: status.facts.name)

    def drain(self, name: str, draining: bool = True) -> None:
        """Start no more loads on a node, also when it joins again; or, if ``draining`` is false, end this.

        Raises:
            NotFound: there is no such node.
            Conflict: the node is stopping, so ``draining`` cannot become false.
        """
        member = self._members.get(name)
        if member is None:
            known = ", ".join(self._members) or "none"
            raise NotFound(f"there is no node {name} in the cluster now (nodes: {known})")
        if member.leaving and not draining:
            raise Conflict(f"node {name} is stopping, so no models can be loaded on it: start it again")
        if draining:
            self._drained.add(name)
        else:
            self._drained.discard(name)
        self._set_draining(member, draining)

    def _set_draining(self, member: _Member, draining: bool) -> None:
        name = member.facts.name
        changed, member.draining = member.draining != draining, draining
        member.since = time.time() if changed else member.since
        self._save()
        if not changed:
            return
        _log.info("node %s %s", name, "is drained" if draining else "may load models again")
        for listener in self._listeners:
            listener.draining(name, draining)

    # -- requests of nodes ---------------------------------------------------------------------------------

    async def _announce(self, request: Announce, channel: Channel, peer: Peer) -> None:
        facts = request.facts
        if facts.name != peer.name:
            raise NodeError(f"the certificate of this node is for {peer.name}, not for {facts.name}")
        old = self._members.get(facts.name)
        if old is not None and old.incarnation != request.incarnation:
            await self._refuse_if_alive(old, facts)
            self._remove(old, "it was started again")
        if facts.name not in self._members:
            client = self._new_client(facts)
            try:
                await client.ping(self._lost_after())
            except (NodeLost, NodeError) as error:
                await client.close()
                raise NodeError(
                    f"the head cannot connect to the agent of this node: {error}: open the port in firewalls"
                ) from error
            added = self._members.get(facts.name)  # during the ping
            if added is not None and added.incarnation != request.incarnation:
                await client.close()
                raise _name_taken(added.facts)
            if added is not None:  # the same node asked twice
                await client.close()
            else:
                self._add(
                    _Member(facts, request.incarnation, facts.name in self._drained, time.time()), client
                )
        await channel.send(Ok())

    async def _refuse_if_alive(self, old: _Member, new: NodeFacts) -> None:
        if (old.facts.host, old.facts.port) != (new.host, new.port) and await self._is_alive(old):
            raise _name_taken(old.facts)

    async def _check_name(self, name: str, host: str) -> None:
        """Refuse a machine that wants to join under the name of a node at another IP address.

        Raises:
            NodeError: there is such a node, and it answers.
        """
        old = self._members.get(name)
        if old is not None and old.facts.host != host and await self._is_alive(old):
            raise _name_taken(old.facts)

    async def _is_alive(self, member: _Member) -> bool:
        try:
            await self._clients[member.facts.name].ping(self._lost_after())
        except (NodeLost, NodeError):
            return False
        return True

    async def _ask_membership(self, request: AskMembership, channel: Channel, peer: Peer) -> None:
        await channel.send(Membership(self._member(peer.name, request.incarnation) is not None))

    async def _leave(self, request: Leave, channel: Channel, peer: Peer) -> None:
        member = self._member(peer.name, request.incarnation)
        if member is not None:
            self._set_draining(member, True)
            member.leaving = True
        await channel.send(Ok())

    async def _left(self, request: Left, channel: Channel, peer: Peer) -> None:
        member = self._member(peer.name, request.incarnation)
        if member is not None:
            self._remove(member, "it was stopped")
            del self._lost[peer.name]  # on purpose
        await channel.send(Ok())

    async def _read_weights(self, request: ReadWeights, channel: Channel, _: Peer) -> None:
        file, size = self.weights.open(request.sha256)
        await send_file(channel, file, size, request.offset)

    @property
    def _http_server(self) -> asyncio.Future[Http]:
        if self._http is None:
            self._http = asyncio.get_running_loop().create_future()
        return self._http

    async def _open_gateway(self, request: OpenGateway, channel: Channel, peer: Peer) -> None:
        seen = seen_by_head(request, peer.host)
        http = await asyncio.shield(self._http_server)  # while the gateway starts
        if peer.role == "node" and peer.name not in self._members:  # the node tries again: it may be joining
            raise ConnectionError(f"node {peer.name} is not a member of the cluster")
        key = peer.role, peer.name
        open_ones = {each for each in self._forwarded.get(key, ()) if not each.is_closing()}
        if len(open_ones) >= self.max_forwarded:  # the client gets status 503 if none ends soon
            if key not in self._full:
                text = (
                    "%s %s forwards %d connections of HTTP clients, as many as it may: further clients get "
                    "status 503: raise the gateway's limit of open files (LimitNOFILE, ulimit -n)"
                )
                _log.warning(text, peer.role, peer.name, len(open_ones))
            self._full.add(key)
            raise ConnectionError(f"{peer.role} {peer.name} has {len(open_ones)} connections")
        self._full.discard(key)
        channel.hand_over(GatewayOpened(), http(seen, channel))
        self._forwarded[key] = {*open_ones, channel.writer.transport}

    def _abort_forwarded(self, name: str) -> None:
        """Close the connections of HTTP clients that come through a lost node.

        If data is on the way to a machine that does not answer, TCP itself notices only after minutes.
        Connections through a node that has left are not closed: their last bytes may still be on the way.
        """
        for transport in self._forwarded.pop(("node", name), ()):
            transport.abort()

    def _member(self, name: str, incarnation: str) -> _Member | None:
        member = self._members.get(name)
        return member if member is not None and member.incarnation == incarnation else None

    # -- members -------------------------------------------------------------------------------------------

    async def _adopt(self, member: _Member) -> None:
        client = self._new_client(member.facts)
        try:
            await self._wait_for_answer(client)
        except (NodeLost, NodeError) as error:
            await client.close()
            _log.warning("node %s does not answer the new gateway: %s", member.facts.name, error)
            self._lost[member.facts.name] = NodeStatus(member.facts, "lost", time.time(), str(error))
            return
        try:
            self._add(member, client)
        except ApplianceError as error:
            _log.warning("node %s can no longer be a member: %s", member.facts.name, error.detail)

    async def _wait_for_answer(self, client: NodeClient) -> None:
        """Send pings to a node until it answers one.

        Raises:
            NodeLost: its agent has ended, or it has not answered within ``lost_after`` or 15 s.
            NodeError: the agent refuses to answer.
        """
        patience = min(self._lost_after(), _MAX_ADOPTION)
        deadline = time.monotonic() + patience
        while True:
            try:
                return await client.ping(patience / _ADOPTION_TRIES)
            except NodeLost as error:
                left = deadline - time.monotonic()
                if left <= 0 or isinstance(error.__cause__, ConnectionRefusedError):
                    raise
            await asyncio.sleep(min(HEARTBEAT, left))

    def _new_client(self, facts: NodeFacts) -> NodeClient:
        def sources() -> Iterable[Source]:
            yield self._head
            for other in self._members.values():
                if other.facts.name != facts.name:
                    yield Source(other.facts.name, other.facts.host, other.facts.port)

        return NodeClient(self._identity, facts.name, facts.host, facts.port, self.weights, sources)

    def _add(self, member: _Member, client: NodeClient) -> None:
        """Make a node a member.

        Raises:
            ApplianceError: a listener refuses the node.
        """
        name = member.facts.name
        notified: list[NodeListener] = []
        try:
            for listener in self._listeners:
                listener.joined(member.facts, client)
                notified.append(listener)
        except ApplianceError as error:
            client.abort()
            for listener in notified:
                listener.lost(name, error.detail)
            raise
        self._members[name] = member
        self._clients[name] = client
        self._lost.pop(name, None)
        self._heartbeats[name] = asyncio.get_running_loop().create_task(self._watch(member, client))
        devices = ", ".join(device.name for device in member.facts.devices)
        _log.info("node %s at %s is a member of the cluster: %s", name, member.facts.host, devices)
        self._save()
        if member.draining:
            for listener in self._listeners:
                listener.draining(name, True)

    async def _watch(self, member: _Member, client: NodeClient) -> None:
        """Ping a node every second, and remove it once it has not answered for ``lost_after``."""
        answered = time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT)
            patience = self._lost_after()
            try:
                await client.ping(max(HEARTBEAT, patience - (time.monotonic() - answered)))
                answered = time.monotonic()
            except Exception as error:  # noqa: BLE001 - with any error, the node has not answered
                if not isinstance(error, ApplianceError):
                    _log.exception("a heartbeat of node %s failed", member.facts.name)
                silence = time.monotonic() - answered
                if silence >= patience:
                    self._remove(member, f"it has not answered for {silence:.1f} s: {error}")
                    self._abort_forwarded(member.facts.name)
                    return

    def _remove(self, member: _Member, reason: str) -> None:
        name = member.facts.name
        if self._members.get(name) is not member:
            return
        del self._members[name]
        client, heartbeat = self._clients.pop(name), self._heartbeats.pop(name)
        if heartbeat is not asyncio.current_task():
            heartbeat.cancel()
        client.abort()
        self._lost[name] = NodeStatus(member.facts, "lost", time.time(), reason)
        self._save()
        _log.warning("node %s is no longer a member of the cluster: %s", name, reason)
        for listener in self._listeners:
            listener.lost(name, reason)

    # -- the file with the members -------------------------------------------------------------------------

    def _saved(self) -> list[_Member]:
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            _log.warning(
                "the members in %s cannot be read, so nodes have to join again: %s", self._file, error
            )
            return []
        self._drained = set(saved.drained)
        return saved.members if saved.session == self._session else []

    def _save(self) -> None:
        if self._adopting:  # else a gateway killed now would have saved only some of the members
            return
        content = msgspec.json.encode(
            _Saved(self._session, list(self._members.values()), sorted(self._drained))
        )
        try:
            identity.write_private(self._file, content)
        except OSError as error:
            _log.warning("the members cannot be written to %s: %s", self._file, error.strerror)


def _name_taken(facts: NodeFacts) -> NodeError:
    return NodeError(
        f"the name {facts.name} is taken by the node at {facts.host}: choose another with --name"
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port``, for an agent.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def cluster_folder(home: Path) -> Path:
    """Return the folder with keys, members and copies of weights."""
    return home / "cluster"
