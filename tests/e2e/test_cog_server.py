"""Projects in the style of Cog's documentation: what Cog's own server makes of them, and what we do.

Cog's server is the one of the ``cog`` package, started by hand in a copy of the project. It shows the schema
that it finds there; Cog's command line writes that at a build, and here it is written out by hand.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.model_groups import PROJECTS
from tests.e2e.test_conformance_predictions import create, ended
from tests.support.appliance_process import PATIENCE, Appliance, fetch, free_port, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.models("cog")]

TEXT = {"type": "string", "title": "Text", "x-order": 0}
WORDS = {
    "type": "array",
    "items": {"type": "string"},
    "title": "Output",
    "x-cog-array-type": "iterator",
    "x-cog-array-display": "concatenate",
}
PHRASE = {"type": "string", "format": "uri", "title": "Phrase", "description": "A file with what to say"}
#: project -> the components of its schema, as Cog's documentation has them
SCHEMAS: dict[str, dict[str, Any]] = {
    "hello": {
        "Input": {
            "type": "object",
            "title": "Input",
            "properties": {"text": {**TEXT, "description": "Text to prefix with 'hello '"}},
            "required": ["text"],
        },
        "Output": {"type": "string", "title": "Output"},
    },
    "resize": {
        "Input": {
            "type": "object",
            "title": "Input",
            "properties": {
                "image": {
                    "type": "string",
                    "format": "uri",
                    "title": "Image",
                    "description": "Picture to resize",
                    "x-order": 0,
                },
                "scale": {
                    "type": "number",
                    "title": "Scale",
                    "description": "Factor",
                    "default": 2.0,
                    "minimum": 0.1,
                    "maximum": 10,
                    "x-order": 1,
                },
                "filter": {
                    "allOf": [{"$ref": "#/components/schemas/filter"}],
                    "description": "How",
                    "default": "nearest",
                    "x-order": 2,
                },
            },
            "required": ["image"],
        },
        "Output": {"type": "string", "format": "uri", "title": "Output"},
        "filter": {
            "type": "string",
            "title": "filter",
            "enum": ["nearest", "bilinear"],
            "description": "An enumeration.",
        },
    },
    "words": {
        "Input": {
            "type": "object",
            "title": "Input",
            "properties": {
                "count": {
                    "type": "integer",
                    "title": "Count",
                    "description": "How many words",
                    "default": 3,
                    "minimum": 1,
                    "maximum": 10,
                    "x-order": 0,
                },
                "seed": {
                    "type": "integer",
                    "title": "Seed",
                    "description": "Where to begin; the first word if it is left out",
                    "x-order": 1,
                },
            },
        },
        "Output": WORDS,
    },
    "concurrent": {
        "Input": {
            "type": "object",
            "title": "Input",
            "properties": {
                "text": {**TEXT, "description": "What to say", "default": "canary"},
                "delay": {
                    "type": "number",
                    "title": "Delay",
                    "description": "Seconds between the parts",
                    "default": 0.0,
                    "x-order": 1,
                },
            },
        },
        "Output": WORDS,
    },
    "pupil": {
        "Input": {
            "type": "object",
            "title": "Input",
            "properties": {"text": {**TEXT, "description": "What to say", "default": "hello"}},
        },
        "Output": {"type": "string", "title": "Output"},
    },
}
LESSON: dict[str, Any] = {
    "Input": {
        "type": "object",
        "title": "TrainingInput",
        "properties": {
            "phrase": {**PHRASE, "x-order": 0},
            "steps": {
                "type": "integer",
                "title": "Steps",
                "description": "How many steps",
                "default": 2,
                "minimum": 1,
                "x-order": 1,
            },
        },
        "required": ["phrase"],
    },
    "Output": {"type": "object", "properties": {"weights": {"type": "string", "format": "uri"}}},
}


@contextlib.contextmanager
def cogs_server(
    appliance: Appliance,
    name: str,
    folder: Path,
    handler: str,
    components: dict[str, Any],
    mode: str = "predict",
) -> Iterator[httpx.Client]:
    """Cog's own server over a copy of the project, in the environment that was built for it."""
    shutil.copytree(PROJECTS / name, folder)
    file = handler.partition(":")[0]
    build = next(
        found.parent.parent
        for found in (appliance.home / "cog").glob(f"*/project/{file}")
        if found.read_text() == (folder / file).read_text()
    )
    (folder / ".cog").mkdir()
    document = {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": {},
        "components": {"schemas": components},
    }
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(document))
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{build / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        f"COG_{mode.upper()}_TYPE_STUB": handler,
        "COG_MAX_CONCURRENCY": "4" if name == "concurrent" else "1",
        "COG_LOG_LEVEL": "warn",
    }
    command = [str(build / "venv" / "bin" / "python"), "-m", "cog.server.http", "--host", "127.0.0.1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--x-mode", mode], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:

            def ready() -> bool:
                try:
                    return bool(client.get("/health-check").json()["status"] == "READY")
                except httpx.TransportError:
                    return False

            wait_for(ready, "Cog's server")
            yield client
    finally:
        server.terminate()
        server.wait(20)


def of_cog(server: httpx.Client, given: dict[str, Any]) -> Any:
    """Return what Cog's server makes of an input; it refuses an input while it ends the prediction before."""
    wait_for(lambda: server.get("/health-check").json()["status"] == "READY", "the slot of Cog's server")
    reply = server.post("/predictions", json={"input": given}).json()
    assert reply["status"] == "succeeded", reply
    return plain(reply["output"])


def of_ours(api: httpx.Client, name: str, given: dict[str, Any]) -> Any:
    record = ended(api, create(api, f"cog/{name}", **given))
    assert record["status"] == "succeeded", record
    return plain(record["output"])


def plain(output: Any) -> Any:
    """Output with the content of every file in place of its address."""
    match output:
        case str() if output.startswith("data:"):
            return base64.b64decode(output.partition(",")[2])
        case str() if output.startswith("http"):
            return fetch(output).content
        case list():
            return [plain(part) for part in output]
        case dict():
            return {key: plain(part) for key, part in output.items()}
    return output


def png_data_url() -> str:
    content = io.BytesIO()
    Image.effect_mandelbrot((12, 8), (-2, -1, 1, 1), 20).convert("RGB").save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("name", "handler", "inputs"),
    [
        ("hello", "run.py:Runner", [{"text": "world"}, {"text": ""}]),
        (
            "resize",
            "predict.py:Predictor",
            [{"image": png_data_url()}, {"image": png_data_url(), "scale": 0.5, "filter": "bilinear"}],
        ),
        ("words", "run.py:Runner", [{}, {"count": 5, "seed": 2}]),
        ("concurrent", "run.py:Runner", [{}, {"text": "both", "delay": 0.01}]),
        ("pupil", "predict.py:Predictor", [{}, {"text": "so"}]),
    ],
)
def test_outputs_and_schemas_are_those_of_cogs_own_server(
    api: httpx.Client,
    appliance: Appliance,
    tmp_path: Path,
    name: str,
    handler: str,
    inputs: list[dict[str, Any]],
) -> None:
    with cogs_server(appliance, name, tmp_path / name, handler, SCHEMAS[name]) as server:
        theirs = server.get("/openapi.json").json()["components"]["schemas"]
        for given in inputs:
            assert of_ours(api, name, given) == of_cog(server, given)
        if name == "concurrent":
            several = [{"text": str(number), "delay": 0.2} for number in range(4)]
            with ThreadPoolExecutor(4) as pool:
                directly = list(pool.map(lambda given: of_cog(server, given), several))
                through = list(pool.map(lambda given: of_ours(api, name, given), several))
            assert directly == through
        wrong = {"text": 3, "count": 0, "scale": 99}
        told = server.post("/predictions", json={"input": wrong})
        refused = api.post("/v1/predictions", json={"version": f"cog/{name}", "input": wrong})
        assert (told.status_code, refused.status_code) == (422, 422)
    version = api.get(f"/v1/models/cog/{name}").json()["latest_version"]
    ours = version["openapi_schema"]["components"]["schemas"]
    for component, schema in theirs.items():
        assert ours[component] == schema, component


def test_a_training_gives_the_weights_that_cogs_own_server_gives(
    api: httpx.Client, appliance: Appliance, tmp_path: Path
) -> None:
    phrase = "data:text/plain;base64," + base64.b64encode(b"learnt by heart").decode()
    with cogs_server(appliance, "pupil", tmp_path / "pupil", "train.py:train", LESSON, "train") as server:
        reply = server.post("/predictions", json={"input": {"phrase": phrase}}).json()
        assert reply["status"] == "succeeded", reply
    model = {"owner": "appliance", "name": "taught", "visibility": "private", "hardware": "cpu"}
    assert api.post("/v1/models", json=model).status_code == 201
    version = api.get("/v1/models/cog/pupil").json()["latest_version"]["id"]
    body = {"destination": "appliance/taught", "input": {"phrase": phrase}}
    training = api.post(f"/v1/models/cog/pupil/versions/{version}/trainings", json=body).json()
    record = ended(api, training)
    assert record["status"] == "succeeded", record
    assert plain(record["output"]["weights"]) == plain(reply["output"])["weights"] == b"learnt by heart"
