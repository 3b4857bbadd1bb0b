"""What a model needs, translated between this machine and another node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.cluster.node_spec import for_node, node_of, paths_of, replaced, with_local_devices
from appliance.runners.base import LoadSpec


def spec(**changed: Any) -> LoadSpec:
    given: dict[str, Any] = {
        "model": "a/b", "version": "v", "kind": "vllm", "options": {}, "weights": None,
        "device": "gpu-box/cuda:0,gpu-box/cuda:1", "placement": ("gpu-box/cuda:0", "gpu-box/cuda:1"),
        "memory": 1, "threads": 1, "concurrency": 1, "cache": "/home/cache/vllm",
    }  # fmt: skip
    return LoadSpec(**{**given, **changed})


def test_the_node_is_that_of_the_devices() -> None:
    assert node_of(spec()) == "gpu-box"


def test_a_worker_process_gets_the_names_of_its_own_machine() -> None:
    local = with_local_devices(spec(), "gpu-box")
    assert (local.device, local.placement) == ("cuda:0,cuda:1", ("cuda:0", "cuda:1"))
    cpu = with_local_devices(spec(device="cpu", placement=("gpu-box/large",)), "gpu-box")
    assert (cpu.device, cpu.placement) == ("cpu", ("large",))


def test_weights_and_paths_in_options_are_those_of_the_copies(tmp_path: Path) -> None:
    weights, draft = tmp_path / "weights", tmp_path / "draft.gguf"
    weights.mkdir()
    draft.touch()
    asked = spec(
        weights=str(weights),
        options={"loras": {"style": str(draft)}, "template": "/tmp", "more": [str(draft), 1]},
        paths=(str(draft), "/"),
    )
    assert paths_of(asked) == [weights, draft]
    sent = for_node(asked, "gpu-box", Path("/n/cache"), {str(weights): "/n/w", str(draft): "/n/d"})
    assert sent.weights == "/n/w"
    assert sent.options == {"loras": {"style": "/n/d"}, "template": "/tmp", "more": ["/n/d", 1]}
    assert sent.paths == ("/n/d", "/")
    assert sent.cache == "/n/cache/vllm"


def test_only_whole_texts_are_replaced() -> None:
    value = {"a": ["/x", "/x/y"], "b": {"c": "/x"}, "d": None}
    assert replaced(value, {"/x": "/n"}) == {"a": ["/n", "/x/y"], "b": {"c": "/n"}, "d": None}
