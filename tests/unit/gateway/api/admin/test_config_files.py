"""models.yaml and its included files, read, checked and written through the API."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import ConfigError
from tests.support.api_client import Api
from tests.unit.gateway.api.admin.test_additions import api, checked, file

__all__ = ["api"]

MORE = "- name: test/more\n  kind: echo\n  memory: 1MiB\n"


async def read(api: Api, name: str | None = None) -> Any:
    return checked(await api.get("/admin/config/file", params={"file": name} if name else {}), "ConfigFile")


async def test_a_file_is_read_checked_and_applied(api: Api) -> None:
    path = file(api.services)
    path.chmod(0o640)
    found = await read(api)
    assert (found["file"], found["text"], found["not_writable"]) == ("models.yaml", path.read_text(), None)
    text = found["text"] + MORE
    check = checked(await api.post("/admin/config/check", json={"text": text}), "ConfigCheck")
    assert (check["problems"], check["changes"]["added"]) == ([], ["test/more"])
    assert "+- name: test/more" in check["diff"].splitlines()
    assert path.read_text() == found["text"]
    body = {"text": text, "checksum": found["checksum"]}
    written = checked(await api.put("/admin/config/file", json=body), "ConfigWrite")
    assert written["reload"]["added"] == ["test/more"]
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (text, 0o640)
    assert (await read(api))["checksum"] == written["checksum"]
    assert (await api.get("/v1/models/test/more")).status_code == 200


async def test_a_file_that_was_changed_meanwhile_is_not_overwritten(api: Api) -> None:
    path, found = file(api.services), await read(api)
    path.write_text(path.read_text() + "# by hand\n")
    body = {"text": found["text"] + MORE, "checksum": found["checksum"]}
    reply = await api.put("/admin/config/file", json=body)
    assert (reply.status_code, reply.json()["title"]) == (409, "Conflict")
    assert reply.json()["detail"].startswith("models.yaml was changed since it was read: copy your changes")
    assert path.read_text() == found["text"] + "# by hand\n"


async def test_mistakes_have_their_lines_and_change_nothing(api: Api) -> None:
    found = await read(api)
    text = found["text"] + "- {name: test/a, kind: echo, memroy: 1MiB}\n- {name: test/b, kind: ech}\n"
    line = found["text"].count("\n") + 1
    check = checked(await api.post("/admin/config/check", json={"text": text}), "ConfigCheck")
    assert [(each["file"], each["line"], each["key"]) for each in check["problems"]] == [
        ("models.yaml", line, "memroy"), ("models.yaml", line + 1, "kind"),
    ]  # fmt: skip
    assert (check["diff"], check["changes"]) == ("", None)
    broken = checked(await api.post("/admin/config/check", json={"text": "models: [\n"}), "ConfigCheck")
    assert [each["line"] for each in broken["problems"]] == [2]
    reply = await api.put("/admin/config/file", json={"text": text, "checksum": found["checksum"]})
    assert reply.status_code == 400
    assert f"Nothing has changed: {file(api.services)}:{line}: model test/a" in reply.json()["detail"]
    assert file(api.services).read_text() == found["text"]


async def test_a_failed_reload_puts_the_file_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    found, apply = await read(api), api.services.reload.apply
    errors = [ConfigError("the reload failed")]

    async def failing(configure: Any) -> Any:
        if errors:
            raise errors.pop()
        return await apply(configure)

    monkeypatch.setattr(api.services.reload, "apply", failing)
    body = {"text": found["text"] + MORE, "checksum": found["checksum"]}
    reply = await api.put("/admin/config/file", json=body)
    assert (reply.status_code, reply.json()["detail"]) == (
        409,
        "the reload failed. models.yaml is as before.",
    )
    assert file(api.services).read_text() == found["text"]


async def test_an_included_file_is_edited(api: Api) -> None:
    included = file(api.services).parent / "models.d" / "more.yaml"
    included.parent.mkdir()
    included.write_bytes(b"models:\r\n- name: test/old\r\n  kind: echo\r\n  memory: 1MiB\r\n")
    found = await read(api, "models.d/more.yaml")
    assert found["files"] == ["models.yaml", "models.d/more.yaml"]
    text = found["text"].replace("\r\n", "\n")
    body = {"text": text + MORE, "file": "models.d/more.yaml", "checksum": found["checksum"]}
    wrong = await api.post("/admin/config/check", json={"text": text + "x: 1\n", "file": found["file"]})
    problem = wrong.json()["problems"][0]
    assert (problem["file"], problem["line"], problem["key"]) == ("models.d/more.yaml", 5, "x")
    assert (await api.put("/admin/config/file", json=body)).json()["reload"]["added"] == [
        "test/old",
        "test/more",
    ]
    assert included.read_bytes() == found["text"].encode() + MORE.replace("\n", "\r\n").encode()
    for name in ("../models.yaml", "models.d/none.yaml", str(included)):
        assert (await api.get("/admin/config/file", params={"file": name})).status_code == 404
    entry = checked(await api.get("/admin/models/test/more/entry"), "ConfigEntry")
    assert (entry["file"], entry["first_line"], entry["last_line"]) == ("models.d/more.yaml", 5, 7)


async def test_references_stay_and_secrets_in_the_text_are_named(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTRANCE", "in the environment")
    path: Path = file(api.services)
    headers = "telemetry:\n  headers: {a: '${ENTRANCE}', b: in the file}\n"
    path.write_text(path.read_text() + headers)
    found = await read(api)
    assert found["text"].endswith(headers)
    assert found["secrets"] == ["telemetry.headers.b"]


async def test_a_file_that_cannot_be_written_is_read_only(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    found = await read(api)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    assert "cannot be written: Read-only file system" in (await read(api))["not_writable"]
    reply = await api.put("/admin/config/file", json={"text": MORE, "checksum": found["checksum"]})
    assert (reply.status_code, "cannot be written" in reply.json()["detail"]) == (409, True)


async def test_the_entry_of_a_model_names_its_lines(api: Api) -> None:
    entry = checked(await api.get("/admin/models/test/stream/entry"), "ConfigEntry")
    lines = file(api.services).read_text().splitlines(keepends=True)
    assert entry["text"] == "".join(lines[entry["first_line"] - 1 : entry["last_line"]])
    assert "test/stream" in entry["text"]
    assert (await api.get("/admin/models/test/none/entry")).status_code == 404
    assert "models" in (await api.get("/admin/config/schema")).json()["properties"]
