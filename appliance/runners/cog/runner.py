"""The runner of kind `cog`: runs an unmodified project with Cog's own runtime, in a child process.

The runner sends predictions to the runtime over HTTP on the loopback interface and reads the runtime's
events. The runtime does setup, metrics, cancellation and concurrency. Log text and output files come directly
from Cog's worker, through pipes and a folder (``cog_worker.py``), because the runtime drops events when there
are too many, sends the text of child processes late and in pieces, and loses the names of files.
"""

from __future__ import annotations

import asyncio
import codecs
import contextvars
import json
import logging
import os
import re
import sys
import tempfile
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
from appliance.runners.cog.loopback_server import LoopbackServer
from appliance.runners.cog.pipes import InPipe
from appliance.runners.cog.search_paths import with_programs

_log = logging.getLogger(__name__)

_POLL: Final = 0.05  # seconds between checks of a runtime that starts or is busy
_WATCH: Final = 2.0  # seconds between checks of a runtime that is ready
_PREFIXES: Final = re.compile(
    r"^(?:(?:Async p|P)rediction failed: |(?:Async t|T)raining failed: |Generator iteration error: )+"
)
_CLASS: Final = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Warning|Exit)): (?=.)", re.DOTALL)
#: Minimum seconds between the start of a prediction and its cancel: Cog 0.23.1 ignores a cancel that arrives
#: just before its worker begins.
_CANCEL_DELAY: Final = 0.25
#: Events after which a prediction has no others; ``error``: the runtime has dropped events.
_LAST: Final = frozenset({"completed", "refused", "error"})
#: Beginnings of the error of a prediction whose worker has crashed: of coglet, and of the Python server.
_CRASHES: Final = ("Worker crashed", "Prediction failed for an unknown reason. It might have run out of")
BUSY: Final = "busy"  # not an event: the runtime has no free slot for the prediction yet
_STOP_TIMEOUT: Final = 30.0  # seconds for the runtime to stop a prediction after it has dropped events
_TAIL: Final = 2000  # characters of the output of ``setup`` in the error if it fails

#: Environment variable with the path of a PEM file: the public authorities and the gateway's own certificate.
CERTIFICATES: Final = "APPLIANCE_CERTIFICATES"

#: Names and data of the runtime's events for one prediction, ended by None.
Events = asyncio.Queue[tuple[str, dict[str, Any]] | None]


#: The runtime in the description of a project whose Cog is older than 0.17 (``python_server.py``).
PYTHON_SERVER: Final = "python server"


def description_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the project, which its build contains."""
    description: dict[str, Any] = json.loads((Path(options["build"]) / "build.json").read_bytes())
    return description


class CogRunner:
    """Runs a Cog project; the options are those of ``BuiltCogOptions``."""

    mode: ClassVar[str] = "predict"  # argument --x-mode of the runtime
    folder: ClassVar[str] = "project"  # the project's folder in the build

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._build = Path(spec.options["build"])
        self._interface = self.interface(spec.options)
        self._process: Process
        self._client: httpx.AsyncClient
        self._files = LoopbackServer()
        self._output_folder = ""  # where Cog's worker puts output files; ends in a slash
        self._running: dict[str, contextvars.Context] = {}
        self._pipes: list[InPipe] = []  # for the text of Cog's worker, see ``cog_worker``
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._incomplete_line = b""  # of the labelled text
        self._setup_output = ""  # the last characters of the text that ``setup`` has written
        self._watch: asyncio.Task[None] | None = None

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return msgspec.convert(description_of(options)["interface"], Interface)

    async def setup(self) -> None:
        description = description_of(self._spec.options)
        self._prepare()
        with free_port.reserved() as port:
            self._pipes = [InPipe(self._on_text)]
            if self._spec.concurrency > 1:
                self._pipes.append(InPipe(self._on_labelled_text))
            self._output_folder = f"{tempfile.mkdtemp()}/"
            variables = {
                **without_secrets(),
                # HTTP clients of the project trust the gateway's certificate.
                **({"SSL_CERT_FILE": os.environ[CERTIFICATES]} if CERTIFICATES in os.environ else {}),
                **description["environment"],
                **self._spec.options["environment"],
                "PORT": str(port),
                **self._handlers(description),
                "COG_MAX_CONCURRENCY": str(self._spec.concurrency),
                "COG_LOG_LEVEL": "warn",
                "PYTHONUNBUFFERED": "1",
            }
            variables.pop("VIRTUAL_ENV", None)
            self._process = await self._start(with_programs(variables, self._build))
            for pipe in self._pipes:
                pipe.start()
            self._client = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                timeout=None,  # noqa: S113 - a prediction has no time limit here
                trust_env=False,
            )
            logging.getLogger("httpx").setLevel(logging.WARNING)  # keep its lines out of predictions
            await self._until_ready()
        self._watch = asyncio.get_running_loop().create_task(self._watch_runtime())

    def _prepare(self) -> None:
        """Change the build as the runtime needs it, before the runtime starts."""
        install_modules(self._build / "venv")

    async def _start(self, variables: dict[str, str]) -> Process:
        """Start the runtime with these environment variables, in the project's folder."""
        self._files.start(Path(self._output_folder))
        variables[cog_worker.TEXT] = ",".join(str(pipe.writer) for pipe in self._pipes)
        variables[cog_worker.FILES] = self._output_folder.rstrip("/")
        return await asyncio.create_subprocess_exec(
            str(self._build / "venv" / "bin" / "python"),
            *("-m", "cog.server.http", "--host", "127.0.0.1", "--x-mode", self.mode),
            cwd=self._build / self.folder,
            env=variables,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[pipe.writer for pipe in self._pipes],
        )

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        id = f"{job.id}-{job.attempt}"
        body: dict[str, Any] = {"id": id, "input": self._files.with_urls(job, self._interface)}
        if job.token is not None:
            body["context"] = {"replicate_api_token": job.token}
        events: Events = asyncio.Queue()  # unbounded: the runtime disconnects a client that does not read
        # A separate task, which continues after a cancel, because the project may still send text.
        reading = asyncio.get_running_loop().create_task(self._predict(body, events))
        began, ended = time.monotonic(), False
        self._running[id] = contextvars.copy_context()
        try:
            while (event := await events.get()) is not None:
                name, data = event
                ended = name in _LAST
                if ended:
                    self._drain()
                async for output in self._translate(name, data):
                    yield output
        except (asyncio.CancelledError, GeneratorExit):
            if not ended:
                self._drain()
                del self._running[id]  # later text of its processes goes to the worker process's log
                await self._cancel(id, began, events, reading)
            raise
        finally:
            self._running.pop(id, None)
            self._files.forget(job.id)
            reading.cancel()

    async def _predict(self, body: dict[str, Any], events: Events) -> None:
        """Have the runtime run a prediction. Put its events into ``events``, then None."""
        name = ""
        try:
            # The runtime frees a slot only a moment after the response of its prediction has ended.
            while (name := await self._post(body, events)) == BUSY:
                await self._until_free()
            if name not in _LAST:
                self._exit("the runtime closed the connection during a prediction")
        except httpx.HTTPError as error:
            self._exit(f"the runtime does not respond: {error}")
        except Exception as error:  # noqa: BLE001  # after any error ``run`` must stop waiting
            events.put_nowait(("error", {"error": f"{type(error).__name__}: {error}"}))
        events.put_nowait(None)

    async def _post(self, body: dict[str, Any], events: Events) -> str:
        """Post a prediction and put its events into ``events``. Return the last one's name or ``BUSY``."""
        headers = {"Accept": "text/event-stream"}
        name = ""
        async with self._client.stream("POST", "/predictions", json=body, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                detail = error_detail(await response.aread())
                if response.status_code == httpx.codes.CONFLICT and detail.startswith("At capacity"):
                    return BUSY
                events.put_nowait(("refused", {"detail": detail}))
                return "refused"
            reader = sse.EventReader()
            async for part in response.aiter_bytes():
                for name, data in reader.feed(part):
                    events.put_nowait((name, json.loads(data)))
        return name

    def _handlers(self, description: dict[str, Any]) -> dict[str, str]:
        """Return the environment variables that tell the runtime which handlers to load."""
        return {"COG_PREDICT_TYPE_STUB": description["handler"]}

    def _final(self, output: Any) -> Any:
        """Return the prediction's output for ``output``, the return value of the project's function."""
        return output

    async def close(self) -> None:
        """Stop the project's process, and close the connection and the pipes to it."""
        if self._watch is not None:
            self._watch.cancel()
        await self._client.aclose()
        self._process.terminate()
        for pipe in self._pipes:
            pipe.close()

    async def _translate(self, name: str, data: dict[str, Any]) -> AsyncIterator[Log | Output | Metric]:
        match name:
            case "log":
                yield Log(data["data"])
            case "refused":
                raise PredictionFailed(data["detail"])
            case "error":
                try:
                    await asyncio.wait_for(self._until_free(), _STOP_TIMEOUT)
                except TimeoutError:
                    self._exit(f"it dropped events of a prediction that runs on after {_STOP_TIMEOUT:g} s")
                raise PredictionFailed(f"the output of the prediction could not be read: {data['error']}")
            case "output" if self._interface.iterates:
                yield Output([self._with_files(data["chunk"])])
            case "completed":
                for metric, value in data.get("metrics", {}).items():
                    if metric != "predict_time":
                        yield Metric(metric, value)
                if data["status"] == "succeeded" and not self._interface.iterates:
                    yield Output([self._final(self._with_files(data.get("output")))], append=False)
                self._raise_failure(data)

    def _raise_failure(self, data: dict[str, Any]) -> None:
        """Raise the failure or the cancel in ``data``, the data of a final event, if there is one.

        Raises:
            PredictionFailed: the prediction failed; the message is that of the project's exception.
            asyncio.CancelledError: the prediction was canceled.
        """
        if data["status"] == "canceled":
            raise asyncio.CancelledError
        if data["status"] == "failed":
            error = str(data.get("error") or "")
            if error.startswith(_CRASHES):
                self._exit("Cog's worker crashed")
            raise PredictionFailed(self._message(error) or "the project raised an empty error")

    def _message(self, error: str) -> str:
        """Return the message of the project's exception, to which coglet adds a prefix and the class."""
        return _CLASS.sub("", _PREFIXES.sub("", error)).strip()

    async def _cancel(self, id: str, began: float, events: Events, reading: asyncio.Task[None]) -> None:
        """Cancel a prediction in the runtime, and wait until its slot is free.

        Text that the project writes meanwhile goes to the log of the worker process.
        """
        no_prediction = contextvars.Context()
        await asyncio.sleep(began + _CANCEL_DELAY - time.monotonic())
        cancel = f"/predictions/{id}/cancel"
        # The runtime does not know predictions that still wait for a slot.
        while (await self._client.post(cancel)).status_code == httpx.codes.NOT_FOUND and not reading.done():
            await asyncio.sleep(_POLL)
        while (event := await events.get()) is not None:
            name, data = event
            if name == "log":
                no_prediction.run(sys.stderr.write, data["data"])
        await self._until_free()

    async def _until_free(self) -> None:
        """Wait until the runtime can start another prediction."""
        while (await self._client.get("/health-check")).json()["status"] == "BUSY":
            await asyncio.sleep(_POLL)

    def _with_files(self, value: Any) -> Any:
        """Return ``value`` with a ``Path`` in place of each string that is the path of an output file."""
        match value:
            case str() if value.startswith(self._output_folder):
                return Path(value)
            case list():
                return [self._with_files(part) for part in value]
            case dict():
                return {key: self._with_files(part) for key, part in value.items()}
        return value

    async def _until_ready(self) -> None:
        """Wait until the project's ``setup`` has succeeded.

        Raises:
            LoadFailed: ``setup`` failed, or the runtime ended.
        """
        while True:
            if self._process.returncode is not None:
                self._drain()
                output = self._setup_output.strip()[-_TAIL:]
                code = self._process.returncode
                raise LoadFailed(
                    f"setup of {self._spec.model} failed: Cog's runtime ended with code {code}"
                    + (f":\n{output}" if output else "")
                )
            try:
                health = (await self._client.get("/health-check")).json()
            except httpx.TransportError:  # the runtime does not listen yet
                health = {"status": "STARTING"}
            match health["status"]:
                case "READY" | "BUSY":
                    return
                case "SETUP_FAILED" | "DEFUNCT":
                    self._drain()
                    logs = health.get("setup", {}).get("logs", "")
                    print(logs, file=sys.stderr)
                    output = f"{self._setup_output}\n{logs}".strip()[-_TAIL:]
                    raise LoadFailed(f"setup of {self._spec.model} failed:\n{output}")
            await asyncio.sleep(_POLL)

    def _on_text(self, data: bytes, *, final: bool = False) -> None:
        """Log plain text of the project.

        If the concurrency is 1, this is all its text, and it belongs to the running prediction. Otherwise it
        is the text of child processes and C code, whose prediction is unknown.
        """
        running = list(self._running.values()) if self._spec.concurrency == 1 else []
        self._write(running[0] if running else None, self._decoder.decode(data, final))

    def _on_labelled_text(self, data: bytes) -> None:
        *lines, self._incomplete_line = (self._incomplete_line + data).split(b"\n")
        texts: dict[str | None, list[str]] = {}
        for line in lines:
            try:
                id, text = json.loads(line)
            except ValueError:  # another program has written to the pipe
                id, text = None, f"{line!r}\n"
            texts.setdefault(id, []).append(text)
        for id, pieces in texts.items():
            self._write(self._running.get(id or ""), "".join(pieces))

    def _write(self, context: contextvars.Context | None, text: str) -> None:
        """Write ``text`` to the log of the prediction with this context; None: of the worker process."""
        if context is not None:
            context.run(sys.stdout.write, text)
        else:
            self._setup_output = (self._setup_output + text)[-_TAIL:]
            sys.stderr.write(text)

    def _drain(self) -> None:
        """Log all text written so far, before another prediction begins to write."""
        for pipe in self._pipes:
            pipe.drain()
        self._on_text(b"", final=True)

    async def _watch_runtime(self) -> None:
        """Exit if the runtime is unhealthy: the appliance then starts a new worker process."""
        while True:
            await asyncio.sleep(_WATCH)
            if self._process.returncode is not None:
                self._exit(f"the runtime ended with code {self._process.returncode}")
            try:
                health = (await self._client.get("/health-check")).json()
            except httpx.TransportError as error:
                self._exit(f"the runtime does not respond: {error}")
            if health["status"] in {"UNHEALTHY", "DEFUNCT"}:
                self._exit(f"the runtime reports the status {health['status']}")

    def _exit(self, reason: str) -> NoReturn:
        text = f"Cog's runtime for {self._spec.model} failed: {reason}; the worker process exits"
        print(text, file=sys.stderr, flush=True)
        os._exit(1)


class CogTrainer(CogRunner):
    """Runs the project's ``train()``, which returns the weights of a new version."""

    mode: ClassVar[str] = "train"
    folder: ClassVar[str] = "training"

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return msgspec.convert(description_of(options)["training"]["interface"], Interface)

    def _handlers(self, description: dict[str, Any]) -> dict[str, str]:
        return {**super()._handlers(description), "COG_TRAIN_TYPE_STUB": description["training"]["handler"]}

    def _final(self, output: Any) -> Any:
        weights = output.get("weights") if isinstance(output, dict) else output
        if not isinstance(weights, Path):
            raise PredictionFailed("train() must return a file, or an object with a file called weights")
        return weights


def error_detail(body: bytes) -> str:
    """Return the reason in an error response of Cog's server, which has refused an input."""
    try:
        response = json.loads(body)
        detail = response.get("detail", response)
        if isinstance(detail, list):
            return "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in detail)
        return str(response.get("error", detail))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):  # not in Cog's format
        return body.decode(errors="replace")[:500]


def without_prefixes(error: str) -> str:
    """Return an error message without the prefixes that Cog's runtime has added, if it has added any."""
    found = _PREFIXES.sub("", error)
    return error if found == error else _CLASS.sub("", found).strip()
