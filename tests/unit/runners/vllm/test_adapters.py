from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import adapters
from appliance.runners.vllm.adapters import Adapters
from appliance.runners.vllm.options import VllmOptions


class LoRARequest(NamedTuple):
    lora_name: str
    lora_int_id: int
    lora_path: str


class EngineDeadError(Exception):
    pass


class Engine:
    """An engine that records the adapters it loads."""

    def __init__(self) -> None:
        self.loaded: list[LoRARequest] = []
        self.error: Exception | None = None

    async def add_lora(self, request: LoRARequest) -> None:
        if self.error is not None:
            raise self.error
        self.loaded.append(request)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine, and the two modules of vLLM that are used with it, which take seconds to import."""
    monkeypatch.setitem(sys.modules, "vllm.lora.request", SimpleNamespace(LoRARequest=LoRARequest))
    errors = SimpleNamespace(EngineDeadError=EngineDeadError)
    for package in ("vllm", "vllm.lora", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", errors)
    return Engine()


def loader(engine: Any) -> Adapters:
    return Adapters(engine)


def trained(folder: Path) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


async def test_each_folder_has_an_id_of_its_own(engine: Engine, tmp_path: Path) -> None:
    first, second = trained(tmp_path / "a"), trained(tmp_path / "b")
    subject = loader(engine)
    requests = [await subject.load(folder) for folder in (first, second, first)]
    assert requests == engine.loaded
    assert requests == [(first, 1, first), (second, 2, second), (first, 1, first)]


async def test_missing_weights_are_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(PredictionFailed, match=f"are missing at {tmp_path}; train the version again"):
        await loader(engine).load(str(tmp_path))
    assert engine.loaded == []


async def test_an_error_of_the_engine_is_the_reason(engine: Engine, tmp_path: Path) -> None:
    engine.error = ValueError("LoRA rank 32 is greater than max_lora_rank 16.")
    with pytest.raises(PredictionFailed, match=r"cannot be loaded: LoRA rank 32 is greater than options\."):
        await loader(engine).load(trained(tmp_path / "a"))


async def test_the_end_of_the_engine_is_not_an_error_of_the_adapter(engine: Engine, tmp_path: Path) -> None:
    engine.error = EngineDeadError()
    with pytest.raises(EngineDeadError):
        await loader(engine).load(trained(tmp_path / "a"))


def test_adapters_are_enabled_for_models_that_can_be_trained() -> None:
    options = VllmOptions(max_adapters=2, max_adapter_rank=32).model_dump()
    arguments = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 32}
    assert adapters.engine_arguments(options) == arguments
    assert adapters.engine_arguments({**options, "max_adapters": 0}) == {}


def test_adapters_take_memory_by_number_and_rank() -> None:
    assert adapters.footprint(8000, 1, 16) == 160
    assert adapters.footprint(8000, 4, 32) == 8 * 160
