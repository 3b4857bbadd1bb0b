"""What a model needs, translated between this machine and another node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.cluster.node_spec import for_node, nodes_of, on_node, paths_of, replaced, with_local_devices
from appliance.runners.base import LoadSpec, Part


def spec(**changed: Any) -> LoadSpec:
    given: dict[str, Any] = {
        "model": "a/b", "version": "v", "kind": "vllm", "options": {}, "weights": None,
        "device": "gpu-box/cuda:0,gpu-box/cuda:1", "placement": ("gpu-box/cuda:0", "gpu-box/cuda:1"),
        "memory": 1, "threads": 1, "concurrency": 1, "cache": "/home/cache/vllm",
    }  # fmt: skip
    return LoadSpec(**{**given, **changed})


def test_the_nodes_are_those_of_the_devices() -> None:
    assert nodes_of(spec()) == ["gpu-box"]
    assert nodes_of(spec(placement=("box/cuda:1", "head/cuda:0", "head/cuda:1"))) == ["box", "head"]


def test_a_part_has_the_devices_of_its_node() -> None:
    placement = ("box/cuda:1", "box-2/cuda:0", "box-2/cuda:1")
    part = Part(index=1, count=2, address="10.0.0.2", leader="10.0.0.1", port=20000)
    sent = on_node(spec(device=",".join(placement), placement=placement), "box-2", part)
    assert (sent.device, sent.placement) == ("box-2/cuda:0,box-2/cuda:1", placement[1:])
    assert sent.part == part
    cpu = on_node(spec(device="cpu", placement=("head/cpu", "box/cpu")), "box")
    assert (cpu.device, cpu.placement, cpu.part) == ("cpu", ("box/cpu",), None)


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
