"""Cog projects that are built as images with buildah, and run in sandboxes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import Appliance
from tests.support.cog_images import CogImages

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not all(map(shutil.which, ("buildah", "bwrap", "skopeo", "umoci"))),
        reason="needs the Debian packages buildah, bubblewrap, skopeo and umoci",
    ),
]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # the images of this test have it
COG_YAML = """
build:
  python_version: "{python}"
  python_packages: ["six==1.16.0"]
  run:
    - echo "written by a command" > /etc/of-the-build{more}
environment: [GREETING=hello]
predict: "predict.py:Predictor"
"""
PREDICT = """
import os
from pathlib import Path
import six
from cog import BasePredictor, Input

class Predictor(BasePredictor):
    def predict(self, name: str = Input(description="Who")) -> str:
        text = Path("/etc/of-the-build").read_text().strip()
        return f"{os.environ['GREETING']} {name}: six {six.__version__}, {text}"
"""
MODELS = """
code: {{cog: true}}
models:
  - {{name: test/echo, kind: echo}}
  - {{name: cog/image, kind: cog, memory: 1GiB, build: image, base: "{base}", source: {{path: project}}}}
  - {{name: cog/auto, kind: cog, memory: 1GiB, base: "{base}", source: {{path: system}}}}
  - {{name: cog/broken, kind: cog, memory: 1GiB, build: image, base: "{base}", source: {{path: broken}}}}
"""


def project(folder: Path, more: str) -> None:
    folder.mkdir()
    (folder / "cog.yaml").write_text(COG_YAML.format(more=more, python=PYTHON))
    (folder / "predict.py").write_text(PREDICT)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    home = tmp_path_factory.mktemp("home")
    images = CogImages(tmp_path_factory.mktemp("images"), "0.23.1", more=("pip",))
    (home / "empty").mkdir()
    base = images.make("base", home / "empty", labels={})
    project(home / "project", "")
    project(home / "system", "; apt-get --version || true")
    project(home / "broken", "; echo no such thing; exit 3")
    config = home / "models.yaml"
    config.write_text(MODELS.format(base=f"oci:{base}:latest"))
    started = Appliance(home, config)
    pull = [str(started.program), "pull", "--config", str(config)]
    done = subprocess.run(pull, env=started.environment, capture_output=True, text=True, check=False)
    started.output.write_text(done.stderr)
    with started.running():
        yield started


def predict(client: httpx.Client, model: str, **input: Any) -> Any:
    headers = {"Prefer": "wait=60"}
    url = f"/v1/models/{model}/predictions"
    record: dict[str, Any] = client.post(url, json={"input": input}, headers=headers).json()
    assert record["status"] == "succeeded", record
    return record["output"]


@pytest.mark.parametrize("model", ["cog/image", "cog/auto"])
def test_a_project_runs_in_the_image_that_its_cog_yaml_describes(client: httpx.Client, model: str) -> None:
    expected = "hello you: six 1.16.0, written by a command"
    assert predict(client, model, name="you") == expected
    version = client.get(f"/v1/models/{model}").json()["latest_version"]
    inputs = version["openapi_schema"]["components"]["schemas"]["Input"]
    assert inputs["properties"]["name"]["description"] == "Who"
    assert inputs["required"] == ["name"]


def test_check_says_how_each_project_is_built_and_why(appliance: Appliance) -> None:
    command = [str(appliance.program), "check", "--config", str(appliance.config)]
    done = subprocess.run(command, env=appliance.environment, capture_output=True, text=True, check=False)
    assert "cog/image is built as an image, because models.yaml says so" in done.stdout
    reason = "because build.run[0] of its cog.yaml changes the system"
    assert f"cog/auto is built as an image, {reason}" in done.stdout


def test_a_command_that_fails_is_named_and_leaves_only_its_model_out(
    client: httpx.Client, appliance: Appliance
) -> None:
    assert predict(client, "test/echo", text="x") == "x"
    (problem,) = client.get("/admin/status").json()["not_served"]
    assert problem["name"] == "cog/broken"
    log = " ".join(appliance.output.read_text().split())
    assert "model cog/broken: its image cannot be built: build.run[0] ended with code" in log
    assert "no such thing" in log
    assert len([each for each in (appliance.home / "images").iterdir() if each.name[0] != "."]) == 2
