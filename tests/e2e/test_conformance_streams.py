"""Rows S: server-sent events."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from replicate.client import Client

from tests.e2e.clients import LANGUAGE_MODEL, node
from tests.e2e.conftest import Background
from tests.e2e.test_conformance_predictions import create, ended, version_of
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e


def events(text: str) -> list[dict[str, str]]:
    """Every event as the standard reads it; comments are left out."""
    assert "\r" not in text
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        fields: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        if fields:
            found.append({name: "\n".join(values) for name, values in fields.items()})
    return found


def stream(client: httpx.Client, record: dict[str, Any], **headers: str) -> list[dict[str, str]]:
    reply = client.get(record["urls"]["stream"], headers=headers)
    assert reply.status_code == 200
    assert reply.headers["content-type"].partition(";")[0] == "text/event-stream"
    return events(reply.text)


def joined(found: list[dict[str, str]]) -> str:
    return "".join(event["data"] for event in found if event["event"] == "output")


def test_s1_s6_javascript_streams(appliance: Appliance) -> None:
    found = node(
        appliance,
        """
        const input = { text: "a b c " };
        const created = await replicate.predictions.create({ model: "test/stream", input });
        const events = [];
        for await (const { event, data } of replicate.stream("test/stream", { input })) {
          events.push([event, data]);
        }
        console.log(JSON.stringify([typeof created.urls.stream, events]));
        """,
    )
    assert found[0] == "string"
    assert "".join(data for name, data in found[1] if name == "output") == "a b c "
    assert found[1][-1] == ["done", "{}"]


def test_s2_s3_s4_s5_s7_what_every_reader_needs(
    api: httpx.Client, stranger: httpx.Client, official: Client
) -> None:
    record = create(api, "test/stream", text="a b\nc ", chunk_delay=0.05)
    found = stream(stranger, record)
    assert {event["event"] for event in found} == {"output", "done"}
    assert all(event["id"] and "data" in event for event in found)
    assert len({event["id"] for event in found}) == len(found)
    assert stream(api, record) == found  # with a token it is the same
    names = [event.event.value for event in official.stream("test/stream", input={"text": "a b "})]
    assert set(names) == {"output", "done"}


def test_s8_s9_failure_and_cancellation(
    api: httpx.Client, stranger: httpx.Client, appliance: Appliance
) -> None:
    failed = stream(stranger, create(api, "test/stream", text="a b ", after=1, fail="it broke"))
    assert [event["event"] for event in failed] == ["output", "error", "done"]
    assert (failed[1]["data"], failed[2]["data"]) == ('{"detail":"it broke"}', '{"reason":"error"}')
    canceled = node(
        appliance,
        """
        const input = { text: "a b c d e f g h ", chunk_delay: 600 };
        const created = await replicate.predictions.create({ model: "test/stream", input });
        const reply = await fetch(created.urls.stream);
        setTimeout(() => replicate.predictions.cancel(created.id), 300);
        console.log(JSON.stringify(await reply.text()));
        """,
    )
    assert events(canceled)[-1]["data"] == '{"reason":"canceled"}'


@pytest.mark.parametrize(
    "text",
    [
        "  leading",
        "in\nside and at the end\n\n",
        "\n",
        "tab\t and trailing  ",
        "é漢字🎉 e\u0301",
        "data: x\nevent: y",
    ],
)
def test_s10_s11_s13_text_arrives_as_it_is(api: httpx.Client, stranger: httpx.Client, text: str) -> None:
    assert joined(stream(stranger, create(api, "test/stream", text=text))) == text


def test_s12_s19_what_python_is_known_to_lose(
    api: httpx.Client, stranger: httpx.Client, official: Client
) -> None:
    text = "one\u2028two"
    assert joined(stream(stranger, create(api, "test/stream", text=text))) == text
    lost = "".join(str(event) for event in official.stream("test/stream", input={"text": text}))
    assert lost.startswith("one")
    converted = [
        event.data for event in official.stream("test/stream", input={"text": "https://example.org/x"})
    ]
    assert str(converted[0]).startswith("https:") or hasattr(converted[0], "url")


def test_s13_tokens_of_a_real_model_are_whole_characters(api: httpx.Client, stranger: httpx.Client) -> None:
    asked = {"prompt": "Repeat exactly: 漢字 🎉 über", "temperature": 0, "max_tokens": 40}
    found = stream(stranger, create(api, LANGUAGE_MODEL, **asked))
    assert "\ufffd" not in joined(found)
    assert len(found) > 3


@pytest.mark.last
def test_s14_a_silent_model_does_not_lose_its_reader(slow: dict[str, Background]) -> None:
    assert "".join(slow["stream"].result()).startswith("at last")


def test_s15_s16_s17_late_returning_and_several_readers(api: httpx.Client, stranger: httpx.Client) -> None:
    record = create(api, "test/stream", text="a b c d ")
    ended(api, record)
    everything = stream(stranger, record)
    assert stream(stranger, record) == everything
    assert joined(everything) == "a b c d "
    for position, event in enumerate(everything):
        assert stream(stranger, record, **{"Last-Event-ID": event["id"]}) == everything[position + 1 :]
    assert stranger.get("/v1/streams/nothing").status_code == 404


def test_s17_two_readers_of_a_running_one(api: httpx.Client, stranger: httpx.Client) -> None:
    record = create(api, "test/stream", text="a b c d ", chunk_delay=0.1)
    with stranger.stream("GET", record["urls"]["stream"]) as first:
        second = stream(stranger, record)
        assert events(first.read().decode()) == second


def test_s18_files_stream_from_an_address_of_their_own(api: httpx.Client, appliance: Appliance) -> None:
    record = create(api, "test/file-stream", text="content", repeat=2)
    assert record["urls"]["stream"].startswith(f"{appliance.url}/v1/files/stream/")
    contents = node(
        appliance,
        """
        const contents = [];
        const input = { text: "content", repeat: 2 };
        for await (const { event, data } of replicate.stream("test/file-stream", { input })) {
          if (event === "output") contents.push(await (await data.blob()).text());
        }
        console.log(JSON.stringify(contents));
        """,
    )
    assert contents == ["content", "content"]


def test_s20_by_a_version_and_its_schema(api: httpx.Client, appliance: Appliance) -> None:
    version = version_of(api, "test/stream")
    text = node(
        appliance,
        f"""
        const schema = await replicate.models.versions.get("test", "stream", "{version}");
        const key = Object.keys(schema.openapi_schema.components.schemas.Input.properties)[0];
        let text = "";
        const input = {{ [key]: "a b " }};
        for await (const {{ event, data }} of replicate.stream("test/stream:{version}", {{ input }})) {{
          if (event === "output") text += data;
        }}
        console.log(JSON.stringify(text));
        """,
    )
    assert text == "a b "


def test_s21_a_browser_reads_it(api: httpx.Client, stranger: httpx.Client) -> None:
    record = create(api, "test/stream", text="x")
    reply = stranger.get(record["urls"]["stream"], headers={"Origin": "https://app.example.org"})
    assert reply.headers["access-control-allow-origin"] == "https://app.example.org"
    assert reply.headers["access-control-allow-credentials"] == "true"
    assert "no-store" in reply.headers["cache-control"]


def test_s22_c5_the_command_line_client_prints_text_and_falls_back(
    api: httpx.Client, stranger: httpx.Client, official: Client
) -> None:
    schema = api.get("/v1/models/test/stream").json()["latest_version"]["openapi_schema"]
    output = schema["components"]["schemas"]["Output"]
    assert (output["type"], output["items"]["type"]) == ("array", "string")
    assert (output["x-cog-array-type"], output["x-cog-array-display"]) == ("iterator", "concatenate")
    assert joined(stream(stranger, create(api, "test/stream", text="a b "))) == "a b "
    files = official.run("test/files", input={"text": "x", "repeat": 2})
    assert isinstance(files, list)
