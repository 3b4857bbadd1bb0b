"""The official Python client, 1.0.x, changed in nothing but the environment."""

from __future__ import annotations

import time
from typing import Any

import pytest
from replicate.client import Client
from replicate.exceptions import ModelError, ReplicateError
from replicate.pagination import paginate

from tests.e2e.clients import LANGUAGE_MODEL, client_of
from tests.support.appliance_process import Appliance, wait_for

pytestmark = pytest.mark.e2e


def test_the_answer_means_something(official: Client) -> None:
    output = official.run(
        LANGUAGE_MODEL, input={"prompt": "What is the capital of France?", "temperature": 0}
    )
    assert "Paris" in "".join(output)


def test_stream_brings_several_events(official: Client) -> None:
    arrivals = []
    for event in official.stream(
        LANGUAGE_MODEL, input={"prompt": "Count from one to twenty.", "max_tokens": 60, "temperature": 0}
    ):
        arrivals.append((time.monotonic(), event.event.value, str(event)))
    assert [name for _, name, _ in arrivals][-1] == "done"
    outputs = [at for at, name, _ in arrivals if name == "output"]
    assert len(outputs) > 1
    assert outputs[-1] > outputs[0]


def test_run_by_version_iterates(official: Client) -> None:
    version = official.models.get(LANGUAGE_MODEL).latest_version
    assert version is not None
    output = official.run(f"{LANGUAGE_MODEL}:{version.id}", input={"prompt": "Say hello.", "max_tokens": 8})
    assert not isinstance(output, list)  # an iterator: the schema says so
    assert "".join(output)


def test_create_and_wait(official: Client) -> None:
    prediction = official.predictions.create(model="appliance/echo", input={"text": "hello", "delay": 1.0})
    assert prediction.status == "starting"
    prediction.wait()
    assert (prediction.status, prediction.output) == ("succeeded", "hello")
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] >= 1.0


def test_cancel(official: Client) -> None:
    prediction = official.predictions.create(
        model="test/stream", input={"text": "word ", "repeat": 500, "chunk_delay": 2}
    )

    def output() -> Any:
        prediction.reload()
        return prediction.output

    wait_for(output, "output")
    prediction.cancel()
    prediction.reload()
    assert prediction.status == "canceled"
    assert prediction.completed_at is not None
    assert prediction.output


def test_progress_is_read_from_the_logs(official: Client) -> None:
    prediction = official.predictions.create(model="appliance/echo", input={"progress": 4})
    prediction.wait()
    assert prediction.progress is not None
    assert (prediction.progress.current, prediction.progress.total) == (4, 4)


def test_a_failed_model_raises_with_its_error(official: Client) -> None:
    with pytest.raises(ModelError, match="out of ideas"):
        official.run("appliance/echo", input={"fail": "out of ideas"})


def test_a_bad_input_is_refused_by_name(official: Client) -> None:
    with pytest.raises(ReplicateError) as caught:
        official.run(LANGUAGE_MODEL, input={"prompt": "x", "max_tokens": "many"})
    assert caught.value.status == 422
    assert "input.max_tokens: Invalid type. Expected: integer, given: string" in str(caught.value.detail)


def test_a_wrong_token_is_refused(appliance: Appliance) -> None:
    with client_of(appliance.url, "wrong") as stranger, pytest.raises(ReplicateError) as caught:
        stranger.accounts.current()
    assert caught.value.status == 401
    assert caught.value.detail == "You did not pass a valid authentication token"


def test_catalogue_account_and_hardware(official: Client) -> None:
    pages = paginate(official.models.list)
    names = {f"{model.owner}/{model.name}" for page in pages for model in page}
    assert {LANGUAGE_MODEL, "appliance/echo"} <= names
    versions = official.models.get(LANGUAGE_MODEL).versions.list()
    assert len(versions.results) == 1
    assert official.accounts.current().username
    assert {hardware.sku for hardware in official.hardware.list()} >= {"cpu"}


def test_a_base_url_that_ends_in_v1_works_too(appliance: Appliance) -> None:
    with client_of(f"{appliance.url}/v1") as client:
        assert client.run("appliance/echo", input={"text": "twice"}) == "twice"


def test_predictions_are_listed_newest_first(official: Client) -> None:
    first = official.predictions.create(model="appliance/echo", input={"text": "first"})
    second = official.predictions.create(model="appliance/echo", input={"text": "second"})
    ids = [prediction.id for prediction in official.predictions.list().results]
    assert ids.index(second.id) < ids.index(first.id)


def test_models_are_searched_and_collections_listed(official: Client) -> None:
    assert LANGUAGE_MODEL in {f"{model.owner}/{model.name}" for model in official.models.search("smollm2")}
    assert [found.slug for found in official.collections.list().results] == ["talkers"]
