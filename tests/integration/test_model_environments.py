"""Models with environments of their own, beside models with the packages of the appliance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
import transformers
import yaml

from tests.support import tiny_models
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.integration

OLDER = "4.57.6"


def has_package(requirement: str) -> bool:
    """Return whether the package index can be reached and has the package."""
    options = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, requirement]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make_weights(folder: Path) -> None:
    tiny_models.tokenizer(folder)
    file = folder / "tokenizer_config.json"  # older versions do not have the class that it names
    file.write_text(
        json.dumps(json.loads(file.read_bytes()) | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    words = len(tiny_models.SPECIAL + tiny_models.WORDS)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=words, **size)).save_pretrained(folder)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    for package in (f"transformers=={OLDER}", "torchao"):
        if not has_package(package):
            pytest.skip(f"the package index does not have {package}")
    home = tmp_path_factory.mktemp("home")
    weights = home / "bert"
    make_weights(weights)
    shared = {"kind": "embeddings", "source": {"path": str(weights)}, "memory": "2GiB"}
    models = [
        {"name": "test/usual", **shared},
        {"name": "test/older", **shared, "environment": {"requirements": [f"transformers=={OLDER}"]}},
        {
            "name": "test/quantized",
            "kind": "diffusers",
            "source": {"builtin": "tiny-shapes"},
            "environment": {"requirements": ["torchao"]},
            "options": {
                "num_inference_steps": 4,
                "quantization": {"method": "torchao_int8", "components": ["unet"]},
            },
        },
        {"name": "test/echo", "kind": "echo"},
        {"name": "test/broken", "kind": "echo", "environment": {"requirements": ["no-such-package-1f6e"]}},
    ]
    config = home / "models.yaml"
    config.write_text(yaml.safe_dump({"models": models}))
    started = Appliance(home, config)
    with started.running():
        yield started


def predict(client: httpx.Client, model: str, **input: Any) -> dict[str, Any]:
    headers = {"Prefer": "wait=60"}
    url = f"/v1/models/{model}/predictions"
    record: dict[str, Any] = client.post(url, json={"input": input}, headers=headers).json()
    assert record["status"] == "succeeded", record
    return record


def libraries(appliance: Appliance, model: str) -> set[Path]:
    """Return the libraries that the worker process of a model has loaded."""
    marks = (appliance.home / "run" / "hosts").iterdir()
    (worker,) = (mark for mark in marks if json.loads(mark.read_bytes())["model"] == model)
    return {Path(each.path) for each in psutil.Process(int(worker.name)).memory_maps()}


def test_models_with_two_versions_of_a_library_are_served_side_by_side(
    client: httpx.Client, appliance: Appliance
) -> None:
    vectors = [predict(client, model, texts=["the dog"])["output"] for model in ("test/usual", "test/older")]
    assert vectors[0] == [pytest.approx(vectors[1][0], abs=1e-5)]
    environments = appliance.home / "environments"
    # nothing is left of the build that failed
    sites = list(environments.glob("*/venv/lib/python*/site-packages"))
    assert len(sites) == len(list(environments.iterdir())) == 2
    (site,) = (each for each in sites if not (each / "torchao").exists())
    assert transformers.__version__ != OLDER
    assert (site / f"transformers-{OLDER}.dist-info").is_dir()
    for model, apart in (("test/usual", False), ("test/older", True)):
        for library in libraries(appliance, model):
            if "site-packages" in library.parts:
                assert library.is_relative_to(site) is apart, (model, library)
    own = Path(torch.__file__ or "")
    assert (site / "torch" / "__init__.py").samefile(own)  # which takes no space


def test_a_library_in_the_environment_of_a_model_quantizes_it(client: httpx.Client) -> None:
    record = predict(client, "test/quantized", prompt="a red circle on a black background", seed=1)
    assert record["metrics"]["image_count"] == 1


def test_an_environment_that_cannot_be_built_leaves_only_its_model_out(
    client: httpx.Client, appliance: Appliance
) -> None:
    assert predict(client, "test/echo", text="x")["output"] == "x"
    (problem,) = client.get("/admin/status").json()["not_served"]
    assert problem["name"] == "test/broken"
    assert problem["problem"] == "the environment of model test/broken is not built: run `appliance pull`"
    log = " ".join(appliance.output.read_text().split())  # lines are wrapped
    assert "model test/broken: its environment cannot be built" in log
    assert "no-such-package-1f6e was not found in the package registry" in log


def test_check_lists_the_packages_that_differ(appliance: Appliance) -> None:
    command = [str(appliance.program), "check", "--config", str(appliance.config)]
    done = subprocess.run(command, env=appliance.environment, capture_output=True, text=True, check=False)
    assert f"transformers {OLDER} instead of {transformers.__version__}" in done.stdout
