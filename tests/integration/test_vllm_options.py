"""Options of language models, with a tiny model: arguments of vLLM's engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.domain.errors import LoadFailed
from appliance.runners import preloaded_modules
from appliance.runners.base import LoadSpec
from appliance.runners.vllm import engine, engine_arguments
from appliance.runners.vllm.options import VllmOptions
from appliance.worker.replica import Replica
from scripts.engine_arguments.table import table, text
from tests.support import tiny_models
from tests.support.worker_processes import Caller, Zygote, spec

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_models.language_model(folder, hidden_size=64)
    return folder


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("run"), ",".join(preloaded_modules("vllm", "cpu"))) as running:
        yield running


def load_spec(folder: Path, cache: Path, **options: Any) -> LoadSpec:
    filled = VllmOptions(**{"kv_cache": 16 << 20, "max_num_seqs": 4, "max_adapters": 0} | options)
    return msgspec.structs.replace(
        spec(cache, "vllm", concurrency=4),
        options=filled.model_dump(),
        weights=str(folder),
        memory=1 << 30,
        threads=1,
    )


async def test_the_table_of_engine_arguments_is_that_of_the_installed_vllm() -> None:
    assert engine_arguments.FILE.read_text() == text(table()), "run scripts/engine-arguments"


async def test_engine_arguments_reach_vllm(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    asked = {
        "max_num_batched_tokens": 128,
        "structured_outputs_config": {"backend": "xgrammar"},
        "cpu_offload_params": ["layers"],
    }
    arguments = engine._arguments(load_spec(weights, tmp_path, engine=asked), weights)
    assert arguments.max_num_batched_tokens == 128
    assert arguments.structured_outputs_config.backend == "xgrammar"
    assert arguments.cpu_offload_params == {"layers"}


async def test_a_model_runs_with_engine_arguments(zygote: Zygote, weights: Path, tmp_path: Path) -> None:
    replica = Replica("runner-0", str(zygote.socket), str(zygote.run_dir))
    too_few = load_spec(weights, tmp_path, max_num_seqs=64, engine={"max_num_batched_tokens": 32})
    with pytest.raises(LoadFailed, match=r"max_num_batched_tokens \(32\)"):
        await replica.load(too_few)
    await replica.load(load_spec(weights, tmp_path, engine={"max_num_batched_tokens": 32}))
    caller = Caller(replica)
    done = await caller.run("one", prompt="the cat", max_tokens=4, min_tokens=4)
    assert done.status == "succeeded", caller.logs("one")
    await replica.unload()
