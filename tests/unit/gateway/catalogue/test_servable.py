"""One model whose files are of no use is left out, and said to be; the others are served."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from appliance import config as configuration
from appliance.builds import project
from appliance.config import ClusterConfig, Config
from appliance.domain.errors import WeightsError
from appliance.gateway.catalogue.servable import Servable, servable
from appliance.machine.hardware import Hardware, hardware
from appliance.weights import present
from tests.support.engine_bench import HARDWARE

DEEP = 100_000
ECHO = "  - {name: test/echo, kind: echo}\n"


def nested_header(folder: Path) -> None:
    """A safetensors file whose header no parser gets to the end of."""
    header = b"[" * DEEP + b"]" * DEEP
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def nested_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[" * DEEP + "]" * DEEP)


def odd_index(folder: Path) -> None:
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]})
    )
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text('{"block_out_channels": 5}')


def built(description: dict[str, Any]) -> Callable[[Path], None]:
    """A Cog project whose build says this."""

    def build(folder: Path) -> None:
        (folder / "project").mkdir()
        (folder / "project" / "cog.yaml").write_text("run: run.py:Runner\n")
        model = config_of(folder, COG).models[0]
        place = project.folder(folder / "home", model)
        place.mkdir(parents=True)
        (place / project.DESCRIPTION).write_text(json.dumps(description))

    return build


def test_a_model_on_several_machines_waits_for_the_restart_that_applies_the_section(tmp_path: Path) -> None:
    model = {"name": "a/large", "kind": "vllm", "source": {"path": str(tmp_path)}, "machines": 2}
    config = Config.model_validate({"models": [model, {"name": "test/echo", "kind": "echo"}]})
    found = servable(config, tmp_path / "home", HARDWARE, 0.0)
    (reason,) = found.left_out.values()
    assert reason.endswith("cluster.private_network needs a restart: restart the appliance")
    assert [each.name for each in found.config.models] == ["test/echo"]


def interface(**more: Any) -> dict[str, Any]:
    return {"input": {"type": "object", "properties": {}, **more}, "output": {"type": "string"}}


COG = "kind: cog, source: {path: project}"
UNREADABLE = f"kind: vllm, source: {{path: {'x' * 300}.gguf}}"  # the system refuses such a name
#: what is wrong -> what makes it so, the model in models.yaml, and what is said of it
FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "nested header": (
        nested_header,
        "kind: embeddings, source: {path: .}",
        "model.safetensors is damaged: its header is nested too deeply",
    ),
    "nested index": (nested_index, "kind: diffusers, source: {path: .}", "RecursionError"),
    "odd index": (odd_index, "kind: diffusers, source: {path: .}", "TypeError"),
    "unreadable path": (lambda _: None, UNREADABLE, "File name too long"),
    "not built": (lambda _: None, COG, "has no build at"),
    "no concurrency": (built({"interface": interface()}), COG, "KeyError: 'concurrency'"),
    "no interface": (built({"concurrency": 1}), COG, "KeyError: 'interface'"),
    "odd interface": (built({"concurrency": 1, "interface": {"input": 5}}), COG, "ValidationError"),
    "lone surrogate": (
        built({"concurrency": 1, "interface": interface(description="\ud800")}),
        COG,
        "UnicodeEncodeError",
    ),
    "odd training": (
        built({"concurrency": 1, "interface": interface(), "training": {"handler": "train.py:train"}}),
        COG,
        "KeyError: 'interface'",
    ),
}


def config_of(folder: Path, model: str) -> Config:
    file = folder / "models.yaml"
    file.write_text(f"code: {{cog: true}}\nmodels:\n  - {{name: test/broken, {model}}}\n{ECHO}")
    return configuration.load(file)


def on_nodes(devices: Literal["gpu", "cpu"]) -> Hardware:
    return hardware((), ClusterConfig(address="192.0.2.1", devices=devices), "head")


def tried(config: Config, folder: Path) -> Servable:
    return servable(config, folder / "home", HARDWARE, 0.0)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_models_fault_leaves_it_out_and_the_rest_is_served(fault: str, tmp_path: Path) -> None:
    make, model, said = FAULTS[fault]
    make(tmp_path)
    found = tried(config_of(tmp_path, model), tmp_path)
    assert said in found.left_out.pop("test/broken")
    assert found.left_out == {}
    assert [model.name for model in found.config.models] == ["test/echo"]
    assert [card.name for card, _ in found.described] == ["test/echo"]
    assert [demand.model for demand in found.demands] == ["test/echo"]


def test_what_tells_weights_from_others_and_cannot_be_read_is_an_error_of_the_weights(tmp_path: Path) -> None:
    model = config_of(tmp_path, UNREADABLE).models[0]
    with pytest.raises(WeightsError, match=r"files of model test/broken cannot .*File name too long"):
        present(tmp_path / "home", model)


def test_models_that_run_only_on_the_head_are_left_out_if_it_runs_none(tmp_path: Path) -> None:
    environment = "environment: {requirements: [cowsay]}"
    models = f"{ECHO}  - {{name: test/apart, kind: echo, {environment}}}\n  - {{name: test/cog, {COG}}}\n"
    (tmp_path / "models.yaml").write_text(f"code: {{cog: true}}\nmodels:\n{models}")
    config = configuration.load(tmp_path / "models.yaml")
    found = servable(config, tmp_path / "home", on_nodes("gpu"), 0.0)
    assert [model.name for model in found.config.models] == ["test/echo"]
    assert {name: reason.partition(":")[0] for name, reason in found.left_out.items()} == {
        "test/apart": "environment of its own",
        "test/cog": "Cog project",
    }


#: A program that describes the models of a config for nodes with GPUs, on a machine without the engines.
WITHOUT_ENGINES = """
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"vllm", "torch", "triton", "pynvml", "diffusers", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
from appliance import config
from appliance.gateway.catalogue.servable import servable
from appliance.machine.hardware import hardware

read = config.load(Path(sys.argv[1]))
found = servable(read, Path(sys.argv[2]), hardware((), read.cluster, "head"), 0.0)
assert not found.left_out, found.left_out
for each in found.demands:
    print(each.model, each.memory, each.sleep_footprint is not None)
"""


def test_no_engine_is_needed_to_describe_models_for_nodes_with_gpus(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    header = json.dumps({"w": {"dtype": "F16", "shape": [512], "data_offsets": [0, 1024]}}).encode()
    (weights / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(1024))
    (weights / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    source = f"source: {{path: {weights}}}"
    models = [f"{{name: test/{kind}, kind: {kind}, {source}}}" for kind in ("vllm", "embeddings", "whisper")]
    models.append(f"{{name: test/mask, kind: transformers, {source}, options: {{task: fill-mask}}}}")
    file = tmp_path / "models.yaml"
    file.write_text(
        f"hardware: {{devices: none}}\ncluster: {{address: 192.0.2.1}}\nmodels: [{', '.join(models)}]\n"
    )
    command = [sys.executable, "-c", WITHOUT_ENGINES, str(file), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    described = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _, _ in described] == [
        "test/vllm", "test/embeddings", "test/whisper", "test/mask",
    ]  # fmt: skip
    assert all(int(memory) > 2**28 for _, memory, _ in described)
    assert {name for name, _, sleeps in described if sleeps == "True"} >= {"test/vllm", "test/embeddings"}
