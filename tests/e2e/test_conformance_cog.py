"""Rows C7 to C22: Cog projects, run unmodified by Cog's own runtime."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from replicate.client import Client

from tests.e2e.test_conformance_predictions import create, ended, get
from tests.e2e.test_conformance_streams import joined, stream
from tests.e2e.test_conformance_webhooks import last
from tests.support.appliance_process import Appliance, fetch, wait_for
from tests.support.webhook_receiver import Receiver

pytestmark = [pytest.mark.e2e, pytest.mark.models("cog")]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def ran(api: httpx.Client, model: str, **input: Any) -> dict[str, Any]:
    return ended(api, create(api, model, **input))


def test_c7_c9_c22_inputs_and_outputs_of_every_sort(api: httpx.Client, official: Client) -> None:
    image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    record = ran(
        api,
        "cog/everything",
        prompt="world",
        image=image,
        files=["data:text/plain,abc"],
        mode="loud",
        times=2,
        seed=7,
    )
    assert record["status"] == "succeeded", record
    output = record["output"]
    assert output["text"] == "HELLO WORLD HELLO WORLD"
    assert fetch(output["file"]).text == output["text"]
    contents = [fetch(address).content for address in output["several"]]
    assert contents == [PNG, b"abc"]
    assert len({output["file"], *output["several"]}) == 3
    assert output["facts"]["seed"] == 7
    assert ran(api, "cog/concurrent", text="both")["output"] == ["hello ", "there, ", "both"]


def test_c8_c6_what_is_required_and_what_is_not(api: httpx.Client) -> None:
    schemas = api.get("/v1/models/cog/everything").json()["latest_version"]["openapi_schema"]["components"]
    inputs = schemas["schemas"]["Input"]
    assert inputs["required"] == ["prompt"]
    properties = inputs["properties"]
    assert list(properties)[:3] == ["prompt", "image", "files"]
    assert (properties["times"]["minimum"], properties["times"]["maximum"]) == (1, 5)
    assert properties["image"]["format"] == "uri"
    assert schemas["schemas"]["mode"]["enum"] == ["plain", "loud"]
    assert properties["mode"]["allOf"] == [{"$ref": "#/components/schemas/mode"}]
    assert properties["password"]["x-cog-secret"] is True
    facts = ran(api, "cog/everything", prompt="x")["output"]["facts"]
    assert (facts["seed"], facts["hint"], facts["password"]) == (None, None, None)
    wrong = api.post(
        "/v1/predictions", json={"version": "cog/everything", "input": {"times": 9, "mode": "x"}}
    )
    assert {row["field"] for row in wrong.json()["invalid_fields"]} == {"input", "input.times", "input.mode"}


def test_c10_four_at_a_time_and_the_fifth_waits(api: httpx.Client) -> None:
    four = [create(api, "cog/concurrent", delay=600) for _ in range(4)]
    fifth = create(api, "cog/concurrent", text="fifth")
    wait_for(lambda: any("at once: 4" in get(api, record)["logs"] for record in four), "four to run")
    assert {get(api, record)["status"] for record in four} == {"processing"}
    assert get(api, fifth)["status"] == "starting"
    api.post(four[1]["urls"]["cancel"])
    finished = ended(api, fifth)
    assert finished["output"][-1] == "fifth"
    assert "at once: 4" in finished["logs"]
    for record in four:
        api.post(record["urls"]["cancel"])


def test_c11_cancelling_cleans_up(api: httpx.Client, appliance: Appliance, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    record = create(api, "cog/odd", what="wait", note=str(note))
    wait_for(lambda: "logged" in get(api, record)["logs"], "it to run")
    assert api.post(record["urls"]["cancel"]).json()["status"] == "canceled"
    wait_for(note.exists, "the clean-up")
    assert ran(api, "cog/odd")["status"] == "succeeded"
    asynchronous = create(api, "cog/concurrent", delay=600)
    wait_for(lambda: "at once" in get(api, asynchronous)["logs"], "it to run")
    assert api.post(asynchronous["urls"]["cancel"]).json()["status"] == "canceled"
    log = appliance.home / "run" / "logs" / "cog--concurrent.log"
    wait_for(lambda: "cleaned up" in log.read_text(), "clean-up")
    assert ran(api, "cog/concurrent")["status"] == "succeeded"


def test_c12_a_call_that_hears_nothing_is_ended(api: httpx.Client) -> None:
    record = create(api, "cog/odd", what="stick")
    wait_for(lambda: "logged" in get(api, record)["logs"], "it to run")
    assert api.post(record["urls"]["cancel"]).json()["status"] == "canceled"
    assert ran(api, "cog/odd")["status"] == "succeeded", "the call itself takes longer than a test may"


def test_c13_c14_metrics_and_logs(api: httpx.Client) -> None:
    record = ran(api, "cog/everything", prompt="x")
    assert record["metrics"]["things"] == 3
    assert record["metrics"]["predict_time"] > 0
    for line in ("said x", "complained", "from a child", "50%|#####     | 1/2"):
        assert line in record["logs"]
    failed = ran(api, "cog/everything", prompt="x", fail="it broke")
    assert (failed["status"], failed["error"]) == ("failed", "it broke")
    assert "said x" in failed["logs"]


def test_c15_secrets_stay_secret(api: httpx.Client, appliance: Appliance, receiver: Receiver) -> None:
    body = {
        "version": "cog/everything",
        "input": {"prompt": "x", "password": "swordfish"},
        "webhook": f"{receiver.url}/hook",
    }
    made = api.post("/v1/predictions", json=body).json()
    record = ended(api, made)
    assert record["output"]["facts"]["password"] == len("swordfish")  # the model got it
    told = [made, record, api.get("/v1/predictions").json(), last(receiver, made["id"]).record]
    assert "swordfish" not in json.dumps(told)
    assert record["input"]["password"] == "**********"
    for file in appliance.home.rglob("*.db*"):
        assert b"swordfish" not in file.read_bytes()
    for log in appliance.home.rglob("*.log"):
        assert "swordfish" not in log.read_text(errors="replace")


def test_c16_a_setup_that_fails_says_why(api: httpx.Client) -> None:
    record = ran(api, "cog/broken")
    assert record["status"] == "failed"
    assert "the weights are rotten" in record["error"]
    assert ran(api, "cog/concurrent")["status"] == "succeeded"


def test_c17_one_that_is_not_well_is_started_anew(api: httpx.Client) -> None:
    assert ran(api, "cog/odd", what="sicken")["status"] == "succeeded"
    state = {"restarted": False}

    def lost() -> bool:
        models = api.get("/admin/status").json()["models"]
        return [model["state"] for model in models if model["name"] == "cog/odd"] != ["ready"]

    state["restarted"] = bool(wait_for(lost, "its end"))
    assert state["restarted"]
    assert ran(api, "cog/odd")["status"] == "succeeded"


def test_c18_c19_what_older_projects_use(api: httpx.Client) -> None:
    record = ran(api, "cog/odd")
    assert record["output"] == "weights: /srv/fine-tuned.tar CancelationException"
    assert "logged the old way" in record["logs"]
    assert record["metrics"]["emitted"] == 1


def test_c20_the_canary(api: httpx.Client, stranger: httpx.Client, receiver: Receiver) -> None:
    body = {"version": "cog/concurrent", "input": {"delay": 0.2}, "webhook": f"{receiver.url}/hook"}
    record = api.post("/v1/predictions", json=body).json()
    streamed = stream(stranger, record)
    found = ended(api, record)
    assert found["output"] == ["hello ", "there, ", "canary"]
    assert joined(streamed) == "hello there, canary"
    assert len([event for event in streamed if event["event"] == "output"]) == 3
    assert last(receiver, record["id"]).record["output"] == found["output"]


def test_c21_an_environment_that_is_gone_is_an_error_and_no_wait(
    api: httpx.Client, appliance: Appliance
) -> None:
    (build,) = [
        folder.parent.parent
        for folder in (appliance.home / "cog").glob("*/project/predict.py")
        if "takes away" in folder.read_text()
    ]
    (build / "venv" / "bin" / "python").unlink()
    record = ran(api, "cog/fragile")
    assert record["status"] == "failed"
    assert "python" in record["error"]


def test_a_worker_that_crashes_fails_its_prediction_only(api: httpx.Client) -> None:
    record = ran(api, "cog/everything", prompt="x", crash=True)
    assert record["status"] == "failed"
    assert "interrupted" in record["error"]
    assert ran(api, "cog/everything", prompt="next")["status"] == "succeeded"
