"""LangChain's classes for OpenAI, LiteLLM as a client of OpenAI and of Anthropic, and Cohere's own client.

Each is started once and prints what all of its tests look at.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.clients import framework
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e

PRELUDE = """
import os
question = "What is the capital of France?"
token = os.environ["REPLICATE_API_TOKEN"]
city = {
    "title": "city", "description": "A city", "type": "object", "required": ["name"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 20}},
}
"""


@pytest.fixture(scope="module")
def langchain(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = framework(
        appliance,
        PRELUDE
        + """
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
chat = ChatOpenAI(
    model=model, base_url=f"{url}/openai/v1", api_key=token, temperature=0, max_completion_tokens=60,
    max_retries=0, stream_usage=True,
)
answer = chat.invoke(question)
told = {"invoke": answer.content, "usage": answer.usage_metadata}
told["stream"] = [part.content for part in chat.stream(question) if part.content]
told["batch"] = [each.content for each in chat.batch([question] * 3)]
structured = chat.with_structured_output(city, method="json_schema")
told["structured"] = structured.invoke("Name the capital of France.")
tool = {"type": "function", "function": {"name": "weather", "description": "Its weather", "parameters": city}}
called = chat.bind_tools([tool], tool_choice="weather").invoke("What is the weather in Paris?")
told["tool"] = [[call["name"], sorted(call["args"])] for call in called.tool_calls]
responses = ChatOpenAI(
    model=model, base_url=f"{url}/openai/v1", api_key=token, temperature=0, max_retries=0,
    use_responses_api=True, max_completion_tokens=60,
)
told["responses"] = responses.invoke(question).text
embedder = OpenAIEmbeddings(
    model="appliance/all-minilm-l6-v2", base_url=f"{url}/openai/v1", api_key=token,
    check_embedding_ctx_length=False,
)
told["embeddings"] = embedder.embed_documents(["A cat sits.", "A kitten sits.", "Rates rose."])
try:
    chat.invoke("word " * 100_000)
except Exception as error:
    told["error"] = [type(error).__name__, str(error)]
print(json.dumps(told))
""",
    )
    return told


@pytest.fixture(scope="module")
def litellm(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = framework(
        appliance,
        PRELUDE
        + """
import litellm
litellm.disable_hf_tokenizer_download = True
messages = [{"role": "user", "content": question}]
told = {"errors": {}}
for provider, address in {"openai": f"{url}/openai/v1", "anthropic": f"{url}/anthropic"}.items():
    asked = {
        "model": f"{provider}/{model}", "messages": messages, "temperature": 0, "max_tokens": 30,
        "api_base": address, "api_key": token, "num_retries": 0,
    }
    answer = litellm.completion(**asked)
    parts = [part.choices[0].delta.content for part in litellm.completion(**asked, stream=True)]
    text = answer.choices[0].message.content
    told[provider] = [text, [part for part in parts if part], answer.usage.total_tokens]
    for case, options in {
        "token": {"api_key": "wrong"}, "model": {"model": f"{provider}/no/model"},
        "length": {"messages": [{"role": "user", "content": "word " * 100_000}]},
    }.items():
        try:
            litellm.completion(**{**asked, **options})
        except Exception as error:
            told["errors"][f"{provider} {case}"] = type(error).__name__
told["embedding"] = len(litellm.embedding(
    model="openai/appliance/all-minilm-l6-v2", input=["one"], api_base=f"{url}/openai/v1", api_key=token,
).data[0]["embedding"])
print(json.dumps(told))
""",
    )
    return told


@pytest.fixture(scope="module")
def cohere(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = framework(
        appliance,
        PRELUDE
        + """
import cohere
options = {"api_key": token, "base_url": f"{url}/openai", "max_retries": 0}
documents = ["the dog ran", "the cat ran", "a bird"]
asked = {"model": "rerank-english-v3.0", "query": "cat", "documents": documents, "top_n": 2}
first, second = cohere.Client(**options).rerank(**asked), cohere.ClientV2(**options).rerank(**asked)
told = {
    str(number): {
        "results": [[each.index, each.relevance_score] for each in answer.results],
        "documents": [each.document.text for each in answer.results if getattr(each, "document", None)],
        "version": answer.meta.api_version.version,
        "units": answer.meta.billed_units.search_units,
        "tokens": answer.meta.tokens.input_tokens,
    }
    for number, answer in enumerate((first, second), 1)
}
errors = {}
for case, more in {"model": {"model": "no-model"}, "documents": {"documents": []}}.items():
    try:
        cohere.ClientV2(**options).rerank(**{**asked, **more})
    except cohere.core.ApiError as error:
        errors[case] = [type(error).__name__, error.status_code, error.body["error"]["message"]]
try:
    cohere.ClientV2(**options | {"api_key": "wrong"}).rerank(**asked)
except cohere.core.ApiError as error:
    errors["token"] = [type(error).__name__, error.status_code, ""]
print(json.dumps({**told, "errors": errors}))
""",
    )
    return told


@pytest.mark.models("tasks")
def test_coheres_client_ranks_with_both_versions_of_its_api(cohere: dict[str, Any]) -> None:
    first, second = cohere["1"], cohere["2"]
    (best, score), (_, other) = first["results"]
    assert best == 1  # the document about the cat
    assert 1 > score > other > 0
    assert first["results"] == second["results"]
    assert first["documents"][0] == "the cat ran"
    assert second["documents"] == []
    assert [first["version"], second["version"]] == ["1", "2"]
    assert first["units"] == second["units"] == 1
    assert first["tokens"] == second["tokens"] > 0


@pytest.mark.models("tasks")
def test_coheres_client_tells_errors_apart(cohere: dict[str, Any]) -> None:
    errors = cohere["errors"]
    assert errors["token"][:2] == ["UnauthorizedError", 401]
    assert errors["model"][:2] == ["NotFoundError", 404]
    assert "no-model" in errors["model"][2]
    assert errors["documents"][1] in {400, 422}
    assert "documents" in errors["documents"][2]


def test_langchain_chats_and_streams(langchain: dict[str, Any]) -> None:
    assert "Paris" in langchain["invoke"]
    assert "".join(langchain["stream"]) == langchain["invoke"]
    assert len(langchain["stream"]) > 3
    assert langchain["batch"] == [langchain["invoke"]] * 3
    assert "Paris" in langchain["responses"]
    assert langchain["usage"]["output_tokens"] > 3


def test_langchain_gets_structures_and_tools(langchain: dict[str, Any]) -> None:
    assert list(langchain["structured"]) == ["name"]
    assert langchain["tool"] == [["weather", ["name"]]]


def test_langchain_embeds(langchain: dict[str, Any]) -> None:
    first, alike, unlike = langchain["embeddings"]
    assert len(first) == 384
    assert sum(a * b for a, b in zip(first, alike, strict=True)) > 0.5
    assert sum(a * b for a, b in zip(first, unlike, strict=True)) < 0.5


def test_langchain_tells_what_is_too_long(langchain: dict[str, Any]) -> None:
    kind, text = langchain["error"]
    assert kind == "OpenAIInvalidRequestError"
    assert "maximum context length is 8192 tokens" in text


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_litellm_completes_and_streams(litellm: dict[str, Any], provider: str) -> None:
    text, parts, tokens = litellm[provider]
    assert "Paris" in text
    assert "".join(parts) == text
    assert len(parts) > 1
    assert tokens > 20


def test_litellm_tells_errors_apart(litellm: dict[str, Any]) -> None:
    assert litellm["embedding"] == 384
    assert litellm["errors"] == {
        "openai token": "AuthenticationError",
        "openai model": "NotFoundError",
        "openai length": "ContextWindowExceededError",
        "anthropic token": "AuthenticationError",
        "anthropic model": "NotFoundError",
        "anthropic length": "ContextWindowExceededError",
    }
