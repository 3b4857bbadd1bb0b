"""The default embedding model: what its vectors mean."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from replicate.client import Client

from tests.e2e.test_conformance_predictions import WAIT, create, ended
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e

MODEL = "appliance/all-minilm-l6-v2"
ABOUT_A_CAT = "A cat sleeps on the sofa."
PARAPHRASE = "The kitten is napping on the couch."
UNRELATED = "Interest rates rose by half a percent."


def product(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def vectors(api: httpx.Client, texts: Any, **input: Any) -> list[list[float]]:
    record = ended(api, create(api, MODEL, texts=texts, **input))
    assert record["status"] == "succeeded", record
    found: list[list[float]] = record["output"]
    return found


def test_l10_a_paraphrase_is_nearer_than_another_subject(api: httpx.Client, official: Client) -> None:
    texts = json.dumps([ABOUT_A_CAT, PARAPHRASE, UNRELATED])
    one, like, other = official.run(MODEL, input={"texts": texts})
    assert len(one) == 384
    for vector in (one, like, other):
        assert math.isclose(product(vector, vector), 1, abs_tol=1e-4)
    assert product(one, like) > 0.5
    assert product(one, other) < 0.2
    assert vectors(api, [ABOUT_A_CAT])[0] == pytest.approx(one, abs=1e-4)
    assert vectors(api, ABOUT_A_CAT)[0] == pytest.approx(one, abs=1e-4)
    assert len(vectors(api, texts, batch_size=1)) == 3
    (long,) = vectors(api, [ABOUT_A_CAT], normalize_embeddings=False)
    assert not math.isclose(product(long, long), 1, abs_tol=1e-3)


def test_what_else_is_computed_changes_nothing(api: httpx.Client, appliance: Appliance) -> None:
    (alone,) = vectors(api, [ABOUT_A_CAT])

    def ask(number: int) -> list[float]:
        body = {"version": MODEL, "input": {"texts": [ABOUT_A_CAT, f"number {number} " * number]}}
        with appliance.client() as client:
            found: list[float] = client.post("/v1/predictions", json=body, headers=WAIT).json()["output"][0]
            return found

    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(ask, range(1, 33)))
    assert all(vector == pytest.approx(alone, abs=1e-4) for vector in together)


def test_a_text_that_is_too_long_and_one_that_is_none(api: httpx.Client) -> None:
    assert len(vectors(api, ["word " * 5000])[0]) == 384
    wrong = ended(api, create(api, MODEL, texts="[1]"))
    assert (wrong["status"], "JSON list of strings" in wrong["error"]) == ("failed", True)
