"""Rows F: files in and out. Those that need HTTPS are in test_conformance_secure.py."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from replicate.client import Client

from tests.e2e.clients import beta, client_of, node
from tests.e2e.conftest import command
from tests.e2e.test_conformance_predictions import WAIT, create, ended
from tests.support.appliance_process import PATIENCE, Appliance, fetch

pytestmark = pytest.mark.e2e

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4


@contextmanager
def serving(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A web server with these pages; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def upload(api: httpx.Client, content: bytes = PNG, name: str = "photo.png") -> dict[str, Any]:
    reply = api.post("/v1/files", files={"content": (name, content)})
    assert reply.status_code == 201, reply.text
    file: dict[str, Any] = reply.json()
    return file


def given_back(api: httpx.Client, url: str) -> bytes:
    """What the model was given at ``url``."""
    body = {"version": "test/files", "input": {"file": url}}
    record = api.post("/v1/predictions", json=body, headers=WAIT).json()
    assert record["status"] == "succeeded", record
    return fetch(record["output"][0]).content


def test_f1_python(official: Client) -> None:
    file = official.files.create(io.BytesIO(PNG), metadata={"customer": 7})
    assert file.etag == hashlib.md5(PNG).hexdigest()
    assert file.checksums["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert file.name
    assert file.metadata == {"customer": 7}
    assert official.files.get(file.id).size == len(PNG)


def test_f2_javascript(appliance: Appliance) -> None:
    file = node(
        appliance,
        """
        const content = new Blob(["hello"], { type: "text/plain" });
        console.log(JSON.stringify(await replicate.files.create(content, { customer: { id: 7 } })));
        """,
    )
    assert (file["size"], file["content_type"], file["metadata"]) == (
        5,
        "text/plain",
        {"customer": {"id": 7}},
    )


def test_f3_python_2(appliance: Appliance) -> None:
    file = beta(
        appliance,
        """
file = replicate.files.create(content=b"hello", filename="a.csv", type="text/csv",
                              metadata={"a": "1", "b": {"c": ["x", "y"]}})
print(json.dumps([file.id, file.content_type, file.size, file.metadata]))
""",
    )
    assert file[1:] == ["text/csv", 5, {"a": "1", "b": {"c": ["x", "y"]}}]


def test_f4_metadata_that_go_can_decode(api: httpx.Client) -> None:
    given = {"a": "1", "b": "two"}
    reply = api.post("/v1/files", files={"content": ("x", b"x")}, data={"metadata": json.dumps(given)})
    assert reply.json()["metadata"] == given
    assert upload(api)["metadata"] == {}


def test_what_lies_in_the_data_folder_is_for_its_user_alone(api: httpx.Client, appliance: Appliance) -> None:
    upload(api)
    open_to_others = [
        str(path.relative_to(appliance.home))
        for folder in (appliance.home, *(appliance.home / name for name in ("files", "run", "logs")))
        for path in [folder, *(folder.glob("*") if folder == appliance.home else folder.rglob("*"))]
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]
    assert open_to_others == []


def test_f5_too_large(api: httpx.Client, appliance: Appliance) -> None:
    def megabytes(count: int) -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="content"; filename="big"\r\n\r\n'
        for _ in range(count):
            yield b"x" * 1_000_000
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    kept = api.post("/v1/files", content=megabytes(100), headers=headers)
    assert (kept.status_code, kept.json()["size"]) == (201, 100_000_000)
    api.delete(f"/v1/files/{kept.json()['id']}")
    refused = api.post("/v1/files", content=megabytes(101), headers=headers)
    assert refused.status_code == 413
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == "Files must be less than 100MB in size"


def test_f6_without_content(api: httpx.Client) -> None:
    reply = api.post("/v1/files", files={"other": ("x", b"x")})
    assert reply.status_code == 422
    assert reply.json()["invalid_fields"][0]["description"] == "content is required"


def test_f7_get_list_delete(api: httpx.Client, official: Client) -> None:
    file = upload(api)
    assert api.get(f"/v1/files/{file['id']}").json() == file
    assert file in api.get("/v1/files").json()["results"]
    assert file["id"] in {each.id for each in official.files.list()}
    gone = api.delete(f"/v1/files/{file['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    again = api.delete(f"/v1/files/{file['id']}")
    assert (again.status_code, again.json()["detail"]) == (404, "File not found")


def test_f8_a_signed_download(api: httpx.Client, stranger: httpx.Client, appliance: Appliance) -> None:
    file = upload(api)
    link = command(appliance, "file", "link", file["id"]).strip()
    reply = stranger.get(link)
    assert (reply.content, reply.headers["content-type"]) == (PNG, "image/png")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}
    size = beta(
        appliance,
        f"""
reply = replicate.files.download(file_id="{file["id"]}", owner="{asked["owner"]}",
                                 expiry={asked["expiry"]}, signature="{asked["signature"]}")
print(json.dumps(len(reply.read())))
""",
    )
    assert size == len(PNG)
    for wrong in ({"signature": "AAAA"}, {"expiry": "1"}, {"owner": "you"}):
        reply = stranger.get(f"/v1/files/{file['id']}/download", params=asked | wrong)
        assert (reply.status_code, reply.json()["detail"]) == (404, "File not found")
    assert api.get(f"/v1/files/{file['id']}/download", params=asked).status_code == 200


def test_f9_open_files_as_inputs(official: Client, appliance: Appliance, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        (address,) = official.run("test/files", input={"file": file})
    assert fetch(address).content == PNG
    script = f"""
      import {{ readFile }} from "node:fs/promises";
      const file = await readFile("{path}");
      const [address] = await replicate.run("test/files", {{ input: {{ file }} }});
      console.log(JSON.stringify((await (await fetch(address)).blob()).size));
    """
    assert node(appliance, script) == len(PNG)
    script = f"""
with open("{path}", "rb") as file:
    print(json.dumps([str(each) for each in replicate.run("test/files", input={{"file": file}})]))
"""
    (address,) = beta(appliance, script)
    assert fetch(address).content == PNG


def test_f10_under_every_address(api: httpx.Client, appliance: Appliance) -> None:
    id = upload(api)["id"]
    for base in (f"{appliance.url}/v1", f"{appliance.url}/v1/v1", "https://models.example.org/v1"):
        assert given_back(api, f"{base}/files/{id}") == PNG


def test_f11_f14_data_urls(api: httpx.Client, official: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / "a.png").open("rb") as file:
        (address,) = official.run("test/files", input={"file": file}, file_encoding_strategy="base64")
    reply = fetch(address)
    assert reply.content == PNG
    large = b"x" * 6_000_000
    url = f"data:application/octet-stream;base64,{base64.b64encode(large).decode()}"
    assert given_back(api, url) == large


@pytest.mark.parametrize(("status", "expected"), [(500, "succeeded"), (413, "413")])
def test_f12_f13_javascript_falls_back_when_uploads_fail(
    appliance: Appliance, status: int, expected: str
) -> None:
    told = node(
        appliance,
        f"""
        const broken = async (url, init) =>
          String(url).endsWith("/files") ? new Response("{{}}", {{ status: {status} }}) : fetch(url, init);
        const client = new Replicate({{ auth, baseUrl, fetch: broken }});
        try {{
          const input = {{ file: new Blob(["hello"]) }};
          const [address] = await client.run("test/files", {{ input }});
          const text = await (await fetch(address)).text();
          console.log(JSON.stringify(text === "hello" ? "succeeded" : "wrong"));
        }} catch (error) {{
          console.log(JSON.stringify(String(error.response.status)));
        }}
        """,
    )
    assert told == expected


def test_f15_f16_addresses_elsewhere(api: httpx.Client) -> None:
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {
        "/photo.png": (200, {"Content-Type": "image/png"}, PNG),
        "/moved": (302, {"Location": "/photo.png"}, b""),
        "/away": (302, {"Location": "http://10.1.2.3/x"}, b""),
        "/round": (302, {"Location": "/round"}, b""),
        "/local": (302, {"Location": "file:///etc/passwd"}, b""),
    }
    with serving(pages) as url:
        assert given_back(api, f"{url}/photo.png") == PNG
        assert given_back(api, f"{url}/moved") == PNG
        for path in ("/away", "/round", "/local", "/none"):
            record = ended(api, create(api, "test/files", file=f"{url}{path}"))
            assert (record["status"], record["output"]) == ("failed", None)
            assert record["error"].startswith("input.file: ")
    gone = ended(api, create(api, "test/files", file=f"{url}/photo.png"))
    assert gone["status"] == "failed"
    assert "root:" not in json.dumps(gone)


def test_f19_paths_of_the_beta(appliance: Appliance) -> None:
    content = beta(
        appliance,
        """
ask = replicate.use("test/files")
(path,) = ask(text="content")
print(json.dumps(open(path).read()))
""",
    )
    assert content == "content"


def test_f20_plain_http_gives_addresses(official: Client) -> None:
    output = official.run("test/files", input={"text": "x", "repeat": 2})
    assert all(isinstance(address, str) and address.startswith("http://") for address in output)


def test_f21_f22_f23_outputs(api: httpx.Client, stranger: httpx.Client, appliance: Appliance) -> None:
    body = {"version": "test/files", "input": {"text": "content", "repeat": 2}}
    record = api.post("/v1/predictions", json=body, headers=WAIT).json()
    names = [address.rpartition("/")[2] for address in record["output"]]
    assert names == ["0.txt", "1.txt"]
    for address in record["output"]:
        assert address.startswith(f"{appliance.url}/")
        reply = stranger.get(address)
        assert (reply.status_code, reply.text) == (200, "content")
        assert reply.headers["content-type"].startswith("text/plain")
        assert int(reply.headers["content-length"]) == 7
        part = stranger.get(address, headers={"Range": "bytes=3-"})
        assert (part.status_code, part.text) == (206, "tent")
        browser = stranger.get(address, headers={"Origin": "https://app.example.org"})
        assert browser.headers["access-control-allow-origin"] == "https://app.example.org"
        assert stranger.head(address).headers["content-length"] == "7"


def test_f24_files_of_others(api: httpx.Client, appliance: Appliance, new_token: Callable[..., str]) -> None:
    file = upload(api)
    with client_of(appliance.url, new_token("theirs", owner="somebody")) as other:
        assert other.accounts.current().username == "somebody"
        assert list(other.files.list()) == []
        headers = {"Authorization": f"Bearer {other._api_token}"}
        for method in ("GET", "DELETE"):
            reply = httpx.request(
                method, file["urls"]["get"], headers=headers, timeout=PATIENCE, trust_env=False
            )
            assert (reply.status_code, reply.json()["detail"]) == (404, "File not found")
        prediction = other.predictions.create(version="test/files", input={"file": file["urls"]["get"]})
        prediction.wait()
        assert prediction.status == "failed"
    assert given_back(api, file["urls"]["get"]) == PNG


def test_an_upload_that_breaks_off_leaves_nothing(api: httpx.Client, appliance: Appliance) -> None:
    before = len(api.get("/v1/files").json()["results"])

    def half() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="content"; filename="half"\r\n\r\n'
        yield b"x" * 100_000
        raise OSError("pulled the plug")

    with appliance.client() as impatient, pytest.raises(OSError, match="pulled"):
        impatient.post(
            "/v1/files", content=half(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
    time.sleep(0.5)
    assert len(api.get("/v1/files").json()["results"]) == before
    kept = {path.name for path in (appliance.home / "files" / "uploads").iterdir()}
    assert kept == {file["id"] for file in api.get("/v1/files").json()["results"]}
