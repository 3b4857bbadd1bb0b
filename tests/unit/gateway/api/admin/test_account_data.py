"""The routes that count and erase the data of an account."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain import token
from appliance.domain.access import Policy
from appliance.domain.audit import AuditEvent
from appliance.domain.budget_rules import Budget
from appliance.domain.token import Scope, Token
from appliance.gateway.api import auth
from appliance.runners import KINDS
from appliance.runners.base import Kind
from tests.support.api_client import Api, services_of
from tests.support.engine_bench import Bench

DATA = "/admin/accounts/ada/data"
_REFUSED = 'The data of the account "ada" is being erased: try again when the erasure has ended.'
CONTENT: dict[str, Any] = {"settings": {}, "messages": [], "leaf": None}


async def client_of(api: Api, bench: Bench, owner: str, scope: Scope = Scope.RUN) -> Api:
    await bench.store.add_token(
        Token(id=owner, name=owner, owner=owner, digest=token.digest(owner), created_at=0, scope=scope)
    )
    return Api(api.services, owner)


def stored_files(bench: Bench) -> list[Path]:
    folders = (bench.folder / "files" / "uploads", bench.folder / "files" / "outputs")
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


async def create_files(client: Api) -> dict[str, Any]:
    """Create an upload, and a prediction with an output file; return the prediction."""
    upload = await client.post("/v1/files", files={"content": ("a.txt", b"some text", "text/plain")})
    assert upload.status_code == 201, upload.text
    made = await client.post("/v1/models/test/files/predictions", json={"input": {"text": "x"}})
    ended = await client.ended(made.json())
    assert ended["status"] == "succeeded", ended
    return ended


async def test_data_is_counted_and_erased(api: Api, bench: Bench) -> None:
    async with await client_of(api, bench, "ada") as ada, await client_of(api, bench, "ben") as ben:
        mine, hers = await create_files(ben), await create_files(ada)
        done = await ada.ended(await ada.create(text="done"))
        running = await ada.create(text="running", delay=60)
        made = await ada.post("/admin/conversations", json={"title": "c", "model": "test/echo", **CONTENT})
        assert made.status_code == 201, made.text
        release = {"name": "x", "model": "test/echo", "version": bench.echo.version, "hardware": "cpu"}
        deployed = await ada.post("/v1/deployments", json={**release, "min_instances": 0, "max_instances": 1})
        assert deployed.status_code == 200, deployed.text
        kept = stored_files(bench)

        counted = (await api.get(DATA)).json()
        assert (counted["predictions"], counted["uploads"], counted["output_files"]) == (3, 1, 1)
        assert (counted["conversations"], counted["deployments"], counted["tokens"]) == (1, 1, 1)
        assert counted["erasing"] is False
        assert stored_files(bench) == kept

        bench.engine.budgets.configure([Budget(account="*", predictions=9)], Policy(), {}, "EUR")
        budgets = (await api.get("/admin/limits")).json()["budgets"]
        assert [each["account"] for each in budgets] == ["ada", "ben"]

        reply = await api.delete(DATA)
        assert reply.status_code == 200, reply.text
        budgets = (await api.get("/admin/limits")).json()["budgets"]
        assert [each["account"] for each in budgets] == ["ben"]
        assert {**reply.json(), "usage": 0} == {**counted, "usage": 0}
        assert (await ada.get("/v1/account")).status_code == 401
        for each in (hers, done, running):
            assert (await api.get(f"/admin/predictions/{each['id']}")).status_code == 404
        assert (await ben.get(f"/v1/predictions/{mine['id']}")).status_code == 200
        assert len(stored_files(bench)) == 2
        assert len(kept) == 4

        again = await api.delete(DATA)
        assert again.status_code == 200
        assert not any(count for name, count in again.json().items() if isinstance(count, int))
        records = (await api.get("/admin/audit", params={"action": "account"})).json()["results"]
        assert [each["action"] for each in records] == ["account.erased", "account.erase"] * 2
        assert records[2]["after"]["predictions"] == 3
        assert records[2]["owner"] == records[3]["owner"] == "me"


async def test_the_accounts_that_operate_the_appliance_cannot_be_erased(api: Api, bench: Bench) -> None:
    refused = await api.delete("/admin/accounts/me/data")
    assert refused.status_code == 409
    assert "server.account" in refused.json()["detail"]
    async with await client_of(api, bench, "ada", Scope.ADMIN) as ada:
        refused = await ada.delete(DATA)
    assert refused.status_code == 409
    assert "use a token of another account" in refused.json()["detail"]


async def test_the_next_gateway_continues(api: Api, bench: Bench) -> None:
    async with await client_of(api, bench, "ada") as ada:
        await create_files(ada)
    await bench.store.erasures.begin("ada", AuditEvent(action="account.erase", object="ada"))
    erasures = services_of(bench).erasures
    await erasures.resume()
    assert erasures.is_erasing("ada")
    while erasures.is_erasing("ada"):
        await asyncio.sleep(0.005)
    assert await bench.store.erasures.pending() == []
    assert stored_files(bench) == []
    counted = (await api.get(DATA)).json()
    assert (counted["predictions"], counted["tokens"]) == (0, 0)


@contextlib.asynccontextmanager
async def erasing(api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Erase the data of ada, and hold the erasure before its last step."""
    compacting, proceed = asyncio.Event(), asyncio.Event()

    async def compact() -> bool:
        compacting.set()
        await proceed.wait()
        return True

    monkeypatch.setattr(bench.store, "compact", compact)
    erased = asyncio.ensure_future(api.delete(DATA))
    await compacting.wait()
    try:
        yield
    finally:
        proceed.set()
        reply = await erased
    assert reply.status_code == 200, reply.text
    assert reply.json()["erasing"] is False


async def test_requests_of_an_account_store_nothing_while_it_is_erased(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = {"title": "c", "model": "test/echo", **CONTENT}
    release = {"name": "x", "model": "test/echo", "version": bench.echo.version, "hardware": "cpu"}
    files = {"content": ("a.txt", b"some text", "text/plain")}
    chats = Kind(
        name="echo", runner="tests.support.chat_kind:TalkingRunner", operations=KINDS["vllm"].operations
    )
    monkeypatch.setitem(KINDS, "echo", chats)
    async with erasing(api, bench, monkeypatch), await client_of(api, bench, "ada") as ada:
        refused = [
            await ada.post("/v1/models/test/echo/predictions", json={"input": {"text": "x"}}),
            await ada.post("/v1/predictions", json={"version": bench.echo.version, "input": {"text": "x"}}),
            await ada.post("/v1/files", files=files),
            await ada.post("/v1/deployments", json={**release, "min_instances": 0, "max_instances": 1}),
            await ada.post("/admin/conversations", json=chat),
        ]
        asked = {"model": "test/echo", "messages": [{}]}
        compat = await ada.post("/openai/v1/chat/completions", json=asked)
        assert [each.status_code for each in refused] == [409] * 5, [each.text for each in refused]
        for each in refused:
            assert each.json()["detail"] == _REFUSED
        assert (compat.status_code, compat.json()["error"]["message"]) == (409, _REFUSED)
        assert (await ada.get("/v1/predictions")).status_code == 200
    counted = (await api.get(DATA)).json()
    assert {name for name, count in counted.items() if count and name != "account"} == {"tokens"}
    assert stored_files(bench) == []
    async with Api(api.services, "ada") as ada:
        await ada.create(text="after the erasure")


async def test_tokens_made_during_an_erasure_are_forgotten(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MEMORY", 3600.0)
    erasures = api.services.erasures
    async with await client_of(api, bench, "ada") as ada:
        cancel = erasures._cancel

        async def cancelling(account: str) -> None:
            async with await client_of_new(api, bench) as late:
                assert (await late.get("/v1/account")).status_code == 200  # now it is cached
            await cancel(account)

        monkeypatch.setattr(erasures, "_cancel", cancelling)
        assert (await ada.get("/v1/account")).status_code == 200
        assert (await api.delete(DATA)).status_code == 200
    async with Api(api.services, "late") as late:
        assert (await late.get("/v1/account")).status_code == 401


async def client_of_new(api: Api, bench: Bench) -> Api:
    digest = token.digest("late")
    await bench.store.add_token(
        Token(id="late", name="late", owner="ada", digest=digest, created_at=0, scope=Scope.READ)
    )
    return Api(api.services, "late")
