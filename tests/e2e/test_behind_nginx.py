"""An appliance below a path of a site of nginx, with the configuration in docs/operate.md and TLS."""

from __future__ import annotations

import io
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from replicate.client import Client

from tests.e2e.browsing import sign_in, sign_out, watched
from tests.e2e.clients import node
from tests.e2e.conftest import COMMAND
from tests.support.appliance_process import PATIENCE, ROOT, TOKEN, Appliance, fetch, free_port, wait_for

pytestmark = pytest.mark.e2e

#: Debian has it in a folder that is not on every user's PATH.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{ROOT}/.clients/nginx/usr/sbin")
MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""


class Site(NamedTuple):
    """The appliance, seen through nginx."""

    appliance: Appliance  # its ``url`` is that of the site
    certificate: Path
    log: Path  # nginx's access log


def documented(folder: Path, port: int, appliance: int) -> str:
    """The configuration in docs/operate.md, with other ports and a certificate in ``folder``."""
    page = (ROOT / "docs" / "operate.md").read_text()
    (server,) = re.findall(r"^```nginx\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for old, new in (
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("/etc/ssl/certs/example.org.pem", f"{folder}/certificate.pem"),
        ("/etc/ssl/private/example.org.key", f"{folder}/key.pem"),
        ("127.0.0.1:8000", f"127.0.0.1:{appliance}"),
    ):
        assert server.count(old) == 1, old
        server = server.replace(old, new)
    return str(server)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if NGINX is None:
        pytest.skip("there is no nginx on PATH, and scripts/install-clients could not download it")
    home = tmp_path_factory.mktemp("home")
    certificate = home / "certificate.pem"
    subprocess.run([COMMAND, "certificate", str(home)], capture_output=True, check=True, timeout=PATIENCE)
    port = free_port()
    config = home / "models.yaml"
    config.write_text(
        f"server: {{public_url: 'https://127.0.0.1:{port}/ai', trusted_proxies: [127.0.0.1/32]}}\n"
        "models:\n"
        "  - {name: test/echo, kind: echo, options: {stream: true}}\n"
        "  - {name: test/files, kind: echo, options: {files: true}}\n"
    )
    appliance = Appliance(home, config, ui=True)
    appliance.start()
    server = documented(home, port, appliance.port)
    (home / "nginx.conf").write_text(MAIN.format(folder=home, server=server))
    process = subprocess.Popen([NGINX, "-p", str(home), "-c", str(home / "nginx.conf"), "-e", "stderr"])
    appliance.url = f"https://127.0.0.1:{port}/ai"
    trust = ssl.create_default_context(cafile=certificate)

    def ready() -> bool:
        assert process.poll() is None
        try:
            return fetch(f"{appliance.url}/signin", verify=trust).status_code == 200
        except httpx.ConnectError:
            return False

    wait_for(ready, "the UI behind nginx")
    (home / "access.log").write_text("")  # without the requests until the UI had started
    yield Site(appliance, certificate, home / "access.log")
    process.terminate()
    process.wait(PATIENCE)
    appliance.stop()
    assert appliance.processes() == []


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    """The official client, which trusts the certificate of the site."""
    transport = httpx.HTTPTransport(verify=ssl.create_default_context(cafile=site.certificate))
    client = Client(api_token=TOKEN, base_url=site.appliance.url, transport=transport)
    yield client
    client._client.close()


def test_the_python_client_runs_streams_lists_and_reads_files(client: Client, site: Site) -> None:
    assert "".join(client.run("test/echo", input={"text": "a b "})) == "a b "
    created = client.predictions.create(model="test/echo", input={"text": "c d"}, stream=True)
    assert created.urls is not None
    assert {url.startswith(f"{site.appliance.url}/") for url in created.urls.values()} == {True}
    assert "".join(str(event) for event in created.stream()) == "c d"
    upload = client.files.create(io.BytesIO(b"hello"), filename="a b.txt")
    assert upload.urls["get"] == f"{site.appliance.url}/v1/files/{upload.id}"
    (file,) = client.run("test/files", input={"file": upload.urls["get"]})
    assert file.url.startswith(f"{site.appliance.url}/outputs/")
    assert file.read() == b"hello"


def test_pages_of_a_list_follow_one_another(client: Client, site: Site) -> None:
    for number in range(101):
        client.predictions.create(model="test/echo", input={"text": str(number)})
    first = client.predictions.list()
    assert first.next is not None
    second = client.predictions.list(first.next)
    assert second.previous is not None
    assert len(first.results) == 100
    assert {one.id for one in first.results}.isdisjoint(one.id for one in second.results)


def test_the_javascript_client_and_the_command_line_work(site: Site) -> None:
    script = 'console.log(JSON.stringify(await replicate.run("test/echo", { input: { text: "a b" } })));'
    assert node(site.appliance, script, NODE_EXTRA_CA_CERTS=str(site.certificate)) == ["a ", "b"]
    ran = subprocess.run(
        [COMMAND, "run", "test/echo", "-i", "text=hello there"],
        env={**site.appliance.environment, "SSL_CERT_FILE": str(site.certificate)},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "hello there\n"), ran.stderr


def run(page: Page, **inputs: Any) -> None:
    for name, value in inputs.items():
        page.locator(f"#input-{name}").fill(value)
    page.locator("#run").click()
    expect(page.locator(".run-status .badge")).to_have_text("succeeded")


def test_the_pages_work_below_the_path(browser: Browser, site: Site, tmp_path: Path) -> None:
    url = site.appliance.url
    with watched(browser, url, ignore_https_errors=True) as page:
        sign_in(page, TOKEN)
        (cookie,) = page.context.cookies()
        assert (cookie["path"], cookie["secure"]) == ("/ai", True)
        page.locator("a.card[href='./test/echo']").click()
        page.wait_for_url(f"{url}/test/echo")
        run(page, text="one two three")
        expect(page.locator("#output")).to_have_text("one two three")
        page.locator(".run-status a").click()
        page.wait_for_url(f"{url}/p/*")
        expect(page.get_by_text("one two three").first).to_be_visible()
        for name in ("Predictions", "Machine", "Usage", "Settings", "Models"):
            page.get_by_role("link", name=name, exact=True).click()
            expect(page.locator("nav a[aria-current]")).to_have_text(name)
        page.goto("./test/files")
        page.get_by_role("tab", name="Code").click()
        expect(page.locator("#code-python")).to_contain_text(f"REPLICATE_BASE_URL={url} ")
        page.goto("./test/files")
        (tmp_path / "picture.txt").write_text("hello")
        page.locator("#input-file-file").set_input_files(tmp_path / "picture.txt")
        run(page)
        with page.expect_download() as download:
            page.locator("#media a[download]").first.click()
        assert Path(download.value.path()).read_text() == "hello"
        page.get_by_role("link", name="Manual").click()
        page.get_by_role("link", name="Architecture", exact=True).first.click()
        expect(page.get_by_role("heading", name="The life of a prediction")).to_be_visible()
        page.goto("./docs")
        expect(page.locator(".opblock").first).to_be_visible()
        page.goto("./explore")
        sign_out(page)
        page.wait_for_url(f"{url}/signin")
        assert page.context.cookies() == []


def test_no_request_was_outside_of_the_path_or_failed(site: Site) -> None:
    """All requests of the tests above, in the log of nginx: a browser reports none that it does not show."""
    requests = re.findall(r'"\w+ (\S+) HTTP/1.1" (\d+)', site.log.read_text())
    assert len(requests) > 100
    assert [path for path, status in requests if not path.startswith("/ai/")] == []
    assert [(path, status) for path, status in requests if int(status) >= 400 and status != "499"] == []
