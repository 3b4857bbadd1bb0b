"""What `kill -9` does to projects that were pushed, and to those that are just being built."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import httpx
import pytest

from tests.running import ROOT, Appliance, wait_for

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


def over(client: httpx.Client, begun: httpx.Response) -> dict[str, Any]:
    def look() -> Any:
        found = client.get(begun.json()["urls"]["get"]).json()
        return found["completed_at"] and found

    found: dict[str, Any] = wait_for(look, "the build")
    return found


def says_hello(client: httpx.Client, version: str) -> bool:
    body = {"version": version, "input": {"text": "you"}}
    record = client.post("/v1/predictions", json=body, headers={"Prefer": "wait=50"}).json()
    return bool(record.get("output") == "hello you")


def test_a_pushed_version_outlives_everything_and_a_build_that_was_cut_off_is_known(
    appliance: Appliance,
) -> None:
    project = ROOT / "tests" / "projects" / "hello"
    files = {file.name: file.read_text() for file in project.iterdir() if file.is_file()}
    with appliance.client() as client:
        build = over(client, begin(client, "hello", files))
        assert build["status"] == "succeeded", build
        assert says_hello(client, build["version"])
        slow = begin(client, "slow", SLOW)
        waiting = begin(client, "waiting", files | {"more.md": "x"})
        wait_for(lambda: "asking the project" in client.get(slow.json()["urls"]["get"]).json()["logs"], "it")
        assert client.get(waiting.json()["urls"]["get"]).json()["status"] == "starting"
    appliance.kill()
    appliance.start()
    with appliance.client() as client:
        for begun in (slow, waiting):
            found = client.get(begun.json()["urls"]["get"]).json()
            assert (found["status"], found["version"]) == ("failed", None)
            assert "stopped while it was built" in found["error"]
        assert says_hello(client, build["version"])
        assert client.get("/v1/models/appliance/hello").json()["latest_version"]["id"] == build["version"]
        left = [folder.name for folder in (appliance.home / "cog").iterdir() if folder.name[0] == "."]
        assert left == []
        assert not appliance.named("describe_cog.py")
        again = over(client, begin(client, "waiting", files | {"more.md": "x"}))
        assert again["status"] == "succeeded"
