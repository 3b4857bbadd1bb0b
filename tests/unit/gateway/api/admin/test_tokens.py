"""The routes for tokens: limits of new tokens, and what the list shows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api_client import Api


async def test_a_token_with_limits_is_shown_with_them(api: Api) -> None:
    limits = {
        "description": "the lab's robot",
        "expires_at": "2999-01-31T12:00:00Z",
        "networks": ["10.0.0.7/8", "127.0.0.1"],
        "models": ["test/*"],
    }
    made = (await api.post("/admin/tokens", json={"name": "robot", "scope": "run", **limits})).json()
    shown = {
        **limits,
        "networks": ["10.0.0.0/8", "127.0.0.1/32"],
        "expires_at": "2999-01-31T12:00:00.000000Z",
    }
    assert {key: made[key] for key in shown} == shown
    assert made["state"] == "valid"
    async with Api(api.services, made["token"]) as robot:
        assert (await robot.get("/v1/models/test/echo")).status_code == 200
    await api.services.store.check()  # commits after the last use, for which the request does not wait
    listed = (await api.get("/admin/tokens")).json()["results"]
    (found,) = [each for each in listed if each["id"] == made["id"]]
    assert found["last_used_from"] == "127.0.0.1"
    assert found["last_used_at"] is not None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"networks": ["10.0.0.0/8", "the office"]}, "networks.1"),
        ({"networks": []}, "networks"),
        ({"models": ["test"]}, "models.0"),
        ({"models": ["test/*"], "scope": "admin"}, "models"),
        ({"description": "x" * 501}, "description"),
    ],
)
async def test_a_wrong_limit_is_named(api: Api, given: dict[str, Any], field: str) -> None:
    reply = await api.post("/admin/tokens", json={"name": "x", **given})
    assert reply.status_code == 422
    assert [problem["field"] for problem in reply.json()["invalid_fields"]] == [field]


async def test_a_denied_model_is_in_no_list(api: Api) -> None:
    body = {"name": "x", "scope": "run", "models": ["another/*"]}
    made = (await api.post("/admin/tokens", json=body)).json()
    async with Api(api.services, made["token"]) as limited:
        for path in ("/v1/models", "/v1/search?query=echo", "/admin/status"):
            assert "test/echo" in (await api.get(path)).text, path
            assert "test/echo" not in (await limited.get(path)).text, path
        unknown = await limited.get("/v1/models/no/model")
        denied = await limited.get("/v1/models/test/echo")
        assert (denied.status_code, denied.json()) == (404, unknown.json())
