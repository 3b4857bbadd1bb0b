"""What the driver does for the head of a cluster before Ray starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from cryptography import x509

from appliance.config import ClusterConfig
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.driver import cluster_head
from appliance.nodes import identity


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment that ``prepare`` changes."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop(identity.TOKEN_VARIABLE, None)


def test_without_a_cluster_nothing_is_created(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert cluster_head.prepare(None, tmp_path) is None
    assert cluster_head.ray_binding(None, None) is None
    with cluster_head.agent_listener(None, None, tmp_path / "agent.sock") as listener:
        assert listener is None
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


def test_a_head_has_keys_and_ray_uses_them(tmp_path: Path) -> None:
    config = ClusterConfig(address="127.0.0.5", name="gpu-1")
    head = cluster_head.prepare(config, tmp_path)
    assert head is not None
    assert (head.name, head.host) == ("gpu-1", "127.0.0.5")
    folder = tmp_path / "cluster"
    assert os.environ["RAY_USE_TLS"] == "1"
    assert os.environ["RAY_TLS_CA_CERT"] == str(folder / "authority.pem")
    certificate = x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = [*map(str, names.get_values_for_type(x509.IPAddress)), *names.get_values_for_type(x509.DNSName)]
    assert sorted(found) == ["127.0.0.1", "127.0.0.5", "localhost"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())
    binding = cluster_head.ray_binding(config, head)
    assert binding is not None
    assert (binding.node, binding.gcs_port, binding.worker_ports) == ("gpu-1", 8771, (10002, 19999))


def test_the_join_token_survives_a_restart(tmp_path: Path) -> None:
    config = ClusterConfig(address="127.0.0.5")
    first = cluster_head.prepare(config, tmp_path)
    token = identity.join_token(tmp_path / "cluster")
    second = cluster_head.prepare(config, tmp_path)
    assert first is not None
    assert second is not None
    assert identity.join_token(tmp_path / "cluster") == token
    assert first.session != second.session


def test_a_chosen_join_token(tmp_path: Path) -> None:
    os.environ[identity.TOKEN_VARIABLE] = "x" * 40
    cluster_head.prepare(ClusterConfig(address="127.0.0.5"), tmp_path)
    assert identity.join_token(tmp_path / "cluster").secret == "x" * 40
    os.environ[identity.TOKEN_VARIABLE] = "short"
    with pytest.raises(ConfigError, match="at least 32 characters"):
        cluster_head.prepare(ClusterConfig(address="127.0.0.5"), tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("192.0.2.1", "no network interface of this machine has the IP address 192.0.2.1"),
        ("localhost", "other machines cannot reach"),
        ("name.invalid", "stands for no IPv4 address"),
    ],
)
def test_an_address_of_another_machine_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cluster_head.own_address(ClusterConfig(address=address))
    assert caught.value.key == "cluster.address"


def test_a_host_name_outside_of_the_private_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(None, None, None, "", ("127.0.0.5", 0))])
    assert (
        cluster_head.own_address(ClusterConfig(address="box", private_network="127.0.0.0/8")) == "127.0.0.5"
    )
    with pytest.raises(ConfigError, match=r"box is 127\.0\.0\.5, which is not in cluster\.private_network"):
        cluster_head.own_address(ClusterConfig(address="box", private_network="10.9.0.0/24"))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.5", 0)) as taken:
        config = ClusterConfig(address="127.0.0.5", port=taken.getsockname()[1])
        head = cluster_head.prepare(config, tmp_path)
        with (
            pytest.raises(ApplianceError, match=r"cluster\.port or cluster\.address"),
            cluster_head.agent_listener(config, head, tmp_path / "agent.sock"),
        ):
            pass


@pytest.mark.parametrize(
    ("host", "name"), [("GPU_Server.example.org", "gpu-server"), ("-x-", "x"), ("", "node"), ("Ä", "node")]
)
def test_the_host_name_becomes_the_name(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert cluster_head.own_name(None) == name
    assert cluster_head.own_name("given") == "given"
