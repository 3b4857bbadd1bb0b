"""Rows P: creating, waiting, polling, cancelling, listing."""

from __future__ import annotations

import itertools
import re
import threading
import time
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ModelError

from tests.e2e.clients import LANGUAGE_MODEL, beta, framework, node, posting
from tests.e2e.conftest import Background
from tests.support.appliance_process import PATIENCE, Appliance, wait_for

pytestmark = pytest.mark.e2e

STATUSES = {"starting", "processing", "succeeded", "failed", "canceled"}
WAIT = {"Prefer": "wait"}


def create(api: httpx.Client, version: str = "appliance/echo", **input: Any) -> dict[str, Any]:
    reply = api.post("/v1/predictions", json={"version": version, "input": input})
    assert reply.status_code == 201, reply.text
    record: dict[str, Any] = reply.json()
    return record


def get(api: httpx.Client, record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = api.get(record["urls"]["get"]).json()
    return found


def ended(api: httpx.Client, record: dict[str, Any]) -> dict[str, Any]:
    def over() -> Any:
        found = get(api, record)
        return found if found["status"] not in {"starting", "processing"} else None

    found: dict[str, Any] = wait_for(over, record["id"])
    return found


def version_of(api: httpx.Client, model: str = "appliance/echo") -> str:
    return str(api.get(f"/v1/models/{model}").json()["latest_version"]["id"])


def test_p1_p45_without_waiting(api: httpx.Client, appliance: Appliance) -> None:
    reply = api.post("/v1/predictions", json={"version": "appliance/echo", "input": {"text": "x"}})
    record = reply.json()
    assert reply.status_code == 201
    assert (record["status"], record["output"], record["logs"], record["error"]) == (
        "starting",
        None,
        "",
        None,
    )
    assert reply.headers["location"] == f"{appliance.url}/v1/predictions/{record['id']}"
    assert re.fullmatch("[a-z0-9]{26}", record["id"])


def test_p2_p3_p4_p5_every_way_to_name_a_version(
    api: httpx.Client, official: Client, appliance: Appliance
) -> None:
    id = version_of(api)
    assert official.predictions.create(version=id, input={"text": "x"}).version == id
    for spec in ("appliance/echo", f"appliance/echo:{id}", id):
        assert create(api, spec)["version"] == id
    named = "replicate.predictions.create({ version: 'appliance/echo', input: {} })"
    assert node(appliance, f"console.log(JSON.stringify((await {named}).version))") == id
    for spec in ("appliance/echo:latest", "no/model", "0" * 64, "nonsense", f"no/model:{id}"):
        reply = api.post("/v1/predictions", json={"version": spec, "input": {}})
        assert (reply.status_code, reply.json()["title"]) == (422, "Invalid version or not permitted")


def test_p6_p7_p8_keys_of_the_body(api: httpx.Client) -> None:
    missing = api.post("/v1/predictions", json={"input": {}})
    assert missing.status_code == 422
    assert missing.json()["invalid_fields"] == [
        {"type": "required", "field": "", "description": "version is required"}
    ]
    unknown = api.post("/v1/predictions", json={"version": "appliance/echo", "input": {}, "model": "x"})
    assert unknown.json()["invalid_fields"] == [
        {
            "type": "additional_property_not_allowed",
            "field": "",
            "description": "Additional property model is not allowed",
        }
    ]
    passed = {"version": "appliance/echo", "input": {}, "stream": True, "webhook_completed": None}
    assert api.post("/v1/predictions", json=passed).status_code == 201


def test_p9_p10_keys_of_the_input(api: httpx.Client) -> None:
    record = create(api, text="x", surprise=[1], stop_sequences=["a"])
    assert ended(api, record)["output"] == "x"
    assert record["input"]["surprise"] == [1]
    wrong = {"repeat": 0, "delay": "long", "crash": 1, "progress": 10_001, "exit_code": 1.5}
    reply = api.post("/v1/predictions", json={"version": "appliance/echo", "input": wrong})
    told = {row["field"]: (row["type"], row["description"]) for row in reply.json()["invalid_fields"]}
    assert told == {
        "input.repeat": ("number_gte", "Must be greater than or equal to 1"),
        "input.delay": ("invalid_type", "Invalid type. Expected: number, given: string"),
        "input.crash": ("invalid_type", "Invalid type. Expected: boolean, given: integer"),
        "input.progress": ("number_lte", "Must be less than or equal to 10000"),
        "input.exit_code": ("invalid_type", "Invalid type. Expected: integer, given: number"),
    }
    assert "- input.repeat: Must be greater than or equal to 1\n" in reply.json()["detail"]


def test_p11_p16_run_waits(api: httpx.Client, official: Client, appliance: Appliance) -> None:
    body = {"version": "appliance/echo", "input": {"text": "now"}}
    reply = api.post("/v1/predictions", json=body, headers=WAIT)
    assert (reply.status_code, reply.json()["status"], reply.json()["output"]) == (201, "succeeded", "now")
    assert reply.headers["preference-applied"] == "wait"
    limited = api.post("/v1/predictions", json=body, headers={"Prefer": "wait=5"})
    assert limited.headers["preference-applied"] == "wait=5"
    assert official.run("appliance/echo", input={"text": "now"}) == "now"
    script = "await replicate.run('appliance/echo', { input: { text: 'now' } })"
    assert node(appliance, f"console.log(JSON.stringify({script}))") == "now"
    script = "''.join(map(str, replicate.run('appliance/echo', input={'text': 'now'})))"
    assert beta(appliance, f"print(json.dumps({script}))") == "now"


def test_p12_a_wait_that_is_too_short(api: httpx.Client, appliance: Appliance) -> None:
    body = {"version": "appliance/echo", "input": {"delay": 600}}
    reply = api.post("/v1/predictions", json=body, headers={"Prefer": "wait=1"})
    assert (reply.status_code, reply.json()["status"], reply.json()["output"]) == (202, "starting", None)
    api.post(reply.json()["urls"]["cancel"])
    script = """
      const input = { text: "later", delay: 3 };
      console.log(JSON.stringify(await replicate.run("appliance/echo", { input, wait: { timeout: 1 } })));
    """
    assert node(appliance, script) == "later"


@pytest.mark.last
def test_p13_p15_the_longest_wait_is_answered_before_clients_give_up(slow: dict[str, Background]) -> None:
    seconds, record = slow["answered"].result()
    assert 50 < seconds < 60
    assert (record["status"], record["output"], record["applied"]) == ("starting", None, "wait=60")
    assert slow["python"].result() == "wait-py1"


@pytest.mark.last
def test_p14_the_beta_makes_one_prediction_only(api: httpx.Client, slow: dict[str, Background]) -> None:
    assert slow["python2"].result() == "wait-py2"
    found: list[Any] = []
    address = "/v1/predictions"
    while address:
        page = api.get(address).json()
        found += [one for one in page["results"] if one["input"].get("text") == "wait-py2"]
        address = page["next"]
    assert len(found) == 1


def test_p17_hanging_up_cancels_nothing(api: httpx.Client, appliance: Appliance) -> None:
    body = {"version": "appliance/echo", "input": {"text": "goes on", "delay": 5}}

    def made() -> list[dict[str, Any]]:
        return [
            each for each in api.get("/v1/predictions").json()["results"] if each["input"] == body["input"]
        ]

    with posting(appliance, "/v1/predictions", body, Prefer="wait"):
        (record,) = wait_for(made, "the prediction")
    assert ended(api, record)["status"] == "succeeded"


def test_p18_p19_p20_polling_sees_output_grow(api: httpx.Client) -> None:
    record = create(api, "test/stream", text="a b c d e f ", chunk_delay=1)
    assert record["output"] is None
    seen: list[Any] = []
    while True:
        found = get(api, record)
        assert found["status"] in STATUSES
        if "output" in found:
            seen.append(found["output"])
        if found["status"] == "succeeded":
            break
        assert found.get("output", []) is not None
        time.sleep(0.05)
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(seen))
    assert len({len(output) for output in seen}) > 3
    assert "".join(seen[-1]) == "a b c d e f "


def test_p20_p21_iterators_of_both_generations(
    api: httpx.Client, official: Client, appliance: Appliance
) -> None:
    asked = {"text": "a b c d ", "chunk_delay": 0.3}
    version = version_of(api, "test/stream")
    assert "".join(official.run(f"test/stream:{version}", input=asked, wait=False)) == "a b c d "
    pieces = beta(
        appliance,
        """
ask = replicate.use("test/stream", streaming=True)
print(json.dumps(list(ask(text="a b c d ", chunk_delay=1))))
""",
    )
    assert "".join(pieces) == "a b c d "
    assert len(pieces) > 1


def test_p24_p25_p26_l1_litellm(api: httpx.Client, appliance: Appliance) -> None:
    version = version_of(api, LANGUAGE_MODEL)
    api.post(
        "/v1/deployments",
        json={
            "name": "for-litellm", "model": LANGUAGE_MODEL, "version": version, "hardware": "cpu",
            "min_instances": 0, "max_instances": 1,
        },
    )  # fmt: skip
    told = framework(
        appliance,
        f"""
import litellm
litellm.disable_hf_tokenizer_download = True  # it would look for a hub for half a minute
import litellm.llms.replicate.chat.transformation as replicate
original = replicate.ReplicateConfig.get_complete_url
def ours(*arguments, **keywords):  # the address of Replicate itself is written into LiteLLM
    return original(*arguments, **keywords).replace("https://api.replicate.com", url)
replicate.ReplicateConfig.get_complete_url = ours
import litellm
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
told = {{}}
for name in (f"{{model}}:{version}", "deployments/appliance/for-litellm"):
    answer = litellm.completion(
        model=f"replicate/{{name}}", messages=messages, temperature=0, max_tokens=30, stop=["STOP"]
    )
    told[name] = answer.choices[0].message.content
parts = litellm.completion(
    model=f"replicate/{{model}}:{version}", messages=messages, temperature=0, max_tokens=30, stream=True
)
told["stream"] = "".join(part.choices[0].delta.content or "" for part in parts)
print(json.dumps(told))
""",
    )
    assert len(told) == 3
    assert all("Paris" in text for text in told.values()), told
    newest = api.get("/v1/predictions").json()["results"][:3]
    assert {record["metrics"]["output_token_count"] <= 30 for record in newest} == {True}


def test_p27_p28_what_the_vercel_sdk_takes_for_files(api: httpx.Client) -> None:
    body = {"version": "test/files", "input": {"text": "x", "repeat": 2}}
    created = api.post("/v1/predictions", json=body, headers=WAIT).json()
    assert created["status"] == "succeeded"
    assert all(isinstance(address, str) for address in created["output"])
    assert isinstance(ended(api, create(api, text="one text"))["output"], str)


def test_p29_the_fallback_of_the_command_line_client(api: httpx.Client) -> None:
    reply = api.post("/v1/models/appliance/echo/predictions", json={"input": {"text": "x"}})
    assert reply.status_code == 201
    again = create(api, version_of(api), text="x")
    assert again["version"] == reply.json()["version"]


def test_p30_p31_cancelling(api: httpx.Client, official: Client) -> None:
    waiting = [create(api, "test/one-at-a-time", delay=600) for _ in range(2)]
    for record in waiting[::-1]:
        reply = api.post(record["urls"]["cancel"])
        assert (reply.status_code, reply.json()["status"]) == (200, "canceled")
        assert reply.json()["completed_at"]
        assert api.post(record["urls"]["cancel"], json={}).json() == reply.json()
    over = ended(api, create(api, text="x"))
    assert api.post(over["urls"]["cancel"]).json() == over
    running = create(api, "test/stream", text="a b c ", chunk_delay=600)
    wait_for(lambda: get(api, running).get("output"), "output")
    official.predictions.cancel(running["id"])
    kept = get(api, running)
    assert (kept["status"], bool(kept["output"]), bool(kept["completed_at"])) == ("canceled", True, True)


def test_p32_p33_deadlines(api: httpx.Client) -> None:
    for model in ("appliance/echo", "test/one-at-a-time"):  # loaded: it is not what takes time
        ended(api, create(api, model, text="x"))
    body = {"version": "appliance/echo", "input": {"delay": 600}}
    running = api.post("/v1/predictions", json=body, headers={"Cancel-After": "8s"}).json()
    before = create(api, "test/one-at-a-time", delay=600)
    body["version"] = "test/one-at-a-time"
    behind = api.post("/v1/predictions", json=body, headers={"Cancel-After": "5"}).json()
    undated = create(api, "test/one-at-a-time", text="no deadline")
    assert running["deadline"] > running["created_at"]
    assert "deadline" not in undated
    for wrong in ("4s", "junk", "-5s", "5x", ""):
        assert api.post("/v1/predictions", json=body, headers={"Cancel-After": wrong}).status_code == 422
    assert ended(api, running)["status"] == "canceled"
    assert ended(api, behind)["status"] == "aborted"
    api.post(before["urls"]["cancel"])
    assert ended(api, undated)["status"] == "succeeded"


def test_p34_p35_metrics_and_errors(api: httpx.Client) -> None:
    asked = {"prompt": "Say hello.", "max_tokens": 8}
    record = ended(api, create(api, LANGUAGE_MODEL, **asked))
    assert type(record["metrics"]["input_token_count"]) is int
    assert type(record["metrics"]["output_token_count"]) is int
    assert record["error"] is None
    assert ended(api, create(api, fail="it broke"))["error"] == "it broke"


def test_p36_progress(api: httpx.Client, official: Client, appliance: Appliance) -> None:
    record = ended(api, create(api, progress=4))
    progress = official.predictions.get(record["id"]).progress
    assert progress is not None
    assert (progress.current, progress.total, progress.percentage) == (4, 4, 1.0)
    script = f"""
      import {{ parseProgressFromLogs }} from "replicate";
      console.log(JSON.stringify(parseProgressFromLogs(await replicate.predictions.get("{record["id"]}"))));
    """
    assert node(appliance, script) == {"percentage": 1, "current": 4, "total": 4}


def test_p37_p38_the_shape_of_every_record(api: httpx.Client) -> None:
    for record in (
        create(api, text="x"),
        ended(api, create(api, text="x")),
        ended(api, create(api, fail="no")),
    ):
        assert all(isinstance(address, str) for address in record["urls"].values())
        assert {"get", "cancel", "web", "stream"} <= set(record["urls"])
        for key in ("created_at", "started_at", "completed_at"):
            assert re.fullmatch(
                r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record.get(key, record["created_at"])
            )
        assert {"id", "model", "version", "input", "output", "status", "data_removed"} <= set(record)


def test_p39_p40_lists(api: httpx.Client, appliance: Appliance) -> None:
    records = [create(api, text=str(number)) for number in range(3)]
    between = {"created_after": records[1]["created_at"], "created_before": records[2]["created_at"]}
    found = api.get("/v1/predictions", params=between).json()["results"]
    assert [record["id"] for record in found] == [records[1]["id"]]
    assert api.get("/v1/predictions", params={"source": "web"}).json()["results"] == []
    assert api.get("/v1/predictions", params={"source": "mail"}).status_code == 422
    script = "print(json.dumps(sum(1 for _ in replicate.predictions.list())))"
    assert beta(appliance, script) >= 3


def test_p42_p43_failures(api: httpx.Client, official: Client) -> None:
    with pytest.raises(ModelError, match="out of ideas") as caught:
        official.run("appliance/echo", input={"print": "thinking", "fail": "out of ideas"})
    assert "thinking" in (caught.value.prediction.logs or "")
    crashed = ended(api, create(api, "test/stream", text="a b c ", after=1, crash=True))
    assert crashed["status"] == "failed"
    assert crashed["error"]
    assert crashed["output"] == ["a "]
    assert ended(api, create(api, "test/stream", text="next"))["output"] == ["next"]


def test_p44_one_slot(api: httpx.Client) -> None:
    first = create(api, "test/one-at-a-time", delay=600)
    second = create(api, "test/one-at-a-time", text="second")
    wait_for(lambda: get(api, first)["status"] == "processing", "the first one to run")
    assert get(api, second)["status"] == "starting"
    api.post(first["urls"]["cancel"])
    assert ended(api, second)["output"] == "second"
    assert ended(api, first)["completed_at"] <= ended(api, second)["started_at"]


def test_many_at_once_all_end(api: httpx.Client, appliance: Appliance) -> None:
    outcomes: list[str] = []

    def run() -> None:
        with appliance.client() as client:
            body = {"version": "appliance/echo", "input": {"text": "x"}}
            outcomes.append(client.post("/v1/predictions", json=body, headers=WAIT).json()["status"])

    threads = [threading.Thread(target=run) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert outcomes == ["succeeded"] * 32
