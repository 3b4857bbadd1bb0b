"""Cog projects, unmodified: Cog's own runtime runs them, in a process and an environment of their own.

The runtime is asked over HTTP on the loopback and answers with events; what it does itself (setup, logs,
metrics, cancellation, concurrency) is left to it.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import http.server
import json
import logging
import mimetypes
import os
import re
import secrets
import shutil
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn
from urllib.parse import unquote_to_bytes

import httpx
import msgspec

from appliance.errors import LoadFailed, PredictionFailed
from appliance.prediction import Job, Log, Metric, Output
from appliance.runners import port
from appliance.runners.base import Interface, LoadSpec

_log = logging.getLogger(__name__)

_LOOK: Final = 0.05  # seconds between looks at a runtime that is starting
_WATCH: Final = 2.0  # seconds between looks at one that runs
_PREFIXES: Final = re.compile(r"^(?:Prediction failed: |Training failed: |Generator iteration error: )+")
_CLASS: Final = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Warning|Exit)): (?=.)", re.DOTALL)
_DATA: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w=.-]+)*),")
_SETTLE: Final = 0.005  # seconds in which the last raw output of a prediction arrives
#: A runtime that is asked to cancel what its worker is about to begin does nothing (Cog 0.23.1): it is asked
#: when so many seconds have gone by.
_BEGUN: Final = 0.25
_AHEAD: Final = 1000  # events that are read before they are wanted
_LAST: Final = frozenset({"completed", "refused"})  # events after which nothing comes

#: Names a PEM file with the authorities that anyone trusts, and the gateway's own certificate.
CERTIFICATES: Final = "APPLIANCE_CERTIFICATES"
#: The operator's own tokens: a project gets one for each prediction.
_NOT_ITS_BUSINESS: Final = frozenset({"APPLIANCE_TOKEN", "REPLICATE_API_TOKEN"})

#: Events of one prediction with their names, as the runtime sends them; None is the end.
_Heard = asyncio.Queue[tuple[str, dict[str, Any]] | None]


class CogRunner:
    """Options: those of ``config.CogOptions``, with the folder that the project was built in."""

    kind: ClassVar[str] = "cog"
    mode: ClassVar[str] = "predict"  # of the runtime
    folder: ClassVar[str] = "project"  # in the build

    def __init__(self, spec: LoadSpec) -> None:
        """See ``Runner``."""
        self._spec = spec
        self._build = Path(spec.options["build"])
        self._interface = self.interface(spec.options)
        self._process: Process
        self._client: httpx.AsyncClient
        self._files = _InputServer()
        self._running: dict[str, contextvars.Context] = {}
        self._reading: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """What the project said when it was built."""
        description = json.loads((Path(options["build"]) / "build.json").read_bytes())
        return msgspec.convert(description["interface"], Interface)

    async def setup(self) -> None:
        """See ``Runner``."""
        description = json.loads((self._build / "build.json").read_bytes())
        with port.reserved() as number:
            programs = self._build / "venv" / "bin"
            environment = {
                **{name: value for name, value in os.environ.items() if name not in _NOT_ITS_BUSINESS},
                **_trust(),
                **description["environment"],
                **self._spec.options["environment"],
                # The runtime starts its worker as "python".
                "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
                "PORT": str(number),
                **self._handlers(description),
                "COG_MAX_CONCURRENCY": str(self._spec.concurrency),
                "COG_LOG_LEVEL": "warn",
                "PYTHONUNBUFFERED": "1",
            }
            environment.pop("VIRTUAL_ENV", None)
            self._files.start()
            self._process = await asyncio.create_subprocess_exec(
                str(programs / "python"),
                *("-m", "cog.server.http", "--host", "127.0.0.1", "--x-mode", self.mode),
                cwd=self._build / self.folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            self._client = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{number}",
                timeout=None,  # noqa: S113 - a model may think for as long as it likes
                trust_env=False,
            )
            logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log into predictions
            self._reading = asyncio.get_running_loop().create_task(self._read_for_ever())
            await self._until_ready()
        self._watch = asyncio.get_running_loop().create_task(self._watch_for_ever())

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """See ``Runner``."""
        id = f"{job.id}-{job.attempt}"
        body: dict[str, Any] = {"id": id, "input": self._addresses(job)}
        if job.token is not None:
            body["context"] = {"replicate_api_token": job.token}
        heard: _Heard = asyncio.Queue(_AHEAD)
        # A task of its own, which a cancellation of this one does not end: the project may have more to say.
        hearing = asyncio.get_running_loop().create_task(self._hear(body, heard))
        began, over = time.monotonic(), False
        self._running[id] = contextvars.copy_context()
        try:
            while (event := await heard.get()) is not None:
                name, data = event
                over = name in _LAST
                if over and self._spec.concurrency == 1:
                    await asyncio.sleep(_SETTLE)
                async for translated in self._translated(job, name, data):
                    yield translated
        except (asyncio.CancelledError, GeneratorExit):
            if not over:
                del self._running[id]  # what its processes write from now on is for the host's log
                await self._cancel(id, began, heard)
            raise
        finally:
            self._running.pop(id, None)
            self._files.forget(job.id)
            hearing.cancel()

    async def _hear(self, body: dict[str, Any], heard: _Heard) -> None:
        """Ask the runtime for a prediction; put what it says into ``heard``, and last of all None."""
        last = ""
        try:
            headers = {"Accept": "text/event-stream"}
            async with self._client.stream("POST", "/predictions", json=body, headers=headers) as reply:
                if reply.status_code != httpx.codes.OK:
                    last = "refused"
                    await heard.put((last, {"detail": _refusal(await reply.aread())}))
                else:
                    async for last, data in _events(reply):
                        await heard.put((last, data))
        except httpx.HTTPError as error:
            self._died(f"it does not answer: {error}")
        if last not in _LAST:
            self._died("it broke off in the middle of a prediction")
        await heard.put(None)

    def _handlers(self, description: dict[str, Any]) -> dict[str, str]:
        """What of the project the runtime is to load."""
        return {"COG_PREDICT_TYPE_STUB": description["handler"]}

    def _final(self, output: Any) -> Any:
        """What the project has returned, as it is handed on."""
        return output

    async def close(self) -> None:
        """See ``Runner``."""
        for task in (self._watch, self._reading):
            if task is not None:
                task.cancel()
        await self._client.aclose()
        self._process.terminate()

    async def _translated(
        self, job: Job, name: str, data: dict[str, Any]
    ) -> AsyncIterator[Log | Output | Metric]:
        match name:
            case "log":
                yield Log(data["data"])
            case "refused":
                raise PredictionFailed(data["detail"])
            case "output" if self._interface.iterates:
                yield Output([await asyncio.to_thread(_with_files, data["chunk"], job)])
            case "completed":
                for metric, value in data.get("metrics", {}).items():
                    if metric != "predict_time":
                        yield Metric(metric, value)
                if data["status"] == "succeeded" and not self._interface.iterates:
                    output = await asyncio.to_thread(_with_files, data.get("output"), job)
                    yield Output([self._final(output)], append=False)
                self._judge(data)

    def _judge(self, data: dict[str, Any]) -> None:
        """Raise what the end of a prediction says.

        Raises:
            PredictionFailed: with the text of the project's own exception.
            asyncio.CancelledError: it was canceled.
        """
        if data["status"] == "canceled":
            raise asyncio.CancelledError
        if data["status"] == "failed":
            error = str(data.get("error") or "")
            if error == "Worker crashed":
                self._died("its worker crashed")
            error = _PREFIXES.sub("", error)
            raise PredictionFailed(_CLASS.sub("", error).strip() or "the model failed without a word")

    async def _cancel(self, id: str, began: float, heard: _Heard) -> None:
        """Have the runtime stop it, and wait until it has: the slot is free only then.

        For its caller it is over already. What the project still writes goes to the log of this host.
        """
        host = contextvars.Context()
        await asyncio.sleep(began + _BEGUN - time.monotonic())
        await self._client.post(f"/predictions/{id}/cancel")
        while (event := await heard.get()) is not None:
            name, data = event
            if name == "log":
                host.run(sys.stderr.write, data["data"])
        while (await self._client.get("/health-check")).json()["status"] == "BUSY":
            await asyncio.sleep(_LOOK)

    def _addresses(self, job: Job) -> dict[str, Any]:
        """The input with an address for every file: the runtime makes paths of addresses only."""
        given = dict(job.input)
        for name in self._interface.file_inputs:
            value = given.get(name)
            if isinstance(value, str):
                given[name] = self._files.address(job.id, value)
            elif isinstance(value, list):
                given[name] = [self._files.address(job.id, each) for each in value]
        return given

    async def _until_ready(self) -> None:
        """Wait for the project's ``setup``.

        Raises:
            LoadFailed: it failed, or the runtime ended.
        """
        while True:
            if self._process.returncode is not None:
                code = self._process.returncode
                raise LoadFailed(f"Cog's runtime ended with code {code} while it set up {self._spec.model}")
            try:
                health = (await self._client.get("/health-check")).json()
            except httpx.TransportError:  # it does not listen yet
                health = {"status": "STARTING"}
            match health["status"]:
                case "READY" | "BUSY":
                    return
                case "SETUP_FAILED" | "DEFUNCT":
                    logs = health.get("setup", {}).get("logs", "")
                    print(logs, file=sys.stderr)
                    raise LoadFailed(f"setup of {self._spec.model} failed:\n{logs.strip()[-2000:]}")
            await asyncio.sleep(_LOOK)

    async def _read_for_ever(self) -> None:
        """Pass on what the runtime writes.

        What child processes and C code write is in the runtime's own log and in no event. Where one
        prediction runs at a time it is that one's; the rest is for the log of this host.
        """
        assert self._process.stdout is not None, "it was started with a pipe"
        async for line in self._process.stdout:
            text = line.decode(errors="replace")
            said = _said_by_the_project(text)
            alone = list(self._running.values()) if self._spec.concurrency == 1 else []
            if alone and said is not None:
                alone[0].run(sys.stdout.write, f"{said}\n")
            else:
                sys.stderr.write(text if said is None else f"{said}\n")

    async def _watch_for_ever(self) -> None:
        """End this host when the runtime is not well: another one is started."""
        while True:
            await asyncio.sleep(_WATCH)
            if self._process.returncode is not None:
                self._died(f"it ended with code {self._process.returncode}")
            try:
                health = (await self._client.get("/health-check")).json()
            except httpx.TransportError as error:
                self._died(f"it does not answer: {error}")
            if health["status"] in {"UNHEALTHY", "DEFUNCT"}:
                self._died(f"its health is {health['status']}")

    def _died(self, why: str) -> NoReturn:
        print(f"Cog's runtime is lost: {why}; the engine host ends with it", file=sys.stderr, flush=True)
        os._exit(1)


def _said_by_the_project(line: str) -> str | None:
    """The message of a line of the runtime's log, if the project's processes wrote it."""
    try:
        told = json.loads(line)
        return str(told["fields"]["message"]) if told["target"] == "coglet::user" else None
    except (ValueError, KeyError, TypeError):
        return None


class CogTrainer(CogRunner):
    """The same project's ``train()``; what it returns is, or has, the weights of a new version."""

    kind: ClassVar[str] = "cog-train"
    mode: ClassVar[str] = "train"
    folder: ClassVar[str] = "training"

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """What the project said of its ``train()`` when it was built."""
        description = json.loads((Path(options["build"]) / "build.json").read_bytes())
        return msgspec.convert(description["training"]["interface"], Interface)

    def _handlers(self, description: dict[str, Any]) -> dict[str, str]:
        return {
            **super()._handlers(description),
            "COG_TRAIN_TYPE_STUB": description["training"]["handler"],
        }

    def _final(self, output: Any) -> Any:
        weights = output.get("weights") if isinstance(output, dict) else output
        if not isinstance(weights, Path):
            raise PredictionFailed("train() must return a file, or an object with a file called weights")
        return weights


async def _events(reply: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The runtime's events; each has one line of JSON."""
    name = ""
    async for line in reply.aiter_lines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])


def _refusal(body: bytes) -> str:
    """What the runtime says against an input, which was checked before: a rule that only it knows."""
    try:
        told = json.loads(body)
        detail = told.get("detail", told)
        if isinstance(detail, list):
            return "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in detail)
        return str(told.get("error", detail))
    except (ValueError, KeyError, AttributeError):
        return body.decode(errors="replace")[:500]


def _with_files(value: Any, job: Job) -> Any:
    """``value`` with every ``data:`` URL, which is how the runtime hands over a file, written to a file."""
    match value:
        case str() if value.startswith("data:") and (match := _DATA.match(value)):
            return _written(value[match.end() :], match[1], is_base64=match[2].endswith(";base64"), job=job)
        case list():
            return [_with_files(part, job) for part in value]
        case dict():
            return {key: _with_files(part, job) for key, part in value.items()}
    return value


def _written(data: str, kind: str | None, *, is_base64: bool, job: Job) -> Path:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = mimetypes.guess_extension(kind or "") or {"image/webp": ".webp"}.get(kind or "", "")
    number = sum(1 for _ in folder.iterdir())
    place = folder / f"output{f'-{number}' if number else ''}{suffix}"
    place.write_bytes(base64.b64decode(data) if is_base64 else unquote_to_bytes(data))
    return place


def _trust() -> dict[str, str]:
    """Has HTTP clients trust the gateway's certificate too, where it has one of its own."""
    file = os.environ.get(CERTIFICATES)
    return {} if file is None else {"SSL_CERT_FILE": file}


class _InputServer:
    """Serves the files of running predictions to the runtime, at addresses that nobody can guess."""

    def __init__(self) -> None:
        self._paths: dict[str, tuple[str, Path]] = {}  # token -> (prediction, file)
        self._server: http.server.ThreadingHTTPServer

    def start(self) -> None:
        paths = self._paths

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = paths.get(self.path.split("/")[1])
                if found is None:
                    self.send_error(404)
                    return
                file = found[1]
                self.send_response(200)
                self.send_header("Content-Length", str(file.stat().st_size))
                kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                self.send_header("Content-Type", kind)
                self.end_headers()
                with file.open("rb") as opened:
                    shutil.copyfileobj(opened, self.wfile)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def address(self, prediction: str, path: str) -> str:
        """Where the runtime finds the file, under its own name."""
        token = secrets.token_urlsafe(24)
        self._paths[token] = prediction, Path(path)
        return f"http://127.0.0.1:{self._server.server_address[1]}/{token}/{Path(path).name}"

    def forget(self, prediction: str) -> None:
        """The prediction is over."""
        for token in [token for token, (owner, _) in self._paths.items() if owner == prediction]:
            del self._paths[token]
