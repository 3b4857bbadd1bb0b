"""Runs projects whose Cog is older than 0.17, with the HTTP server of that Cog.

That server is written in Python and has no event stream. The runner asks it to run a prediction in the
background (``Prefer: respond-async``), and gets the outputs and the end of the prediction as webhooks. Output
files are uploaded to the runner. Cog 0.8 to 0.16 have this protocol. See docs/http.md of
https://github.com/replicate/cog at the tag v0.8.6.
"""

from __future__ import annotations

import asyncio
import tempfile
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any, Final

import httpx

from appliance.runners.base import LoadSpec
from appliance.runners.cog.installed_modules import LINES, install_line_buffering
from appliance.runners.cog.runner import BUSY, CogRunner, CogTrainer, Events, description_of, error_detail

_START: Final = Path(__file__).with_name("start_python_server.py")
#: Seconds between webhooks of one prediction. Each has all its output so far.
_INTERVAL: Final = "0.05"


class PythonServerRunner(CogRunner):
    """Runs a project with the Python server of its Cog."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._path = "/predictions"
        self._webhooks: dict[str, asyncio.Queue[dict[str, Any]]] = {}  # id of a prediction -> bodies

    def _prepare(self) -> None:
        install_line_buffering(self._build / "venv")

    def _handlers(self, description: dict[str, Any]) -> dict[str, str]:
        return {}  # the server reads cog.yaml

    def _working_folder(self, variables: dict[str, str]) -> Path:
        """Return the project's folder; with trained weights, a folder of links to its files and the weights.

        These versions of Cog accept weights in the environment only as URLs, which some do not fetch. All of
        them pass the file ``weights`` in the working folder to ``setup``.
        """
        project, weights = self._build / "project", variables.pop("COG_WEIGHTS", None)
        if weights is None:
            return project
        folder = Path(tempfile.mkdtemp())
        for file in project.iterdir():
            if file.name != "weights":
                (folder / file.name).symlink_to(file)
        (folder / "weights").symlink_to(weights)
        return folder

    async def _start(self, variables: dict[str, str]) -> Process:
        self._files.start(Path(self._output_folder), self._on_webhook)
        for name in ("NO_PROXY", "no_proxy"):  # for the uploads and the webhooks
            variables[name] = ",".join(filter(None, (variables.get(name), "127.0.0.1")))
        del variables["PYTHONUNBUFFERED"]
        variables |= {LINES: "1", "COG_THROTTLE_RESPONSE_INTERVAL": _INTERVAL, "COG_LOG_LEVEL": "error"}
        text, folder = self._pipes[0].writer, self._working_folder(variables)
        return await asyncio.create_subprocess_exec(
            *(str(self._build / "venv" / "bin" / "python"), str(_START)),
            *("--x-mode", self.mode, "--upload-url", self._files.upload_url),
            cwd=folder,
            env=variables,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=text,  # the server copies the text of the project's process to its own output
            stderr=text,
        )

    async def _post(self, body: dict[str, Any], events: Events) -> str:
        """Have the server run a prediction, and put its events into ``events``, in the form of coglet's."""
        webhooks = self._webhooks[body["id"]] = asyncio.Queue()
        several = self._spec.concurrency > 1  # then the text in the pipe cannot be attributed
        body = {
            **body,
            "webhook": self._files.webhook_url,
            "webhook_events_filter": ["output", "completed", *(["logs"] if several else [])],
        }
        try:
            response = await self._client.post(self._path, json=body, headers={"Prefer": "respond-async"})
            if response.status_code == httpx.codes.CONFLICT:
                return BUSY
            if response.status_code != httpx.codes.ACCEPTED:
                events.put_nowait(("refused", {"detail": error_detail(response.content)}))
                return "refused"
            outputs = characters = 0
            while True:
                state = await webhooks.get()
                if several:
                    logs = state.get("logs") or ""
                    if len(logs) > characters:
                        events.put_nowait(("log", {"data": logs[characters:]}))
                    characters = max(characters, len(logs))
                if self._interface.iterates and isinstance(state.get("output"), list):
                    for item in state["output"][outputs:]:
                        events.put_nowait(("output", {"chunk": item}))
                    outputs = max(outputs, len(state["output"]))
                if state["status"] not in {"starting", "processing"}:
                    events.put_nowait(("completed", state | {"metrics": state.get("metrics") or {}}))
                    return "completed"
        finally:
            del self._webhooks[body["id"]]

    def _on_webhook(self, state: dict[str, Any]) -> None:
        if (webhooks := self._webhooks.get(state.get("id") or "")) is not None:
            webhooks.put_nowait(state)

    def _message(self, error: str) -> str:
        return error

    def _with_files(self, value: Any) -> Any:
        stored = self._files.output_file(value) if isinstance(value, str) else None
        return super()._with_files(value) if stored is None else stored


class PythonServerTrainer(PythonServerRunner, CogTrainer):
    """Runs ``train()`` of a project with the Python server of its Cog."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._path = str(description_of(spec.options)["training"]["path"])
