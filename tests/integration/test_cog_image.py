"""Cog images: pulled from a registry of this machine, unpacked, and run in sandboxes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.appliance_process import ROOT, Appliance, fetch, free_port, wait_for
from tests.support.cog_images import CogImages

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not all(map(shutil.which, ("bwrap", "skopeo", "umoci", "docker-registry"))),
        reason="needs the Debian packages bubblewrap, skopeo, umoci and docker-registry",
    ),
]

PROJECT = ROOT / "tests" / "projects" / "old"
LOGIN = "user:the password of the registry"
PASSWORD_HASH = "$2b$04$MJsejRjAENcCKPQ5EhrhdOnmjVJd7j.9ibDq.9M0S2ZjQ.Yi4DK.2"
NO_SUCH = "0" * 64
SETUP_FAILS = """
from cog import BasePredictor

class Predictor(BasePredictor):
    def setup(self):
        raise RuntimeError("the weights are missing")

    def predict(self) -> str:
        return "never"
"""
ITERATES = """
import os
from typing import Iterator
from cog import BasePredictor, Path

class Predictor(BasePredictor):
    def predict(self) -> Iterator[Path]:
        for number in range(3):
            print("file", number)
            os.mkdir(f"/tmp/{number}")
            path = Path(f"/tmp/{number}/same-name.txt")
            path.write_text(f"file {number}")
            yield path
"""
MODELS = """
code:
  cog: true
models:
  - name: test/echo
    kind: echo
    memory: 64MiB
  - name: image/digest
    kind: cog
    source: {{image: "{registry}/models/old@{digest}"}}
    memory: 256MiB
  - name: image/tag
    kind: cog
    source: {{image: "{registry}/models/old:v1"}}
    memory: 256MiB
    options:
      environment: {{GREETING: "good morning"}}
  - name: image/archive
    kind: cog
    source: {{image: "docker-archive:{folder}/old.tar"}}
    memory: 256MiB
  - name: image/layout
    kind: cog
    source: {{image: "oci:{folder}/iterates"}}
    memory: 256MiB
  - name: image/crashing
    kind: cog
    source: {{image: "oci:{folder}/crashing"}}
    memory: 256MiB
  - name: image/bad-digest
    kind: cog
    source: {{image: "{registry}/models/old@sha256:{no_such}"}}
    memory: 256MiB
  - name: image/bad-reference
    kind: cog
    source: {{image: "{registry}/models/none:v1"}}
    memory: 256MiB
  - name: image/unlabelled
    kind: cog
    source: {{image: "oci:{folder}/unlabelled"}}
    memory: 256MiB
  - name: image/other-command
    kind: cog
    source: {{image: "oci:{folder}/other-command"}}
    memory: 256MiB
"""


class Registry:
    """A registry of container images that requires a login."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
            "http": {"addr": self.address},
            "auth": {"htpasswd": {"realm": "test", "path": str(folder / "passwords")}},
        }
        (folder / "registry.yml").write_text(json.dumps(config))
        (folder / "passwords").write_text(f"user:{PASSWORD_HASH}\n")
        login = {"auths": {self.address: {"auth": base64.b64encode(LOGIN.encode()).decode()}}}
        settings = f'[[registry]]\nlocation = "{self.address}"\ninsecure = true\n'
        for name, text in (
            (".docker/config.json", json.dumps(login)),
            (".config/containers/registries.conf", settings),
        ):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text(text)
        self.variables = {"HOME": str(folder)}
        with (folder / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(folder / "registry.yml")], stdout=log, stderr=log
            )
        wait_for(self._answers, "the registry")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def skopeo(self, *arguments: str) -> str:
        variables = {**os.environ, **self.variables}
        done = subprocess.run(
            ["skopeo", *arguments], env=variables, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def _answers(self) -> bool:
        try:
            return fetch(f"http://{self.address}/v2/").status_code == 401
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CogImages:
    return CogImages(tmp_path_factory.mktemp("images"), "0.8.6")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.close()


def project(folder: Path, code: str) -> Path:
    folder.mkdir()
    (folder / "cog.yaml").write_text('predict: "predict.py:Predictor"\n')
    (folder / "predict.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def appliance(
    images: CogImages, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Appliance]:
    folder, home = images.folder, tmp_path_factory.mktemp("home")
    old = images.make("old", PROJECT)
    images.make("iterates", project(home / "iterates", ITERATES))
    images.make("crashing", project(home / "crashing", SETUP_FAILS))
    images.make("unlabelled", PROJECT, labels={"run.cog.version": "0.8.6"})
    images.make("other-command", PROJECT, config={"Entrypoint": None, "Cmd": ["sh"]})
    registry.skopeo("copy", "--quiet", f"oci:{old}", f"docker://{registry.address}/models/old:v1")
    registry.skopeo("copy", "--quiet", f"oci:{old}", f"docker-archive:{folder / 'old.tar'}:old:v1")
    reference = f"docker://{registry.address}/models/old:v1"
    digest = registry.skopeo("inspect", "--format", "{{.Digest}}", reference)
    config = home / "models.yaml"
    config.write_text(MODELS.format(registry=registry.address, digest=digest, folder=folder, no_such=NO_SUCH))
    started = Appliance(home, config, variables=registry.variables)
    with started.running():
        yield started


def predict(client: httpx.Client, model: str, **input: Any) -> dict[str, Any]:
    headers = {"Prefer": "wait=60"}
    body = {"input": input}
    record = client.post(f"/v1/models/{model}/predictions", json=body, headers=headers)
    assert record.status_code in {200, 201, 202}, record.text
    return ended(client, record.json())


def ended(client: httpx.Client, record: dict[str, Any]) -> dict[str, Any]:
    wait_for(lambda: client.get(record["urls"]["get"]).json()["completed_at"], "the end of the prediction")
    found: dict[str, Any] = client.get(record["urls"]["get"]).json()
    return found


def content(client: httpx.Client, url: str) -> str:
    if url.startswith("data:"):
        return base64.b64decode(url.partition(",")[2]).decode()
    return client.get(url).text


def test_images_that_cannot_be_used_are_left_out_with_their_reasons(
    client: httpx.Client, appliance: Appliance
) -> None:
    assert predict(client, "test/echo", text="x")["status"] == "succeeded"
    status = client.get("/admin/status").text
    found = json.loads(status)
    reasons = {each["name"]: each["problem"] for each in found["not_served"]}
    assert set(reasons) == {
        "image/bad-digest", "image/bad-reference", "image/unlabelled", "image/other-command"
    }  # fmt: skip
    assert all("run `appliance pull`" in reason for reason in reasons.values())
    log = appliance.output.read_text().replace("\n", "")  # lines are wrapped
    assert f"/models/old@sha256:{NO_SUCH} cannot be pulled" in log
    assert "/models/none:v1 cannot be pulled" in log
    assert "or log in with: skopeo login 127.0.0.1" in log
    assert "has no label run.cog.openapi_schema" in log
    assert "which does not start Cog's server" in log
    secret = base64.b64encode(LOGIN.encode()).decode()
    for text in (status, log):
        assert secret not in text
        assert LOGIN not in text


def test_a_record_has_the_fields_that_the_server_in_the_image_gives(
    client: httpx.Client, images: CogImages, tmp_path: Path
) -> None:
    folder = tmp_path / "src"
    shutil.copytree(PROJECT, folder)
    port = free_port()
    variables = images.environment() | {"PORT": str(port)}
    server = subprocess.Popen([sys.executable, "-m", "cog.server.http"], cwd=folder, env=variables)
    url = f"http://127.0.0.1:{port}"
    picture = "data:text/plain;base64," + base64.b64encode(b"in the file").decode()
    inputs: list[dict[str, Any]] = [
        {"prompt": "hi"},
        {"prompt": "häßlich \U0001f600", "mode": "loud", "times": 3},
        {"prompt": "x", "image": picture},
        {"prompt": "x", "fail": "broken: really"},
    ]
    try:
        wait_for(lambda: _status(url) == "READY", "the server of Cog")
        for given in inputs:
            expected = httpx.post(
                f"{url}/predictions", json={"input": given}, timeout=60, trust_env=False
            ).json()
            record = predict(client, "image/digest", **given)
            for key in ("status", "error"):
                assert record[key] == expected.get(key), key
            assert sorted(record["logs"].split("\n")) == sorted(
                expected["logs"].replace(str(folder), "/src").replace(str(images.packages), SITE).split("\n")
            )
            if record["output"] is not None:
                outputs = [record["output"], expected["output"]]
                files = [[content(client, each) for each in output.pop("files")] for output in outputs]
                assert files[0] == files[1]
                assert outputs[0]["text"] == outputs[1]["text"]
                assert outputs[0]["facts"]["greeting"] == outputs[1]["facts"]["greeting"]
            wrong = {"prompt": "x", "times": 9}
        refused = client.post("/v1/models/image/digest/predictions", json={"input": wrong})
        assert refused.status_code == 422
    finally:
        server.kill()
        server.wait()


SITE = f"/usr/local/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def _status(url: str) -> str | None:
    try:
        return str(fetch(f"{url}/health-check").json()["status"])
    except httpx.HTTPError:
        return None


def test_the_image_runs_as_its_configuration_says_and_stays_unchanged(
    client: httpx.Client, appliance: Appliance
) -> None:
    facts = predict(client, "image/tag", prompt="x")["output"]["facts"]
    assert (facts["greeting"], facts["user"], facts["written"]) == ("good morning", 0, 1)
    assert facts["foreign"] == []
    assert predict(client, "image/archive", prompt="x")["output"]["facts"]["written"] == 1
    folder = appliance.home / "weights" / "image"
    unpacked = [each for each in folder.iterdir() if not each.is_symlink()]
    # Digest and tag have the same folder. The archive has the same files, but another manifest.
    assert len([each for each in unpacked if each.name.endswith("-old")]) == 2
    for each in unpacked:
        assert not (each / "root" / "src" / "written.txt").exists()


def test_files_of_an_iterator_arrive_one_by_one(client: httpx.Client) -> None:
    record = predict(client, "image/layout")
    assert record["status"] == "succeeded", record
    assert [content(client, each) for each in record["output"]] == ["file 0", "file 1", "file 2"]
    assert record["logs"] == "file 0\nfile 1\nfile 2\n"


def test_a_sandbox_has_no_network(client: httpx.Client, registry: Registry, appliance: Appliance) -> None:
    for address in (registry.address, f"127.0.0.1:{appliance.port}"):
        record = predict(client, "image/digest", prompt="x", connect=address)
        assert (record["status"], record["error"]) == ("failed", "[Errno 111] Connection refused")
    record = predict(client, "image/digest", prompt="x", connect="192.0.2.1:80")
    assert record["error"] == "[Errno 101] Network is unreachable"


def test_a_canceled_prediction_frees_the_image_for_the_next(client: httpx.Client) -> None:
    body = {"input": {"prompt": "x", "sleep": 600}}
    record = client.post("/v1/models/image/digest/predictions", json=body).json()
    said = "said x\n"
    wait_for(
        lambda: said in (client.get(record["urls"]["get"]).json()["logs"] or ""), "the prediction to run"
    )
    assert client.post(record["urls"]["cancel"]).status_code == 200
    assert ended(client, record)["status"] == "canceled"
    assert predict(client, "image/digest", prompt="next")["output"]["text"] == "next"


def test_an_image_whose_setup_fails_says_why(client: httpx.Client) -> None:
    record = predict(client, "image/crashing")
    assert record["status"] == "failed"
    assert "setup of image/crashing failed" in record["error"]
    assert "the weights are missing" in record["error"]


def test_a_crash_and_too_much_memory_end_only_the_worker_process(
    client: httpx.Client, appliance: Appliance
) -> None:
    predict(client, "image/digest", prompt="loaded")
    marks = (appliance.home / "run" / "hosts").iterdir()
    (worker,) = (mark for mark in marks if json.loads(mark.read_bytes())["model"] == "image/digest")
    before = psutil.Process(int(worker.name)).children(recursive=True)
    assert any(each.name() == "bwrap" for each in before)
    record = predict(client, "image/digest", prompt="x", crash=True)
    assert record["status"] == "failed"
    assert "the process of the prediction ended" in record["error"], record["error"]
    record = predict(client, "image/digest", prompt="x", allocate=1000, sleep=600)
    assert record["status"] == "failed"
    assert "memory" in record["error"]
    wait_for(lambda: not any(each.is_running() for each in before), "the processes of the sandbox to end")
    assert predict(client, "image/digest", prompt="next")["output"]["text"] == "next"
