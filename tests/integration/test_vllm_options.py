"""Options of language models, with a tiny model: arguments of vLLM's engine, LoRA adapters."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import pytest_asyncio

from appliance.domain.errors import LoadFailed
from appliance.domain.prediction import Done
from appliance.runners.base import LoadSpec
from appliance.runners.lora_training.runner import LoraTrainer
from appliance.runners.vllm import engine, engine_arguments
from appliance.runners.vllm.options import VllmOptions
from appliance.runners.vllm.parsers import Quantization
from appliance.worker.replica import Replica
from scripts.engine_arguments.table import table, text
from tests.support import runner_calls, tiny_models
from tests.support.worker_processes import Caller, Zygote, spec

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_models.language_model(folder, hidden_size=64)
    return folder


def load_spec(folder: Path, cache: Path, **options: Any) -> LoadSpec:
    asked: dict[str, Any] = {"kv_cache": 16 << 20, "max_num_seqs": 4, "max_adapters": 0, "dtype": "float32"}
    filled = VllmOptions(**asked | options)
    return msgspec.structs.replace(
        spec(cache, "vllm", concurrency=4),
        options=filled.model_dump(),
        weights=str(folder),
        memory=1 << 30,
        threads=1,
    )


async def test_the_table_of_engine_arguments_is_that_of_the_installed_vllm() -> None:
    assert engine_arguments.FILE.read_text() == text(table()), "run scripts/engine-arguments"


async def test_the_quantization_methods_are_those_of_the_installed_vllm() -> None:
    from vllm.model_executor.layers.quantization import QuantizationMethods

    assert get_args(Quantization) == get_args(QuantizationMethods)


async def test_engine_arguments_reach_vllm(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    asked = {
        "max_num_batched_tokens": 128,
        "structured_outputs_config": {"backend": "xgrammar"},
        "cpu_offload_params": ["layers"],
    }
    loading = load_spec(weights, tmp_path, engine=asked, quantization="fp8_per_tensor")
    arguments = engine._arguments(loading, weights)
    assert arguments.quantization == "fp8_per_tensor"
    assert arguments.max_num_batched_tokens == 128
    assert arguments.structured_outputs_config.backend == "xgrammar"
    assert arguments.cpu_offload_params == {"layers"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(
    vllm_zygote: Zygote, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Caller]:
    """One loaded model, with arguments of the engine and with adapters."""
    replica = Replica("runner-1", str(vllm_zygote.socket), str(vllm_zygote.run_dir))
    arguments = {"max_num_batched_tokens": 32}
    cache = tmp_path_factory.mktemp("cache")
    await replica.load(load_spec(weights, cache, max_adapters=2, engine=arguments))
    yield Caller(replica)
    await replica.unload()


async def test_engine_arguments_that_do_not_fit_are_refused(
    vllm_zygote: Zygote, weights: Path, tmp_path: Path
) -> None:
    replica = Replica("runner-0", str(vllm_zygote.socket), str(vllm_zygote.run_dir))
    too_few = load_spec(weights, tmp_path, max_num_seqs=64, engine={"max_num_batched_tokens": 32})
    with pytest.raises(LoadFailed, match=r"max_num_batched_tokens \(32\)"):
        await replica.load(too_few)


TRAINING = {"max_adapter_rank": 16, "chat_template": None, "system_prompt": "", "trust_remote_code": False}


#: It begins with the first token of each text, so the tokenizer adds no token at the end either.
PROMPT = "[CLS] the cat"


async def train(weights: Path, folder: Path, completion: str, steps: int = 200) -> Path:
    """Train an adapter that continues "the cat" with ``completion``; return its folder."""
    trainer = LoraTrainer(runner_calls.load_spec("lora", weights, **TRAINING))
    await trainer.setup()
    folder.mkdir()
    data = folder / "train.jsonl"
    data.write_text(json.dumps({"prompt": PROMPT, "completion": f" {completion}"}) + "\n")
    settings = {"max_train_steps": steps, "learning_rate": 0.01, "train_batch_size": 1, "lora_rank": 16}
    job = runner_calls.job(LoraTrainer.interface(TRAINING), folder, train_data=data, **settings)
    return Path((await runner_calls.run(trainer, job)).output)


async def answer(caller: Caller, id: str, adapter: Path | None = None, **more: Any) -> str:
    done = await caller.run(id, prompt=PROMPT, temperature=0, max_tokens=4, **more)
    assert done == Done("succeeded"), caller.logs(id)
    return "".join(caller.output(id))


async def test_a_base_model_and_two_adapters_answer_at_the_same_time(
    caller: Caller, weights: Path, tmp_path: Path
) -> None:
    first = await train(weights, tmp_path / "first", "sat on the mat")
    second = await train(weights, tmp_path / "second", "ran on a hill")
    plain = await answer(caller, "alone")
    answers = await asyncio.gather(
        *(answer(caller, f"base {at}") for at in range(2)),
        *(answer(caller, f"first {at}", lora_weights=str(first)) for at in range(2)),
        *(answer(caller, f"second {at}", lora_weights=str(second)) for at in range(2)),
    )
    learnt = [text.strip() for text in answers[2:]]
    assert answers[:2] == [plain] * 2
    assert learnt == ["sat on the mat"] * 2 + ["ran on a hill"] * 2
    assert plain.strip() not in learnt


async def test_an_adapter_that_does_not_fit_fails_alone(caller: Caller, tmp_path: Path) -> None:
    tiny_models.language_model(tmp_path / "large", hidden_size=128)
    foreign = await train(tmp_path / "large", tmp_path / "foreign", "sat", steps=1)
    high = tmp_path / "high"
    high.mkdir()
    (high / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 32}))
    plain = await answer(caller, "before")
    for folder, reason in (
        (foreign, "it was made for another base model: its model.layers.0."),
        (high, "the adapter has the rank 32, but the model allows 16: raise max_adapter_rank"),
        (tmp_path, "does not exist: an adapter of a language model must be a folder in PEFT's format"),
    ):
        done = await caller.run(reason, prompt=PROMPT, lora_weights=str(folder))
        assert done.status == "failed"
        assert reason in str(done.error)
    assert await answer(caller, "after") == plain
