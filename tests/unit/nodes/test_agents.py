"""The agents of a head and of nodes, over TLS on the loopback address."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from appliance.domain.errors import (
    ApplianceError,
    HeadUnreachable,
    JoinRefused,
    NodeError,
    NodeLost,
)
from appliance.nodes import identity, registry, server
from appliance.nodes.channel import Channel
from appliance.nodes.client import NodeClient
from appliance.nodes.identity import JoinToken
from appliance.nodes.joining import join
from appliance.nodes.messages import ErrorReply, NodeFacts, Ok, OpenSocket, Ping, ReadWeights, Reply
from tests.support.agents import HOST, VERSION, Events, TestHead, TestNode, cluster, echo_socket, until

BIG = os.urandom(3_000_000)


class Collector(asyncio.Protocol):
    """Keeps what a connection receives."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, _: Exception | None) -> None:
        self.lost.set()


async def test_a_node_gets_what_it_needs_and_is_a_member(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as (head, (a, b)):
        assert a.admitted.ray_token == "the token of Ray"
        assert a.admitted.modules == ["module.for.cpu"]
        assert a.admitted.host == HOST
        assert head.events.notified == [("joined", "a"), ("joined", "b")]
        assert head.nodes.members() == {"a": a.facts, "b": b.facts}
        assert [(status.facts.name, status.state) for status in head.nodes.statuses()] == [
            ("a", "ready"),
            ("b", "ready"),
        ]
        client = head.events.clients["a"]
        assert client is head.nodes.client("a")
        assert await client.facts() == a.facts
        assert await client.in_use() == {"cpu": 12345}
        await client.prepare(["x.y"])
        assert a.prepared == ["x.y"]
        assert b.prepared == []


async def test_a_socket_of_a_node_is_piped_both_ways(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        server = await echo_socket(node.home / "run" / "echo.sock")
        transport, collector = await head.events.clients["a"].open_socket("echo.sock", Collector)
        transport.write(BIG)
        await until(lambda: len(collector.data) == len(BIG) + 5)
        assert bytes(collector.data) == b"hello" + BIG
        transport.close()
        await collector.lost.wait()
        server.close()


async def test_the_end_of_a_socket_comes_after_all_its_bytes(tmp_path: Path) -> None:
    async def send_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(BIG)
        writer.close()

    async with cluster(tmp_path, "a") as (head, (node,)):
        server = await asyncio.start_unix_server(send_and_close, node.home / "run" / "x.sock")
        _, collector = await head.events.clients["a"].open_socket("x.sock", Collector)
        await collector.lost.wait()
        assert bytes(collector.data) == BIG
        server.close()


@pytest.mark.parametrize("name", ["missing.sock", "../head/run/x", "/etc/passwd", "", ".", "a/b"])
async def test_a_socket_that_nobody_may_open(tmp_path: Path, name: str) -> None:
    async with cluster(tmp_path, "a") as (head, _):
        with pytest.raises(ConnectionRefusedError):
            await head.events.clients["a"].open_socket(name, Collector)


async def test_files_go_to_a_node_and_back(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        client = head.events.clients["a"]
        source, back = tmp_path / "picture.png", tmp_path / "back.png"
        source.write_bytes(BIG)
        sent = Path(await client.send_file(source))
        assert sent.name == "picture.png"
        assert sent.is_relative_to(node.home / "run" / "inputs")
        assert sent.read_bytes() == BIG
        output = Path(node.facts.outputs) / "prediction" / "output.png"
        output.parent.mkdir()
        output.write_bytes(BIG)
        await client.fetch_file(str(output), back)
        assert back.read_bytes() == BIG
        await client.drop_files([str(sent), str(output.parent), str(output)])
        assert not sent.parent.exists()
        assert not output.parent.exists()
        assert Path(node.facts.outputs).exists()
        assert await client.in_use() == {"cpu": 12345}  # the connection is still in order


async def test_an_empty_file_and_many_files_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, _):
        client = head.events.clients["a"]
        sources = [tmp_path / f"{number}.bin" for number in range(12)]
        for number, source in enumerate(sources):
            source.write_bytes(BIG[: number * 1000])
        sent = await asyncio.gather(*map(client.send_file, sources))
        assert [Path(path).read_bytes() for path in sent] == [source.read_bytes() for source in sources]


async def test_an_agent_gives_only_its_own_files(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        client = head.events.clients["a"]
        outputs = Path(node.facts.outputs)
        secret = tmp_path / "secret"
        secret.write_text("secret")
        (outputs / "link").symlink_to(secret)
        (outputs / "folder").symlink_to(tmp_path)
        os.mkfifo(outputs / "pipe")
        for path in (secret, outputs / "link", outputs / "folder" / "secret", outputs / "pipe", outputs):
            with pytest.raises(NodeError):
                await client.fetch_file(str(path), tmp_path / "fetched")
        with pytest.raises(NodeError, match="cannot be read"):
            await client.fetch_file(f"{outputs}/../outputs/missing", tmp_path / "fetched")
        for path in (secret, outputs / "folder" / "secret"):
            with pytest.raises(NodeError, match="may delete"):
                await client.drop_files([str(path)])
        assert secret.read_text() == "secret"
        assert not (tmp_path / "fetched").exists()


async def test_weights_are_copied_once_and_found(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as (head, _):
        folder, single = tmp_path / "model", tmp_path / "voice.onnx"
        (folder / "deep").mkdir(parents=True)
        (folder / "weights.bin").write_bytes(BIG)
        (folder / "deep" / "config.json").write_text("{}")
        single.write_bytes(BIG[:1000])
        (folder / "link.onnx").symlink_to(single)
        client = head.events.clients["a"]
        assert not await client.has_weights([folder])
        assert not await head.nodes.weights.are_known([folder])  # it was not read
        copied = await client.copy_weights([folder, single])
        copy = Path(copied[str(folder)])
        assert copy.name == "model"
        assert (copy / "weights.bin").read_bytes() == BIG
        assert (copy / "deep" / "config.json").read_text() == "{}"
        assert (copy / "link.onnx").read_bytes() == BIG[:1000]
        assert Path(copied[str(single)]).name == "voice.onnx"
        assert await client.has_weights([folder, single])
        assert not await head.events.clients["b"].has_weights([single])
        again = await client.copy_weights([folder, single])
        assert again == copied
        (folder / "weights.bin").write_bytes(BIG[::-1])
        changed = await client.copy_weights([folder])
        assert changed[str(folder)] != copied[str(folder)]
        assert (Path(changed[str(folder)]) / "weights.bin").read_bytes() == BIG[::-1]


async def test_a_copy_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        weights = tmp_path / "weights.bin"
        weights.write_bytes(BIG)
        (tree,) = await head.nodes.weights.trees([weights])
        partial = node.home / "cluster" / "weights" / "blobs" / f"{tree.files[0].sha256}.part"
        partial.write_bytes(BIG[:1_000_000])
        copied = await head.events.clients["a"].copy_weights([weights])
        assert Path(copied[str(weights)]).read_bytes() == BIG


async def test_a_damaged_copy_is_refused_and_made_anew(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        weights = tmp_path / "weights.bin"
        weights.write_bytes(BIG)
        (tree,) = await head.nodes.weights.trees([weights])
        partial = node.home / "cluster" / "weights" / "blobs" / f"{tree.files[0].sha256}.part"
        partial.write_bytes(b"wrong")
        client = head.events.clients["a"]
        with pytest.raises(NodeError, match="SHA-256"):
            await client.copy_weights([weights])
        copied = await client.copy_weights([weights])
        assert Path(copied[str(weights)]).read_bytes() == BIG


async def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, _):
        with pytest.raises(NodeError, match="missing"):
            await head.events.clients["a"].copy_weights([tmp_path / "missing"])


async def test_a_node_reads_only_weights_that_were_offered(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        channel = await Channel.open(HOST, head.port, identity.client_context(node.identity))
        await channel.send(ReadWeights("0" * 64, 0))
        reply = await channel.receive(Reply)
        assert isinstance(reply, ErrorReply)
        assert "offers no weights" in reply.message
        channel.close()


async def test_a_neighbour_gives_weights_and_nothing_else(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as (head, (a, b)):
        weights = tmp_path / "weights.bin"
        weights.write_bytes(BIG)
        await head.events.clients["a"].copy_weights([weights])
        (tree,) = await head.nodes.weights.trees([weights])
        weights.unlink()  # now only the neighbour has a copy
        client = head.events.clients["b"]
        channel = await Channel.open(HOST, a.facts.port, identity.client_context(b.identity))
        await channel.send(Ping())
        assert isinstance(await channel.receive(Reply), ErrorReply)
        channel.close()
        channel = await Channel.open(HOST, a.facts.port, identity.client_context(b.identity))
        await channel.send(OpenSocket("x.sock"))
        assert isinstance(await channel.receive(Reply), ErrorReply)
        channel.close()
        sources = list(client._sources())
        copied = await b.agent._weights.copy([tree], sources, [], lambda _: None)
        assert Path(copied.paths[0]).read_bytes() == BIG


async def test_a_wrong_secret_is_refused_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path) as (head, _):
        wrong = JoinToken("wrong", head.token.fingerprint)
        for _ in range(2):
            with pytest.raises(JoinRefused, match="secret of the join token is wrong"):
                await _join(tmp_path / "node", wrong, head)
        assert [record.message for record in caplog.records if "wrong secret" in record.message] == [
            "127.0.0.1 tried to join the cluster with a wrong secret"
        ]
        assert head.nodes.members() == {}


async def test_another_head_never_gets_the_secret(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        other = JoinToken(head.token.secret, "0" * 64)
        with pytest.raises(JoinRefused, match="not the head"):
            await _join(tmp_path / "node", other, head)


async def test_a_node_cannot_pretend_to_be_the_head(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        fake = TestHead(tmp_path / "fake")
        fake.identity = node.identity
        for name in ("authority.pem", "certificate.pem", "key.pem"):
            (fake.folder / name).write_bytes((node.identity.folder / name).read_bytes())
        (node.identity.folder / "join-secret").write_text("unknown")
        await fake.start()
        with pytest.raises(JoinRefused, match="not the head"):
            await _join(tmp_path / "new", head.token, fake)
        await fake.nodes.close()


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("a", "0.0.1", "version 0.0.1"),
        ("head", VERSION, "name of the head"),
        ("A/B", VERSION, "cannot be the name"),
        ("", VERSION, "cannot be the name"),
    ],
)
async def test_machines_that_cannot_join(tmp_path: Path, name: str, version: str, message: str) -> None:
    async with cluster(tmp_path) as (head, _):
        with pytest.raises(JoinRefused, match=message):
            await _join(tmp_path / "node", head.token, head, name=name, version=version)


async def test_a_head_that_does_not_listen(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        pass
    with pytest.raises(HeadUnreachable, match="Connection refused"):
        await _join(tmp_path / "node", head.token, head)


async def test_a_client_without_a_certificate_gets_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        channel = await Channel.open(HOST, head.port, identity.unauthenticated_context())
        await channel.send(ReadWeights("0" * 64, 0))
        reply = await channel.receive(Reply)
        assert isinstance(reply, ErrorReply)
        assert "not allowed" in reply.message
        channel.close()
        with pytest.raises((OSError, EOFError)):
            await _ping_without_certificate(node)


async def test_a_stopped_node_is_lost_and_its_sockets_close(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", lost_after=0.5) as (head, (node,)):
        server = await echo_socket(node.home / "run" / "echo.sock")
        client = head.events.clients["a"]
        _, collector = await client.open_socket("echo.sock", Collector)
        await node.agent.close()
        await until(lambda: ("lost", "a") in head.events.notified)
        await collector.lost.wait()
        assert head.nodes.members() == {}
        assert [status.state for status in head.nodes.statuses()] == ["lost"]
        with pytest.raises(NodeLost, match="no longer a member"):
            await client.facts()
        with pytest.raises(ConnectionError):
            await client.open_socket("echo.sock", Collector)
        with pytest.raises(NodeLost):
            head.nodes.client("a")
        assert not await node.as_member.counts_as_member(node.incarnation)
        server.close()


async def test_a_node_that_comes_back_joins_anew(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        again = TestNode(tmp_path / "a", "a", head)
        await node.agent.close()
        await again.start(node.facts.port)
        await again.announce()
        await again.announce()  # an answer may get lost
        assert head.events.notified == [("joined", "a"), ("lost", "a"), ("joined", "a")]
        assert head.events.reason == "it was started again"
        assert await again.as_member.counts_as_member(again.incarnation)
        assert not await again.as_member.counts_as_member(node.incarnation)
        await again.agent.close()


async def test_two_machines_cannot_have_one_name(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, _):
        second = TestNode(tmp_path / "second", "a", head)
        await second.start()
        try:
            with pytest.raises(JoinRefused, match="the name a is taken"):
                await second.announce()
        finally:
            await second.agent.close()
        assert head.events.notified == [("joined", "a")]


async def test_two_machines_that_ask_for_one_name_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        nodes = [TestNode(tmp_path / home, "a", head) for home in ("one", "two")]
        for node in nodes:
            await node.start()
        answers = await asyncio.gather(*(node.announce() for node in nodes), return_exceptions=True)
        refused = [isinstance(answer, JoinRefused) for answer in answers]
        assert sorted(refused) == [False, True]
        for node, refusal in zip(nodes, refused, strict=True):
            assert await node.as_member.counts_as_member(node.incarnation) is not refusal
            await node.agent.close()


async def test_a_name_is_refused_before_anything_starts_under_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        taken = pytest.raises(NodeError, match=f"the name a is taken by the node at {HOST}")
        await head.nodes._check_name("a", HOST)  # it may have been started again
        await head.nodes._check_name("b", "192.0.2.1")
        with taken:
            await head.nodes._check_name("a", "192.0.2.1")
        await node.agent.close()
        await head.nodes._check_name("a", "192.0.2.1")  # the old node does not answer


async def test_the_next_gateway_finds_its_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as (head, (_, b)):
        head.nodes.drain("a")
        await head.nodes.close()
        await b.agent.close()  # its port refuses connections, so the gateway does not wait for it
        head.events.notified.clear()
        await head.start()
        assert sorted(head.events.notified) == [("draining", "a"), ("joined", "a")]
        assert [(status.facts.name, status.state) for status in head.nodes.statuses()] == [
            ("a", "draining"),
            ("b", "lost"),
        ]
        assert await head.events.clients["a"].in_use() == {"cpu": 12345}


async def test_a_node_that_answers_the_next_gateway_late_stays_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, late = NodeClient.ping, ["a", "a"]

    async def ping(self: NodeClient, *arguments: float) -> None:
        if late:
            raise NodeLost(f"node {late.pop()} does not answer")
        await asked(self, *arguments)

    monkeypatch.setattr(registry, "HEARTBEAT", 0.01)
    async with cluster(tmp_path, "a") as (head, _):
        await head.nodes.close()
        monkeypatch.setattr(NodeClient, "ping", ping)
        await head.start()
        assert late == []
        assert sorted(head.nodes.members()) == ["a"]


async def test_a_node_that_does_not_answer_the_next_gateway_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ping(self: NodeClient, *_: float) -> None:
        raise NodeLost(f"node {self.name} does not answer")

    async with cluster(tmp_path, "a") as (head, _):
        await head.nodes.close()
        monkeypatch.setattr(NodeClient, "ping", ping)
        head.lost_after = 0.1
        await head.start()
        assert [(status.state, status.reason) for status in head.nodes.statuses()] == [
            ("lost", "node a does not answer")
        ]


async def test_a_member_cannot_keep_others_from_connecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MAX_PER_MEMBER", 3)
    async with cluster(tmp_path, "a", "b") as (head, (a, b)):
        context = identity.client_context(a.identity)
        channels = [await Channel.open(HOST, head.port, context) for _ in range(3)]
        await until(lambda: head.nodes._server._authenticated.total() == 3)
        with pytest.raises(HeadUnreachable, match=r"closed|reset"):
            await a.as_member.counts_as_member(a.incarnation)
        assert await b.as_member.counts_as_member(b.incarnation)
        for channel in channels:
            channel.close()
        await until(lambda: not head.nodes._server._authenticated)
        assert await a.as_member.counts_as_member(a.incarnation)


async def test_after_a_restart_of_ray_all_nodes_join_again(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        await head.nodes.close()
        head.session = "two"
        await head.start()
        assert head.nodes.members() == {}
        assert not await node.as_member.counts_as_member(node.incarnation)


async def test_a_port_without_a_gateway_is_not_the_loss_of_the_head(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        assert await node.as_member.is_listening(30.0)
        await head.nodes.close()
        assert not await node.as_member.is_listening(30.0)
        with pytest.raises(HeadUnreachable):
            await node.as_member.counts_as_member(node.incarnation)


async def test_a_secret_that_an_operator_chose(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        secret = "a secret that is long enough to be safe"
        head.identity.secret.write_text(secret)
        with pytest.raises(JoinRefused, match="not the head"):  # it does not know this secret
            await _join(tmp_path / "node", JoinToken.parse(secret[::-1]), head)
        await _join(tmp_path / "node", JoinToken.parse(secret), head)
        with pytest.raises(JoinRefused, match="at least 32 characters"):
            JoinToken.parse("short")
        assert JoinToken.parse(str(head.token)) == head.token
        assert str(JoinToken.parse(secret)) == secret


async def test_a_renewed_secret_replaces_the_old_one(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        old = head.token
        identity.renew_secret(head.folder)
        with pytest.raises(JoinRefused, match="secret of the join token is wrong"):
            await _join(tmp_path / "node", old, head)
        await _join(tmp_path / "node", head.token, head)
        assert head.identity.secret.stat().st_mode & 0o777 == 0o600


async def test_a_gateway_that_is_killed_while_it_asks_the_members_forgets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = NodeClient.ping

    async def ping(self: NodeClient, *arguments: float) -> None:
        if self.name == "b":
            await asyncio.Event().wait()  # this node is slow
        await asked(self, *arguments)

    async with cluster(tmp_path, "a", "b") as (head, _):
        await head.nodes.close()
        head.events.notified.clear()
        with monkeypatch.context() as slow:
            slow.setattr(NodeClient, "ping", ping)
            starting = asyncio.ensure_future(head.start())
            await until(lambda: ("joined", "a") in head.events.notified)
            starting.cancel()
            await asyncio.wait({starting})
            await head.nodes.close()
        head.listener.close()
        await head.start()
        assert sorted(head.nodes.members()) == ["a", "b"]


async def test_a_node_that_the_engine_refuses(tmp_path: Path) -> None:
    class Refusal(Events):
        def joined(self, facts: NodeFacts, client: NodeClient) -> None:
            raise ApplianceError(f"node {facts.name} has other devices")

    async with cluster(tmp_path) as (head, _):
        refusing = Refusal()
        head.nodes.listen_to(refusing)
        node = TestNode(tmp_path / "a", "a", head)
        await node.start()
        try:
            with pytest.raises(JoinRefused, match="other devices"):
                await node.announce()
            assert head.nodes.members() == {}
            assert head.events.notified == [("joined", "a"), ("lost", "a")]
            assert not await node.as_member.counts_as_member(node.incarnation)
        finally:
            await node.agent.close()


async def _join(
    folder: Path, token: JoinToken, head: TestHead, name: str = "node", version: str = VERSION
) -> None:
    await join(folder, token, HOST, head.port, name=name, version=version, device="cpu")


async def _ping_without_certificate(node: TestNode) -> None:
    channel = await Channel.open(HOST, node.facts.port, identity.unauthenticated_context())
    try:
        await channel.send(Ping())
        await channel.reply(Ok)
    finally:
        channel.close()
