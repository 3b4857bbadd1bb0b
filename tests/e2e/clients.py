"""The real clients, each in its own environment; nothing but address and token is told to them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from replicate.client import Client

from tests.support.appliance_process import PATIENCE, ROOT, TOKEN, Appliance

LANGUAGE_MODEL = "appliance/smollm2-135m-instruct"
_CLIENTS = ROOT / ".clients"


@contextmanager
def client_of(url: str, secret: str = TOKEN) -> Iterator[Client]:
    """Python 1.0: a client that closes its connections, which the client itself has no way to say."""
    client = Client(api_token=secret, base_url=url)
    try:
        yield client
    finally:
        client._client.close()


def node(appliance: Appliance, script: str, *, secret: str = TOKEN, **environment: str) -> Any:
    """JavaScript: what ``script`` prints as JSON; ``replicate`` is a client of the appliance in it."""
    prelude = (
        'import Replicate from "replicate";\n'
        f"const auth = {json.dumps(secret)}, baseUrl = '{appliance.url}/v1';\n"
        "const replicate = new Replicate({ auth, baseUrl });\n"
        f"const model = {json.dumps(LANGUAGE_MODEL)};\n"
    )
    command = ["node", "--input-type=module", "--eval", prelude + script]
    return _printed(command, environment, cwd=str(_CLIENTS / "js"))


def beta(appliance: Appliance, script: str, *, url: str | None = None, **environment: str) -> Any:
    """Python 2.0 beta: what ``script`` prints as JSON; it knows the appliance from the environment."""
    told = {"REPLICATE_API_TOKEN": TOKEN, "REPLICATE_BASE_URL": url or f"{appliance.url}/v1"}
    prelude = f"import json, replicate\nmodel = {LANGUAGE_MODEL!r}\n"
    return _printed([_python("python2"), "-c", prelude + script], told | environment)


def framework(appliance: Appliance, script: str) -> Any:
    """LangChain, LlamaIndex, LiteLLM: what ``script`` prints as JSON in its last line."""
    told = {
        "REPLICATE_API_TOKEN": TOKEN,
        "REPLICATE_BASE_URL": appliance.url,
        "LITELLM_LOCAL_MODEL_COST_MAP": "1",
        "DEFAULT_REPLICATE_POLLING_RETRIES": "15",  # by default, LiteLLM gives up after 25 seconds
    }
    prelude = f"import json\nmodel = {LANGUAGE_MODEL!r}\nurl = {appliance.url!r}\n"
    return _printed([_python("frameworks"), "-W", "ignore", "-c", prelude + script], told)


@contextmanager
def posting(appliance: Appliance, path: str, body: dict[str, Any], **headers: str) -> Iterator[None]:
    """A request that is on its way, by somebody who hangs up before the answer."""
    content = json.dumps(body)
    told = {
        "Host": "{}:{}".format(*appliance.address),
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/json",
        "Content-Length": len(content.encode()),
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    with socket.create_connection(appliance.address, timeout=PATIENCE) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n{content}".encode())
        yield


def _python(name: str) -> str:
    return str(_CLIENTS / name / "bin" / "python")


def _printed(command: list[str], environment: dict[str, str], cwd: str | None = None) -> Any:
    ran = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.strip().splitlines()[-1])


def run(client: httpx.Client, model: str, **body: Any) -> dict[str, Any]:
    """Return a prediction of ``model`` that has ended."""
    reply = client.post(f"/v1/models/{model}/predictions", json=body, headers={"Prefer": "wait"})
    assert reply.status_code in {201, 202}, reply.text
    record: dict[str, Any] = reply.json()
    return record
