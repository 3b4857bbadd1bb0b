"""A language model in two parts: two worker processes with addresses of their own, as on two machines."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from appliance.domain.errors import LoadFailed
from appliance.domain.prediction import Done
from appliance.runners.base import LoadSpec, Part
from appliance.runners.vllm.options import VllmOptions
from appliance.worker.cleanup import pid_folder
from appliance.worker.replica import Replica
from tests.support import tiny_models
from tests.support.appliance_process import until
from tests.support.worker_processes import VLLM_STEP_LIMIT, Caller, Zygote, spec, until_gone

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LEADER, FOLLOWER = "127.0.0.2", "127.0.0.3"
PROMPT = {
    "prompt": "the cat sat on",
    "prompt_template": "",
    "temperature": 0,
    "max_tokens": 20,
    "min_tokens": 20,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers whose tokens depend on both."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("weights")
    tiny_models.language_model(folder, hidden_size=64, num_hidden_layers=2)
    model = LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for what torch compiles, as on machines that have loaded the model before."""
    return tmp_path_factory.mktemp("cache")


def load_spec(folder: Path, cache: Path, part: Part | None = None, **options: Any) -> LoadSpec:
    filled = VllmOptions(kv_cache=16 << 20, max_num_seqs=4, max_adapters=0, dtype="float32", **options)
    return msgspec.structs.replace(
        spec(cache, "vllm", concurrency=4),
        options=filled.model_dump(),
        weights=str(folder),
        memory=1 << 30,
        threads=1,
        part=part,
    )


def free_port() -> int:
    with socket.create_server((LEADER, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def part(index: int, port: int) -> Part:
    return Part(index=index, count=2, address=(LEADER, FOLLOWER)[index], leader=LEADER, port=port)


def remains(pid: int) -> list[Path]:
    """What a worker process has left behind in shared memory and among temporary files."""
    folders = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    return [path for folder in folders for path in folder.glob(f"appliance-*-{pid}-*")]


class Parts:
    """The replicas of two machines."""

    def __init__(self, vllm_zygote: Zygote) -> None:
        self.replicas = [
            Replica("runner-0", str(vllm_zygote.socket), str(vllm_zygote.run_dir / machine))
            for machine in ("leader", "follower")
        ]
        self.pids: list[int] = []

    async def load(self, folder: Path, cache: Path, **options: Any) -> None:
        port = free_port()
        reports = await asyncio.gather(
            *(
                replica.load(load_spec(folder, cache, part(index, port), **options))
                for index, replica in enumerate(self.replicas)
            )
        )
        assert all(report.forked for report in reports)
        self.pids = [report.pid for report in reports]

    async def unload(self) -> None:
        await asyncio.gather(*(replica.unload() for replica in self.replicas))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parts(vllm_zygote: Zygote) -> AsyncIterator[Parts]:
    parts = Parts(vllm_zygote)
    yield parts
    await parts.unload()


async def answer(replica: Replica, id: str) -> str:
    caller = Caller(replica)
    done = await caller.run(id, **PROMPT)
    assert done == Done("succeeded"), caller.logs(id)
    return "".join(caller.output(id))


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(vllm_zygote: Zygote, weights: Path, cache: Path) -> str:
    """The answer of the model on one machine."""
    replica = Replica("runner-9", str(vllm_zygote.socket), str(vllm_zygote.run_dir))
    await replica.load(load_spec(weights, cache))
    text = await answer(replica, "whole")
    await replica.unload()
    assert len(set(text.split())) > 3
    return text


async def test_a_pipeline_of_two_parts_gives_the_tokens_of_one_process(
    parts: Parts, expected: str, weights: Path, cache: Path
) -> None:
    await parts.load(weights, cache)
    assert await answer(parts.replicas[0], "pipeline") == expected


async def test_no_part_listens_on_all_interfaces(parts: Parts) -> None:
    for pid in parts.pids:
        listening = {
            connection.laddr.ip
            for process in family(pid)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening
        assert all(address.startswith("127.") for address in listening), listening


async def test_the_leader_ends_within_the_limit_of_a_step_when_the_follower_is_gone(parts: Parts) -> None:
    leader, follower = (Caller(replica) for replica in parts.replicas)
    before = [family(pid) for pid in parts.pids]
    (worker,) = before[1][1:]
    await leader.start("lost", **PROMPT | {"max_tokens": 58, "min_tokens": 58})
    os.kill(worker.pid, signal.SIGKILL)
    lost = await follower.over()
    assert lost is not None
    assert "vLLM's worker for test/vllm has ended unexpectedly" in lost
    assert "part 2 of 2, on 127.0.0.3" in lost
    lost = await leader.over()
    assert lost is not None
    assert f"or a step took longer than {VLLM_STEP_LIMIT} s" in lost
    await until_gone(*(process.pid for each in before for process in each))


async def test_two_parts_of_every_layer_give_the_tokens_of_one_process(
    parts: Parts, expected: str, weights: Path, cache: Path
) -> None:
    await parts.load(weights, cache, across_machines="tensor")
    assert await answer(parts.replicas[0], "tensor") == expected


async def test_an_unload_leaves_nothing_behind(parts: Parts) -> None:
    """Needs the model that the test before has loaded."""
    processes = [process.pid for pid in parts.pids for process in family(pid)]
    assert len(processes) >= 5  # two worker processes, two of vLLM's workers, an engine core
    assert all(map(remains, parts.pids))
    await parts.unload()
    await until_gone(*processes)
    assert not any(map(remains, parts.pids))


async def test_a_follower_whose_leader_never_comes_is_unloaded_at_once(
    parts: Parts, weights: Path, cache: Path
) -> None:
    replica = parts.replicas[1]
    load = asyncio.create_task(replica.load(load_spec(weights, cache, part(1, free_port()))))
    hosts = pid_folder(Path(replica._run_dir))
    await until(lambda: any(len(family(int(file.name))) > 1 for file in hosts.glob("[0-9]*")))
    (pid,) = (int(file.name) for file in hosts.glob("[0-9]*"))
    processes = [process.pid for process in family(pid)]
    assert len(processes) == 2, "vLLM's worker waits for the leader"
    await replica.unload()
    with pytest.raises(LoadFailed, match="was unloaded during its load"):
        await load
    await until_gone(*processes)
    assert not remains(pid)


async def test_a_leader_whose_port_is_taken_fails_to_load(parts: Parts, weights: Path, cache: Path) -> None:
    with socket.create_server((LEADER, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LoadFailed, match=f"cannot listen at {LEADER}:{port} for the other parts"):
            await parts.replicas[0].load(load_spec(weights, cache, part(0, port)))


async def test_a_part_fails_to_load_on_a_machine_that_does_not_have_its_address(
    parts: Parts, weights: Path, cache: Path
) -> None:
    elsewhere = msgspec.structs.replace(part(1, free_port()), address="192.0.2.7")
    with pytest.raises(LoadFailed, match=r"this machine does not have the address 192\.0\.2\.7"):
        await parts.replicas[1].load(load_spec(weights, cache, elsewhere))
