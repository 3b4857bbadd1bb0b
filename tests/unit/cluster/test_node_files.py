"""Files of predictions that run on another node."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.cluster import node_files
from appliance.cluster.node_files import Folders, NodeFiles
from appliance.domain.errors import ApplianceError, NodeLost
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Done, Emitted, Job, Log, Output
from tests.support.node_connection import LocalNode


class Bench:
    """The files of one model on a node, with everything that was sent and delivered."""

    def __init__(self, folder: Path) -> None:
        self.node = LocalNode(folder / "node")
        self.folders = Folders(
            folder / "inputs",
            folder / "home" / "files" / "outputs",
            self.node.inputs,
            self.node.folders.outputs,
        )
        self.jobs: list[Job] = []
        self.cancels: list[str] = []
        self.delivered: list[Emitted] = []
        self.loaded: list[str] = []  # copies of weights that loaded models use
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.files = NodeFiles(
            "box",
            self.node,
            self.folders,
            self.lost,
            send=self.jobs.append,
            cancel=self.cancels.append,
            deliver=self.delivered.extend,
            keep_weights=lambda: [*self.loaded, *self.files.used_weights()],
        )

    def input(self, id: str, name: str, content: bytes = b"content") -> str:
        path = self.folders.inputs / id / "file" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    def output(self, id: str, name: str, content: bytes = b"picture") -> OutputFile:
        """Make an output file on the node."""
        path = self.folders.node_outputs / id / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return OutputFile(
            id=f"secret-{name}", name=name, content_type="image/png", size=len(content), sha256=digest,
            md5="", path=str(path),
        )  # fmt: skip

    def job(self, id: str, **input: Any) -> Job:
        return Job(id, 1, input, folder=str(self.folders.outputs / id / "1"))


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_job_without_files_is_sent_at_once_with_the_output_folder_of_the_node(bench: Bench) -> None:
    bench.files.submit(bench.job("a", prompt="/etc/passwd"))
    assert bench.jobs == [
        Job("a", 1, {"prompt": "/etc/passwd"}, folder=str(bench.folders.node_outputs / "a" / "1"))
    ]


async def test_a_job_is_sent_with_the_paths_of_its_files_on_the_node(bench: Bench) -> None:
    image, line = bench.input("a", "in.png", b"one"), bench.input("a", "clip.wav", b"two")
    bench.files.submit(bench.job("a", image=image, lines=[{"text": "x", "file": line}], n=3))
    await until(lambda: bench.jobs)
    sent = bench.jobs[0].input
    assert (sent["n"], sent["lines"][0]["text"]) == (3, "x")
    for path, content in ((sent["image"], b"one"), (sent["lines"][0]["file"], b"two")):
        assert path.startswith(str(bench.node.home))
        assert Path(path).read_bytes() == content


async def test_files_of_other_predictions_are_not_sent(bench: Bench) -> None:
    other = bench.input("b", "private.txt")
    climbing = f"{bench.folders.inputs}/a/../b/file/private.txt"
    bench.files.submit(bench.job("a", prompt=other, more=climbing))
    assert bench.jobs[0].input == {"prompt": other, "more": climbing}


async def test_a_prediction_does_not_wait_for_the_files_of_another(bench: Bench) -> None:
    bench.node.held["slow.bin"] = released = asyncio.Event()
    bench.files.submit(bench.job("a", file=bench.input("a", "slow.bin")))
    bench.files.submit(bench.job("b", file=bench.input("b", "quick.bin")))
    bench.files.submit(bench.job("c"))
    await until(lambda: len(bench.jobs) == 2)
    assert {job.id for job in bench.jobs} == {"b", "c"}
    released.set()
    await until(lambda: len(bench.jobs) == 3)


async def test_a_cancel_before_the_job_is_sent_ends_the_prediction(bench: Bench) -> None:
    bench.node.held["slow.bin"] = asyncio.Event()
    bench.files.submit(bench.job("a", file=bench.input("a", "slow.bin")))
    bench.files.cancel("a")
    assert bench.delivered == [Emitted("a", 1, 1, Done("canceled"))]
    bench.node.held["slow.bin"].set()
    await until(lambda: not bench.files._sends)
    assert (bench.jobs, bench.cancels) == ([], [])


async def test_a_cancel_after_the_job_follows_it(bench: Bench) -> None:
    bench.files.submit(bench.job("a"))
    bench.files.cancel("a")
    assert ([job.id for job in bench.jobs], bench.cancels) == (["a"], ["a"])


async def test_input_files_that_cannot_be_sent_fail_the_prediction(bench: Bench) -> None:
    bench.node.problem = ApplianceError("its disk is full")
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await until(lambda: bench.delivered)
    reason = "its files could not be sent to node box: its disk is full"
    assert bench.delivered == [Emitted("a", 1, 1, Done("failed", reason))]


async def test_a_broken_connection_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_files, "_DELAYS", (0.0, 0.0, 0.0))
    bench.node.problem = NodeLost("reset")
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await until(lambda: bench.delivered)
    reason = "the connection to node box broke while input files were sent there"
    assert bench.delivered == [Emitted("a", 1, 1, Done("failed", reason))]


async def test_the_loss_of_the_node_is_left_to_the_reader_of_the_events(bench: Bench) -> None:
    bench.node.problem = NodeLost("reset")
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await asyncio.sleep(0)
    bench.lost.set_result("no heartbeat")
    await until(lambda: not bench.files._sends)
    assert (bench.delivered, bench.jobs) == ([], [])


async def test_events_come_in_order_once_their_files_are_here(bench: Bench) -> None:
    bench.node.held["a.png"] = released = asyncio.Event()
    first = Emitted("a", 1, 1, Output([{"image": bench.output("a", "a.png")}]))
    rest = [Emitted("a", 1, 2, Log("later")), Emitted("a", 1, 3, Done("succeeded"))]
    other = Emitted("b", 1, 1, Output(["text"]))
    bench.files.receive([first, rest[0], other])
    bench.files.receive(rest[1:])
    assert bench.delivered == [other]
    released.set()
    await bench.files.events_delivered()
    assert bench.delivered == [other, first, *rest]
    assert isinstance(first.event, Output)
    path = Path(first.event.values[0]["image"].path)
    assert path == bench.folders.outputs / "a" / "1" / "a.png"
    assert path.read_bytes() == b"picture"


async def test_events_that_an_earlier_gateway_has_stored_are_skipped(bench: Bench) -> None:
    bench.node.problem = ApplianceError("nothing may be fetched")
    stored = Emitted("a", 1, 1, Output([bench.output("a", "a.png")]))
    new, other = Emitted("a", 1, 2, Log("new")), Emitted("b", 1, 1, Log("other"))
    bench.files.skip("a", 1, 1)
    bench.files.receive([stored, new, other])
    assert bench.delivered == [new, other]


async def test_a_file_that_is_here_already_is_not_fetched_again(bench: Bench) -> None:
    file = bench.output("a", "a.png")
    here = bench.folders.outputs / "a" / "1" / "a.png"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"picture")
    bench.node.problem = ApplianceError("it was deleted there")
    bench.files.receive([Emitted("a", 1, 1, Output([file]))])
    await bench.files.events_delivered()
    assert len(bench.delivered) == 1
    assert file.path == str(here)


@pytest.mark.parametrize("damage", ["content", "path"])
async def test_output_that_cannot_be_fetched_fails_the_prediction_at_its_end(
    bench: Bench, damage: str
) -> None:
    file = bench.output("a", "a.png")
    if damage == "content":
        Path(file.path).write_bytes(b"another")
        reason = "a.png was damaged on its way"
    else:
        file.path = f"{bench.folders.node_outputs}/a/../../../secret"
        reason = f"{file.path} is not below {bench.folders.node_outputs}/a"
    bench.files.receive([Emitted("a", 1, 1, Output([file])), Emitted("a", 1, 2, Log("more"))])
    await bench.files.events_delivered()
    assert (bench.delivered, bench.cancels) == ([], ["a"])
    bench.files.receive([Emitted("a", 1, 3, Done("canceled"))])
    text = f"its output files could not be fetched from node box: {reason}"
    assert bench.delivered == [Emitted("a", 1, 3, Done("failed", text))]


async def test_the_node_keeps_no_files_of_an_acknowledged_prediction(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_files, "_DROP_DELAY", 0.0)
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await until(lambda: bench.jobs)
    bench.files.receive([Emitted("a", 1, 1, Output([bench.output("a", "a.png")]))])
    await bench.files.events_delivered()
    bench.files.acknowledged("a")
    await until(lambda: bench.node.dropped)
    assert not (bench.node.inputs / "a").exists()
    assert not (bench.folders.node_outputs / "a").exists()


async def test_a_trained_version_and_adapters_are_copied_as_weights(bench: Bench, tmp_path: Path) -> None:
    trained, style = tmp_path / "trained", tmp_path / "style.safetensors"
    trained.mkdir()
    style.touch()
    job = Job("a", 1, {"lora_weights": str(style), "prompt": str(style)}, adapter=str(trained))
    bench.files.submit(job)
    await until(lambda: bench.jobs)
    copies = bench.node.home / "weights"
    assert bench.jobs[0].adapter == str(copies / "trained")
    assert bench.jobs[0].input["lora_weights"] == str(copies / "style.safetensors")


async def test_a_copy_of_weights_deletes_none_that_are_in_use(bench: Bench, tmp_path: Path) -> None:
    bench.loaded = ["/node/weights/base"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bench.files.submit(Job(name, 1, {}, adapter=str(tmp_path / name)))
        await until(lambda: not bench.files._sending)
    copies = bench.node.home / "weights"
    assert bench.node.kept == ["/node/weights/base", str(copies / "one")]
    bench.files.acknowledged("one")
    assert bench.files.used_weights() == [str(copies / "two")]


async def test_the_next_gateway_keeps_the_weights_of_predictions_that_run(
    bench: Bench, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bench.files.submit(Job(name, 1, {}, adapter=str(tmp_path / name)))
    await until(lambda: len(bench.jobs) == 2)
    bench.files.acknowledged("one")
    after = Bench(tmp_path).files
    after.adopt(["one", "two", "three"])
    assert after.used_weights() == [str(bench.node.home / "weights" / "two")]
    after.acknowledged("two")
    assert after.used_weights() == []
    assert list(bench.folders.inputs.iterdir()) == []


async def test_an_unexpected_error_fails_the_prediction(bench: Bench) -> None:
    bench.node.problem = ValueError("zip() argument 2 is shorter")
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await until(lambda: bench.delivered)
    reason = "its files could not be sent to node box: zip() argument 2 is shorter"
    assert bench.delivered == [Emitted("a", 1, 1, Done("failed", reason))]
    file = bench.output("b", "x.png")
    file.path = str(bench.folders.node_outputs / "b" / "1" / "a\0b")
    bench.files.receive([Emitted("b", 1, 1, Output([file])), Emitted("b", 1, 2, Done("succeeded"))])
    await until(lambda: len(bench.delivered) == 2)
    ended = bench.delivered[1].event
    assert isinstance(ended, Done)
    assert (ended.status, bench.cancels) == ("failed", ["b"])


async def test_a_part_of_a_file_is_replaced(bench: Bench) -> None:
    """A gateway was killed while it fetched the file."""
    here = bench.folders.outputs / "a" / "1" / "a.png"
    here.parent.mkdir(parents=True)
    here.write_bytes(b"pic")
    bench.files.receive([Emitted("a", 1, 1, Output([bench.output("a", "a.png")]))])
    await bench.files.events_delivered()
    assert len(bench.delivered) == 1
    assert here.read_bytes() == b"picture"


async def test_files_of_repeated_events_are_not_fetched_again(bench: Bench) -> None:
    """Else a second copy would stay beside the encrypted file, or the one in the bucket."""
    first = Emitted("a", 1, 1, Output([bench.output("a", "a.png")]))
    bench.files.receive([first])
    await bench.files.events_delivered()
    (bench.folders.outputs / "a" / "1" / "a.png").unlink()
    bench.files.acknowledged("a")
    bench.node.problem = ApplianceError("nothing may be fetched")
    bench.files.receive([Emitted("a", 1, 1, Output([bench.output("a", "a.png")]))])
    bench.files.receive([Emitted("a", 1, 2, Log("new")), Emitted("a", 2, 1, Log("again"))])
    assert [(each.attempt, each.n) for each in bench.delivered] == [(1, 1), (1, 2), (2, 1)]


async def test_of_a_discarded_prediction_only_the_end_is_delivered(bench: Bench) -> None:
    bench.node.problem = ApplianceError("nothing may be fetched")
    bench.files.discard("a")
    end = Emitted("a", 1, 2, Done("succeeded"))
    bench.files.receive([Emitted("a", 1, 1, Output([bench.output("a", "a.png")])), end])
    assert (bench.delivered, bench.cancels) == ([end], [])


async def test_the_death_of_a_worker_process_does_not_wait_for_input_files(bench: Bench) -> None:
    bench.node.held["slow.bin"] = asyncio.Event()
    bench.files.submit(bench.job("a", file=bench.input("a", "slow.bin")))
    await asyncio.sleep(0)
    await bench.files.events_delivered()
    bench.files.cancel_sends()
    await until(lambda: not bench.files._sends)
    bench.files.cancel("a")  # the prediction runs elsewhere meanwhile
    assert (bench.jobs, bench.delivered, bench.cancels) == ([], [], ["a"])


async def test_the_node_keeps_no_files_of_a_prediction_that_a_previous_gateway_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_files, "_DROP_DELAY", 0.0)
    (bench.node.inputs / "a" / "x").mkdir(parents=True)
    bench.files.acknowledged("a")
    await until(lambda: not (bench.node.inputs / "a").exists())


async def test_the_files_of_a_lost_worker_process_are_deleted_on_the_node(bench: Bench) -> None:
    """The predictions may run again: on another node, or on this one as the next attempt."""
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await until(lambda: bench.jobs)
    bench.output("a", "a.png")
    next_attempt = bench.folders.node_outputs / "a" / "2"
    next_attempt.mkdir()
    (bench.node.inputs / "adopted").mkdir()
    bench.files.adopt(["adopted"])
    bench.files.abandon()
    await until(lambda: bench.node.dropped)
    assert not Path(bench.jobs[0].input["file"]).exists()
    assert not (bench.folders.node_outputs / "a" / "1").exists()
    assert not (bench.node.inputs / "adopted").exists()
    assert next_attempt.exists()


async def test_a_deletion_on_the_node_is_awaited_until_the_node_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, go = bench.node.drop_files, asyncio.Event()

    async def slow(paths: list[str]) -> None:
        await go.wait()
        await drop(paths)

    monkeypatch.setattr(bench.node, "drop_files", slow)
    bench.files.adopt(["a"])
    bench.files.abandon()
    deleted = asyncio.ensure_future(bench.files.wait_for_deletions())
    await asyncio.sleep(0)
    assert not deleted.done()
    go.set()
    await deleted
    assert bench.node.dropped
    go.clear()
    bench.files.adopt(["b"])
    bench.files.abandon()
    bench.lost.set_result("no heartbeat")
    await bench.files.wait_for_deletions()


async def test_the_files_stay_for_the_next_gateway(bench: Bench) -> None:
    bench.files.submit(bench.job("a", file=bench.input("a", "in.bin")))
    await until(lambda: bench.jobs)
    bench.files.close()
    await asyncio.sleep(0)
    assert not bench.files._drops
    assert Path(bench.jobs[0].input["file"]).exists()
