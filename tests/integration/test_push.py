"""What `kill -9` does to projects that were pushed, and to those that are just being built."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import ROOT, Appliance, wait_for

pytestmark = pytest.mark.integration

CONFIG = """
code:
  cog: true
models:
  - name: test/echo
    kind: echo
    memory: 64MiB
"""
SLOW = {
    "cog.yaml": 'run: "run.py:Runner"\n',
    "run.py": "import time\n\nprint('it takes its time', flush=True)\ntime.sleep(600)\n",
}


def begin(client: httpx.Client, name: str, files: dict[str, str]) -> httpx.Response:
    """Push a project as `appliance push` does."""
    model = {"owner": "appliance", "name": name, "visibility": "private", "hardware": "cpu"}
    client.post("/v1/models", json=model)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        for file, text in files.items():
            member = tarfile.TarInfo(file)
            member.size = len(text.encode())
            opened.addfile(member, io.BytesIO(text.encode()))
    upload = client.post("/v1/files", files={"content": ("project.tar.gz", packed.getvalue())}).json()
    body = {"source": upload["urls"]["get"], "memory": "64MiB"}
    begun = client.post(f"/v1/models/appliance/{name}/versions", json=body)
    assert begun.status_code == 202, begun.text
    return begun


def look(client: httpx.Client, begun: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = client.get(begun.json()["urls"]["get"]).json()
    return found


def over(client: httpx.Client, begun: httpx.Response) -> dict[str, Any]:
    wait_for(lambda: look(client, begun)["completed_at"], "the build")
    return look(client, begun)


def until_described(client: httpx.Client, begun: httpx.Response) -> None:
    """Wait until a slow project is asked what it takes, which has no end."""
    wait_for(lambda: "it takes its time" in look(client, begun)["logs"], "the slow project to be imported")


def says_hello(client: httpx.Client, version: str) -> bool:
    body = {"version": version, "input": {"text": "you"}}
    record = client.post("/v1/predictions", json=body, headers={"Prefer": "wait=50"}).json()
    return bool(record.get("output") == "hello you")


def test_builds_run_side_by_side_and_what_they_made_outlives_everything(
    appliance: Appliance,
) -> None:
    project = ROOT / "tests" / "projects" / "hello"
    files = {file.name: file.read_text() for file in project.iterdir() if file.is_file()}
    with appliance.client() as client:
        build = over(client, begin(client, "hello", files))
        assert build["status"] == "succeeded", build
        assert says_hello(client, build["version"])
        slow, passing = begin(client, "slow", SLOW), begin(client, "passing", SLOW | {"other.md": "x"})
        waiting = begin(client, "waiting", files | {"more.md": "x"})
        for begun in (slow, passing):  # both are built at the same time
            until_described(client, begun)
        assert (look(client, slow)["step"] or "").startswith("reading the inputs")
        assert look(client, waiting)["status"] == "starting"
        canceled = client.post(passing.json()["urls"]["cancel"]).json()
        assert canceled["status"] == "canceled"
        assert len(appliance.named("describe_cog.py")) == 1
        assert over(client, waiting)["status"] == "succeeded"
        passing = begin(client, "passing", SLOW | {"other.md": "x"})
        waiting = begin(client, "waiting", files | {"most.md": "x"})
        wait_for(lambda: look(client, passing)["status"] == "processing", "its turn")
        assert look(client, waiting)["status"] == "starting"
    appliance.kill()
    appliance.start()
    with appliance.client() as client:
        for begun in (slow, passing, waiting):
            found = client.get(begun.json()["urls"]["get"]).json()
            assert (found["status"], found["version"]) == ("failed", None)
            assert "stopped during the build" in found["error"]
        assert says_hello(client, build["version"])
        assert client.get("/v1/models/appliance/hello").json()["latest_version"]["id"] == build["version"]
        left = [folder.name for folder in (appliance.home / "cog").iterdir() if folder.name[0] == "."]
        assert left == []
        assert not appliance.named("describe_cog.py")
        again = over(client, begin(client, "waiting", files | {"most.md": "x"}))
        assert again["status"] == "succeeded"
