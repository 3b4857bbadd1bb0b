"""Calls within the appliance ignore the proxies of the environment; downloads use them."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest

from appliance.domain.errors import WeightsError
from appliance.driver import proxies
from appliance.weights import index

PROXY = "http://192.0.2.99:3128"


@pytest.fixture(autouse=True)
def no_proxies_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("given", [{}, {"no_proxy": "example.org"}, {"NO_PROXY": " example.org,"}])
def test_own_hosts_are_exempt_and_exempt_hosts_stay_so(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"http_proxy": PROXY, "https_proxy": PROXY, **given}
    for name, value in (environment | proxies.bypass(environment, ["192.0.2.2"])).items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:
        chosen = {
            host: client._transport_for_url(httpx.URL(f"http://{host}:1/")) is client._transport
            for host in ("127.0.0.1", "localhost", "[::1]", "192.0.2.2", "example.org", "models.example.net")
        }
    direct = {host for host, is_direct in chosen.items() if is_direct}
    assert direct == {"127.0.0.1", "localhost", "[::1]", "192.0.2.2", *(["example.org"] if given else [])}


def test_an_asterisk_still_exempts_all_hosts() -> None:
    found = proxies.bypass({"no_proxy": "*"}, ["192.0.2.2"])
    assert found["no_proxy"] == found["NO_PROXY"] == "*"
    assert "192.0.2.2" in found["no_grpc_proxy"].split(",")  # gRPC does not know the asterisk


def test_grpc_has_a_list_of_its_own() -> None:
    given = {"no_proxy": "one.example", "no_grpc_proxy": "two.example"}
    assert proxies.bypass(given, ["192.0.2.2"]) == {
        "no_proxy": "one.example,localhost,127.0.0.1,::1,192.0.2.2",
        "NO_PROXY": "one.example,localhost,127.0.0.1,::1,192.0.2.2",
        "no_grpc_proxy": "two.example,localhost,127.0.0.1,::1,192.0.2.2",
    }


def test_the_ui_starts_whatever_proxy_is_set() -> None:
    """Gradio creates an HTTP client when imported, which fails for a SOCKS proxy without its library."""
    environment = {**os.environ, "ALL_PROXY": "socks5://192.0.2.99:1080", **proxies.NO_PROXIES}
    program = "import httpx, urllib.request; httpx.AsyncClient(); print(urllib.request.getproxies())"
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "{}"), ran.stderr


def test_an_unusable_proxy_for_downloads_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_settings", dict)
    monkeypatch.setenv("ALL_PROXY", "socks5://192.0.2.99:1080")
    with pytest.raises(WeightsError, match=r"index\.test cannot be reached through the proxy in"):
        index.client("https://index.test/simple")
