"""How clients of each API see a budget: warnings, refusals, and the time at which it is reset."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.config import Config
from appliance.domain.access import Group, Policy
from appliance.domain.budget_rules import Budget
from appliance.runners import KINDS
from appliance.runners.base import Kind
from tests.support.api_client import CONFIG, Api
from tests.support.engine_bench import Bench

CREATE = "/v1/models/test/echo/predictions"
CHAT: dict[str, Any] = {"model": "test/echo", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(autouse=True)
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo models of the bench take operations."""
    talking = Kind(
        name="echo", runner="tests.support.chat_kind:TalkingRunner", operations=KINDS["vllm"].operations
    )
    monkeypatch.setitem(KINDS, "echo", talking)


def limit(bench: Bench, *budgets: Budget) -> None:
    bench.engine.budgets.configure(budgets, Policy(), {"cpu": 1.0}, "EUR")


async def test_a_warning_comes_before_the_refusal(api: Api, bench: Bench) -> None:
    limit(bench, Budget(account="me", predictions=2, warn_at=1.0))
    body = {"input": {"text": "x"}}
    assert "x-budget-warning" not in (await api.post(CREATE, json=body)).headers
    warned = await api.post(CREATE, json=body, headers={"Prefer": "wait"})
    assert warned.status_code == 201
    assert warned.headers["x-budget-warning"].startswith('account "me": 2 of 2 predictions of this day')
    refused = await api.post(CREATE, json=body)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) == refused.json()["retry_after"] > 0
    assert 'account "me"' in refused.json()["detail"]


async def test_each_api_refuses_a_spent_budget_in_its_own_format(api: Api, bench: Bench) -> None:
    limit(bench, Budget(token="first", period="month", cost=0.0))
    replicate = await api.post(CREATE, json={"input": {"text": "x"}})
    assert replicate.status_code == 402
    assert replicate.json()["title"] == "Insufficient credit"
    openai = await api.post("/openai/v1/chat/completions", json=CHAT)
    assert openai.status_code == 402
    assert openai.json()["error"]["code"] == "insufficient_quota"
    anthropic = await api.post("/anthropic/v1/messages", json={**CHAT, "max_tokens": 5})
    assert anthropic.status_code == 402
    assert anthropic.json()["error"]["type"] == "billing_error"
    for reply in (replicate, openai, anthropic):
        assert int(reply.headers["retry-after"]) > 0
        assert 'token "first": 0 of 0 EUR of this month' in reply.text.replace("\\", "")


async def test_clients_do_not_retry_a_budget_that_is_reset_much_later(api: Api, bench: Bench) -> None:
    limit(bench, Budget(account="me", period="month", predictions=0))
    reply = await api.post("/openai/v1/chat/completions", json=CHAT)
    assert reply.status_code == 429
    assert int(reply.headers["retry-after"]) > 60 or reply.headers.get("x-should-retry") is None
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"


async def test_the_warning_is_in_responses_of_the_compatible_apis(api: Api, bench: Bench) -> None:
    limit(bench, Budget(model="test/echo", predictions=10, warn_at=0.1))
    for path in ("/openai/v1/chat/completions", "/anthropic/v1/messages"):
        reply = await api.post(path, json={**CHAT, "max_tokens": 5, "stream": True})
        assert reply.headers["x-budget-warning"].startswith('model "test/echo"'), reply.text


async def test_an_administrator_sees_all_budgets_and_others_see_their_own(api: Api, bench: Bench) -> None:
    limit(
        bench,
        Budget(account="*", predictions=4, warn_at=0.25),
        Budget(token="*", concurrent=5),
        Budget(account="nobody", cost=2.5, period="month"),
    )
    await api.ended(await api.create(text="x"))
    async with Api(api.services, "other") as other:
        await other.ended(await other.create(text="x"))
    found = (await api.get("/admin/limits")).json()
    subjects = [(each["account"], each["token_name"]) for each in found["budgets"]]
    assert subjects == [("me", None), ("you", None), (None, "first"), (None, "second"), ("nobody", None)]
    assert found["budgets"][0]["amounts"] == [
        {"name": "predictions", "used": 1.0, "limit": 4.0, "left": 3.0, "state": "warning"}
    ]
    assert found["budgets"][4]["per"] == "month"
    api.services.auth.apply(Policy([Group("all", frozenset({"you"}), ("*",), frozenset())]))
    async with Api(api.services, "other") as other:
        found = (await other.get("/admin/limits")).json()
    assert [(each["account"], each["token_name"]) for each in found["budgets"]] == [
        ("you", None),
        (None, "second"),
    ]


async def test_a_reload_applies_budgets_and_counts_what_was_used_before(api: Api) -> None:
    await api.ended(await api.create(text="x"))
    config = CONFIG.model_dump()
    config["limits"]["budgets"] = [{"account": "*", "predictions": 2}]
    api.services.configure(Config.model_validate(config))
    await api.ended(await api.create(text="x"))
    refused = await api.post(CREATE, json={"input": {"text": "x"}})
    assert refused.status_code == 429
    api.services.configure(CONFIG)
    await api.ended(await api.create(text="x"))


async def test_a_budget_of_a_denied_model_is_not_shown(api: Api, bench: Bench) -> None:
    limit(bench, Budget(model="test/echo", predictions=4), Budget(model="test/big", predictions=4))
    api.services.auth.apply(Policy([Group("all", frozenset({"you"}), ("test/big",), frozenset())]))
    async with Api(api.services, "other") as other:
        found = (await other.get("/admin/limits")).json()
    assert [each["model"] for each in found["budgets"]] == ["test/big"]
