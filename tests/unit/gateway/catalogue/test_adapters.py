"""Configured LoRA adapters: models of their own that run on the loaded base model, and values of inputs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from appliance import config as configuration
from appliance.domain import token
from appliance.domain.access import UNRESTRICTED, Access
from appliance.domain.token import Scope, Token
from appliance.gateway.catalogue.adapters import describe_adapter
from appliance.gateway.catalogue.catalogue import Catalogue, ModelCard, ServedVersion, describe
from appliance.gateway.catalogue.servable import Servable, servable
from appliance.runners.adapters import AdaptableModel
from appliance.runners.echo.options import EchoOptions
from tests.support.api_client import SECRET, Api, services_of
from tests.support.engine_bench import HARDWARE, MIB, Bench
from tests.support.trainable_kind import pupil
from tests.support.web_server import Answer, Origin, serving


class AdaptableEcho(AdaptableModel):
    """An echo model with adapters, which are files with a phrase; `trainable_kind.Pupil` runs it."""

    SCALES: ClassVar[bool] = False
    ADAPTERS_ADD_MEMORY: ClassVar[bool] = False

    kind: Literal["echo"] = "echo"
    source: None = None
    options: EchoOptions = Field(default=EchoOptions())


def phrase(folder: Path) -> dict[str, Any]:
    """Write an adapter whose phrase is the name of its folder; return its entry in models.yaml."""
    folder.mkdir()
    (folder / "phrase.txt").write_text(folder.name)
    return {"name": f"me/{folder.name}", "aliases": [folder.name], "source": {"path": str(folder)}}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Origin) -> AsyncIterator[Bench]:
    """An engine with the model test/base and its adapters me/moo and me/baa."""
    pupil(monkeypatch)
    adapters = [phrase(tmp_path / name) for name in ("moo", "baa")]
    keys = {"adapters": adapters, "adapter_sources": [f"{origin.url}/loras/*", "hub:you/*"]}
    base = AdaptableEcho.model_validate({"name": "test/base", "memory": MIB, **keys})
    card, entry = describe(base, "none", 0.0)
    bench = Bench(tmp_path)
    bench.allowed = ("127.0.0.0/8",)
    bench.more = [entry]
    await bench.start()
    described = [describe_adapter(adapter, tmp_path, entry) for adapter in base.adapters]
    cards, entries = zip((card, entry), *described, strict=True)
    bench.catalogue.replace_with(Catalogue(cards, entries, ()))
    yield bench
    await bench.stop()
    await bench.cluster.close()


@pytest.fixture
async def api(bench: Bench) -> AsyncIterator[Api]:
    await bench.store.add_token(
        Token(id="t", name="t", owner="me", digest=token.digest(SECRET), created_at=0, scope=Scope.ADMIN)
    )
    async with Api(services_of(bench)) as api:
        yield api


async def said(api: Api, model: str, **input: Any) -> Any:
    body = {"input": {"text": "hello", **input}}
    reply = await api.post(f"/v1/models/{model}/predictions", json=body, headers={"Prefer": "wait"})
    record = reply.json()
    return record.get("output") or record.get("error") or record["detail"]


async def test_adapters_are_models_that_run_on_the_loaded_base_model(api: Api, bench: Bench) -> None:
    assert await said(api, "test/base") == "hello"
    assert await said(api, "me/moo") == "moo hello"
    assert await said(api, "me/baa") == "baa hello"
    assert set(bench.catalogue.entries_by_key) == {"test/base", "test/base:training"}
    page = (await api.get("/v1/models/me/moo")).json()
    base = (await api.get("/v1/models/test/base")).json()
    assert page["latest_version"]["id"] != base["latest_version"]["id"]
    properties = page["latest_version"]["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert "text" in properties
    assert "lora_weights" not in properties


async def test_an_input_names_an_adapter(api: Api) -> None:
    for name in ("me/moo", "moo"):
        assert await said(api, "test/base", lora_weights=name) == "moo hello"
    assert await said(api, "test/base", lora="baa") == "baa hello"
    assert await said(api, "test/base", lora_weights="none") == "hello"


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "test/base", "test/echo", "other/lora", "http://127.0.0.1/loras/a.safetensors", "moooo"],
)
async def test_other_adapters_are_refused(api: Api, value: str) -> None:
    refused = await said(api, "test/base", lora_weights=value)
    assert f"input.lora_weights: {value!r} is no adapter that test/base may use" in refused
    assert "the adapters of test/base are me/moo, me/baa; allowed sources: http://" in refused


async def test_an_allowed_url_is_fetched_once(api: Api, origin: Origin) -> None:
    origin.answers["/loras/a.safetensors"] = Answer(b"from afar")
    url = f"{origin.url}/loras/a.safetensors"
    for _ in range(2):
        assert await said(api, "test/base", lora_weights=url) == "from afar hello"
    assert len(origin.asked) == 1
    gone = f"{origin.url}/loras/gone.safetensors"
    origin.answers["/loras/gone.safetensors"] = Answer(b"", status=404)
    assert await said(api, "test/base", lora_weights=gone) == (
        f"input.lora_weights: {gone} cannot be fetched: HTTP 404"
    )


async def test_redirects_do_not_leave_the_allowed_hosts(api: Api, origin: Origin) -> None:
    def redirect(name: str, target: str) -> str:
        origin.answers[f"/loras/{name}"] = Answer(b"", status=302, headers={"Location": target})
        return f"{origin.url}/loras/{name}"

    origin.answers["/cdn/a"] = Answer(b"from afar")
    moved = redirect("moved.safetensors", f"{origin.url}/cdn/a")
    assert await said(api, "test/base", lora_weights=moved) == "from afar hello"
    asked = len(origin.asked)
    elsewhere = origin.url.replace("127.0.0.1", "127.0.0.2")
    left = redirect("left.safetensors", f"{elsewhere}/cdn/a")
    assert await said(api, "test/base", lora_weights=left) == (
        f"input.lora_weights: {left} cannot be fetched: it is redirected to {elsewhere}, which "
        "adapter_sources of the model does not allow: add a URL of this host"
    )
    assert len(origin.asked) == asked + 1


async def test_private_addresses_stay_refused(api: Api, bench: Bench, origin: Origin) -> None:
    bench.inputs._fetch_guard.allow(())
    url = f"{origin.url}/loras/a.safetensors"
    assert "cannot be fetched: " in await said(api, "test/base", lora_weights=url)
    assert origin.asked == []


async def test_the_first_adapter_of_a_loaded_model_reloads_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner_options(self: EchoOptions, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "adapted": adapted}

    monkeypatch.setattr(EchoOptions, "runner_options", runner_options)
    with_sources = bench.catalogue.resolve("test/base", UNRESTRICTED)
    base = with_sources.model.model_copy(update={"adapter_sources": (), "adapters": ()})
    card, plain = describe(base, "none", 0.0)
    others = [(bench.catalogue.cards["me/moo"], bench.catalogue.resolve("me/moo", UNRESTRICTED))]

    async def adapted(*described: tuple[ModelCard, ServedVersion]) -> bool:
        before = bench.catalogue.entries_by_key
        cards, entries = zip((card, plain), *described, strict=True)
        bench.catalogue.replace_with(Catalogue(cards, entries, ()))
        demands = [bench.scheduler.demand("test/base"), bench.scheduler.demand("test/base:training")]
        bench.engine.reconcile(demands, before)
        await bench.ended(await bench.submit(plain, text="x"))
        return bool(bench.cluster._loaded["test/base"].spec.options["adapted"])

    assert not await adapted()
    assert await adapted(*others)
    assert not await adapted()


async def test_names_of_the_openai_api(bench: Bench) -> None:
    for name in ("moo", "me/moo"):
        assert bench.catalogue.by_compat_name(name, Access("me")).name == "me/moo"


# -- which adapters are served ---------------------------------------------------------------------------


def tried(folder: Path, adapters: str) -> Servable:
    (folder / "weights").mkdir(exist_ok=True)
    file = folder / "models.yaml"
    file.write_text(
        "models:\n  - name: test/llm\n    kind: vllm\n    source: {path: weights}\n    adapters:\n"
        f"{adapters}"
    )
    return servable(configuration.load(file), folder / "home", HARDWARE, 0.0)


def test_an_adapter_that_cannot_run_is_left_out_alone(tmp_path: Path) -> None:
    for name, rank in (("good", 8), ("high", 64)):
        (tmp_path / name).mkdir()
        config = json.dumps({"peft_type": "LORA", "r": rank})
        (tmp_path / name / "adapter_config.json").write_text(config)
    found = tried(
        tmp_path,
        "      - {name: me/good, source: {path: good}}\n      - {name: me/high, source: {path: high}}\n"
        "      - {name: me/none, source: {path: none}}\n"
        "      - {name: me/hub, source: {hub: me/lora, revision: main}}\n",
    )
    assert [card.name for card, _ in found.described] == ["test/llm", "me/good"]
    assert "the adapter has the rank 64, but the model allows 16" in found.left_out["me/high"]
    assert f"{tmp_path}/none does not exist: correct source.path" in found.left_out["me/none"]
    assert "is not downloaded: run `appliance pull test/llm`" in found.left_out["me/hub"]
    assert found.left_out.keys() == {"me/high", "me/none", "me/hub"}
    (_, base), (_, good) = found.described
    assert (good.runs_on, good.origin, good.adapter) == (base.runs_on, base.version, f"{tmp_path}/good")


def test_the_base_model_is_loaded_with_lora(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    found = tried(tmp_path, "      - {name: me/good, source: {path: good}}\n")
    cards, entries = zip(*found.described, strict=True)
    both, alone = Catalogue(cards, entries, ()), Catalogue(cards[:1], entries[:1], ())
    assert both.options(both.entry_for("test/llm"))["max_adapters"] == 4
    assert alone.options(alone.entry_for("test/llm"))["max_adapters"] == 0
