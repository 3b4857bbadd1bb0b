"""What the section ``access`` of models.yaml permits, beyond the status of each route."""

from __future__ import annotations

from msgspec.structs import replace

from appliance.domain import token
from appliance.domain.access import Group, Policy, Right
from appliance.domain.token import Scope, Token
from appliance.gateway.catalogue.catalogue import Catalogue, describe
from tests.support.api_client import Api
from tests.support.engine_bench import Bench


async def add(api: Api, bench: Bench, *rights: Right, models: tuple[str, ...] = ("*",)) -> Api:
    """Add a group with these rights and models; return a client with an admin token of its only member."""
    digest, name = token.digest("member secret"), "member"
    await bench.store.add_token(
        Token(id=name, name=name, owner=name, created_at=0.0, digest=digest, scope=Scope.ADMIN)
    )
    api.services.auth.apply(
        Policy([Group("members", frozenset({"member"}), models, frozenset(rights))], None, "me")
    )
    return Api(api.services, "member secret")


async def test_who_sees_the_predictions_of_others_may_not_change_them(api: Api, bench: Bench) -> None:
    record = await api.ended(await api.create(text="x"))
    path = f"/admin/predictions/{record['id']}"
    async with await add(api, bench, Right.SEE_ALL) as member:
        assert (await member.get(path)).status_code == 200
        assert (await member.delete(path)).status_code == 404
        assert (await member.post(f"{path}/cancel")).status_code == 404
    assert (await api.get(f"/v1/predictions/{record['id']}")).json()["output"] is not None


async def test_memory_of_denied_models_is_not_named(api: Api, bench: Bench) -> None:
    await api.ended(await api.create(text="x"))
    assert "test/echo" in str((await api.get("/admin/status")).json()["devices"])
    async with await add(api, bench, Right.RUN, models=("another/*",)) as member:
        devices = (await member.get("/admin/status")).json()["devices"]
    assert [list(each["reserved"]) for each in devices if each["reserved"]] == [["other models"]]


async def test_a_model_is_created_only_with_a_right_to_fill_it(api: Api, bench: Bench) -> None:
    body = {"owner": "member", "name": "new", "visibility": "private", "hardware": "cpu"}
    async with await add(api, bench, Right.RUN) as member:
        refused = await member.post("/v1/models", json=body)
        assert refused.status_code == 403
        assert "push or train" in refused.json()["detail"]
    api.services.auth.apply(
        Policy([Group("members", frozenset({"member"}), ("*",), frozenset({Right.TRAIN}))], None, "me")
    )
    async with Api(api.services, "member secret") as member:
        assert (await member.post("/v1/models", json=body)).status_code == 201


async def test_a_deployment_of_an_alias_is_judged_by_its_model(api: Api, bench: Bench) -> None:
    aliased = bench.echo.model.model_copy(update={"aliases": ("old/name",)})
    entry = replace(bench.echo, model=aliased)
    bench.catalogue.replace_with(Catalogue([describe(aliased, "none", 0.0)[0]], [entry], ()))
    body: dict[str, object] = {
        "name": "app",
        "model": "old/name",
        "version": bench.echo.version,
        "hardware": "cpu",
    }
    body |= {"min_instances": 0, "max_instances": 1}
    async with await add(api, bench, Right.RUN, Right.DEPLOY, models=("test/*",)) as member:
        assert (await member.post("/v1/deployments", json=body)).status_code == 200
        assert (await member.get("/v1/deployments/member/app")).status_code == 200
        assert len((await member.get("/v1/deployments")).json()["results"]) == 1
        others = Group("members", frozenset({"member"}), ("another/*",), frozenset(Right))
        api.services.auth.apply(Policy([others], None, "me"))
        assert (await member.get("/v1/deployments/member/app")).status_code == 404
        assert (await member.get("/v1/deployments")).json()["results"] == []
