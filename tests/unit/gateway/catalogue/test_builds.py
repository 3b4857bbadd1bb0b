"""Projects that are pushed: what the routes refuse, and what is packed and unpacked."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.builds import archive, project
from appliance.cli import push
from appliance.config import CogModel, FolderSource
from appliance.domain import token
from appliance.domain.errors import WeightsError
from appliance.domain.model import Build, Project
from appliance.domain.token import Scope, Token
from appliance.gateway.catalogue import builds as builds_module
from appliance.gateway.catalogue.builds import BUILD_MARK, BUILDS_AT_ONCE
from appliance.machine.processes import kill_marked
from tests.support.api_client import Api

ROUTE = "/v1/models/me/mine/versions"


@pytest.fixture
async def allowed(api: Api) -> Api:
    """A client of an appliance that permits Cog projects, with a model of its own."""
    await api.post(
        "/v1/models", json={"owner": "me", "name": "mine", "visibility": "private", "hardware": "cpu"}
    )
    config = api.services.config
    code = config.code.model_copy(update={"cog": True})
    services = msgspec.structs.replace(api.services, config=config.model_copy(update={"code": code}))
    return Api(services)


async def upload(api: Api, content: bytes = b"no archive") -> str:
    made = await api.post("/v1/files", files={"content": ("project.tar.gz", content)})
    url: str = made.json()["urls"]["get"]
    return url


async def test_it_has_to_be_permitted_by_the_config(api: Api) -> None:
    await api.post(
        "/v1/models", json={"owner": "me", "name": "mine", "visibility": "private", "hardware": "cpu"}
    )
    refused = await api.post(ROUTE, json={"source": await upload(api)})
    assert refused.status_code == 403
    assert "code.cog" in refused.json()["detail"]


async def test_only_an_administrator_may(allowed: Api) -> None:
    await allowed.services.store.add_token(
        Token(id="third", name="third", owner="me", digest=token.digest("run"), created_at=0, scope=Scope.RUN)
    )
    headers = {"Authorization": "Bearer run"}
    refused = await allowed.post(ROUTE, json={"source": "x"}, headers=headers)
    assert (refused.status_code, "admin" in refused.json()["detail"]) == (403, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"source": 3}, "source"),
        ({"source": "https://example.org/project.tar.gz"}, "source"),
        ({"source": "/v1/files/0123"}, "source"),
        ({"source": None}, ""),
        ({"memory": "much"}, "memory"),
        ({"memory": -1}, "memory"),
        ({"what": 1}, ""),
    ],
)
async def test_bad_wishes_are_refused_by_field(allowed: Api, body: dict[str, Any], field: str) -> None:
    body_sent = {"source": await upload(allowed), **body} if body else body
    refused = await allowed.post(ROUTE, json=body_sent)
    assert refused.status_code == 422, refused.text
    assert [problem["field"] for problem in refused.json()["invalid_fields"]] == [field]


async def test_a_model_has_to_be_there_and_ones_own(allowed: Api) -> None:
    source = await upload(allowed)
    assert (await allowed.post("/v1/models/me/none/versions", json={"source": source})).status_code == 404
    configured = await allowed.post("/v1/models/test/echo/versions", json={"source": source})
    assert (configured.status_code, "models.yaml" in configured.json()["detail"]) == (400, True)


async def test_a_build_is_its_owners(allowed: Api) -> None:
    build = Build(
        id="b" * 26, model="me/mine", owner="me", source="x", created_at=1.0, completed_at=2.0, memory=None
    )
    await allowed.services.store.registry.put_build(build)
    shown = (await allowed.get(f"/v1/builds/{build.id}")).json()
    assert (shown["id"], shown["urls"]["get"].endswith(f"/v1/builds/{build.id}")) == (build.id, True)
    async with Api(allowed.services, "other") as stranger:
        assert (await stranger.get(f"/v1/builds/{build.id}")).status_code == 404


async def begun(api: Api) -> dict[str, Any]:
    reply = await api.post(ROUTE, json={"source": await upload(api)})
    assert reply.status_code == 202, reply.text
    made: dict[str, Any] = reply.json()
    return made


async def get_build(api: Api, build: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await api.get(f"/v1/builds/{build['id']}")).json()
    return found


async def test_builds_run_side_by_side_and_a_canceled_one_frees_its_slot(allowed: Api) -> None:
    builds = [await begun(allowed) for _ in range(BUILDS_AT_ONCE + 2)]
    assert [(await get_build(allowed, build))["status"] for build in builds] == [
        *["processing"] * BUILDS_AT_ONCE, "starting", "starting",
    ]  # fmt: skip
    waiting, further = builds[BUILDS_AT_ONCE:]
    assert (await get_build(allowed, waiting))[
        "step"
    ] == f"waiting: {BUILDS_AT_ONCE} other builds are under way"
    listed = (await allowed.get("/v1/builds")).json()["results"]
    assert [each["id"] for each in listed] == [build["id"] for build in builds]
    for build in (builds[0], further):  # one that runs, and one that waits
        canceled = (await allowed.post(f"/v1/builds/{build['id']}/cancel")).json()
        assert (canceled["status"], canceled["error"]) == ("canceled", "it was canceled")
        assert canceled["completed_at"] is not None
    while (await get_build(allowed, waiting))["status"] == "starting":
        await asyncio.sleep(0.005)
    for build in builds:
        await allowed.post(f"/v1/builds/{build['id']}/cancel")
    assert (await allowed.get("/v1/builds")).json()["results"] == []
    again = (await allowed.post(f"/v1/builds/{further['id']}/cancel")).json()
    assert again["status"] == "canceled"


async def test_a_canceled_build_is_over_only_when_its_process_is(
    allowed: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def created(*arguments: str, **more: Any) -> asyncio.subprocess.Process:
        processes.append(await create(*arguments, **more))
        return processes[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", created)
    monkeypatch.setattr(builds_module, "kill_marked", lambda *_: None)  # a slow system
    build = await begun(allowed)
    while not processes:
        await asyncio.sleep(0.001)
    asyncio.get_running_loop().call_later(0.1, processes[0].kill)
    await allowed.post(f"/v1/builds/{build['id']}/cancel")
    assert processes[0].returncode is not None


async def test_nobody_elses_build_can_be_canceled(allowed: Api) -> None:
    build = await begun(allowed)
    async with Api(allowed.services, "other") as stranger:
        assert (await stranger.post(f"/v1/builds/{build['id']}/cancel")).status_code == 404
        assert (await stranger.get("/v1/builds")).json()["results"] == []
    assert (await allowed.post(f"/v1/builds/{build['id']}/cancel")).json()["status"] == "canceled"


async def test_a_build_that_takes_too_long_is_ended_and_nothing_of_it_is_left(
    allowed: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.gateway.catalogue.builds.BUILD_TIMEOUT", 0.01)
    build = await begun(allowed)
    while (found := await get_build(allowed, build))["completed_at"] is None:
        await asyncio.sleep(0.005)
    assert (found["status"], found["step"]) == ("failed", None)
    assert "took longer than 0.01 s" in found["error"]
    assert kill_marked(BUILD_MARK, build["id"]) == []


async def test_a_pushed_version_whose_build_is_damaged_is_left_out_and_said_to_be(allowed: Api) -> None:
    builds = allowed.services.builds
    for name, version, description in (("one", "a" * 64, "{"), ("two", "b" * 64, '{"concurrency": 1}')):
        folder = project.root(builds._home) / name
        folder.mkdir(parents=True)
        (folder / project.DESCRIPTION).write_text(description)
        made = Project(version=version, model="me/mine", build=name, created_at=1.0, memory=None)
        await allowed.services.store.registry.add_project(made)
    await builds.load()
    said = (await allowed.get("/admin/status")).json()["not_served"]
    assert [each["name"] for each in said] == [f"me/mine@{'a' * 16}", f"me/mine@{'b' * 16}"]
    assert "is damaged" in said[0]["problem"]
    assert "KeyError" in said[1]["problem"]


# -- the archive


def packed(folder: Path) -> set[str]:
    content = io.BytesIO()
    push._pack(folder, content)
    content.seek(0)
    with tarfile.open(fileobj=content) as opened:
        return set(opened.getnames())


def test_files_in_gitignore_stay_here_if_there_is_no_dockerignore(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cog.yaml", "a/output.log", "weights.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert packed(tmp_path) == {"cog.yaml", "weights.bin", ".gitignore"}
    assert "files in .gitignore are not uploaded" in capsys.readouterr().err
    (tmp_path / ".dockerignore").write_text("weights.bin\n")
    assert packed(tmp_path) == {"cog.yaml", "a/output.log", ".gitignore", ".dockerignore"}


def test_environments_caches_and_what_is_named_stay_here(tmp_path: Path) -> None:
    for name in (
        "cog.yaml", "run.py", ".git/HEAD", ".venv/bin/python", "venv/x", "a/__pycache__/b.pyc", "a/b.py",
        "weights/big.bin", "weights/keep.bin", "notes.txt", "a/notes.txt", "node_modules/x", ".env",
    ):  # fmt: skip
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    ignored = "# a comment\n\nweights/*\n!weights/keep.bin\n*.txt\n.env\n"
    (tmp_path / ".dockerignore").write_text(ignored)
    assert packed(tmp_path) == {
        "cog.yaml", "run.py", "a/b.py", "weights/keep.bin", "a/notes.txt", ".dockerignore",
    }  # fmt: skip
    (tmp_path / ".dockerignore").write_text("**/*.txt\na\n")
    assert packed(tmp_path).isdisjoint({"notes.txt", "a/notes.txt", "a/b.py"})


def archived(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    file = tmp_path / "archive.tar.gz"
    with tarfile.open(file, "w:gz") as opened:
        for member, content in members:
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return file


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_what_is_packed_is_unpacked(tmp_path: Path) -> None:
    members = (tarfile.TarInfo("a/b.txt"), b"content"), (link("a/c.txt", "b.txt"), b"")
    archive.unpack(archived(tmp_path, *members), tmp_path / "out")
    assert (tmp_path / "out/a/c.txt").read_text() == "content"


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("a/../../escaped"),
        link("a", "/etc/passwd"),
        link("a", "../../outside"),
        link("a", "../outside", tarfile.LNKTYPE),
        link("device", "", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.linkname}",
)
def test_nothing_comes_to_lie_outside(tmp_path: Path, member: tarfile.TarInfo) -> None:
    inside = tmp_path / "deep" / "inside"
    with pytest.raises(WeightsError, match="cannot be unpacked"):
        archive.unpack(archived(tmp_path, (member, b"")), inside)
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "deep" / "escaped").exists()


def test_an_archive_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_BYTES", 1000)
    large = archived(tmp_path, (tarfile.TarInfo("a"), bytes(600)), (tarfile.TarInfo("b"), bytes(600)))
    with pytest.raises(WeightsError, match="the archive is larger than"):
        archive.unpack(large, tmp_path / "out")
    monkeypatch.setattr(archive, "_MEMBERS", 1)
    many = archived(tmp_path, (tarfile.TarInfo("a"), b""), (tarfile.TarInfo("b"), b""))
    with pytest.raises(WeightsError, match="the archive is larger than"):
        archive.unpack(many, tmp_path / "other")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b broken"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "archive"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be unpacked"):
        archive.unpack(file, tmp_path / "out")


def test_what_dead_builds_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    root = project.root(tmp_path)
    for name in ("digest-0.1-2", f".digest-0.1-2.{os.getpid()}", ".digest-0.1-2.999999999", ".pushed.abc"):
        (root / name).mkdir(parents=True)
    project.sweep(tmp_path)
    assert {folder.name for folder in root.iterdir()} == {"digest-0.1-2", f".digest-0.1-2.{os.getpid()}"}


@pytest.mark.parametrize("text", ["[" * 20_000, "run: \xe9", "run: !!bool x", "run: !!int ''"])
def test_a_project_whose_cog_yaml_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cog.yaml").write_text(text, encoding="latin-1")
    model = CogModel.model_construct(name="a/a", kind="cog", source=FolderSource(path=tmp_path))
    with pytest.raises(WeightsError, match=r"model a/a: .*cog\.yaml"):
        project.build(tmp_path / "home", model)
