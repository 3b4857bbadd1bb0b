"""Files: uploaded in every client's dialect, given to models, made by models, and removed again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from msgspec import structs
from starlette.requests import Request

from appliance.config import FilesConfig
from appliance.domain.errors import OutputRemoved, StoreError, UnstorableValue
from appliance.domain.file import File
from appliance.gateway.api import stored_file
from appliance.gateway.api.errors import CompatError
from appliance.gateway.files import file_store
from appliance.gateway.files.encrypted_file import FileCipher
from appliance.gateway.files.file_store import FileStore, signature
from tests.support.api_client import Api
from tests.support.appliance_process import until
from tests.support.engine_bench import Bench, entry, refusal

ORIGIN = "http://models.example.org:8000"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


async def upload(api: Api, content: bytes = b"hello", name: str = "a.txt", **fields: str) -> dict[str, Any]:
    reply = await api.post("/v1/files", files={"content": (name, content)}, data=fields)
    assert reply.status_code == 201, reply.text
    file: dict[str, Any] = reply.json()
    return file


def raw(*parts: tuple[str, str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form written by hand: (what follows form-data, further headers, content) for each part."""
    body = b"".join(
        b"--xyz\r\nContent-Disposition: form-data; "
        + f"{disposition}\r\n{more}\r\n".encode()
        + content
        + b"\r\n"
        for disposition, more, content in parts
    )
    return body + b"--xyz--\r\n", {"content-type": "multipart/form-data; boundary=xyz"}


async def test_what_is_known_of_an_upload(api: Api) -> None:
    file = await upload(api, PNG, "photo.png", metadata='{"a": {"b": 1}}')
    assert (file["name"], file["content_type"], file["size"]) == ("photo.png", "image/png", len(PNG))
    assert file["checksums"] == {
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "md5": hashlib.md5(PNG).hexdigest(),
    }
    assert file["etag"] == file["checksums"]["md5"]
    assert file["metadata"] == {"a": {"b": 1}}
    assert file["urls"]["get"] == f"{ORIGIN}/v1/files/{file['id']}"
    assert file["expires_at"] > file["created_at"]
    assert (await api.get(f"/v1/files/{file['id']}")).json() == file
    assert (await api.get("/v1/files")).json()["results"] == [file]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param(
            [
                ('name="content"; filename="photo.png"', "Content-Type: image/png\r\n", PNG),
                ('name="metadata"', "", b'{"customer": 1}'),
            ],
            {"name": "photo.png", "content_type": "image/png", "metadata": {"customer": 1}},
            id="py1",
        ),
        pytest.param(
            [
                ('name="metadata"; filename="blob"', "Content-Type: application/json\r\n", b'{"a":[1]}'),
                ('name="content"; filename="blob_1700"', "Content-Type: image/png\r\n", PNG),
            ],
            {"name": "blob_1700", "content_type": "image/png", "metadata": {"a": [1]}},
            id="js",
        ),
        pytest.param(
            [
                ('name="metadata[a]"', "", b"1"),
                ('name="metadata[b][c][]"', "", b"x"),
                ('name="metadata[b][c][]"', "", b"y"),
                ('name="filename"', "", b"given.bin"),
                ('name="type"', "", b"text/csv"),
                ('name="content"; filename="upload"', "Content-Type: application/octet-stream\r\n", PNG),
            ],
            {"name": "given.bin", "content_type": "text/csv", "metadata": {"a": "1", "b": {"c": ["x", "y"]}}},
            id="py2",
        ),
        pytest.param(
            [("name=content", "", PNG)],
            {"content_type": "application/octet-stream", "metadata": {}},
            id="no file name",
        ),
        pytest.param(
            [('name="content"; filename="../../etc/pass\\"wd"', "", PNG)],
            {"content_type": "application/octet-stream", "name": 'pass"wd'},
            id="a path for a name",
        ),
    ],
)
async def test_every_dialect_of_a_form(
    api: Api, parts: list[tuple[str, str, bytes]], expected: dict[str, Any]
) -> None:
    body, headers = raw(*parts)
    reply = await api.post("/v1/files", content=body, headers=headers)
    assert reply.status_code == 201, reply.text
    file = reply.json()
    assert {key: file[key] for key in expected} == expected
    assert file["checksums"]["sha256"] == hashlib.sha256(PNG).hexdigest()


async def test_a_form_in_tiny_pieces(api: Api) -> None:
    body, headers = raw(('name="content"; filename="x"', "", PNG * 10))

    async def drops() -> Any:
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    reply = await api.post("/v1/files", content=drops(), headers=headers)
    assert reply.json()["size"] == len(PNG) * 10


@pytest.mark.parametrize(
    ("parts", "status", "field"),
    [
        ([('name="other"', "", b"x")], 422, ""),
        ([('name="content"; filename="x"', "", b"x"), ('name="metadata"', "", b"{")], 422, "metadata"),
        ([('name="content"; filename="x"', "", b"x"), ('name="metadata"', "", b"[1]")], 422, "metadata"),
        ([('name="content"; filename="x"', "", b"x"), ('name="filename"', "", b"n" * 256)], 422, "filename"),
        ([('name="content"; filename="x"', "", b"x"), ('name="type"', "", b"a\r\nX: y")], 422, "type"),
        ([('name="content"; filename="x"', "", b"x"), ('name="rest"', "", b"x" * 300_000)], 400, None),
    ],
)
async def test_a_wrong_form_is_refused_and_leaves_nothing(
    api: Api, bench: Bench, parts: list[tuple[str, str, bytes]], status: int, field: str | None
) -> None:
    body, headers = raw(*parts)
    reply = await api.post("/v1/files", content=body, headers=headers)
    assert reply.status_code == status, reply.text
    if field is not None:
        assert reply.json()["invalid_fields"][0]["field"] == field
    assert list((bench.folder / "files" / "uploads").iterdir()) == []
    assert (await api.get("/v1/files")).json()["results"] == []


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"--xyz\r\n", b"--xyz\r\nContent-Disposition: form-data; name=content\r\n\r\nhalf"]
)
async def test_what_is_no_form_is_400(api: Api, body: bytes) -> None:
    for kind in ("multipart/form-data; boundary=xyz", "multipart/form-data", "application/json"):
        reply = await api.post("/v1/files", content=body, headers={"content-type": kind})
        assert reply.status_code == 400, reply.text


async def test_a_file_that_is_too_large_is_refused(api: Api, bench: Bench) -> None:
    within = await upload(api, b"x" * 1_000_000)
    assert within["size"] == 1_000_000
    body, headers = raw(('name="content"; filename="x"', "", b"x" * 1_000_001))
    reply = await api.post("/v1/files", content=body, headers=headers)
    assert (reply.status_code, reply.json()["detail"]) == (413, "Files must be less than 1MB in size")
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(list((bench.folder / "files" / "uploads").iterdir())) == 1


async def test_all_uploads_together_have_a_limit(api: Api, bench: Bench) -> None:
    bench.files.config = FilesConfig.model_validate({"quota": 4000})
    await upload(api, b"x" * 1000)
    body, headers = raw(('name="content"; filename="x"', "", b"x" * 3500))
    reply = await api.post("/v1/files", content=body, headers=headers)
    assert reply.status_code == 413
    assert "files.quota" in reply.json()["detail"]


async def test_delete_and_what_is_not_there(api: Api, bench: Bench) -> None:
    file = await upload(api)
    url = f"/v1/files/{file['id']}"
    async with Api(api.services, "other") as stranger:
        for request in (stranger.get(url), stranger.delete(url)):
            reply = await request
            assert (reply.status_code, reply.json()["detail"]) == (404, "File not found")
        assert (await stranger.get("/v1/files")).json()["results"] == []
    assert ((reply := await api.delete(url)).status_code, reply.content) == (204, b"")
    assert (await api.delete(url)).status_code == 404
    assert (await api.get(url)).status_code == 404
    assert list((bench.folder / "files" / "uploads").iterdir()) == []


async def test_uploads_are_listed_in_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.gateway.api.replicate.files.PAGE", 2)
    ids = [(await upload(api, str(number).encode()))["id"] for number in range(5)]
    found, url = [], "/v1/files"
    while url:
        page = (await api.get(url)).json()
        found += [file["id"] for file in page["results"]]
        url = page["next"]
    assert found == ids[::-1]


def test_the_signature_is_that_of_the_contract() -> None:
    signed = signature("files-signing-secret", "mattt", "cneqzikepnug6xezperrr4z55o", 1708515345)
    assert signed == "pW3B3vKQ9Z755H00ZZ/5MCIOonjJhCRTwm0SEPCOrUA="


async def test_a_signed_download(api: Api, bench: Bench) -> None:
    file = await upload(api, PNG, "photo.png")
    row = await bench.files.upload(file["id"], None)
    assert row is not None
    expiry = int(time.time()) + 3600

    async def download(expiry: int = expiry, **changes: str) -> httpx.Response:
        asked = {"owner": "me", "expiry": str(expiry), "signature": bench.files.sign(row, expiry), **changes}
        async with Api(api.services, None) as stranger:
            return await stranger.get(f"/v1/files/{file['id']}/download", params=asked)

    reply = await download()
    assert (reply.status_code, reply.content, reply.headers["content-type"]) == (200, PNG, "image/png")
    assert reply.headers["content-disposition"] == 'attachment; filename="photo.png"'
    assert reply.headers["x-content-type-options"] == "nosniff"
    for wrong in (
        await download(signature="AAAA"),
        await download(owner="you"),
        await download(expiry=1),
        await download(expiry=expiry + 1, signature=bench.files.sign(row, expiry)),
    ):
        assert (wrong.status_code, wrong.json()["detail"]) == (404, "File not found")


async def test_an_upload_expires(api: Api, bench: Bench) -> None:
    bench.files.config = FilesConfig.model_validate({"keep": 0.05})
    file = await upload(api)
    await asyncio.sleep(0.06)
    assert (await api.get(f"/v1/files/{file['id']}")).status_code == 404
    await bench.restart()  # which looks at once
    await until(lambda: not list((bench.folder / "files" / "uploads").iterdir()))


# -- given to models and made by them ---------------------------------------------------------------------


async def run(api: Api, **input: Any) -> dict[str, Any]:
    body = {"input": input}
    reply = await api.post("/v1/models/test/files/predictions", json=body, headers={"Prefer": "wait"})
    record: dict[str, Any] = reply.json()
    return record


@pytest.mark.parametrize("mount", ["/v1/files", "/v1/v1/files", "/files", "/ai/v1/files"])
@pytest.mark.parametrize("origin", [ORIGIN, "https://another.name", "http://127.0.0.1:1"])
async def test_an_upload_is_an_input_under_every_url(api: Api, mount: str, origin: str) -> None:
    file = await upload(api, PNG, "photo.png")
    record = await run(api, file=f"{origin}{mount}/{file['id']}")
    assert record["status"] == "succeeded", record
    (url,) = record["output"]
    assert url.startswith(f"{ORIGIN}/outputs/")
    assert url.endswith("photo.png")
    assert record["input"]["file"] == f"{origin}{mount}/{file['id']}"  # echoed as it was given
    async with Api(api.services, None) as stranger:  # clients send no token there
        reply = await stranger.get(url)
        part = await stranger.get(url, headers={"Range": "bytes=1-3"})
    assert (reply.content, reply.headers["content-type"]) == (PNG, "image/png")
    assert reply.headers["content-disposition"].startswith("inline")
    assert (part.status_code, part.content) == (206, b"PNG")
    again = await run(api, file=url)  # what one model made is another's input
    assert (await api.get(again["output"][0])).content == PNG


async def test_data_urls_and_lists(api: Api) -> None:
    png = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    record = await run(api, file=png, files=[f"data:text/plain,{quote('a b')}", "data:,x"])
    kinds = [(await api.get(url)).headers["content-type"] for url in record["output"]]
    assert [(await api.get(url)).content for url in record["output"]] == [PNG, b"a b", b"x"]
    assert kinds[0] == "image/png"
    assert kinds[1].startswith("text/plain")
    assert len(set(record["output"])) == 3


@pytest.mark.parametrize(
    "written",
    [
        base64.encodebytes(PNG * 20).decode(),  # on several lines
        base64.b64encode(PNG * 20).decode().rstrip("="),
        base64.urlsafe_b64encode(PNG * 20).decode(),
        quote(base64.encodebytes(PNG * 20)),
        f" {base64.b64encode(PNG * 20).decode()}\r\n",
    ],
)
async def test_base64_as_people_write_it(api: Api, written: str) -> None:
    record = await run(api, file=f"data:image/png;base64,{written}")
    assert (await api.get(record["output"][0])).content == PNG * 20


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("data:image/png;base64,?", "the base64 of the data: URL is invalid"),
        ("data:nothing", "has no comma"),
        ("http://127.0.0.1:9/secret", "not public"),
        ("http://localhost/secret", "not public"),
        ("http://169.254.169.254/latest/meta-data", "not public"),
        ("http://[::ffff:10.0.0.1]/x", "not public"),
        (f"{ORIGIN}/v1/files/0000000000", "cannot be"),
        ("http://", "cannot be fetched"),
    ],
)
async def test_an_input_that_cannot_be_had_fails_the_prediction(api: Api, source: str, reason: str) -> None:
    record = await run(api, file=source)
    assert record["status"] == "failed"
    assert record["error"].startswith("input.file: ")
    assert reason in record["error"]
    assert (await run(api, text="next"))["status"] == "succeeded"


async def test_another_owners_upload_is_no_input(api: Api) -> None:
    file = await upload(api)
    async with Api(api.services, "other") as stranger:
        record = await run(stranger, file=file["urls"]["get"])
    assert record["status"] == "failed"


@pytest.mark.parametrize("source", ["file:///etc/passwd", "ftp://x/y", "just text"])
async def test_other_urls_are_refused_at_once(api: Api, source: str) -> None:
    reply = await api.post("/v1/models/test/files/predictions", json={"input": {"file": source}})
    assert reply.status_code == 422
    assert reply.json()["invalid_fields"][0]["field"] == "input.file"


async def test_inputs_are_gone_when_the_prediction_is_over(api: Api, bench: Bench) -> None:
    await run(api, file="data:,x")
    await until(lambda: not list((bench.folder / "run" / "inputs").glob("*")))


async def test_files_may_be_inside_of_the_output(api: Api, bench: Bench) -> None:
    bench.files.config = FilesConfig.model_validate({"outputs": "data", "max_data": 4})
    record = await run(api, files=["data:text/plain,four", "data:text/plain,fives"])
    assert record["output"][0] == f"data:text/plain;base64,{base64.b64encode(b'four').decode()}"
    assert record["output"][1].startswith(f"{ORIGIN}/outputs/")  # too large for that


async def test_a_stream_of_files_has_a_url_of_its_own(api: Api) -> None:
    record = await run(api, text="x", repeat=2)
    assert record["urls"]["stream"].startswith(f"{ORIGIN}/v1/files/stream/")
    text = (await api.get(record["urls"]["stream"])).text
    assert json.dumps(record["output"], separators=(",", ":")) in text


async def test_polls_lists_and_late_readers_see_the_same_urls(api: Api, bench: Bench) -> None:
    record = await run(api, text="x", repeat=2)
    assert (await api.get(f"/v1/predictions/{record['id']}")).json()["output"] == record["output"]
    assert (await api.get("/v1/predictions")).json()["results"][0]["output"] == record["output"]
    stored = await bench.store.get(record["id"])
    assert stored is not None
    assert [file.name for file in stored.output] == ["0.txt", "1.txt"]


async def test_a_file_is_there_once_its_url_is_known(bench: Bench) -> None:
    """Also while the store still writes something else: a reader asks for it at once, and only once."""
    bench.files_model = entry("test/files", files=True, stream=True)
    await bench.restart()
    record = await bench.output_of(
        await bench.submit(bench.files_model, text="x", repeat=10_000, chunk_delay=0.01)
    )
    written = threading.Event()
    held = bench.store.write(lambda _: written.wait(60))
    try:
        made = []
        async for seen in bench.engine.follow(record, after=len(record.output)):
            assert isinstance(seen, list)
            for _, output in seen:
                file = await bench.files.output(output.id)
                assert file is not None
                made.append(bench.files.path(file).read_text())
            if len(made) > 2:
                break
    finally:
        written.set()
    assert set(made) == {"x"}
    assert await held
    await bench.engine.cancel(record.id, "me")


async def test_a_file_outlives_a_store_that_refuses_it(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say, that has space again while the gateway runs."""
    add, refused = bench.store.files.add, 0

    def refusing(file: File) -> asyncio.Future[None]:
        nonlocal refused
        refused += 1
        if refused > 3:
            return add(file)
        return refusal(StoreError("the disk is full"))

    monkeypatch.setattr(file_store, "RETRY_STORE", 0.01)
    monkeypatch.setattr(bench.store.files, "add", refusing)
    record = await run(api, text="x")
    assert (await api.get(record["output"][0])).text == "x"
    await until(lambda: refused == 4)
    await bench.store.check()  # written after it
    monkeypatch.undo()
    await bench.restart()
    assert await bench.files.output(record["output"][0].split("/")[-2]) is not None


async def test_what_can_never_be_stored_is_not_tried_for_ever(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def refusing(_: File) -> asyncio.Future[None]:
        nonlocal tried
        tried += 1
        return refusal(UnstorableValue("no text"))

    monkeypatch.setattr(file_store, "RETRY_STORE", 0.0)
    monkeypatch.setattr(bench.store.files, "add", refusing)
    record = await run(api, text="x")
    await bench.store.check()
    assert tried == 1
    assert (await api.get(record["output"][0])).status_code == 404


async def test_files_go_with_the_data_of_their_prediction(api: Api, bench: Bench) -> None:
    record = await run(api, text="x")
    removed = (await bench.store.remove_data(time.time() + 1, 10)).ids
    assert removed == [record["id"]]
    await bench.files.remove_outputs(removed)
    assert (await api.get(record["output"][0])).status_code == 404
    assert list((bench.folder / "files" / "outputs").iterdir()) == []


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_file_that_is_deleted_before_the_response_is_a_clear_error(
    bench: Bench, encrypted: bool
) -> None:
    if encrypted:
        bench.files.cipher = FileCipher(b"k" * 32)
    path = bench.folder / "files" / "outputs" / "gone"
    with pytest.raises(OutputRemoved, match="removed before it could be sent"):
        await bench.files.content(path)
    request = Request({"type": "http", "method": "GET", "headers": []})
    with pytest.raises(OutputRemoved):
        await stored_file.respond(request, bench.files, path, media_type="audio/mpeg", headers={})
    error = CompatError.of(OutputRemoved())
    assert (error.status, error.code) == (404, "not_found")


async def test_the_oldest_files_go_when_all_take_too_much(api: Api, bench: Bench) -> None:
    records = [await run(api, text="x" * 1000) for _ in range(5)]
    await bench.store.registry.add_example("test/files", records[0]["id"])
    assert await bench.store.remove_files_over(3500, 10, before=time.time() - 3600) == []  # all are too new
    removed = await bench.store.remove_files_over(3500, 10)
    assert removed == [records[1]["id"], records[2]["id"]]  # the example stays
    assert await bench.store.remove_files_over(3500, 10) == []
    found = (await api.get(f"/v1/predictions/{records[1]['id']}")).json()
    assert (found["data_removed"], found["output"]) == (True, None)
    assert (await api.get(records[3]["output"][0])).status_code == 200
    assert await bench.store.remove_files_over(0, 1) == [records[3]["id"]]


async def test_the_next_start_removes_what_a_crash_left(bench: Bench, tmp_path: Path) -> None:
    for place in ("uploads/orphan", "outputs/lost/1/file.txt"):
        path = bench.folder / "files" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    await bench.restart()
    assert list((bench.folder / "files" / "uploads").iterdir()) == []
    assert list((bench.folder / "files" / "outputs").iterdir()) == []


async def test_files_made_while_no_gateway_ran_are_kept(bench: Bench) -> None:
    record = await bench.submit(text="x", delay=60.0)
    made = bench.folder / "files" / "outputs" / record.id / "1" / "0-file.txt"
    made.parent.mkdir(parents=True)
    made.write_text("x")
    next_gateway = FileStore(bench.store.files, bench.folder / "files", bench.files_config)
    await next_gateway.start()
    await next_gateway.close()
    assert made.read_text() == "x"


async def test_a_cancel_while_the_input_is_fetched_frees_the_slot(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(bench.inputs, "fetch", never)  # a server that does not answer
    reply = await api.post("/v1/models/test/files/predictions", json={"input": {"file": "data:,x"}})
    record = reply.json()
    deadline = time.monotonic() + 60
    while (await api.get(f"/v1/predictions/{record['id']}")).json()["status"] != "processing":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    canceled = (await api.post(f"/v1/predictions/{record['id']}/cancel")).json()
    assert canceled["status"] == "canceled"
    monkeypatch.undo()
    assert (await run(api, text="next"))["status"] == "succeeded"
    assert (await api.get("/admin/status")).json()["models"][3]["running"] == 0


async def test_metadata_is_no_way_into_the_record(api: Api) -> None:
    fields = {"metadata[owner]": "you", "metadata[a]": "1", "metadata[a][b]": "2"}
    file = await upload(api, b"x", "x", **fields)
    assert file["metadata"] == {"owner": "you", "a": "1"}
    stored = await api.services.files.table.get(file["id"])
    assert stored is not None
    assert structs.asdict(stored)["owner"] == "me"
