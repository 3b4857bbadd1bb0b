"""What a prediction needs before it runs."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from appliance.domain.prediction import Prediction
from appliance.gateway.engine.active import ActivePrediction
from appliance.runners import model_configs
from tests.support.engine_bench import entry


@pytest.mark.parametrize(("kind", "fetched"), [("echo", {}), ("vllm", {"lora_weights": "fofr/flux-80s"})])
def test_only_inputs_of_models_with_adapters_name_adapters(kind: str, fetched: dict[str, str]) -> None:
    source = {} if kind == "echo" else {"source": {"hub": "a/b", "revision": "main"}}
    model = model_configs()[kind].model_validate({"name": "test/echo", "kind": kind, **source})
    input = {"lora_weights": "fofr/flux-80s", "text": "x"}
    record = Prediction(
        id="p", model="test/echo", version="v", owner="me", input=input, created_at=0.0, stream_token="s"
    )
    active = ActivePrediction(record, replace(entry("test/echo"), model=model), input)
    assert active.adapters == fetched
    assert active.has_files == bool(fetched)
