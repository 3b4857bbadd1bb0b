"""How the server for a sandbox stores files, and what the states of a prediction become."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from appliance.domain.prediction import Log, Metric, Output
from appliance.runners.cog import image_runner, runner
from appliance.runners.cog.image_files import SandboxServer


class Sandbox:
    def __init__(self, folder: Path) -> None:
        self.webhooks: list[tuple[str, dict[str, Any]]] = []
        self.folder = folder
        self.server = SandboxServer(
            socket.create_server(("127.0.0.1", 0)),
            folder,
            lambda name, state: self.webhooks.append((name, state)),
        )
        self.server.start()

    def upload(self, name: str, content: bytes | Iterator[bytes]) -> Path:
        """Upload a file as Cog does: the URL of the last response identifies the file."""
        url = f"{self.server.upload_url}{name}"
        response = httpx.put(url, content=content, follow_redirects=True, trust_env=False)
        assert response.status_code == 200
        stored = self.server.output_file(str(response.url))
        assert stored is not None
        return stored


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    made = Sandbox(tmp_path / "files")
    yield made
    made.server.close()


def test_files_of_the_same_name_are_kept_apart(sandbox: Sandbox) -> None:
    stored = [sandbox.upload("out.png", content) for content in (b"first", b"second")]
    assert [path.name for path in stored] == ["out.png", "out.png"]
    assert [path.read_bytes() for path in stored] == [b"first", b"second"]


def test_a_chunked_upload_is_put_together(sandbox: Sandbox) -> None:
    assert sandbox.upload("x", iter([b"first ", b"", b"second"])).read_bytes() == b"first second"


@pytest.mark.parametrize("name", ["..%2F..%2Foutside", "..", "%2Fetc%2Fpasswd", "a%00b", "."])
def test_no_name_leads_out_of_the_folder(sandbox: Sandbox, name: str) -> None:
    address = urlsplit(sandbox.server.upload_url)
    connection = HTTPConnection(str(address.hostname), address.port)
    connection.request("PUT", f"/upload/{name}", body=b"data")
    location = connection.getresponse().headers["Location"]
    connection.close()
    stored = sandbox.server.output_file(location)
    assert stored is not None
    assert stored.resolve().parent.parent == sandbox.folder.resolve()
    assert stored.read_bytes() == b"data"


def test_a_data_url_becomes_a_file(sandbox: Sandbox) -> None:
    stored = sandbox.server.store_data_url("data:text/plain;base64,aGk=")
    assert stored is not None
    assert (stored.name, stored.read_bytes()) == ("output.txt", b"hi")
    assert sandbox.server.store_data_url("data:,hi") is None
    assert sandbox.server.store_data_url("data:text/plain;base64,?") is None


def test_input_files_are_served_until_their_prediction_has_ended(sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "a name.txt"
    file.write_text("content")
    url = sandbox.server.input_url("p", str(file))
    assert url.endswith("/a%20name.txt")
    assert httpx.get(url, trust_env=False).text == "content"
    sandbox.server.forget("p")
    assert httpx.get(url, trust_env=False).status_code == 404


def test_webhooks_are_passed_on_if_they_are_objects(sandbox: Sandbox) -> None:
    url = sandbox.server.webhook_url("p-1")
    assert httpx.post(url, json={"status": "processing"}, trust_env=False).status_code == 200
    assert [httpx.post(url, content=body, trust_env=False).status_code for body in ("[1]", "{")] == [400, 400]
    assert sandbox.webhooks == [("p-1", {"status": "processing"})]


def test_each_state_gives_only_what_is_new() -> None:
    progress = image_runner._Progress(iterates=True)
    states: list[dict[str, Any]] = [
        {"status": "processing", "output": ["a"], "logs": "one\n"},
        {"status": "processing", "output": ["a", "b"], "logs": "one\n"},
        {
            "status": "succeeded",
            "output": ["a", "b"],
            "logs": "one\ntwo\n",
            "metrics": {"predict_time": 1, "n": 2},
        },
    ]
    assert [progress.events(state) for state in states] == [
        [Log("one\n"), Output(["a"])],
        [Output(["b"])],
        [Log("two\n"), Metric("n", 2)],
    ]


def test_an_output_that_is_no_iterator_comes_with_success() -> None:
    progress = image_runner._Progress(iterates=False)
    assert progress.events({"status": "processing", "output": ["a"], "logs": ""}) == []
    assert progress.events({"status": "succeeded", "output": ["a"]}) == [Output([["a"]], append=False)]
    assert image_runner._Progress(iterates=False).events({"status": "failed", "output": None}) == []


@pytest.mark.parametrize(
    ("error", "plain"),
    [
        ("Prediction failed: Prediction failed: ValueError: broken", "broken"),
        ("ValueError: raised by the project", "ValueError: raised by the project"),
    ],
)
def test_only_the_prefixes_of_the_runtime_are_removed(error: str, plain: str) -> None:
    assert runner.without_prefixes(error) == plain
