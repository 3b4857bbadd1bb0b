"""What the store has acknowledged survives `kill -9` of its process."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.domain.prediction import Output, Prediction, Status, new_id, new_stream_token
from appliance.store import Store
from appliance.store.database import Durability

pytestmark = pytest.mark.integration

ROUNDS = 5
CLIENTS = 8


async def write_forever(path: Path, durability: Durability) -> None:
    """What the child does: run predictions, and say after each commit what was committed."""
    store = Store(path, durability=durability)
    await store.open()
    await store.own(patience=10)

    async def client() -> None:
        while True:
            created = Prediction(
                id=new_id(),
                model="acme/hello",
                version="0" * 64,
                owner="me",
                input={"text": "x" * 500},
                created_at=1.0,
                stream_token=new_stream_token(),
            )
            await store.create(created)
            print("created", created.id, flush=True)
            claimed = created.started(2.0, 0.0, None)
            await store.claim(claimed)
            print("claimed", created.id, flush=True)
            await store.append(created.id, 1, [(1, Output(["a"])), (2, Output(["b"]))])
            print("appended", created.id, flush=True)
            store.append(created.id, 1, [(3, Output(["c"]))])
            record = claimed.apply(Output(["a", "b", "c"]), 3)
            await store.finish(record.finished(Status.SUCCEEDED, 3.0))
            print("finished", created.id, flush=True)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def killed_run(path: Path, durability: Durability, lines: int) -> list[list[str]]:
    """Start the child, kill it once it has said ``lines`` lines; returns all it has said, as words."""
    child = subprocess.Popen(
        [sys.executable, __file__, str(path), durability], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = []
    with child.stdout:
        for _ in range(lines):
            said.append(child.stdout.readline())
        child.kill()
        said += child.stdout.readlines()
    assert child.wait() == -9
    return [line.split() for line in said if line.endswith("\n")]


async def check(path: Path, said: list[list[str]]) -> None:
    store = Store(path)
    await store.open()
    await store.own()  # the kernel has freed the lock of the killed child
    for word, id in said:
        stored = await store.get(id)
        assert stored is not None, f"{word} {id} is lost"
        if word == "claimed":
            assert stored.status in (Status.PROCESSING, Status.SUCCEEDED)
        elif word == "appended":
            assert stored.output in (["a", "b"], ["a", "b", "c"])
        elif word == "finished":
            assert (stored.status, stored.output) == (Status.SUCCEEDED, ["a", "b", "c"])
    counts = await store.run_counts()
    assert counts["acme/hello"] == len(await store.list("me", limit=1_000_000))
    await store.close()


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_what_was_said_to_be_stored_is_stored(tmp_path: Path, durability: Durability) -> None:
    path = tmp_path / "appliance.db"
    chance = random.Random(f"crash {durability}")
    said: list[list[str]] = []
    for _ in range(ROUNDS):
        said += killed_run(path, durability, chance.randint(1, 2000))
        asyncio.run(check(path, said))
    assert {word for word, _ in said} == {"created", "claimed", "appended", "finished"}


if __name__ == "__main__":
    _, file, how = sys.argv
    asyncio.run(write_forever(Path(file), "full" if how == "full" else "normal"))
