"""Cog projects in worker processes of their own, without an appliance around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.config import CogModel
from appliance.domain import file
from appliance.domain.prediction import Done, Job, Output
from appliance.runners.base import LoadSpec
from appliance.worker.protocol import Commands
from appliance.worker.replica import Replica
from tests.support.appliance_process import ROOT, wait_for
from tests.support.worker_processes import Caller, cog_spec

pytestmark = pytest.mark.integration

PROJECTS = ROOT / "tests" / "projects"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadSpec]:
    """Builds a project of ``tests/projects``; gives what to load."""
    home = tmp_path_factory.mktemp("built")

    def build(name: str, **options: Any) -> LoadSpec:
        source = {"path": str(PROJECTS / name)}
        model = CogModel.model_validate({"name": f"cog/{name}", "kind": "cog", "source": source})
        return cog_spec(home, model, **options)

    return build


async def test_what_a_canceled_prediction_says_at_last_is_in_the_hosts_log(
    built: Callable[..., LoadSpec], replica: Replica, tmp_path: Path
) -> None:
    await replica.load(built("concurrent"))
    caller = Caller(replica)
    log = tmp_path / "logs" / "cog--concurrent.log"

    def cleaned(times: int) -> None:
        wait_for(lambda: log.read_text().count("cleaned up") == times, "the clean-up")

    for number in range(8):
        id = f"canceled-{number}"
        await caller.start(id, text="x", delay=60)
        await caller.begun(id)
        await caller.cancel(id)
        assert await caller.done(id) == Done("canceled")
        # The runtime tells it as the prediction's, or a moment later as nobody's.
        await asyncio.to_thread(cleaned, number + 1)
    assert await caller.run("next", text="done", delay=0) == Done("succeeded")


async def test_one_that_is_canceled_before_it_has_begun_gives_its_slot_back(
    built: Callable[..., LoadSpec], replica: Replica
) -> None:
    await replica.load(built("concurrent"))
    caller = Caller(replica)
    for number in range(8):
        await caller.start(f"canceled-{number}", text="x", delay=60)
        await asyncio.sleep(number / 1000)
        await caller.cancel(f"canceled-{number}")
    for number in range(8):
        assert await caller.done(f"canceled-{number}") == Done("canceled")
    assert await caller.run("next", text="done", delay=0) == Done("succeeded")
    assert "at once: 1\n" in caller.logs("next")


#: Ends of lines to Python's ``splitlines``, and to what reads streams by it.
STRANGE = "a\u2028b\u2029c\x85d\x0be"


async def test_no_character_but_the_line_feed_ends_a_line(
    built: Callable[..., LoadSpec], replica: Replica
) -> None:
    await replica.load(built("loud"))
    caller = Caller(replica)
    assert await caller.run("said", say=STRANGE) == Done("succeeded")
    assert (caller.output("said"), caller.logs("said")) == ([STRANGE], f"{STRANGE}\n")
    assert await caller.run("failed", fail=STRANGE) == Done("failed", STRANGE)
    assert await caller.run("next", say="next") == Done("succeeded")


async def test_text_belongs_to_the_prediction_that_ran_when_it_was_written(
    built: Callable[..., LoadSpec], replica: Replica
) -> None:
    await replica.load(built("loud"))
    caller = Caller(replica)
    await caller.start("first", say="first", child=50_000)
    await caller.start("second", say="second", later=True)
    await caller.start("third", say="third")
    assert await caller.done("third") == Done("succeeded")
    child = [f"child {number} {'x' * 90}" for number in range(50_000)]
    assert caller.logs("first").split("\n") == ["first", *child, "after the child", ""]
    assert caller.logs("second") == "second\n"
    assert caller.logs("third") == "third\nwritten while this one ran\n"


async def test_a_prediction_that_writes_much_fails_nobody(
    built: Callable[..., LoadSpec], replica: Replica, tmp_path: Path
) -> None:
    await replica.load(built("crowd"))
    caller = Caller(replica)
    for name in "abc":
        await caller.start(name, name=name, lines=30_000)
    assert await caller.run("neighbour", items=3) == Done("succeeded")
    assert caller.output("neighbour") == [0, 1, 2]
    assert caller.logs("neighbour") == ""
    for name in "abc":
        assert await caller.done(name) == Done("succeeded")
        lines = [f"{name} {number:05}".ljust(199, "x") for number in range(30_000)]
        assert caller.logs(name).split("\n") == [*lines, ""]
    left = await caller.run("left", leave=True)
    assert left == Done("failed", "the prediction's code called sys.exit(3)")
    # What nobody can say whose it is.
    assert (tmp_path / "logs" / "cog--crowd.log").read_text().count("of one of them\n") == 5


async def test_a_log_that_is_too_long_keeps_its_end(built: Callable[..., LoadSpec], replica: Replica) -> None:
    await replica.load(built("loud"))
    caller = Caller(replica)
    assert await caller.run("long", lines=20_000) == Done("succeeded")
    lines = caller.logs("long").split("\n")
    assert lines[1].startswith("00000xxx")
    assert lines[-2].startswith("19999xxx")
    assert sum("lines of the log are left out here" in line for line in lines) == 1


async def test_files_are_what_the_project_gives_as_files(
    built: Callable[..., LoadSpec], replica: Replica, tmp_path: Path
) -> None:
    await replica.load(built("loud"))
    caller = Caller(replica)
    text = "data:text/plain;base64,aGVsbG8="
    input = {"say": text, "files": "weights.safetensors subs.srt a.tar.gz a.tar.gz"}
    replica.receive(Commands(jobs=[Job("files", 1, input, folder=str(tmp_path / "outputs"))]))
    assert await caller.done("files") == Done("succeeded")
    (output,) = [event for event in caller.events["files"] if isinstance(event, Output)]
    assert output.values[0]["say"] == text
    files = [file.unpack(each.code, each.data) for each in output.values[0]["files"]]
    assert [(each.name, Path(each.path).read_text()) for each in files] == [
        ("weights.safetensors", "content of weights.safetensors"),
        ("subs.srt", "content of subs.srt"),
        ("a.tar.gz", "content of a.tar.gz"),
        ("a-2.tar.gz", "content of a.tar.gz"),
    ]


async def test_a_project_gets_neither_our_secrets_nor_a_number_as_its_error(
    built: Callable[..., LoadSpec], replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "APPLIANCE_TOKEN", "REPLICATE_API_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OF_THE_OPERATOR", "passed on")
    await replica.load(built("loud"))
    caller = Caller(replica)
    assert await caller.run("variables", variables=True) == Done("succeeded")
    (variables,) = caller.output("variables")
    assert "secret" not in variables.values()
    assert variables["OF_THE_OPERATOR"] == "passed on"
    assert [name for name in variables if name.startswith("APPLIANCE_COG")] == []
    left = await caller.run("left", leave=1)
    assert left == Done("failed", "the prediction's code called sys.exit(1)")
