"""A head that runs no models (``hardware.devices: none``), and two nodes that do.

The gateway and a node are killed while predictions run on the node. The machines are network namespaces,
with all processes of a cluster. ``test_models_on_nodes`` has more cases.
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
CONFIG = """
cluster: {{address: {address}, name: head, lost_after: 4, devices: cpu}}
hardware: {{devices: none}}
models:
  - {{name: test/stream, kind: echo, memory: 250MiB, options: {{stream: true}}}}
  - {{name: test/files, kind: echo, memory: 250MiB, options: {{files: true}}}}
  - {{name: test/pinned, kind: echo, memory: 250MiB, pin: true}}
  - {{name: test/words, kind: embeddings, memory: 900MiB, source: {{path: {weights}}}}}
  - {{name: test/apart, kind: echo, environment: {{requirements: [cowsay]}}}}
"""
FINAL = {"succeeded", "failed", "canceled"}


def make_weights(folder: Path) -> None:
    """Make a tiny model for embeddings."""
    from transformers import BertConfig, BertModel

    tiny_models.tokenizer(folder)
    words = len(tiny_models.SPECIAL + tiny_models.WORDS)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=words, max_position_embeddings=32, **size)).save_pretrained(folder)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadAndNodes]:
    folder = tmp_path_factory.mktemp("m")
    make_weights(folder / "weights")
    options = ("--device", "small=1700MiB")
    machines = HeadAndNodes(folder, CONFIG, ["one", "two"], *options, weights=folder / "weights")
    try:
        machines.head.start()
        yield machines
    finally:
        machines.close()


@pytest.fixture
def node_one(machines: HeadAndNodes) -> None:
    """The node "one" has joined."""
    if "one" not in machines.nodes:
        machines.join("one")


@pytest.fixture
def client(machines: HeadAndNodes) -> Iterator[httpx.Client]:
    with machines.head.client() as http:
        yield http


def create(client: httpx.Client, model: str = "stream", **input: Any) -> str:
    reply = client.post(f"/v1/models/test/{model}/predictions", json={"input": input})
    assert reply.status_code in {201, 202}, reply.text
    return str(reply.json()["id"])


def get(client: httpx.Client, id: str) -> dict[str, Any]:
    record: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
    return record


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    wait_for(lambda: get(client, id)["status"] in FINAL, f"prediction {id} to end")
    return get(client, id)


def status(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/admin/status").json()
    return found


def model(client: httpx.Client, name: str) -> dict[str, Any]:
    return next(each for each in status(client)["models"] if each["name"] == f"test/{name}")


def test_the_head_runs_nothing(machines: HeadAndNodes, client: httpx.Client) -> None:
    found = status(client)
    assert (found["devices"], found["runs_models"]) == ([], False)
    assert client.get("/v1/hardware").json() == []
    (apart,) = found["not_served"]
    assert apart["name"] == "test/apart"
    assert apart["problem"].startswith("environment of its own: it runs only on the head of the cluster")
    refused = client.post("/v1/models/test/apart/predictions", json={"input": {"text": "a"}})
    assert refused.status_code == 404
    log = (machines.head.home / "logs" / "appliance.log").read_text()
    assert "model test/apart is not served: environment of its own" in log
    assert not (machines.head.home / "logs" / "zygote.log").exists()


def test_a_prediction_waits_for_a_node(machines: HeadAndNodes, client: httpx.Client) -> None:
    waiting = create(client, text="a")
    wait_for(lambda: model(client, "stream")["fits_nowhere"] is not None, "the reason of the wait")
    assert get(client, waiting)["status"] == "starting"
    machines.join("one")
    assert ended(client, waiting)["output"] == ["a"]
    assert model(client, "stream")["devices"] == ["one/small"]
    wait_for(lambda: model(client, "pinned")["state"] == "ready", "the pinned model")
    assert client.get("/v1/hardware").json()[0]["sku"] == "small"


@pytest.mark.usefixtures("node_one")
def test_files_go_to_the_node_and_come_back(client: httpx.Client) -> None:
    content = b"content" * 200_000
    url = "data:text/plain;base64," + base64.b64encode(content).decode()
    record = ended(client, create(client, "files", file=url))
    assert record["status"] == "succeeded", record["error"]
    assert client.get(record["output"][0]).content == content
    assert model(client, "files")["devices"] == ["one/small"]


@pytest.mark.usefixtures("node_one")
def test_weights_are_copied_to_the_node_once(machines: HeadAndNodes, client: httpx.Client) -> None:
    record = ended(client, create(client, "words", texts=["the cat"]))
    assert record["status"] == "succeeded", record["error"]
    assert model(client, "words")["devices"] == ["one/small"]
    content = (machines.folder / "weights" / "model.safetensors").read_bytes()
    copies = machines.folder / "one" / "cluster" / "weights"

    def copied() -> list[int]:
        """Return the inodes of the copies of the model's largest file."""
        files = [path for path in copies.rglob("*") if path.is_file() and path.stat().st_size == len(content)]
        return sorted({path.stat().st_ino for path in files if path.read_bytes() == content})

    first = copied()
    assert len(first) == 1
    client.post("/admin/models/test/words/unload")
    wait_for(lambda: not model(client, "words")["devices"], "the unload")
    assert ended(client, create(client, "words", texts=["the dog"]))["status"] == "succeeded"
    assert copied() == first


@pytest.mark.usefixtures("node_one")
def test_a_killed_gateway_loses_nothing_that_runs_on_a_node(
    machines: HeadAndNodes, client: httpx.Client
) -> None:
    silent, words = run_until_output(client, silent=3)
    machines.head.kill_gateway()
    wait_for(machines.head.answers, "the next gateway")
    records = [ended(client, id) for id in (*silent, words)]
    assert [each["status"] for each in records] == ["succeeded"] * 4
    assert [each["output"] for each in records] == [["a"]] * 3 + [["a ", "b ", "c ", "d ", "e ", "f"]]


@pytest.mark.usefixtures("node_one")
def test_the_predictions_of_a_killed_node_run_on_another(
    machines: HeadAndNodes, client: httpx.Client
) -> None:
    assert ended(client, create(client, text="a"))["status"] == "succeeded"
    assert model(client, "stream")["devices"] == ["one/small"]
    machines.join("two")
    silent, words = run_until_output(client, silent=3)
    assert model(client, "stream")["devices"] == ["one/small"]
    machines.nodes["one"].kill()
    failed = ended(client, words)
    assert failed["status"] == "failed"
    assert failed["output"]
    assert "Prediction interrupted" in failed["error"]
    assert [ended(client, id)["status"] for id in silent] == ["succeeded"] * 3
    assert model(client, "stream")["devices"] == ["two/small"]
    wait_for(partial(is_on, client, "pinned", "two/small"), "the pinned model on the other node")


def run_until_output(client: httpx.Client, *, silent: int) -> tuple[list[str], str]:
    """Start predictions without output, and one whose words come slowly; return once all have started."""
    without = [create(client, text="a", delay=15) for _ in range(silent)]
    words = create(client, text="a b c d e f", chunk_delay=4)
    wait_for(lambda: get(client, words).get("output"), "the first word")
    for waiting in without:
        wait_for(partial(has_started, client, waiting), f"prediction {waiting} to start")
    return without, words


def has_started(client: httpx.Client, id: str) -> bool:
    return bool(get(client, id)["status"] != "starting")


def is_on(client: httpx.Client, name: str, device: str) -> bool:
    return bool(model(client, name)["devices"] == [device])
