"""Copies of weights: names that come from other machines, and a full disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from appliance.domain.errors import NodeError
from appliance.nodes.channel import Channel
from appliance.nodes.messages import Source, WeightFile, WeightTree
from appliance.nodes.weight_store import WeightStore


class Disk(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: int
    used: int
    free: int


async def nobody(source: Source) -> Channel:
    raise ConnectionRefusedError(source.name)


def tree(folder: Path, name: str, content: bytes, file: str = "weights.bin") -> WeightTree:
    """Put a file into the store, as if it had been copied."""
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / "blobs" / sha256).write_bytes(content)
    return WeightTree(name, (WeightFile(file, len(content), sha256),), single=False)


async def copy(store: WeightStore, wanted: WeightTree, keep: list[str] | None = None) -> Path:
    done = await store.copy([wanted], [Source("head", "h", 1)], keep or [], lambda _: None)
    (path,) = done.paths
    return Path(path)


@pytest.mark.parametrize("file", ["../x", "/etc/x", "a/../../x", "", "a//b", "a\0b"])
async def test_names_never_lead_out_of_the_folder(tmp_path: Path, file: str) -> None:
    store = WeightStore(tmp_path / "weights", nobody)
    wanted = tree(tmp_path / "weights", "model", b"x", file)
    with pytest.raises(NodeError, match="is not a file name"):
        await copy(store, wanted)
    assert not (tmp_path / "x").exists()


async def test_the_name_of_a_tree_and_a_digest_are_checked(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "weights", nobody)
    wanted = tree(tmp_path / "weights", "../model", b"x")
    with pytest.raises(NodeError, match="is not a file name"):
        await copy(store, wanted)
    with pytest.raises(NodeError, match="is not a SHA-256"):
        store.has([WeightTree("model", (WeightFile("x", 1, "../../secret"),), single=False)])


async def test_no_source_is_named_with_its_reason(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "weights", nobody)
    missing = WeightTree("model", (WeightFile("x.bin", 1, "0" * 64),), single=False)
    with pytest.raises(NodeError, match=r"x\.bin cannot be copied: head: "):
        await copy(store, missing)


async def test_a_full_disk_loses_the_copies_that_were_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    store = WeightStore(folder, nobody)
    trees = [tree(folder, f"model-{number}", bytes([number]) * 1000) for number in range(3)]
    paths = [await copy(store, each) for each in trees]
    for number, path in enumerate(paths):
        os.utime(path.parent, (number, number))

    def disk(_: Path) -> Disk:
        used = 100 * sum(1 for _ in (folder / "trees").iterdir())  # of 300
        return Disk(300, used, 300 - used)

    monkeypatch.setattr(shutil, "disk_usage", disk)
    again = await store.copy([trees[2]], [], [str(paths[0])], lambda _: None)
    assert (again.paths, again.deleted) == ([str(paths[2])], [str(paths[1])])
    assert [path.exists() for path in paths] == [True, False, True]
    assert store.has([trees[0], trees[2]])
    assert not store.has([trees[1]])


async def test_copies_at_the_same_time_keep_the_files_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def late(_: Source) -> Channel:
        waiting.set()
        await go_on.wait()
        raise ConnectionRefusedError("no source")

    store = WeightStore(folder, late)
    old = await copy(store, tree(folder, "old", b"old"))
    first = tree(folder, "first", b"first")
    missing = WeightFile("more.bin", 1, "0" * 64)
    both = msgspec.structs.replace(first, files=(*first.files, missing))
    copying = asyncio.ensure_future(store.copy([both], [Source("head", "h", 1)], [], lambda _: None))
    await waiting.wait()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1000, 950, 50))  # full, whatever is deleted
    await copy(store, tree(folder, "second", b"second"))
    assert not old.exists()
    assert store.has([first])  # although no tree has its file yet
    go_on.set()
    with pytest.raises(NodeError, match="no source"):
        await copying


async def test_a_disk_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    store = WeightStore(folder, nobody)
    wanted = tree(folder, "model", b"x")

    def fail(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    with pytest.raises(NodeError, match=r"weights cannot be written: .*Operation not supported"):
        await copy(store, wanted)


async def test_weights_that_are_too_large_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = WeightStore(tmp_path / "weights", nobody)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1000, 900, 100))
    large = WeightTree("model", (WeightFile("x.bin", 10**6, "0" * 64),), single=False)
    with pytest.raises(NodeError, match="free space there"):
        await copy(store, large)
