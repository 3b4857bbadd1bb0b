"""Models that are added, updated and removed through the API, from a hub on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import psutil
import pytest
from huggingface_hub import constants

from appliance import adding, config
from appliance.adding import download_process
from appliance.config import Config, Report
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.gateway.api.admin import additions
from appliance.gateway.api.services import Services
from appliance.gateway.engine.additions import ADDITION_MARK, Additions
from appliance.machine.processes import kill_marked
from tests.support.api_client import Api
from tests.support.engine_bench import Bench
from tests.support.openapi_requests import DOCUMENT
from tests.support.stub_hub import StubHub, serving_hub
from tests.unit.gateway.engine.test_reload import Edited

GIB = 1024**3
FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}).encode(),
    "model.safetensors": bytes(200_000),
    "pytorch_model.bin": bytes(300_000),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    with serving_hub() as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", served.url)  # of the process that downloads
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in (
            "HF_TOKEN",
            "HTTPS_PROXY",
            "https_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "APPLIANCE_CATALOGUE",
        ):
            monkeypatch.delenv(name, raising=False)
        served.add("Org/Model", FILES)
        yield served


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Download in this process, because another takes 0.8 s of CPU to start.

    Tests of downloads that are followed, cancelled or continued, or that fail, start the process.
    """

    async def download(additions: Additions, pending: adding.Pending) -> None:
        line = await asyncio.to_thread(download_process.main, additions._home, pending, "")
        if line.problem is not None:
            raise ApplianceError(line.problem)

    monkeypatch.setattr(Additions, "_download", download)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_of(Bench(tmp_path / "home")) as client:
        yield client


@asynccontextmanager
async def api_of(bench: Bench) -> AsyncIterator[Api]:
    """An API with a models.yaml, which additions change."""
    bench.folder.mkdir()
    bench.capacity = 64 * GIB
    await bench.start()
    edited = await Edited(bench).start()
    services = edited.services
    async with Api(services) as client:
        yield client
    await services.additions.close()
    await services.reload.close()
    await services.webhooks.close()
    await bench.stop()
    await bench.cluster.close()


async def add(api: Api, source: str = "hub:Org/Model", **more: Any) -> dict[str, Any]:
    reply = await api.post("/admin/additions", json={"source": source, **more})
    assert reply.status_code == 202, reply.text
    addition: dict[str, Any] = reply.json()
    return addition


async def ended(api: Api, addition: dict[str, Any]) -> dict[str, Any]:
    """The addition once it is over; its stream of events ends then."""
    await api.get(f"/admin/additions/{addition['id']}/events")
    found: dict[str, Any] = (await api.get(f"/admin/additions/{addition['id']}")).json()
    assert found["ended_at"] is not None
    return found


async def until_downloading(api: Api, addition: dict[str, Any]) -> None:
    async for seen in api.services.additions.follow(addition["id"], 60):
        assert seen is not None
        assert not seen.over, seen
        if seen.step == "downloading from the hub":
            return


def file(services: Services) -> Path:
    return services.additions.file


def checked(reply: Any, component: str) -> Any:
    schema = {"$ref": f"#/components/schemas/{component}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(reply.json())
    return reply.json()


async def test_a_proposal_shows_everything_and_changes_nothing(api: Api, hub: StubHub) -> None:
    before = file(api.services).read_text()
    reply = await api.post("/admin/proposals", json={"source": "hub:Org/Model"})
    assert reply.status_code == 200, reply.text
    proposal = checked(reply, "Proposal")
    assert proposal["name"] == "org/model"
    assert (proposal["kind"], proposal["options"], proposal["licence"]) == ("vllm", {}, "apache-2.0")
    assert (proposal["weights"], proposal["download"]) == (200_000, 200_000)
    assert proposal["memory"] > 200_000
    assert proposal["fit"] == {"state": "fits", "device": "cpu", "evicts": []}
    assert proposal["problem"] is None
    lines = ["- name: org/model", "  kind: vllm", "  source:", "    hub: Org/Model"]
    lines.append(f"    revision: {hub.commits['Org/Model']}")
    assert proposal["yaml"].splitlines() == [f"  {line}" for line in lines]
    assert [line for line in proposal["diff"].splitlines() if line.startswith("+")][1:] == [
        f"+{line}" for line in lines
    ]
    assert file(api.services).read_text() == before
    assert hub.requests
    assert not [path for _, path, _ in hub.requests if path.startswith("/lfs/")]


async def test_a_model_is_added_and_removed(api: Api, hub: StubHub) -> None:
    before = file(api.services).read_text()
    addition = await ended(api, await add(api))
    assert (addition["state"], addition["problem"]) == ("succeeded", None)
    assert addition["reload"]["added"] == ["org/model"]
    assert (await api.get("/v1/models/org/model")).status_code == 200
    listed = checked(await api.get("/admin/additions"), "AdditionPage")
    assert [each["id"] for each in listed["results"]] == [addition["id"]]
    again = await api.post("/admin/additions", json={"source": "hub:Org/Model"})
    assert (again.status_code, again.json()["title"]) == (409, "Conflict")
    assert "has a model org/model already: choose another name with the field name" in again.json()["detail"]

    reply = await api.delete("/admin/models/org/model", params={"prune": "true"})
    removal = checked(reply, "Removal")
    assert removal["reload"]["removed"] == ["org/model"]
    (weights,) = removal["weights"]
    assert (removal["deleted"], Path(weights["path"]).exists()) == (True, False)
    assert file(api.services).read_text() == before
    assert (await api.get("/v1/models/org/model")).status_code == 404
    assert (await api.delete("/admin/models/org/model")).status_code == 404


async def test_the_progress_is_streamed(api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    additions, change = api.services.additions, api.services.additions._change
    reached: list[tuple[int, int | None]] = []

    def record(id: str, **changes: Any) -> None:
        change(id, **changes)
        reached.append((additions.get(id).done, additions.get(id).total))

    monkeypatch.setattr(additions, "_change", record)
    hub.gate.clear()
    addition = await add(api)
    stream = asyncio.ensure_future(api.get(f"/admin/additions/{addition['id']}/events"))
    await until_downloading(api, addition)
    hub.gate.set()
    events = (await stream).text.split("\n\n")
    names = [line for event in events for line in event.splitlines() if line.startswith("event:")]
    assert names[-1] == "event: done"
    assert set(names[:-1]) == {"event: progress"}
    bodies = [json.loads(each.partition("data: ")[2]) for each in events if "data: " in each]
    states = list(dict.fromkeys(body["state"] for body in bodies))
    assert states[-3:] == ["downloading", "applying", "succeeded"]
    assert (200_000, 200_000) in reached
    # A stream shows the newest progress, and none that has been overtaken while its reader was busy.
    assert {(body["done"], body["total"]) for body in bodies} <= set(reached)
    assert (await api.get("/admin/additions/none/events")).status_code == 404


@pytest.mark.usefixtures("no_process")
async def test_two_additions_and_an_edit_by_hand_at_once_are_all_kept(api: Api, hub: StubHub) -> None:
    hub.add("Org/Other", {**FILES, "model.safetensors": bytes(100_000)})
    hub.gate.clear()
    first, second = await add(api), await add(api, "hub:Org/Other")
    same = await api.post("/admin/additions", json={"source": "hub:Org/Model"})
    assert (same.status_code, same.json()["title"]) == (409, "Conflict")
    assert f"is being changed by the addition {first['id']}: wait for its end" in same.json()["detail"]
    path = file(api.services)
    path.write_text("# by hand\n" + path.read_text())
    hub.gate.set()
    for addition in (first, second):
        assert (await ended(api, addition))["state"] == "succeeded"
    assert path.read_text().startswith("# by hand\n")
    names = {model.name for model in config.load(path).models}
    assert names == {"test/echo", "test/stream", "org/model", "org/other"}


@pytest.mark.usefixtures("no_process")
async def test_two_requests_at_once_for_one_model_add_it_once(api: Api, hub: StubHub) -> None:
    body = {"source": "hub:Org/Model"}
    replies = await asyncio.gather(*(api.post("/admin/additions", json=body) for _ in range(3)))
    assert sorted(reply.status_code for reply in replies) == [202, 409, 409]
    (addition,) = [reply.json() for reply in replies if reply.status_code == 202]
    assert (await ended(api, addition))["state"] == "succeeded"


@pytest.mark.usefixtures("no_process")
async def test_a_failing_reload_puts_the_file_back(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file(api.services).read_text()
    apply, errors = api.services.reload.apply, [ConfigError("the reload failed")]

    async def failing(configure: Any) -> Report:
        if errors:
            raise errors.pop()
        return await apply(configure)

    monkeypatch.setattr(api.services.reload, "apply", failing)
    addition = await ended(api, await add(api))
    assert (addition["state"], addition["problem"]) == (
        "failed", "the reload failed. models.yaml is as before.",
    )  # fmt: skip
    assert file(api.services).read_text() == before

    errors.append(ConfigError("the reload failed"))
    reply = await api.delete("/admin/models/test/stream")
    assert (reply.status_code, reply.json()["detail"]) == (
        409, "the reload failed. models.yaml is as before.",
    )  # fmt: skip
    assert file(api.services).read_text() == before


@pytest.mark.usefixtures("no_process")
async def test_a_model_that_cannot_be_served_is_not_kept_unless_forced(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file(api.services).read_text()
    apply = api.services.reload.apply

    async def not_serving(configure: Any) -> Report:
        report = await apply(configure)
        return Report(added=report.added, not_served=dict.fromkeys(report.added, "its weights are damaged"))

    monkeypatch.setattr(api.services.reload, "apply", not_serving)
    addition = await ended(api, await add(api))
    assert (addition["state"], addition["problem"]) == (
        "failed", "its weights are damaged. models.yaml is as before.",
    )  # fmt: skip
    assert file(api.services).read_text() == before
    forced = await ended(api, await add(api, force=True))
    assert forced["reload"]["not_served"] == {"org/model": "its weights are damaged"}
    assert "org/model" in file(api.services).read_text()


@pytest.mark.usefixtures("no_process")
async def test_an_edit_by_hand_during_a_failing_reload_stays(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(api.services)

    async def failing(_: Any) -> Report:
        path.write_text(path.read_text() + "# by hand\n")
        raise ConfigError("the reload failed")

    monkeypatch.setattr(api.services.reload, "apply", failing)
    addition = await ended(api, await add(api))
    assert addition["problem"] == (
        "the reload failed. models.yaml was edited meanwhile and keeps the change: correct it."
    )
    assert path.read_text().endswith("# by hand\n")


async def test_a_download_is_cancelled(api: Api, hub: StubHub) -> None:
    before = file(api.services).read_text()
    hub.gate.clear()
    addition = await add(api)
    await until_downloading(api, addition)
    reply = await api.post(f"/admin/additions/{addition['id']}/cancel")
    assert checked(reply, "Addition")["state"] == "canceled"
    assert kill_marked(ADDITION_MARK, addition["id"]) == []
    assert file(api.services).read_text() == before
    assert adding.pending.read_all(api.services.reload.home) == []
    again = await api.post(f"/admin/additions/{addition['id']}/cancel")
    assert (again.status_code, again.json()) == (200, reply.json())
    hub.gate.set()
    assert (await ended(api, await add(api)))["state"] == "succeeded"


async def test_a_download_has_the_token_of_the_hub_but_is_not_started_with_it(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"HF_TOKEN": "hf_secret-of-the-hub", "APPLIANCE_TOKEN": "secret-of-the-operator"}
    hub.gate.clear()
    addition = await add(api)
    await until_downloading(api, addition)
    assert hub.authorizations == {None}
    await api.post(f"/admin/additions/{addition['id']}/cancel")

    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    addition = await add(api)
    await until_downloading(api, addition)
    mark = f"{ADDITION_MARK}={addition['id']}".encode()
    started = [text for each in psutil.process_iter() if mark in (text := environment(each))]
    assert started
    assert not [value for value in secrets.values() for text in started if value.encode() in text]
    hub.gate.set()
    assert (await ended(api, addition))["state"] == "succeeded"
    assert f"Bearer {secrets['HF_TOKEN']}" in hub.authorizations


def environment(process: psutil.Process) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:  # it has ended meanwhile, or is another user's
        return b""


async def test_the_next_gateway_continues_a_download(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = api.services
    before = file(services).read_text()
    hub.gate.clear()
    addition = await add(api)
    await until_downloading(api, addition)
    assert (
        adding.unused(services.reload.home, lambda: [services.config]) == []
    )  # not even the unfinished files
    await services.additions.close()
    assert kill_marked(ADDITION_MARK, addition["id"]) == []
    services.additions = Additions(services.reload.home, services.reload)
    services.additions.resume(services.configure)
    hub.gate.set()
    assert (await ended(api, addition))["state"] == "succeeded"
    assert (await api.get("/v1/models/org/model")).status_code == 200
    # as if the gateway had been killed after the edit, before it removed the file of the addition
    given = msgspec.structs.replace(services.additions.get(addition["id"]).pending, applying=True)
    adding.pending.write(services.reload.home, given)
    text = file(services).read_text()
    services.additions = Additions(services.reload.home, services.reload)
    services.additions.resume(services.configure)
    assert (await ended(api, addition))["state"] == "succeeded"
    assert file(services).read_text() == text

    async def not_serving(_: Any) -> Report:
        return Report(not_served={"org/model": "its weights are damaged"})

    monkeypatch.setattr(services.reload, "apply", not_serving)
    adding.pending.write(services.reload.home, given)
    services.additions = Additions(services.reload.home, services.reload)
    services.additions.resume(services.configure)
    assert (await ended(api, addition))["problem"] == "its weights are damaged. models.yaml is as before."
    assert file(services).read_text() == before


@pytest.mark.usefixtures("no_process")
async def test_an_update_that_failed_after_a_restart_is_undone(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = api.services
    await ended(api, await add(api))
    before = file(services).read_text()
    hub.add("Org/Model", {**FILES, "model.safetensors": bytes(100_000)})
    update = await ended(api, (await api.post("/admin/models/org/model/update")).json())
    given = msgspec.structs.replace(services.additions.get(update["id"]).pending, applying=True)

    async def not_serving(_: Any) -> Report:
        return Report(not_served={"org/model": "its weights are damaged"})

    monkeypatch.setattr(services.reload, "apply", not_serving)
    adding.pending.write(services.reload.home, given)
    services.additions = Additions(services.reload.home, services.reload)
    services.additions.resume(services.configure)
    assert (await ended(api, update))["problem"] == "its weights are damaged. models.yaml is as before."
    assert file(services).read_text() == before


@pytest.mark.usefixtures("no_process")
async def test_weights_of_an_addition_that_starts_during_a_removal_stay(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(api, await add(api))
    apply, started = api.services.reload.apply, list[dict[str, Any]]()

    async def with_another_addition(configure: Any) -> Report:
        if not started:
            started.append(await add(api, name="me/copy"))
        return await apply(configure)

    monkeypatch.setattr(api.services.reload, "apply", with_another_addition)
    reply = await api.delete("/admin/models/org/model", params={"prune": "true"})
    assert (reply.status_code, reply.json()["weights"]) == (200, [])
    assert (await ended(api, started[0]))["state"] == "succeeded"
    assert checked(await api.get("/admin/weights/unused"), "UnusedWeightsPage")["results"] == []
    assert (await api.get("/v1/models/me/copy")).status_code == 200


@pytest.mark.usefixtures("no_process")
async def test_a_model_of_an_included_file_is_updated_and_removed(api: Api, hub: StubHub) -> None:
    included = file(api.services).parent / "models.d" / "more.yaml"
    included.parent.mkdir()
    await ended(api, await add(api))
    text, first = file(api.services).read_text(), hub.commits["Org/Model"]
    included.write_text("models:\n" + text[text.index("- name: org/model") :])
    file(api.services).write_text(text[: text.index("- name: org/model")])
    second = hub.add("Org/Model", {**FILES, "model.safetensors": bytes(100_000)})
    moved = included.read_text()
    update = await ended(api, (await api.post("/admin/models/org/model/update")).json())
    assert (update["state"], update["problem"]) == ("succeeded", None)
    assert included.read_text() == moved.replace(first, second)
    reply = await api.delete("/admin/models/org/model")
    assert reply.status_code == 200, reply.text
    assert included.read_text() == "models:\n  []\n"


async def test_a_failed_download_says_why(api: Api, hub: StubHub) -> None:
    before = file(api.services).read_text()
    hub.add("Org/Model", {**FILES, "model.safetensors": os.urandom(200_000)})
    hub.damaged = True
    addition = await ended(api, await add(api))
    assert addition["state"] == "failed"
    assert "model.safetensors of Org/Model" in addition["problem"]
    assert "has the SHA-256" in addition["problem"]
    assert file(api.services).read_text() == before


@pytest.mark.usefixtures("no_process")
async def test_a_model_is_updated(api: Api, hub: StubHub) -> None:
    await ended(api, await add(api))
    first = hub.commits["Org/Model"]
    newest = await api.post("/admin/models/org/model/update")
    assert (newest.status_code, newest.json()["detail"]) == (
        400, f"The model org/model is at the newest revision, {first}.",
    )  # fmt: skip
    second = hub.add("Org/Model", {**FILES, "model.safetensors": bytes(100_000)})
    found = checked(await api.get("/admin/models/org/model/update"), "Update")
    assert found == {"model": "org/model", "old": first, "new": second}
    update = await ended(api, (await api.post("/admin/models/org/model/update")).json())
    assert (update["action"], update["state"], update["problem"]) == ("update", "succeeded", None)
    assert update["reload"]["changed"] == {"org/model": ["source"]}
    assert f"revision: {second}" in file(api.services).read_text()

    (old,) = checked(await api.get("/admin/weights/unused"), "UnusedWeightsPage")["results"]
    used = str(file(api.services))
    refused = await api.post("/admin/weights/prune", json={"paths": [old["path"], used]})
    assert (refused.status_code, Path(old["path"]).exists()) == (409, True)
    pruned = checked(await api.post("/admin/weights/prune", json={"paths": [old["path"]]}), "Prune")
    assert (pruned["deleted"], Path(old["path"]).exists()) == ([old], False)
    assert pruned["freed"] >= 200_000


@pytest.mark.usefixtures("no_process")
async def test_a_model_that_does_not_fit_needs_force(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [adding.DeviceUse("cpu", "cpu", GIB, GIB)]
    monkeypatch.setattr(additions, "_devices", lambda _: small)
    proposal = (await api.post("/admin/proposals", json={"source": "hub:Org/Model"})).json()
    assert proposal["fit"]["state"] == "does not fit"
    assert proposal["problem"].endswith("or add it anyway with the field force")
    reply = await api.post("/admin/additions", json={"source": "hub:Org/Model"})
    assert (reply.status_code, reply.json()["title"]) == (400, "Bad request")
    assert reply.json()["detail"] == proposal["problem"]
    assert (await ended(api, await add(api, force=True)))["state"] == "succeeded"


async def test_the_entry_that_was_shown_is_the_one_that_is_written(api: Api, hub: StubHub) -> None:
    proposal = (await api.post("/admin/proposals", json={"source": "hub:Org/Model"})).json()
    hub.add("Org/Model", {**FILES, "model.safetensors": bytes(100_000)})
    body = {"source": "hub:Org/Model", "yaml": proposal["yaml"]}
    reply = await api.post("/admin/additions", json=body)
    assert (reply.status_code, reply.json()["title"]) == (409, "Conflict")
    assert "The source has changed since the proposal" in reply.json()["detail"]


async def test_a_file_that_cannot_be_written_is_refused_at_once(
    api: Api, hub: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    for reply in (
        await api.post("/admin/additions", json={"source": "hub:Org/Model"}),
        await api.delete("/admin/models/test/stream"),
    ):
        assert (reply.status_code, reply.json()["title"]) == (409, "Conflict")
        assert "models.yaml: cannot be written: Read-only file system: correct" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"source": "./model"}, 400, "./model is neither a folder nor in the catalogue"),
        ({"source": "tests"}, 400, "tests is neither a folder nor in the catalogue"),
        ({"source": "whisper-smal"}, 400, "did you mean whisper-small"),
        ({"source": "hub:Org/None"}, 400, "Org/None at main cannot be fetched from the hub"),
        ({"source": "hub:Org/Model", "kind": "no"}, 400, "name one of .* with the field kind"),
        ({"source": "hub:Org/Model", "name": "x"}, 400, "choose a name with the field name"),
        ({"source": ""}, 422, "source"),
        ({}, 422, "source"),
        ({"source": "x", "nmae": "a/b"}, 422, "nmae"),
    ],
)
async def test_what_cannot_be_added_says_why(
    api: Api, hub: StubHub, body: dict[str, Any], status: int, detail: str
) -> None:
    for path in ("/admin/proposals", "/admin/additions"):
        reply = await api.post(path, json=body)
        assert reply.status_code == status, reply.text
        assert re.search(detail, reply.json()["detail"]), reply.text


async def test_an_error_in_models_yaml_is_a_conflict(api: Api, hub: StubHub) -> None:
    file(api.services).write_text("models: [{name: a/a, kind: none}]\n")
    for reply in (
        await api.post("/admin/proposals", json={"source": "hub:Org/Model"}),
        await api.delete("/admin/models/a/a"),
        await api.get("/admin/weights/unused"),
    ):
        assert (reply.status_code, reply.json()["title"]) == (409, "Conflict")
        assert "models.yaml:1: model a/a, key kind: there is no kind 'none'" in reply.json()["detail"]


async def test_the_catalogue_and_the_hub_are_searched(api: Api, hub: StubHub) -> None:
    found = checked(await api.get("/admin/catalogue", params={"query": "wisper"}), "Catalogue")
    assert "whisper-small" in [model["short"] for model in found["models"]]
    assert found["models"][0]["fit"]["state"] == "fits"
    everything = checked(await api.get("/admin/catalogue"), "Catalogue")
    assert len(everything["models"]) == len(adding.catalogue(Config.model_validate(MINIMAL)))
    hits = checked(await api.get("/admin/hub", params={"query": "model"}), "HubSearch")
    assert [model["source"] for model in hits["models"]] == ["hub:Org/Model"]
    assert (await api.get("/admin/hub")).status_code == 400


MINIMAL = {"models": [{"name": "a/a", "kind": "echo"}]}
