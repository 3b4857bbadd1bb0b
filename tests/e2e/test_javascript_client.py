"""The official JavaScript client, which scripts/install-clients fetches; only its base URL is changed."""

from __future__ import annotations

import pytest

from tests.e2e.clients import LANGUAGE_MODEL, node
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e


def test_run(appliance: Appliance) -> None:
    output = node(
        appliance,
        """
        const input = { prompt: "What is the capital of France?", temperature: 0 };
        console.log(JSON.stringify(await replicate.run(model, { input })));
        """,
    )
    assert len(output) > 1
    assert "Paris" in "".join(output)


def test_stream(appliance: Appliance) -> None:
    events = node(
        appliance,
        """
        const input = { prompt: "Count from one to ten.", temperature: 0, max_tokens: 60 };
        const events = [];
        for await (const { event, data } of replicate.stream(model, { input })) events.push([event, data]);
        console.log(JSON.stringify(events));
        """,
    )
    assert [name for name, _ in events][-1] == "done"
    outputs = [data for name, data in events if name == "output"]
    assert len(outputs) > 1
    assert "two" in "".join(outputs).lower() or "2" in "".join(outputs)


def test_create_and_wait(appliance: Appliance) -> None:
    created, finished = node(
        appliance,
        """
        const input = { prompt: "Say hello.", max_tokens: 20 };
        const created = await replicate.predictions.create({ model, input });
        const finished = await replicate.wait(created, { interval: 100 });
        console.log(JSON.stringify([created, finished]));
        """,
    )
    assert created["status"] == "starting"
    assert finished["id"] == created["id"]
    assert finished["status"] == "succeeded"
    assert "".join(finished["output"]).strip()
    assert finished["metrics"]["predict_time"] > 0


def test_a_refused_input_names_the_field(appliance: Appliance) -> None:
    status, text = node(
        appliance,
        """
        try {
          await replicate.run(model, { input: { prompt: "Hello", temperature: "warm" } });
        } catch (error) {
          console.log(JSON.stringify([error.response.status, String(error)]));
        }
        """,
    )
    assert status == 422
    assert "temperature" in text


def test_cancel(appliance: Appliance) -> None:
    record = node(
        appliance,
        """
        const input = { text: "never", delay: 3000 };
        const created = await replicate.predictions.create({ model: "appliance/echo", input });
        await replicate.predictions.cancel(created.id);
        console.log(JSON.stringify(await replicate.predictions.get(created.id)));
        """,
    )
    assert record["status"] == "canceled"


def test_search(appliance: Appliance) -> None:
    names = node(
        appliance,
        """
        const found = await replicate.models.search("smollm2");
        console.log(JSON.stringify(found.results.map(({ owner, name }) => `${owner}/${name}`)));
        """,
    )
    assert names == [LANGUAGE_MODEL]
