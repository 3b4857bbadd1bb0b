"""A language model in two parts, on the head and on a node, with real vLLM.

The machines are network namespaces, with all processes of a cluster. ``test_vllm_parts`` has more cases.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support import tiny_models
from tests.support.appliance_process import Appliance, wait_for
from tests.support.cluster import Head, Node
from tests.support.network_namespaces import Network, available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="network namespaces need root and iproute2"),
]
CONFIG = """
cluster: {{address: {address}, name: head, lost_after: 4, private_network: {network}}}
hardware: {{host_memory: 3GiB, threads: 1}}
limits: {{load_timeout: 5m}}
models:
  - &whole
    name: test/whole
    kind: vllm
    source: {{path: {weights}}}
    options: {{dtype: float32, kv_cache: 32MiB, max_num_seqs: {slots}, max_adapters: 0,
      chat_template: "{template}"}}
  - {{<<: *whole, name: test/split, machines: 2}}
"""
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
PARALLEL_PORTS = range(20000, 20100)
SLOTS = 2  # predictions that run at the same time
LONG = 3000  # tokens, which take longer than everything that a test does meanwhile
LOAD = 400  # seconds that a load may take, on a busy machine


def make_weights(folder: Path) -> None:
    """Make a model of two layers whose tokens depend on both."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_models.tokenizer(folder, model_max_length=4 * LONG)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_models.SPECIAL + tiny_models.WORDS), hidden_size=64, intermediate_size=32,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=4 * LONG, bos_token_id=2,
            eos_token_id=3, pad_token_id=0,
        )
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)


class Machines:
    """The head and a node, each with the memory of one model."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(["head", "one"])
        address = self.network.addresses["head"]
        weights = folder / "weights"
        make_weights(weights)
        config = folder / "models.yaml"
        network = f"{address.rpartition('.')[0]}.0/24"
        values = {"network": network, "weights": weights, "template": TEMPLATE, "slots": SLOTS}
        config.write_text(CONFIG.format(address=address, **values))
        self.head = Head(folder / "head", config, self.network, "head")
        options = ("--memory", "3GiB", "--threads", "1")
        self.node = Node(folder / "one", self.network, "one", address, *options)

    def close(self) -> None:
        for machine in (self.node, self.head):
            if machine.process is not None:
                machine.kill()
        self.network.close()


class Client:
    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def create(self, model: str, **input: Any) -> str:
        given = {"prompt": "the cat sat", "prompt_template": "{prompt}", "temperature": 0, **input}
        reply = self.http.post(f"/v1/models/test/{model}/predictions", json={"input": given})
        assert reply.status_code in {201, 202}, reply.text
        return str(reply.json()["id"])

    def create_long(self) -> str:
        """Start a long prediction of the model in two parts, and return its id once it has output."""
        id = self.create("split", max_tokens=LONG, min_tokens=LONG)
        wait_for(lambda: self.get(id).get("output"), "the first tokens", LOAD)
        return id

    def get(self, id: str) -> dict[str, Any]:
        record: dict[str, Any] = self.http.get(f"/v1/predictions/{id}").json()
        return record

    def ended(self, id: str) -> dict[str, Any]:
        final = {"succeeded", "failed", "canceled"}
        wait_for(lambda: self.get(id)["status"] in final, f"prediction {id} to end", LOAD)
        return self.get(id)

    def output(self, model: str) -> str:
        ended = self.ended(self.create(model, max_tokens=20, min_tokens=20))
        assert ended["status"] == "succeeded", ended["error"]
        return "".join(ended["output"])

    def chat(self, model: str) -> str:
        body = {"model": f"test/{model}", "messages": [{"role": "user", "content": "the dog ran"}]}
        more = {"temperature": 0, "max_tokens": 20}
        reply = self.http.post("/openai/v1/chat/completions", json={**body, **more}, timeout=LOAD)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])

    def status(self) -> dict[str, Any]:
        models: list[dict[str, Any]] = self.http.get("/admin/status").json()["models"]
        return next(each for each in models if each["name"] == "test/split")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("m"))
    try:
        machines.head.start()
        machines.node.start()
        machines.node.wait_until_joined()
        yield machines
    finally:
        machines.close()


@pytest.fixture
def client(machines: Machines) -> Iterator[Client]:
    with machines.head.client() as http:
        yield Client(http)


def processes(machine: Appliance) -> list[psutil.Process]:
    """Return the worker processes of a machine, and the processes that they started."""
    found = [psutil.Process(pid) for pid in machine.worker_pids() if psutil.pid_exists(pid)]
    return [each for one in found for each in (one, *one.children(recursive=True))]


def listening_of(machine: Appliance, prefix: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return the hosts and TCP ports at which the processes of ``processes`` listen."""
    ran = subprocess.run([*prefix, "ss", "-Hltnp"], capture_output=True, text=True, check=True)
    marks = {f"pid={each.pid}," for each in processes(machine)}
    found = [line.split()[3] for line in ran.stdout.splitlines() if any(mark in line for mark in marks)]
    return [(host, int(port)) for host, _, port in (each.rpartition(":") for each in found)]


def has_no_processes(machine: Appliance) -> bool:
    return not processes(machine)


def test_two_machines_give_the_tokens_of_one(client: Client) -> None:
    expected = client.output("whole"), client.chat("whole")
    assert all(expected)
    client.http.post("/admin/models/test/whole/unload")
    assert (client.output("split"), client.chat("split")) == expected
    status = client.status()
    assert sorted(status["devices"]) == ["head/cpu", "one/cpu"]


def test_the_parts_listen_only_in_the_private_network(machines: Machines, client: Client) -> None:
    client.output("split")
    leader = client.status()["devices"][0].partition("/")[0]
    for name, machine in (("head", machines.head), ("one", machines.node)):
        listening = listening_of(machine, machines.network.prefix(name))
        assert {host for host, _ in listening} == {machines.network.addresses[name]}
        assert len({port for _, port in listening if port in PARALLEL_PORTS}) == (name == leader)


def test_usage_counts_the_devices_of_both_machines(client: Client) -> None:
    id = client.create("split", max_tokens=4)
    assert client.ended(id)["status"] == "succeeded"
    records = client.http.get("/admin/predictions", params={"model": "test/split"}).json()["results"]
    assert {each["id"]: each["hardware"] for each in records}[id] == "cpu-2x"


def test_a_new_gateway_continues_with_both_parts(machines: Machines, client: Client) -> None:
    running = client.create_long()
    pids = machines.head.worker_pids(), machines.node.worker_pids()
    machines.head.kill_gateway()
    wait_for(machines.head.answers, "the next gateway")
    ended = client.ended(running)
    assert (ended["status"], ended["error"]) == ("succeeded", None)
    assert ended["metrics"]["output_token_count"] == LONG
    assert client.output("split")
    assert (machines.head.worker_pids(), machines.node.worker_pids()) == pids


def test_a_lost_machine_ends_the_model_which_is_loaded_again_when_it_is_back(
    machines: Machines, client: Client
) -> None:
    expected = client.output("split")
    running = [client.create_long() for _ in range(SLOTS)]
    queued = client.create("split", max_tokens=20, min_tokens=20)
    machines.node.kill()
    for failed in map(client.ended, running):
        assert failed["status"] == "failed"
        assert "Prediction interrupted" in failed["error"]
        assert failed["output"]
    wait_for(lambda: not processes(machines.head), "the end of the part on the head")
    reason = wait_for(lambda: client.status()["fits_nowhere"], "the reason why the model waits")
    assert "2 machines" in reason
    refused = client.http.post("/v1/models/test/split/predictions", json={"input": {"prompt": "the"}})
    assert "2 machines" in refused.json()["detail"]
    machines.node.start()
    ended = client.ended(queued)
    assert ("".join(ended["output"]), ended["error"]) == (expected, None)


def test_an_unload_frees_both_machines(machines: Machines, client: Client) -> None:
    client.output("split")
    assert all(processes(machine) for machine in (machines.head, machines.node))
    client.http.post("/admin/models/test/split/unload")
    wait_for(lambda: not client.status()["devices"], "the unload")
    for machine in (machines.head, machines.node):
        wait_for(partial(has_no_processes, machine), f"the end of the part on {machine.home}")
    residency = client.http.get("/admin/residency").json()
    assert all(each["reserved"] == {} for each in residency["devices"])
