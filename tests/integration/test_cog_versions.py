"""Projects for older Pythons and older versions of Cog: the appliance against the server of that Cog."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from appliance.builds import project
from appliance.config import CogModel
from appliance.domain import file, input_schema
from appliance.domain.errors import WeightsError
from appliance.domain.interface import Interface
from appliance.domain.prediction import Done, Job, Output
from appliance.runners.base import LoadSpec
from appliance.runners.cog.loopback_server import LoopbackServer
from appliance.runners.cog.search_paths import with_programs
from appliance.worker.protocol import Commands
from appliance.worker.replica import Replica
from tests.support.appliance_process import PATIENCE, ROOT, free_port, wait_for
from tests.support.worker_processes import Caller, cog_spec

pytestmark = pytest.mark.integration

VETERAN = ROOT / "tests" / "projects" / "veteran"
TEXT = "data:text/plain;base64," + base64.b64encode(b"of the file\n").decode()
#: Python, the version of Cog in cog.yaml, and the version that runs the project.
VERSIONS = [
    ("3.8", None, "0.16.12"),
    ("3.8", "0.8.0", "0.8.0"),
    ("3.9", "0.9.26", "0.9.26"),
    ("3.11", "0.16.12", "0.16.12"),
    ("3.12", "0.14.12", "0.14.12"),
]
Built = Callable[..., LoadSpec]
#: Whether the package that the project needs is here, or apt-get can download it.
HAS_PACKAGE = shutil.which("hello") is not None or (
    shutil.which("apt-cache") is not None
    and subprocess.run(["apt-cache", "show", "hello"], capture_output=True, check=False).returncode == 0
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return a function that builds the project ``veteran`` for a Python and a version of Cog."""
    home = tmp_path_factory.mktemp("built")

    def build(python: str, cog: str | None, handler: str = "predict.py:Predictor", **loaded: Any) -> LoadSpec:
        source = home / f"{python}-{cog}-{handler.replace(':', '-')}"
        if not source.exists():
            shutil.copytree(VETERAN, source)
            settings = (source / "cog.yaml").read_text()
            settings = settings.replace('"3.8"', f'"{python}"').replace("predict.py:Predictor", handler)
            if handler.startswith("several.py"):
                settings = settings.replace("train: ", "concurrency: {max: 4}\n# ")
            if cog is not None:
                settings = settings.replace("build:\n", f'build:\n  sdk_version: "{cog}"\n')
            (source / "cog.yaml").write_text(settings)
        model = CogModel.model_validate(
            {"name": "cog/veteran", "kind": "cog", "source": {"path": str(source)}}
        )
        if not HAS_PACKAGE:
            pytest.skip("the system package hello is not installed, and apt-get does not know it")
        try:
            return cog_spec(home, model, kind=loaded.pop("kind", "cog"), environment=loaded)
        except WeightsError as error:
            if "cannot be downloaded" in error.detail:
                pytest.skip(error.detail)  # no such Python is here, and no server that has one is reached
            raise

    return build


@contextlib.contextmanager
def cogs_server(spec: LoadSpec, mode: str = "predict") -> Iterator[httpx.Client]:
    """Start the server of the project's Cog, without the appliance."""
    build = Path(spec.options["build"])
    port = free_port()
    variables = {**os.environ, **project.described(build)["environment"], "PORT": str(port)}
    variables["PYTHONUNBUFFERED"] = ""  # otherwise these versions of Cog lose spaces of the text
    with (build / f"server-{port}.log").open("wb") as log:
        server = subprocess.Popen(
            [str(project.python(build)), "-m", "cog.server.http", "--x-mode", mode],
            cwd=build / "project",
            env=with_programs(variables, build),
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False) as client:

            def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return bool(client.get("/health-check").json()["status"] == "READY")
                return False

            wait_for(ready, "Cog's server")
            yield client
    finally:
        server.terminate()
        server.wait(PATIENCE)


async def through_webhook(server: httpx.Client, given: dict[str, Any], path: str = "/predictions") -> Any:
    """Return the last webhook, in which output files are paths.

    Cog 0.16 has no direct response for a failed prediction, and for a file inside of an object.
    """
    webhooks: asyncio.Queue[Any] = asyncio.Queue()
    receiver = LoopbackServer()
    receiver.start(Path(), webhooks.put_nowait)
    body = {"input": given, "webhook": receiver.webhook_url, "webhook_events_filter": ["completed"]}
    response = await asyncio.to_thread(server.post, path, json=body, headers={"Prefer": "respond-async"})
    assert response.status_code == httpx.codes.ACCEPTED
    last = await webhooks.get()
    return {key: content(last.get(key)) for key in ("status", "error", "output", "logs")}


async def through_replica(caller: Caller, folder: Path, id: str, given: dict[str, Any]) -> dict[str, Any]:
    """Run a prediction, and return it in the form of Cog's response."""
    folder.mkdir(exist_ok=True)
    for name in {"file", "phrase"} & given.keys():  # the gateway has fetched it
        (folder / f"{name}.txt").write_bytes(base64.b64decode(given[name].partition(",")[2]))
        given = {**given, name: str(folder / f"{name}.txt")}
    caller.replica.receive(Commands(jobs=[Job(id, 1, given, folder=str(folder))]))
    done = await caller.done(id)
    values = [value for event in caller.events[id] if isinstance(event, Output) for value in event.values]
    single = len(values) == 1 and not isinstance(values[0], str)
    output: Any = values[0] if single else values or None
    logs = caller.logs(id)
    return {"status": done.status, "error": done.error, "output": content(output), "logs": logs}


def content(value: Any) -> Any:
    """Return an output with the content of each file in place of the file or its path."""
    if isinstance(value, msgspec.msgpack.Ext):
        return Path(file.unpack(value.code, memoryview(value.data)).path).read_bytes()
    if isinstance(value, str) and value.startswith("/tmp/"):
        return Path(value).read_bytes()
    if isinstance(value, dict):
        return {key: content(part) for key, part in value.items()}
    return [content(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("python", "cog", "running"), VERSIONS)
async def test_predictions_and_schemas_are_those_of_cogs_own_server(
    built: Built, replica: Replica, tmp_path: Path, python: str, cog: str | None, running: str
) -> None:
    spec = built(python, cog)
    await replica.load(spec)
    caller = Caller(replica)
    described = project.described(Path(spec.options["build"]))
    assert described["cog"] == running
    with cogs_server(spec) as server:
        document = server.get("/openapi.json").json()["components"]["schemas"]
        ours = input_schema.document(msgspec.convert(described["interface"], Interface))
        for name in ("Input", "Output", "style"):
            assert ours["components"]["schemas"][name] == document[name], name
        inputs: list[dict[str, Any]] = [
            {"text": "hello"},
            {"text": "hello", "style": "loud", "times": 3, "seed": 7, "file": TEXT},
            {"text": "\u2028 and \x85", "fail": True},
        ]
        for number, given in enumerate(inputs):
            theirs = await through_webhook(server, given)
            mine = await through_replica(caller, tmp_path / "outputs", str(number), given)
            assert without_paths(mine) == without_paths(theirs)
    output = mine if mine["output"] else await through_replica(caller, tmp_path, "last", {"text": "x"})
    assert output["output"]["python"] == python
    facts = ["tool x", "Hello, world!", "of the environment", python[:3], "1.16.0"]
    assert output["output"]["facts"][:5] == facts


def without_paths(prediction: dict[str, Any]) -> dict[str, Any]:
    """Return a prediction without the traceback in its log, which has line numbers and paths."""
    return {**prediction, "logs": prediction["logs"].partition("Traceback")[0]}


@pytest.mark.parametrize(("python", "cog"), [("3.8", None), ("3.8", "0.8.0"), ("3.9", "0.9.26")])
async def test_a_function_that_yields_is_streamed(
    built: Built, replica: Replica, tmp_path: Path, python: str, cog: str | None
) -> None:
    spec = built(python, cog, "predict.py:words")
    await replica.load(spec)
    caller = Caller(replica)
    with cogs_server(spec) as server:
        theirs = await through_webhook(server, {"count": 5})
    mine = await through_replica(caller, tmp_path, "words", {"count": 5})
    assert mine == theirs
    assert mine["output"] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("cog", ["0.14.12", "0.16.12"])
async def test_several_predictions_run_at_the_same_time(
    built: Built, replica: Replica, tmp_path: Path, cog: str
) -> None:
    await replica.load(built("3.11", cog, "several.py:Predictor"))
    caller = Caller(replica)
    texts = ["first", "second", "third", "fourth"]
    found = await asyncio.gather(
        *(through_replica(caller, tmp_path, text, {"text": text, "together": 4}) for text in texts)
    )
    for text, prediction in zip(texts, found, strict=True):
        assert prediction == {
            "status": "succeeded",
            "error": None,
            "output": list(text),
            "logs": f"saying {text}\nsaid {text}\n",
        }


@pytest.mark.parametrize(("python", "cog"), [("3.8", None), ("3.8", "0.8.0")])
async def test_a_canceled_prediction_frees_the_server(
    built: Built, replica: Replica, tmp_path: Path, python: str, cog: str | None
) -> None:
    await replica.load(built(python, cog))
    caller = Caller(replica)
    for number in range(3):
        await caller.start(f"canceled-{number}", text="x", delay=600.0)
        await caller.begun(f"canceled-{number}")
        await caller.cancel(f"canceled-{number}")
        assert await caller.done(f"canceled-{number}") == Done("canceled")
    mine = await through_replica(caller, tmp_path / "outputs", "next", {"text": "done"})
    assert (mine["status"], mine["output"]["text"]) == ("succeeded", "done")


@pytest.mark.parametrize(("python", "cog"), [("3.8", None), ("3.8", "0.8.0")])
async def test_a_project_whose_process_ends_ends_the_worker_process(
    built: Built, replica: Replica, python: str, cog: str | None
) -> None:
    await replica.load(built(python, cog))
    caller = Caller(replica)
    await caller.start("crashed", text="x", crash=True)
    lost = await caller.over()
    assert "the worker process of cog/veteran exited with code 1" in str(lost)


@pytest.mark.parametrize(("python", "cog"), [("3.8", None), ("3.8", "0.8.0")])
async def test_a_training_gives_the_weights_of_cogs_own_server(
    built: Built, replica: Replica, tmp_path: Path, python: str, cog: str | None
) -> None:
    spec = built(python, cog, kind="cog-train")
    path = project.described(Path(spec.options["build"]))["training"]["path"]
    await replica.load(spec)
    caller = Caller(replica)
    mine = await through_replica(caller, tmp_path, "training", {"phrase": TEXT})
    with cogs_server(spec, "train") as server:
        theirs = await through_webhook(server, {"phrase": TEXT}, path)
    assert (mine["status"], mine["logs"]) == (theirs["status"], theirs["logs"])
    assert mine["output"] == theirs["output"]["weights"] == b"of the file\n"


async def test_weights_of_a_training_are_loaded(built: Built, replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("learnt by heart")
    await replica.load(built("3.8", None, COG_WEIGHTS=str(tmp_path / "weights.txt")))
    mine = await through_replica(Caller(replica), tmp_path, "weights", {"text": "x"})
    assert mine["output"]["facts"][-1] == "learnt by heart"


def test_the_version_names_the_keys_that_were_not_honoured(built: Built) -> None:
    described = project.described(Path(built("3.8", None).options["build"]))
    info = input_schema.document(msgspec.convert(described["interface"], Interface))["info"]
    assert info["x-cog-version"] == "0.16.12"
    assert {each.partition(":")[0] for each in info["x-not-honoured"]} >= {
        "image",
        "build.cuda",
        "build.run[0]",
    }
    assert json.loads(json.dumps(info)) == info
