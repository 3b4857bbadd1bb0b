from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import adapters
from appliance.runners.vllm.adapters import AdapterLoader
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


def loader(engine: Any) -> AdapterLoader:
    return AdapterLoader(engine, Path("/nowhere"), 16)


def trained(folder: Path) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    return str(folder)


async def test_each_folder_has_an_id_of_its_own(engine: Engine, tmp_path: Path) -> None:
    first, second = trained(tmp_path / "a"), trained(tmp_path / "b")
    subject = loader(engine)
    requests = [await subject.load(folder) for folder in (first, second, first)]
    assert requests == engine.loaded
    assert requests == [(first, 1, first), (second, 2, second), (first, 1, first)]


async def test_missing_weights_are_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(PredictionFailed, match=f"{tmp_path}/adapter_config.json does not exist: an adapter"):
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


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LORA", "r": 16}, None),
        ({"peft_type": "LORA", "r": 32}, "the rank 32, but the model allows 16: raise max_adapter_rank"),
        ({"peft_type": "IA3", "r": 8}, "of the type IA3, but vLLM runs LoRA adapters only"),
        ({"r": 8}, "cannot be used: KeyError: 'peft_type'"),
    ],
)
def test_configs_of_adapters(tmp_path: Path, config: dict[str, Any], said: str | None) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = adapters.problem(tmp_path, 16)
    assert found is None if said is None else said in str(found)


def test_an_adapter_of_another_base_model(tmp_path: Path) -> None:
    def reason(**shapes: tuple[int, ...]) -> str | None:
        named = {f"base_model.model.{name}.weight": shape for name, shape in shapes.items()}
        safetensors(tmp_path / "adapter_model.safetensors", named)
        return adapters.foreign(tmp_path, {"q.weight": (8, 16), "norm.weight": (16,)})

    assert reason(**{"q.lora_A": (4, 16), "q.lora_B": (8, 4), "other.lora_A": (4, 2)}) is None
    assert reason(**{"q.lora_A": (4, 32)}) == "its q has the size 32, but that of this model has 16"
    assert reason(**{"q.lora_A": (4, 16), "q.lora_B": (9, 4)}) is not None
    assert "none of the layers" in str(reason(**{"k.lora_A": (4, 16)}))
    assert adapters.foreign(tmp_path, {}) is None, "the shapes of the base model are unknown"


def safetensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
