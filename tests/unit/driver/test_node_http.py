"""The process of a node that answers HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from appliance.driver.node_http import HttpSettings, Listen, serving
from tests.support.appliance_process import PATIENCE, free_port


async def test_the_process_learns_that_the_node_stops_even_while_it_starts(tmp_path: Path) -> None:
    port = free_port()
    settings = HttpSettings(
        listen=Listen("127.0.0.1", port),
        listener=str(tmp_path / "listener.sock"),
        cluster=str(tmp_path / "cluster"),
        heads=(("127.0.0.1", 1),),
        own_address=None,
    )
    async with (
        serving(settings, tmp_path / "http.log") as on_leave,
        httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client,
    ):
        on_leave()
        async with asyncio.timeout(PATIENCE):
            while True:  # the process listens once it has started
                try:
                    reply = await client.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
        assert (reply.status_code, reply.json()["title"]) == (503, "Node stopping")
