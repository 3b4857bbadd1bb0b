"""The rerank routes over a model that ranks by common words."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from appliance.config import ModelConfig
from appliance.gateway.api.compat import openai, rerank
from appliance.gateway.catalogue.catalogue import Catalogue, describe
from appliance.runners import KINDS, operations
from appliance.runners.base import Kind
from appliance.runners.transformers.runner import TransformersRunner
from tests.support.api_client import Api
from tests.support.engine_bench import Bench

V1, V2 = "/openai/v1/rerank", "/openai/v2/rerank"
ALIAS = "rerank-english-v3.0"
DOCUMENTS = ["a red dog", "the blue cat", "a cat"]
ASKED: dict[str, Any] = {"model": ALIAS, "query": "the cat", "documents": DOCUMENTS}


def of_task(task: str, name: str) -> ModelConfig:
    entry = {"name": name, "kind": "transformers", "source": {"path": "/w"}, "options": {"task": task}}
    return ModelConfig.model_validate(entry)


@pytest.fixture(autouse=True)
def ranking(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo model of the bench ranks documents; another model classifies texts."""
    runner = "tests.support.ranking_kind:RankingRunner"
    kind = Kind(name="echo", runner=runner, operations=frozenset({operations.RERANK}))
    monkeypatch.setitem(KINDS, "echo", kind)
    monkeypatch.setattr(rerank, "KINDS", {"echo", "transformers"})
    monkeypatch.setattr(openai, "KINDS", {"echo", "transformers"})
    model = bench.echo.model.model_copy(update={"aliases": (ALIAS,)})
    interface = TransformersRunner.interface({"task": "reranking"})
    classifier = describe(of_task("text-classification", "test/classifier"), "none", 0.0)[1]
    entries = [replace(bench.echo, model=model, interface=interface), classifier]
    cards = [describe(each.model, "none", 0.0)[0] for each in entries]
    bench.catalogue.replace_with(Catalogue(cards, entries, ()))


async def results(api: Api, path: str = V1, **changes: Any) -> list[dict[str, Any]]:
    reply = await api.post(path, json={**ASKED, **changes})
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["results"]
    return found


async def test_the_response_has_what_jinas_and_coheres_clients_read(api: Api) -> None:
    reply = await api.post(V1, json=ASKED)
    body = reply.json()
    assert body == {
        "id": reply.headers["x-request-id"],
        "model": ALIAS,
        "results": [
            {"index": 1, "relevance_score": 1.0, "document": {"text": "the blue cat"}},
            {"index": 2, "relevance_score": 0.5, "document": {"text": "a cat"}},
            {"index": 0, "relevance_score": 0.0, "document": {"text": "a red dog"}},
        ],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": 8, "output_tokens": 0},
        },
    }
    record = (await api.get(f"/v1/predictions/{body['id']}")).json()
    assert (record["model"], record["status"]) == ("test/echo", "succeeded")
    assert record["metrics"]["input_token_count"] == 8


async def test_the_second_version_has_no_documents_unless_they_are_asked_for(api: Api) -> None:
    assert (await results(api, V2))[0] == {"index": 1, "relevance_score": 1.0}
    assert (await results(api, V2, return_documents=True))[0]["document"] == {"text": "the blue cat"}
    assert "document" not in (await results(api, V1, return_documents=False))[0]
    assert (await api.post(V2, json=ASKED)).json()["meta"]["api_version"] == {"version": "2"}


async def test_only_the_best_documents_and_only_their_first_tokens(api: Api) -> None:
    assert [each["index"] for each in await results(api, top_n=2)] == [1, 2]
    assert len(await results(api, top_n=9)) == 3
    assert [each["relevance_score"] for each in await results(api, max_tokens_per_doc=1)] == [0.5, 0, 0]


async def test_documents_may_be_objects_with_fields(api: Api) -> None:
    documents = [{"text": "the dog", "id": 7}, {"text": "x", "title": "the cat"}, "a cat"]
    found = await results(api, documents=documents)
    assert [each["index"] for each in found] == [0, 2, 1]
    assert found[0]["document"] == {"text": "the dog", "id": 7}
    fields = ["title", "text"]
    documents = [{"title": "the", "text": "cat"}, "a dog"]
    assert (await results(api, documents=documents, rank_fields=fields))[0]["relevance_score"] == 1
    assert rerank.texts(documents, fields) == ["the\ncat", "a dog"]


async def test_search_units_are_queries_with_a_hundred_documents(api: Api) -> None:
    reply = await api.post(V2, json={**ASKED, "documents": ["a cat"] * 101})
    assert reply.json()["meta"]["billed_units"] == {"search_units": 2}


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"query": None}, "query", "query is required"),
        ({"documents": []}, "documents", "at least one document"),
        ({"documents": "a"}, "documents", "Expected: array"),
        ({"documents": ["a", 7]}, "documents.1", "Must be a text, or an object with the key text"),
        ({"documents": [{"title": "a"}]}, "documents.0", "Must have a text under text"),
        ({"documents": [{"a": "b"}], "rank_fields": ["a", "b"]}, "documents.0", "a text under b"),
        ({"top_n": 0}, "top_n", "greater than or equal to 1"),
        ({"max_chunks_per_doc": 5}, "max_chunks_per_doc", "omit max_chunks_per_doc"),
        ({"query": "fail"}, None, "the documents cannot be compared"),
        (
            {"model": "test/classifier"},
            None,
            "`test/classifier` is for the task text-classification;",
        ),
    ],
)
async def test_errors_have_openais_format(
    api: Api, changes: dict[str, Any], param: str | None, message: str
) -> None:
    reply = await api.post(V1, json={**ASKED, **changes})
    error = reply.json()["error"]
    assert reply.status_code == 400, error
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


async def test_models_that_rank_are_listed_and_others_of_their_kind_are_not(api: Api) -> None:
    listed = (await api.get("/openai/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["test/echo", ALIAS]
    assert (await api.get(f"/openai/v1/models/{ALIAS}")).status_code == 200
    assert (await api.get("/openai/v1/models/test/classifier")).status_code == 400


async def test_an_output_that_is_removed_before_the_response_is_a_clear_error(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = bench.engine.wait

    async def wait_and_remove(id: str, seconds: float) -> Any:
        ended = await wait(id, seconds)
        assert ended is not None
        await bench.store.remove_data_of(id)
        return await bench.store.get(id)

    monkeypatch.setattr(bench.engine, "wait", wait_and_remove)
    reply = await api.post(V1, json=ASKED)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"
    assert "removed before it could be sent" in reply.json()["error"]["message"]
