"""Predictions on a node of a cluster, while the gateway or the node is killed.

The machines are network namespaces, with all processes of a cluster. ``test_models_on_nodes`` has more cases.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import tiny_models
from tests.support.appliance_process import wait_for
from tests.support.cluster import HeadAndNodes
from tests.support.network_namespaces import available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="network namespaces need root and iproute2"),
]
# A pinned model takes the memory of the head.
CONFIG = """
cluster: {{address: {address}, name: head, lost_after: 4}}
hardware: {{devices: [{{name: small, memory: 250MiB}}]}}
models:
  - {{name: test/home, kind: echo, memory: 200MiB, pin: true}}
  - {{name: test/stream, kind: echo, memory: 250MiB, options: {{stream: true}}}}
  - {{name: test/files, kind: echo, memory: 250MiB, options: {{files: true}}}}
  - {{name: test/words, kind: embeddings, memory: 900MiB, source: {{path: {weights}}}}}
"""


def make_weights(folder: Path) -> None:
    """Make a tiny model for embeddings."""
    from transformers import BertConfig, BertModel

    tiny_models.tokenizer(folder)
    words = len(tiny_models.SPECIAL + tiny_models.WORDS)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=words, max_position_embeddings=32, **size)).save_pretrained(folder)


class Client:
    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def create(self, model: str, **input: Any) -> str:
        reply = self.http.post(f"/v1/models/test/{model}/predictions", json={"input": input})
        assert reply.status_code in {201, 202}, reply.text
        return str(reply.json()["id"])

    def get(self, id: str) -> dict[str, Any]:
        record: dict[str, Any] = self.http.get(f"/v1/predictions/{id}").json()
        return record

    def ended(self, id: str) -> dict[str, Any]:
        final = {"succeeded", "failed", "canceled"}
        wait_for(lambda: self.get(id)["status"] in final, f"prediction {id} to end")
        return self.get(id)

    def run_until_output(self, *, silent: int) -> tuple[list[str], str]:
        """Start predictions without output, and one whose words come slowly; return once all have started."""
        without = [self.create("stream", text="a", delay=15) for _ in range(silent)]
        words = self.create("stream", text="a b c d e f", chunk_delay=4)
        wait_for(lambda: self.get(words).get("output"), "the first word")
        for waiting in without:
            wait_for(partial(self.has_started, waiting), f"prediction {waiting} to start")
        return without, words

    def has_started(self, id: str) -> bool:
        return bool(self.get(id)["status"] != "starting")

    def devices(self, model: str) -> list[str]:
        models = self.http.get("/admin/status").json()["models"]
        found: list[str] = next(each for each in models if each["name"] == f"test/{model}")["devices"]
        return found


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadAndNodes]:
    folder = tmp_path_factory.mktemp("m")
    make_weights(folder / "weights")
    options = ("--device", "big=1500MiB")
    machines = HeadAndNodes(folder, CONFIG, ["one", "two"], *options, weights=folder / "weights")
    try:
        machines.head.start()
        machines.join("one")
        yield machines
    finally:
        machines.close()


@pytest.fixture
def client(machines: HeadAndNodes) -> Iterator[Client]:
    with machines.head.client() as http:
        yield Client(http)


def test_files_go_to_the_node_and_come_back(client: Client) -> None:
    content = b"content" * 200_000
    url = "data:text/plain;base64," + base64.b64encode(content).decode()
    ended = client.ended(client.create("files", file=url))
    assert ended["status"] == "succeeded", ended["error"]
    assert client.http.get(ended["output"][0]).content == content
    assert client.devices("files") == ["one/big"]


def test_weights_are_copied_to_the_node_once(machines: HeadAndNodes, client: Client) -> None:
    ended = client.ended(client.create("words", texts=["the cat"]))
    assert ended["status"] == "succeeded", ended["error"]
    assert client.devices("words") == ["one/big"]
    content = (machines.folder / "weights" / "model.safetensors").read_bytes()
    copies = machines.folder / "one" / "cluster" / "weights"

    def copied() -> list[int]:
        """Return the inodes of the copies of the model's largest file."""
        files = [path for path in copies.rglob("*") if path.is_file() and path.stat().st_size == len(content)]
        return sorted({path.stat().st_ino for path in files if path.read_bytes() == content})

    first = copied()
    assert len(first) == 1
    client.http.post("/admin/models/test/words/unload")
    wait_for(lambda: not client.devices("words"), "the unload")
    assert client.ended(client.create("words", texts=["the dog"]))["status"] == "succeeded"
    assert copied() == first


def test_a_killed_gateway_loses_nothing_that_runs_on_a_node(machines: HeadAndNodes, client: Client) -> None:
    silent, words = client.run_until_output(silent=3)
    machines.head.gateway().kill()
    wait_for(machines.head.answers, "the next gateway")
    ended = [client.ended(id) for id in (*silent, words)]
    assert [each["status"] for each in ended] == ["succeeded"] * 4
    assert [each["output"] for each in ended] == [["a"]] * 3 + [["a ", "b ", "c ", "d ", "e ", "f"]]


def test_the_predictions_of_a_killed_node_run_on_another(machines: HeadAndNodes, client: Client) -> None:
    assert client.ended(client.create("stream", text="a"))["status"] == "succeeded"
    machines.join("two")
    assert client.devices("stream") == ["one/big"]
    silent, words = client.run_until_output(silent=3)
    machines.nodes["one"].kill()
    failed = client.ended(words)
    assert failed["status"] == "failed"
    assert failed["output"]
    assert "Prediction interrupted" in failed["error"]
    assert [client.ended(id)["status"] for id in silent] == ["succeeded"] * 3
    assert client.devices("stream") == ["two/big"]
