"""Cog projects, unmodified: Cog's own runtime runs them, in a process and an environment of their own.

The runtime is asked over HTTP on the loopback and answers with events; what it does itself (setup, metrics,
cancellation, concurrency) is left to it. Text and output files come from its worker directly, by pipes and in
a folder (``cog_worker.py``): the runtime's own events break off when there are too many of them, tell
the text of child processes late and in pieces, and lose the names of files.
"""

from __future__ import annotations

import asyncio
import codecs
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
import tempfile
import threading
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import httpx
import msgspec

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.protocols import sse
from appliance.runners.base import LoadSpec
from appliance.runners.child_environment import without_secrets
from appliance.runners.cog import cog_worker, free_port
from appliance.runners.cog.installed_modules import install_modules
from appliance.runners.cog.pipes import InPipe

_log = logging.getLogger(__name__)

_LOOK: Final = 0.05  # seconds between looks at a runtime that is starting
_WATCH: Final = 2.0  # seconds between looks at one that runs
_PREFIXES: Final = re.compile(
    r"^(?:(?:Async p|P)rediction failed: |(?:Async t|T)raining failed: |Generator iteration error: )+"
)
_CLASS: Final = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Warning|Exit)): (?=.)", re.DOTALL)
#: A runtime that is asked to cancel what its worker is about to begin does nothing (Cog 0.23.1): it is asked
#: when so many seconds have gone by.
_BEGUN: Final = 0.25
#: Final events. ``error`` means that the runtime has dropped events.
_LAST: Final = frozenset({"completed", "refused", "error"})
_BUSY: Final = "busy"  # not an event: the runtime has no free slot for the prediction yet
_STOPS: Final = 30.0  # seconds within which the runtime must stop a prediction whose events nobody reads
_TAIL: Final = 2000  # characters of setup's output in the error of a failed setup

#: Names a PEM file with the authorities that anyone trusts, and the gateway's own certificate.
CERTIFICATES: Final = "APPLIANCE_CERTIFICATES"

#: Events of one prediction with their names, as the runtime sends them; None is the end.
_Heard = asyncio.Queue[tuple[str, dict[str, Any]] | None]


class CogRunner:
    """Runs a Cog project; ``options.py`` has its options, with the folder that it was built in."""

    kind: ClassVar[str] = "cog"
    mode: ClassVar[str] = "predict"  # of the runtime
    folder: ClassVar[str] = "project"  # in the build

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._build = Path(spec.options["build"])
        self._interface = self.interface(spec.options)
        self._process: Process
        self._client: httpx.AsyncClient
        self._files = _InputServer()
        self._made = ""  # the folder where the worker puts output files, with a slash
        self._running: dict[str, contextvars.Context] = {}
        self._pipes: list[InPipe] = []  # pipes for the worker's text, see ``cog_worker``
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun_line = b""  # incomplete last line of the labelled text
        self._said = ""  # the end of setup's output
        self._watch: asyncio.Task[None] | None = None

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Return the inputs and the output that the project described when it was built."""
        description = json.loads((Path(options["build"]) / "build.json").read_bytes())
        return msgspec.convert(description["interface"], Interface)

    async def setup(self) -> None:
        """Load the model."""
        description = json.loads((self._build / "build.json").read_bytes())
        install_modules(self._build / "venv")
        with free_port.reserved() as number:
            programs = self._build / "venv" / "bin"
            self._pipes = [InPipe(self._hear_text)]
            if self._spec.concurrency > 1:
                self._pipes.append(InPipe(self._hear_labelled))
            self._made = f"{tempfile.mkdtemp()}/"
            variables = {
                **without_secrets(),
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
                cog_worker.TEXT: ",".join(str(pipe.writer) for pipe in self._pipes),
                cog_worker.FILES: self._made.rstrip("/"),
            }
            variables.pop("VIRTUAL_ENV", None)
            self._files.start()
            self._process = await asyncio.create_subprocess_exec(
                str(programs / "python"),
                *("-m", "cog.server.http", "--host", "127.0.0.1", "--x-mode", self.mode),
                cwd=self._build / self.folder,
                env=variables,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[pipe.writer for pipe in self._pipes],
            )
            for pipe in self._pipes:
                pipe.start()
            self._client = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{number}",
                timeout=None,  # noqa: S113 - a model may think for as long as it likes
                trust_env=False,
            )
            logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log into predictions
            await self._until_ready()
        self._watch = asyncio.get_running_loop().create_task(self._watch_for_ever())

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        id = f"{job.id}-{job.attempt}"
        body: dict[str, Any] = {"id": id, "input": self._addresses(job)}
        if job.token is not None:
            body["context"] = {"replicate_api_token": job.token}
        heard: _Heard = asyncio.Queue()  # unbounded: the runtime disconnects if nobody reads
        # A task of its own, which a cancellation of this one does not end: the project may have more to say.
        hearing = asyncio.get_running_loop().create_task(self._hear(body, heard))
        began, over = time.monotonic(), False
        self._running[id] = contextvars.copy_context()
        try:
            while (event := await heard.get()) is not None:
                name, data = event
                over = name in _LAST
                if over:
                    self._drain()
                async for translated in self._translated(name, data):
                    yield translated
        except (asyncio.CancelledError, GeneratorExit):
            if not over:
                self._drain()
                del self._running[id]  # what its processes write from now on is for the host's log
                await self._cancel(id, began, heard, hearing)
            raise
        finally:
            self._running.pop(id, None)
            self._files.forget(job.id)
            hearing.cancel()

    async def _hear(self, body: dict[str, Any], heard: _Heard) -> None:
        """Ask the runtime for a prediction; put what it says into ``heard``, and last of all None."""
        name = ""
        try:
            # The runtime frees a slot only a moment after the response of its prediction has ended.
            while (name := await self._asked(body, heard)) == _BUSY:
                await self._until_free()
            if name not in _LAST:
                self._died("it closed the connection in the middle of a prediction")
        except httpx.HTTPError as error:
            self._died(f"it does not answer: {error}")
        except Exception as error:  # noqa: BLE001  # after any error ``run`` must stop waiting
            heard.put_nowait(("error", {"error": f"{type(error).__name__}: {error}"}))
        heard.put_nowait(None)

    async def _asked(self, body: dict[str, Any], heard: _Heard) -> str:
        """Post a prediction, put its events into ``heard``, return the last event's name or ``_BUSY``."""
        headers = {"Accept": "text/event-stream"}
        name = ""
        async with self._client.stream("POST", "/predictions", json=body, headers=headers) as reply:
            if reply.status_code != httpx.codes.OK:
                detail = _refusal(await reply.aread())
                if reply.status_code == httpx.codes.CONFLICT and detail.startswith("At capacity"):
                    return _BUSY
                heard.put_nowait(("refused", {"detail": detail}))
                return "refused"
            reader = sse.EventReader()
            async for part in reply.aiter_bytes():
                for name, data in reader.feed(part):
                    heard.put_nowait((name, json.loads(data)))
        return name

    def _handlers(self, description: dict[str, Any]) -> dict[str, str]:
        """What of the project the runtime is to load."""
        return {"COG_PREDICT_TYPE_STUB": description["handler"]}

    def _final(self, output: Any) -> Any:
        """Return the project's return value in the form in which it is passed on."""
        return output

    async def close(self) -> None:
        """Stop the project's process, and close the connection and the pipes to it."""
        if self._watch is not None:
            self._watch.cancel()
        await self._client.aclose()
        self._process.terminate()
        for pipe in self._pipes:
            pipe.close()

    async def _translated(self, name: str, data: dict[str, Any]) -> AsyncIterator[Log | Output | Metric]:
        match name:
            case "log":
                yield Log(data["data"])
            case "refused":
                raise PredictionFailed(data["detail"])
            case "error":
                try:
                    await asyncio.wait_for(self._until_free(), _STOPS)
                except TimeoutError:
                    self._died("it does not stop a prediction whose events are not read")
                raise PredictionFailed(f"the output of the prediction could not be read: {data['error']}")
            case "output" if self._interface.iterates:
                yield Output([self._with_files(data["chunk"])])
            case "completed":
                for metric, value in data.get("metrics", {}).items():
                    if metric != "predict_time":
                        yield Metric(metric, value)
                if data["status"] == "succeeded" and not self._interface.iterates:
                    yield Output([self._final(self._with_files(data.get("output")))], append=False)
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

    async def _cancel(self, id: str, began: float, heard: _Heard, hearing: asyncio.Task[None]) -> None:
        """Have the runtime stop it, and wait until it has: the slot is free only then.

        For its caller it is over already. What the project still writes goes to the log of this host.
        """
        host = contextvars.Context()
        await asyncio.sleep(began + _BEGUN - time.monotonic())
        cancel = f"/predictions/{id}/cancel"
        # The runtime does not know predictions that still wait for a slot.
        while (await self._client.post(cancel)).status_code == httpx.codes.NOT_FOUND and not hearing.done():
            await asyncio.sleep(_LOOK)
        while (event := await heard.get()) is not None:
            name, data = event
            if name == "log":
                host.run(sys.stderr.write, data["data"])
        await self._until_free()

    async def _until_free(self) -> None:
        """Wait until the runtime can start another prediction."""
        while (await self._client.get("/health-check")).json()["status"] == "BUSY":
            await asyncio.sleep(_LOOK)

    def _with_files(self, value: Any) -> Any:
        """``value`` with a ``Path`` for each string that is the path of a file from the worker."""
        match value:
            case str() if value.startswith(self._made):
                return Path(value)
            case list():
                return [self._with_files(part) for part in value]
            case dict():
                return {key: self._with_files(part) for key, part in value.items()}
        return value

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
                    self._drain()
                    logs = health.get("setup", {}).get("logs", "")
                    print(logs, file=sys.stderr)
                    said = f"{self._said}\n{logs}".strip()[-_TAIL:]
                    raise LoadFailed(f"setup of {self._spec.model} failed:\n{said}")
            await asyncio.sleep(_LOOK)

    def _hear_text(self, data: bytes, *, final: bool = False) -> None:
        """Handle text from child processes and C code; with one prediction at a time, this is all text.

        If one prediction runs at a time, the text belongs to it. Otherwise it goes to the host's log.
        """
        alone = list(self._running.values()) if self._spec.concurrency == 1 else []
        self._say(alone[0] if alone else None, self._decoder.decode(data, final))

    def _hear_labelled(self, data: bytes) -> None:
        *lines, self._begun_line = (self._begun_line + data).split(b"\n")
        texts: dict[str | None, list[str]] = {}
        for line in lines:
            try:
                id, text = json.loads(line)
            except ValueError:  # another program has written to the pipe
                id, text = None, f"{line!r}\n"
            texts.setdefault(id, []).append(text)
        for id, pieces in texts.items():
            self._say(self._running.get(id or ""), "".join(pieces))

    def _say(self, context: contextvars.Context | None, text: str) -> None:
        """Write ``text`` to the log of a prediction, or without ``context`` to the log of this host."""
        if context is not None:
            context.run(sys.stdout.write, text)
        else:
            self._said = (self._said + text)[-_TAIL:]
            sys.stderr.write(text)

    def _drain(self) -> None:
        """Read all text written so far, because later text belongs to other predictions."""
        for pipe in self._pipes:
            pipe.drain()
        self._hear_text(b"", final=True)

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


class CogTrainer(CogRunner):
    """The same project's ``train()``; what it returns is, or has, the weights of a new version."""

    kind: ClassVar[str] = "cog-train"
    mode: ClassVar[str] = "train"
    folder: ClassVar[str] = "training"

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Return the inputs and the output of ``train()`` that the project described when it was built."""
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
