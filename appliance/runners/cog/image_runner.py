"""Runs a Cog image: starts Cog's server in a sandbox, and calls it over HTTP.

The server is the one in the image: that of Cog 0.8 or newer. Predictions are created asynchronously; the
server reports outputs and logs by webhooks, and uploads output files.
"""

from __future__ import annotations

import asyncio
import codecs
import contextvars
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
import msgspec

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.base import LoadSpec
from appliance.runners.cog.image import ROOT, ImageDescription, description
from appliance.runners.cog.loopback_server import LoopbackServer
from appliance.runners.cog.pipes import InPipe
from appliance.runners.cog.runner import error_detail, without_prefixes
from appliance.runners.cog.sandbox import PORT, Sandbox, SandboxedCommand

_POLL: Final = 0.05  # seconds between checks of a server that starts or is busy
_WATCH: Final = 2.0  # seconds between checks of a server that is ready
_TAIL: Final = 2000  # characters of the output in the error if the model cannot be loaded
#: Minimum seconds between the start of a prediction and its cancel: old versions of Cog ignore a cancel that
#: arrives before their worker begins.
_CANCEL_DELAY: Final = 0.25
_STOP: Final = 5.0  # seconds for the server to shut down
_TERMINAL: Final = frozenset({"succeeded", "failed", "canceled"})
#: Minimum seconds between two webhooks of one prediction. Cog drops webhooks that come earlier. The value is
#: not 0, because every webhook has the whole output and log so far.
_WEBHOOK_INTERVAL: Final = "0.01"
#: Beginnings of the error of a prediction whose process in the image has ended.
_CRASHES: Final = ("Prediction failed for an unknown reason", "Worker crashed")

_States = asyncio.Queue[dict[str, Any]]


class ImageRunner:
    """Runs a Cog image; the options are those of ``ImageCogOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._folder = Path(spec.options["image"])
        self._image: ImageDescription = description(self._folder)
        self._interface = self.interface(spec.options)
        self._sandbox: Sandbox
        self._files = LoopbackServer()
        self._client: httpx.AsyncClient
        self._states: dict[str, _States] = {}  # by the id of a running prediction
        self._created: set[str] = set()  # ids of the predictions that the server has accepted and not ended
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._output = ""  # the last characters that programs in the sandbox have written
        self._text: InPipe
        self._watch: asyncio.Task[None] | None = None

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return msgspec.convert(description(Path(options["image"])).interface, Interface)

    async def setup(self) -> None:
        scratch = Path(tempfile.mkdtemp())
        files = scratch / "files"
        files.mkdir()
        self._text = InPipe(self._on_text)
        self._sandbox = Sandbox(self._spec.model, scratch, self._spec.options["network"])
        try:
            await self._sandbox.create(self._folder / ROOT, self._text.writer)
        finally:
            self._text.start()
        self._files.start(files, self._on_webhook, self._sandbox.listener)
        self._sandbox.run(
            SandboxedCommand(
                arguments=[*self._image.command, "--upload-url", self._files.upload_url],
                folder=self._image.folder,
                environment=self._environment(),
                gpus=self._spec.device.startswith("cuda"),
            )
        )
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self._sandbox.socket)),
            base_url=f"http://127.0.0.1:{PORT}",
            timeout=None,  # noqa: S113 - a prediction has no time limit here
            trust_env=False,
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)  # keep its lines out of predictions
        await self._until_ready()
        self._watch = asyncio.get_running_loop().create_task(self._watch_server())

    def _environment(self) -> dict[str, str]:
        """Return the variables of the image, those that the appliance sets, and those of models.yaml."""
        own = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            **self._image.environment,
            **{name: os.environ[name] for name in own if name in os.environ},
            "PORT": str(PORT),
            "COG_THROTTLE_RESPONSE_INTERVAL": _WEBHOOK_INTERVAL,
            **self._spec.options["environment"],
        }

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        id = f"{job.id}-{job.attempt}"
        states = self._states[id] = _States()
        # A separate task, because a cancel must not end the request that creates the prediction.
        creating = asyncio.get_running_loop().create_task(self._create(id, job))
        progress, began = _Progress(self._interface.iterates), time.monotonic()
        state: dict[str, Any] = {}
        try:
            await asyncio.shield(creating)
            while not _has_ended(state):
                state = await states.get()
                for event in progress.events(state):
                    yield self._with_files(event)
            self._raise_failure(state)
        except (asyncio.CancelledError, GeneratorExit):
            if not _has_ended(state):
                await self._cancel(id, began, states, creating)
            raise
        finally:
            del self._states[id]
            self._created.discard(id)
            self._files.forget(job.id)

    async def _create(self, id: str, job: Job) -> None:
        """Have the server start a prediction, as soon as it has a free slot.

        Raises:
            PredictionFailed: the server refuses the input.
        """
        body = {
            "id": id,
            "input": self._files.with_urls(job, self._interface),
            "webhook": self._files.webhook_url,
            "webhook_events_filter": ["output", "logs", "completed"],
        }
        while True:
            try:
                headers = {"Prefer": "respond-async"}
                response = await self._client.post("/predictions", json=body, headers=headers)
            except httpx.HTTPError as error:
                self._exit(f"Cog's server does not respond: {error}")
            if response.status_code != httpx.codes.CONFLICT:
                break
            await asyncio.sleep(_POLL)
        if response.is_error:
            raise PredictionFailed(error_detail(response.content))
        self._created.add(id)

    async def _cancel(self, id: str, began: float, states: _States, creating: asyncio.Task[None]) -> None:
        """Cancel a prediction in the server, and wait until it has ended."""
        try:
            await creating
        except PredictionFailed:
            return
        await asyncio.sleep(began + _CANCEL_DELAY - time.monotonic())
        try:
            await self._client.post(f"/predictions/{id}/cancel")
        except httpx.HTTPError as error:
            self._exit(f"Cog's server does not respond: {error}")
        while not _has_ended(await states.get()):
            pass

    def _raise_failure(self, state: dict[str, Any]) -> None:
        """Raise the failure or the cancel in the last state of a prediction, if there is one.

        Raises:
            PredictionFailed: the prediction failed; the message is that of the project's exception.
            asyncio.CancelledError: the prediction was canceled.
        """
        if state["status"] == "canceled":
            raise asyncio.CancelledError
        if state["status"] == "failed":
            error = str(state.get("error") or "")
            if error.startswith(_CRASHES):
                self._exit("the process of the prediction ended")
            raise PredictionFailed(without_prefixes(error) or "the project raised an empty error")

    def _with_files(self, event: Log | Output | Metric) -> Log | Output | Metric:
        if isinstance(event, Output):
            return Output([self._replaced(value) for value in event.values], append=event.append)
        return event

    def _replaced(self, value: Any) -> Any:
        """Return ``value`` with a ``Path`` in place of the URL of each output file.

        Versions of Cog since 0.17 send data URLs, and ignore ``--upload-url``.
        """
        match value:
            case str():
                if value.startswith("data:") and self._interface.makes_files:
                    return self._files.store_data_url(value) or value
                return self._files.output_file(value) or value
            case list():
                return [self._replaced(part) for part in value]
            case dict():
                return {key: self._replaced(part) for key, part in value.items()}
        return value

    def _on_webhook(self, state: dict[str, Any]) -> None:
        id = str(state.get("id"))
        if id in self._states:
            self._states[id].put_nowait(state)
            if _has_ended(state):
                self._created.discard(id)

    async def _until_ready(self) -> None:
        """Wait until the project's ``setup`` has succeeded.

        Raises:
            LoadFailed: ``setup`` failed, or the server ended.
        """
        while True:
            if self._sandbox.process.returncode is not None:
                self._text.drain()
                raise LoadFailed(
                    f"setup of {self._spec.model} failed: the command of its image ended with code "
                    f"{self._sandbox.process.returncode}:\n{self._output.strip()}"
                )
            health = await self._health()
            match health.get("status"):
                case "READY" | "BUSY":
                    return
                case "SETUP_FAILED" | "DEFUNCT":
                    logs = str((health.get("setup") or {}).get("logs") or self._output)
                    raise LoadFailed(f"setup of {self._spec.model} failed:\n{logs.strip()[-_TAIL:]}")
            await asyncio.sleep(_POLL)

    async def _health(self) -> dict[str, Any]:
        """Return the health of the server; an empty dict if it does not listen yet."""
        try:
            response = await self._client.get("/health-check")
            found = response.json()
        except (httpx.TransportError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    async def _watch_server(self) -> None:
        """Exit if the server ends or is unhealthy: the appliance then starts a new worker process."""
        idle: set[str] = set()  # predictions that run here, but not in the server
        while True:
            await asyncio.sleep(_WATCH)
            code = self._sandbox.process.returncode
            if code is not None:
                self._exit(f"Cog's server ended with code {code}")
            running = set(self._created)
            status = (await self._health()).get("status")
            # A server with several slots is READY as long as one of them is free.
            idle, before = running if status == "READY" and self._spec.concurrency == 1 else set(), idle
            if idle & before & set(self._created):
                self._exit("Cog's server has ended a prediction without a webhook about its end")
            if status in {"UNHEALTHY", "DEFUNCT", "SETUP_FAILED"}:
                self._exit(f"Cog's server reports the status {status}")

    async def close(self) -> None:
        """Stop the server, and kill everything in the sandbox."""
        if self._watch is not None:
            self._watch.cancel()
        try:
            await asyncio.wait_for(self._client.post("/shutdown"), _STOP)
            await asyncio.wait_for(self._sandbox.process.wait(), _STOP)
        except (httpx.HTTPError, TimeoutError):
            pass  # it is killed below
        await self._client.aclose()
        self._sandbox.close()
        await self._sandbox.process.wait()
        self._text.close()

    def _on_text(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        self._output = (self._output + text)[-_TAIL:]
        sys.stderr.write(text)

    def _exit(self, reason: str) -> NoReturn:
        text = f"the image of {self._spec.model} failed: {reason}; the worker process exits"
        # In the log of the worker process, because the log of the prediction is not sent any more.
        contextvars.Context().run(print, text, file=sys.stderr, flush=True)
        os._exit(1)


def _has_ended(state: dict[str, Any]) -> bool:
    return str(state.get("status")) in _TERMINAL


class _Progress:
    """How much of a prediction was already emitted. Each state has the whole output and log."""

    def __init__(self, iterates: bool) -> None:
        self._iterates = iterates
        self._log = 0  # characters
        self._items = 0
        self._complete = False

    def events(self, state: dict[str, Any]) -> list[Log | Output | Metric]:
        """Return the events between the last state and ``state``."""
        events: list[Log | Output | Metric] = []
        logs = state.get("logs") or ""
        if len(logs) > self._log:
            events.append(Log(logs[self._log :]))
            self._log = len(logs)
        output = state.get("output")
        if self._iterates and isinstance(output, list) and len(output) > self._items:
            events.append(Output(output[self._items :]))
            self._items = len(output)
        if _has_ended(state):
            metrics = state.get("metrics") or {}
            events += [Metric(name, value) for name, value in metrics.items() if name != "predict_time"]
            if state["status"] == "succeeded" and not self._iterates:
                events.append(Output([output], append=False))
        return events
