"""The section ``cluster`` of models.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import ClusterConfig, Config, compare, load
from appliance.domain.errors import ConfigError
from appliance.runners.vllm.options import VllmModel

MODELS = "models: [{name: test/echo, kind: echo}]\n"


def read(tmp_path: Path, section: str) -> ClusterConfig | None:
    file = tmp_path / "models.yaml"
    file.write_text(f"{section}\n{MODELS}")
    return load(file).cluster


def test_there_is_no_cluster_by_default(tmp_path: Path) -> None:
    assert read(tmp_path, "") is None
    assert read(tmp_path, "cluster:") is None


def test_an_address_is_enough(tmp_path: Path) -> None:
    found = read(tmp_path, "cluster: {address: head.example.org}")
    assert found is not None
    assert (found.address, found.name, found.port, found.lost_after) == ("head.example.org", None, 8770, 10.0)
    assert (found.ports.gcs, found.ports.workers) == (8771, (10002, 19999))


def test_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "192.0.2.7")
    found = read(
        tmp_path,
        "cluster: {address: '${POD_IP}', name: gpu-1, port: 9000, lost_after: 1m, "
        "ports: {gcs: 9001, node_manager: 0, object_manager: 0, workers: [20000, 20999]}}",
    )
    assert found is not None
    assert (found.address, found.name, found.lost_after) == ("192.0.2.7", "gpu-1", 60.0)
    assert found.ports.workers == (20000, 20999)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{}", "address"),
        ("{address: 127.0.0.1}", "other machines"),
        ("{address: 0.0.0.0}", "other machines"),
        ("{address: '::1'}", "IPv4"),
        ("{address: a, name: A_b}", "name"),
        ("{address: a, lost_after: 1}", "at least 3 s"),
        ("{address: a, port: 8771}", "Ray uses this port too"),
        ("{address: a, port: 10100}", "Ray uses this port too"),
        ("{address: a, ports: {gcs: 8772}}", "different ports"),
        ("{address: a, ports: {workers: [9000, 9001]}}", "at least 100 ports"),
        ("{address: a, ports: {workers: [8700, 8900]}}", "must not contain the other ports"),
        ("{address: a, colour: red}", "colour"),
        ("{address: a, private_network: 10.9.0.1/24}", "should be a network"),
        ("{address: a, private_network: 'fd00::/64'}", "10.9.0.0/24"),
        ("{address: a, private_network: 0.0.0.0/0}", "not the IPv4 network of a few machines"),
        ("{address: 10.8.0.1, private_network: 10.9.0.0/24}", "does not contain the address .* 10.8.0.1"),
        ("{address: a, port: 20001, private_network: 10.9.0.0/24}", "in the range cluster.ports.parallel"),
        ("{address: a, ports: {parallel: [8000, 9000]}, private_network: 10.9.0.0/24}", "the other ports"),
        ("{address: a, ports: {parallel: [9999, 10099]}, private_network: 10.9.0.0/24}", "the other ports"),
        ("{address: a, ports: {parallel: [7000, 7001]}, private_network: 10.9.0.0/24}", "at least 10 ports"),
    ],
)
def test_sections_that_are_refused(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, f"cluster: {section}")
    assert "cluster" in str(caught.value)


def test_the_error_of_a_section_begins_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "cluster: {address: a, lost_after: 1}")
    assert str(caught.value).endswith(
        "key cluster: lost_after: give at least 3 s, because heartbeats are sent every second"
    )


def test_a_private_network(tmp_path: Path) -> None:
    found = read(tmp_path, "cluster: {address: 10.9.0.1, private_network: 10.9.0.0/24}")
    assert found is not None
    assert found.ports.parallel == (20000, 20099)
    assert found.in_private_network("10.9.0.77")
    assert not found.in_private_network("10.8.0.77")


def test_without_a_private_network_no_machine_is_in_it_and_its_ports_may_be_used(tmp_path: Path) -> None:
    found = read(tmp_path, "cluster: {address: 10.9.0.1, ports: {workers: [20000, 20999]}}")
    assert found is not None
    assert not found.in_private_network("10.9.0.1")


CLUSTER = "cluster: {address: 10.9.0.1, private_network: 10.9.0.0/24}"
SOURCE = "source: {path: /srv/large}"


def read_models(tmp_path: Path, cluster: str, model: str) -> Config:
    file = tmp_path / "models.yaml"
    file.write_text(f"{cluster}\nmodels: [{{name: example/large, {model}}}]\n")
    return load(file)


def test_a_model_on_several_machines_has_no_adapters_by_default(tmp_path: Path) -> None:
    model = read_models(tmp_path, CLUSTER, f"kind: vllm, {SOURCE}, gpu: 4, machines: 2").models[0]
    assert isinstance(model, VllmModel)
    assert (model.machines, model.options.across_machines, model.options.max_adapters) == (2, "pipeline", 0)
    assert not model.options.trainable
    given = f"kind: vllm, {SOURCE}, machines: 2, options: {{across_machines: tensor, max_adapters: 0}}"
    model = read_models(tmp_path, CLUSTER, given).models[0]
    assert isinstance(model, VllmModel)
    assert (model.options.across_machines, model.options.max_adapters) == ("tensor", 0)


def test_a_model_on_one_machine_keeps_its_adapters(tmp_path: Path) -> None:
    model = read_models(tmp_path, "", f"kind: vllm, {SOURCE}, machines: 1").models[0]
    assert model.options.trainable


@pytest.mark.parametrize(
    ("cluster", "model", "key", "message"),
    [
        ("", f"kind: vllm, {SOURCE}, machines: 2", "machines", "needs a cluster: add the section cluster"),
        (
            "cluster: {address: 10.9.0.1}",
            f"kind: vllm, {SOURCE}, machines: 2",
            "machines",
            "set cluster.private_network too",
        ),
        (
            CLUSTER,
            "kind: echo, machines: 2",
            "machines",
            "only models of kind vllm can use several machines, not echo",
        ),
        (CLUSTER, f"kind: vllm, {SOURCE}, machines: 0", "machines", "greater than or equal to 1"),
        (CLUSTER, f"kind: vllm, {SOURCE}, machines: 99", "machines", "less than or equal to 16"),
        (
            CLUSTER,
            f"kind: vllm, {SOURCE}, machines: 2, environment: {{python: '3.12'}}",
            "machines",
            "a model with an environment runs only on the head",
        ),
        (
            CLUSTER,
            f"kind: vllm, {SOURCE}, machines: 2, adapters: [{{name: a/b, source: {{path: /srv/a}}}}]",
            "adapters",
            "adapters and trainings need a model on one machine",
        ),
        (
            CLUSTER,
            f"kind: vllm, {SOURCE}, machines: 2, adapter_sources: ['hub:a/*']",
            "adapter_sources",
            "adapters and trainings need a model on one machine",
        ),
        (
            CLUSTER,
            f"kind: vllm, {SOURCE}, machines: 2, options: {{max_adapters: 4}}",
            "options.max_adapters",
            "adapters and trainings need a model on one machine",
        ),
        (
            CLUSTER,
            f"kind: vllm, {SOURCE}, options: {{across_machines: tensor}}",
            "options.across_machines",
            "the model is on one machine",
        ),
    ],
)
def test_models_that_cannot_use_several_machines(
    tmp_path: Path, cluster: str, model: str, key: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_models(tmp_path, cluster, model)
    assert (caught.value.model, caught.value.key) == ("example/large", key)


def test_machines_are_applied_without_a_restart(tmp_path: Path) -> None:
    before = read_models(tmp_path, CLUSTER, f"kind: vllm, {SOURCE}")
    after = read_models(tmp_path, CLUSTER, f"kind: vllm, {SOURCE}, machines: 2")
    changes = compare(before, after)
    assert changes.changed == {"example/large": ("machines", "options.max_adapters")}
    assert changes.needs_restart == ()


def test_the_head_may_run_no_models(tmp_path: Path) -> None:
    found = read(tmp_path, "hardware: {devices: none}\ncluster: {address: a}")
    assert found is not None
    assert found.devices == "gpu"
    found = read(tmp_path, "hardware: {devices: none}\ncluster: {address: a, devices: cpu}")
    assert found is not None
    assert found.devices == "cpu"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("hardware: {devices: none}", "only other machines run models, but there is no section cluster: add"),
        (
            "hardware: {devices: none, host_memory: 1GiB}\ncluster: {address: a}",
            "hardware.devices is none, so this machine runs no models: remove host_memory",
        ),
        ("cluster: {address: a, devices: tpu}", "devices"),
    ],
)
def test_devices_of_the_cluster_that_are_refused(tmp_path: Path, sections: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, sections)


def test_a_model_may_be_too_large_for_the_head(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    text = (
        "hardware: {devices: [{name: small, memory: 1GiB}]}\n"
        "models: [{name: test/echo, kind: echo, memory: 2GiB}]\n"
    )
    file.write_text(text)
    with pytest.raises(ConfigError, match="do not fit on any device"):
        load(file)
    file.write_text(f"cluster: {{address: a}}\n{text}")
    assert load(file).models[0].memory == 2 * 2**30


def test_changes_need_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(MODELS)
    before = load(file)
    file.write_text(f"cluster: {{address: a}}\n{MODELS}")
    changes = compare(before, load(file))
    assert changes.needs_restart == ("cluster",)
    assert changes.config.cluster is None
