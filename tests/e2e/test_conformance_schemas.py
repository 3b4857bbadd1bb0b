"""Rows C and L that the models of this appliance can show: schemas, and what language models are asked."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from replicate.client import Client

from tests.e2e.clients import LANGUAGE_MODEL, beta
from tests.e2e.test_conformance_predictions import create, ended, version_of
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e


def schema(api: httpx.Client, model: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/v1/models/{model}").json()["latest_version"]["openapi_schema"]
    return found


def said(api: httpx.Client, **input: Any) -> str:
    record = ended(api, create(api, LANGUAGE_MODEL, **input))
    assert record["status"] == "succeeded", record
    return "".join(record["output"])


def test_c1_the_first_input_is_the_prompt(api: httpx.Client) -> None:
    properties = schema(api, LANGUAGE_MODEL)["components"]["schemas"]["Input"]["properties"]
    assert min(properties, key=lambda name: properties[name]["x-order"]) == "prompt"
    orders = [part["x-order"] for part in properties.values()]
    assert sorted(orders) == list(range(len(orders)))


def test_c2_c6_documents_are_whole(api: httpx.Client) -> None:
    for model in (LANGUAGE_MODEL, "appliance/echo", "test/stream", "test/files"):
        document = schema(api, model)
        components = document["components"]["schemas"]
        for reference in re.findall(r'"\$ref": ?"#/components/schemas/([^"]+)"', json.dumps(document)):
            assert reference in components
        for name, part in components["Input"]["properties"].items():
            assert part["title"], name
            assert part["description"], name
            if "enum" in part or "allOf" in part:
                assert "default" in part
        assert components["Output"]["title"] == "Output"
        assert "/predictions" in document["paths"]
    bounds = schema(api, "appliance/echo")["components"]["schemas"]["Input"]["properties"]["repeat"]
    assert (bounds["minimum"], bounds["maximum"], bounds["default"]) == (1, 1_000_000, 1)


def test_c3_the_beta_joins_text(appliance: Appliance) -> None:
    assert beta(appliance, "print(json.dumps(str(replicate.use('test/stream')(text='a b c'))))") == "a b c"


def test_c4_c5_generators_and_lists(api: httpx.Client, official: Client) -> None:
    version = version_of(api, "test/stream")
    output = official.run(f"test/stream:{version}", input={"text": "a b "})
    assert not isinstance(output, list)
    assert "".join(output) == "a b "
    assert isinstance(official.run("test/files", input={"text": "x"}), list)


def test_l1_l2_other_names_of_inputs(api: httpx.Client) -> None:
    for name in ("max_tokens", "max_new_tokens", "max_length"):
        record = ended(api, create(api, LANGUAGE_MODEL, prompt="Count to one hundred.", **{name: 5}))
        assert record["metrics"]["output_token_count"] <= 5
    asked: dict[str, Any] = {"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 12}
    before, city, _ = said(api, **asked).partition("Paris")
    assert before
    assert city
    for stop in ("Paris", ["nowhere", "Paris"], "Paris,nowhere"):
        assert said(api, **asked, stop_sequences=stop, stream=True).rstrip() == before.rstrip()


def test_l3_templates(api: httpx.Client) -> None:
    filled = {"prompt_template": "{system_prompt} {prompt} The capital of France is", "temperature": 0}
    assert "Paris" in said(api, prompt="A fact:", system_prompt="", max_tokens=8, **filled)
    for wrong in ("no prompt in it", "{prompt} {surprise}", "{prompt"):
        record = ended(api, create(api, LANGUAGE_MODEL, prompt="x", prompt_template=wrong))
        assert record["status"] == "failed"
        assert re.match("E100[34] ", record["error"])


def test_l4_the_same_seed(api: httpx.Client) -> None:
    asked = {"prompt": "Invent a name.", "temperature": 1.5, "max_tokens": 24}
    first = said(api, **asked, seed=7)
    assert said(api, **asked, seed=7) == first
    assert any(said(api, **asked, seed=seed) != first for seed in (8, 9, 10))


def test_l5_a_prompt_that_is_too_long(api: httpx.Client) -> None:
    record = ended(api, create(api, LANGUAGE_MODEL, prompt="word " * 20_000))
    assert record["status"] == "failed"
    assert record["error"].startswith("E1002 PromptTooLong")
