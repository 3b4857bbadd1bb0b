"""Cog projects that are pushed into the running appliance by its command, then used like any model."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from replicate.client import Client

from tests.e2e.conftest import COMMAND, command
from tests.e2e.model_groups import PROJECTS
from tests.e2e.test_conformance_predictions import create, ended
from tests.support.appliance_process import Appliance, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.models("cog")]


def push(appliance: Appliance, folder: Path, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**appliance.environment, "APPLIANCE_PORT": str(appliance.port)}
    return subprocess.run(
        [COMMAND, "push", str(folder), model, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(PROJECTS / "pupil", folder)
    for left_out in (".git", "venv"):
        (folder / left_out).mkdir()
        (folder / left_out / "large.bin").write_bytes(os.urandom(1000))
    (folder / "notes.txt").write_text("mine")
    (folder / "extra.md").write_text("so that it is another project than the one of models.yaml")
    (folder / ".dockerignore").write_text("*.txt\n")
    return folder


def test_a_pushed_project_is_a_model_like_any_other(
    api: httpx.Client, appliance: Appliance, official: Client, project: Path
) -> None:
    pushed = push(appliance, project, "appliance/pushed", "--memory", "256MiB")
    assert pushed.returncode == 0, pushed.stderr
    assert "created the private model appliance/pushed" in pushed.stderr
    assert "making an environment" in pushed.stderr
    name, _, version = pushed.stdout.strip().partition(":")
    assert (name, len(version)) == ("appliance/pushed", 64)
    model = api.get("/v1/models/appliance/pushed").json()
    assert model["latest_version"]["id"] == version
    for spec in (name, f"{name}:{version}", version):
        assert ended(api, create(api, spec))["status"] == "succeeded"
    assert api.get(f"/v1/models/{name}/versions/{version}").json()["id"] == version
    (build,) = (appliance.home / "cog").glob("*/project/extra.md")
    packed = {file.name for file in build.parent.iterdir()}
    assert packed >= {"cog.yaml", "predict.py", "train.py", "extra.md"}
    assert packed.isdisjoint({".git", "venv", "notes.txt"})

    again = push(appliance, project, name)
    assert again.stdout == pushed.stdout
    assert len(api.get(f"/v1/models/{name}/versions").json()["results"]) == 1

    deployment = official.deployments.create(
        name="of-pushed", model=name, version=version, hardware="cpu", min_instances=0, max_instances=1
    )
    made = official.deployments.predictions.create(deployment=f"{deployment.owner}/of-pushed", input={})
    made.wait()
    assert made.status == "succeeded"
    refused = api.delete(f"/v1/models/{name}/versions/{version}")
    assert refused.status_code == 400
    assert "of-pushed" in refused.json()["detail"]


def test_a_version_is_deleted_with_its_build_unless_another_is_of_it(
    api: httpx.Client, appliance: Appliance, project: Path
) -> None:
    (project / "extra.md").write_text("so that it is a third project")
    versions = []
    for name in ("appliance/passing", "appliance/passing-too"):
        pushed = push(appliance, project, name, "--memory", "256MiB")
        assert pushed.returncode == 0, pushed.stderr
        versions.append(pushed.stdout.strip().partition(":"))
        assert ended(api, create(api, name))["status"] == "succeeded"
    (build,) = (
        file.parent.parent
        for file in (appliance.home / "cog").glob("*/project/extra.md")
        if "third" in file.read_text()
    )
    for name, _, version in versions:
        assert build.exists()
        removed = api.delete(f"/v1/models/{name}/versions/{version}")
        assert removed.status_code == 202, removed.text
        assert api.get(f"/v1/models/{name}").json()["latest_version"] is None
        assert api.post(f"/v1/models/{name}/predictions", json={"input": {}}).status_code == 404
        assert api.delete(f"/v1/models/{name}").status_code == 204
    assert not build.exists()


def test_a_pushed_project_can_be_trained(api: httpx.Client, appliance: Appliance, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(PROJECTS / "pupil", folder)
    pushed = push(appliance, folder, "appliance/trainable", "--memory", "256MiB")
    assert "the project is built already" in pushed.stderr  # models.yaml has the same project
    assert pushed.returncode == 0, pushed.stderr
    name, _, version = pushed.stdout.strip().partition(":")
    body = {"destination": name, "input": {"phrase": "data:text/plain,taught"}}
    training = api.post(f"/v1/models/{name}/versions/{version}/trainings", json=body)
    assert training.status_code == 201, training.text
    record = ended(api, training.json())
    assert record["status"] == "succeeded", record
    trained = record["output"]["version"]
    answers = [ended(api, create(api, spec))["output"] for spec in (f"{name}:{version}", trained, name)]
    assert answers == ["hello: nothing", "hello: taught", "hello: taught"]
    assert api.post("/admin/reload").status_code == 200  # which knows nothing of either
    assert ended(api, create(api, trained))["output"] == "hello: taught"
    kept = api.delete(f"/v1/models/{name}/versions/{version}")
    assert (kept.status_code, "was trained on" in kept.text) == (400, True)


def test_what_cannot_be_built_says_why_and_leaves_no_version(
    api: httpx.Client, appliance: Appliance, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    assert "cog.yaml is missing" in push(appliance, folder, "appliance/wrong").stderr
    (folder / "cog.yaml").write_text('run: "run.py:Runner"\n')
    (folder / "run.py").write_text("import no_such_module\n")
    failed = push(appliance, folder, "appliance/wrong")
    assert failed.returncode == 1
    assert "no_such_module" in failed.stderr
    assert "Traceback" not in failed.stderr.splitlines()[0]
    assert api.get("/v1/models/appliance/wrong/versions").json()["results"] == []
    someone_elses = push(appliance, folder, "someone/else")
    assert someone_elses.returncode == 1
    assert "someone" in someone_elses.stderr


def archive(files: dict[str, bytes], link: str | None = None) -> bytes:
    """Return a tar.gz of ``files``, and of a symlink named ``link`` to /etc/passwd if given."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            opened.addfile(member)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no archive", "cannot be unpacked"),
        (archive({"../../escaped.txt": b"x"}), "escaped.txt"),
        (archive({}, link="link"), "absolute"),
        (archive({"a.txt": b"x"}), "no cog.yaml"),
    ],
)
def test_an_archive_that_is_none_or_reaches_out_is_refused(
    api: httpx.Client, appliance: Appliance, content: bytes, said: str
) -> None:
    model: dict[str, Any] = {"owner": "appliance", "name": "odd", "visibility": "private", "hardware": "cpu"}
    api.post("/v1/models", json=model)
    upload = api.post("/v1/files", files={"content": ("project.tar.gz", content)}).json()
    begun = api.post("/v1/models/appliance/odd/versions", json={"source": upload["urls"]["get"]})
    assert begun.status_code == 202, begun.text
    build = wait_for(
        lambda: (found := api.get(begun.headers["location"]).json())["completed_at"] and found,
        "the build",
    )
    assert build["status"] == "failed"
    assert said in build["error"]
    assert not list(appliance.home.rglob("escaped.txt"))


def test_a_running_build_is_listed_and_can_be_canceled(api: httpx.Client) -> None:
    api.post(
        "/v1/models", json={"owner": "appliance", "name": "slow", "visibility": "private", "hardware": "cpu"}
    )
    content = archive({"cog.yaml": b'run: "run.py:Runner"\n', "run.py": b"import time\ntime.sleep(600)\n"})
    upload = api.post("/v1/files", files={"content": ("project.tar.gz", content)}).json()
    begun = api.post("/v1/models/appliance/slow/versions", json={"source": upload["urls"]["get"]})
    assert begun.status_code == 202, begun.text
    assert begun.json()["id"] in [build["id"] for build in api.get("/v1/builds").json()["results"]]
    canceled = api.post(f"/v1/builds/{begun.json()['id']}/cancel")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert begun.json()["id"] not in [build["id"] for build in api.get("/v1/builds").json()["results"]]


def test_only_an_administrator_pushes(api: httpx.Client, appliance: Appliance, new_token: Any) -> None:
    headers = {"Authorization": f"Bearer {new_token('runner', scope='run')}"}
    answer = httpx.post(
        f"{appliance.url}/v1/models/cog/everything/versions",
        json={"source": "x"},
        headers=headers,
        trust_env=False,
    )
    assert answer.status_code == 403
    in_file = api.post("/v1/models/cog/everything/versions", json={"source": "x"})
    assert in_file.status_code in {400, 403}
    assert "push" in command(appliance, "push", "--help")
