"""The section ``cluster`` of models.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import ClusterConfig, compare, load
from appliance.domain.errors import ConfigError

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
    ],
)
def test_sections_that_are_refused(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, f"cluster: {section}")
    assert "cluster" in str(caught.value)


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
