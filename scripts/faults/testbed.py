"""One appliance under test, with a webhook receiver, a client that calls all the time, and a supervisor."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from scripts.faults.ledger import Ledger, Tally
from tests.support.appliance_process import TOKEN, Appliance, wait_for
from tests.support.webhook_receiver import Receiver, receiving

CONFIG: Final = """
egress: {allow: [127.0.0.0/8]}
limits: {attempts: 3, queue: 50000, queue_per_model: 50000}
models:
  - {name: test/echo, kind: echo, options: {concurrency: 8}}
  - {name: test/stream, kind: echo, options: {stream: true, concurrency: 8}}
  - {name: test/slow, kind: echo, options: {startup_delay: 2, concurrency: 8}}
"""
START: Final = 240.0  # seconds for a start on a busy machine
_ORPHANS: Final = 10.0  # seconds that processes may run on after their driver has ended
_CALL: Final = 40.0  # timeout of a call in seconds; longer than the fault ``stop``


class Served(Appliance):
    """An appliance with additional environment variables, or run by another command."""

    further: Mapping[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of ``Appliance``, and the additional ones."""
        return {**super().environment, **self.further}


class Testbed:
    """The appliance of a case, ready to serve; ``close`` leaves no process behind."""

    def __init__(
        self,
        home: Path,
        *,
        patience: float,
        ui: bool = False,
        models: str = "",
        prefix: tuple[str, ...] = (),
        further: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs before ``start``. ``models`` has more entries for models.yaml."""
        home.mkdir(parents=True, exist_ok=True)
        config = home / "models.yaml"
        config.write_text(CONFIG + models)
        self.appliance = Served(home, config, ui=ui)
        self.appliance.prefix = prefix
        self.appliance.further = further or {}
        self.patience = patience
        self.ledger = Ledger()
        self.notes: list[str] = []  # events of the supervisor
        self._exit = contextlib.ExitStack()
        self.receiver: Receiver = self._exit.enter_context(receiving())

    def start(self) -> None:
        """Start the appliance, and make one prediction, so that a model is loaded."""
        self.appliance.start(START)
        wait_for(self.serves, "the first prediction")

    def close(self) -> None:
        """Kill all processes of the appliance."""
        if self.appliance.process is not None:
            self.appliance.kill()
        self._exit.close()

    def client(self, timeout: float = _CALL) -> httpx.Client:
        """An HTTP client with the appliance's token and a timeout for each call."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = self.appliance.url
        return httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)

    def create(
        self, client: httpx.Client, model: str, output: str | None, *, told: bool = True, **input: Any
    ) -> str | None:
        """Create a prediction that should have the output ``output``; None if it was not accepted.

        With ``told``, the receiver gets its last webhook.
        """
        hook = {"webhook": f"{self.receiver.url}/hook", "webhook_events_filter": ["completed"]}
        body = {"version": model, "input": input, **(hook if told else {})}
        try:
            reply = client.post("/v1/predictions", json=body)
        except httpx.HTTPError:
            return None
        if reply.status_code != 201:
            return None
        id = str(reply.json()["id"])
        self.ledger.accept(id, output=output, told=told)
        return id

    def serves(self) -> bool:
        """Whether a new prediction soon succeeds."""
        body = {"version": "test/echo", "input": {"text": "well?"}}
        try:
            with self.client(timeout=15) as client:
                reply = client.post("/v1/predictions", json=body, headers={"Prefer": "wait=10"})
                if self.appliance.ui and not self._pages_answer():
                    return False
        except httpx.HTTPError:
            return False
        return reply.status_code == 201 and reply.json()["status"] == "succeeded"

    def _pages_answer(self) -> bool:
        # Without a token: the API answers requests that carry one.
        url = f"{self.appliance.url}/signin"
        return httpx.get(url, follow_redirects=True, timeout=15, trust_env=False).status_code == 200

    def recovered(self, since: float) -> float | None:
        """Seconds from ``since`` until a new prediction succeeds; None if none does within ``patience``.

        A driver that has ended is started again, as systemd would.
        """
        while time.monotonic() < since + self.patience:
            self._supervise()
            if self.serves() and not self._driver_ended:  # a gateway outlives its driver for a moment
                return round(time.monotonic() - since, 1)
            time.sleep(0.1)
        self.notes.append(f"no prediction succeeds {self.patience:g} s after the fault")
        return None

    def check(self, tally: Tally, *, well: bool) -> None:
        """Check all accepted predictions and files; ``well`` says whether the appliance has recovered."""
        patience = self.patience if well else 5.0
        files = self.appliance.home / "files"
        with self.client(timeout=30 if well else 2) as client:
            self.ledger.check(client, self.receiver, files, patience, tally)
            if well:
                self.ledger.check_usage(client, tally)
        for note in self.notes:
            tally.note(note)
        self.ledger = Ledger()
        self.notes = []
        self.receiver.received.clear()

    @property
    def _driver_ended(self) -> bool:
        process = self.appliance.process
        return process is not None and process.poll() is not None

    def _supervise(self) -> None:
        process = self.appliance.process
        if process is None or not self._driver_ended:
            return
        code = process.returncode
        left = self._left_behind()
        self.appliance.kill()  # the whole process group, as systemd does
        more = f", {len(left)} processes left behind ({', '.join(sorted(set(left)))})" if left else ""
        self.notes.append(f"the driver ended with code {code} and was started again{more}")
        try:
            self.appliance.start(START)
        except AssertionError as error:
            last = str(error).strip().splitlines()[-1:]
            self.notes.append(f"the appliance does not start: {' '.join(last)}")
            time.sleep(1)

    def _left_behind(self) -> list[str]:
        """The names of processes that still run ``_ORPHANS`` seconds after the driver has ended."""
        deadline = time.monotonic() + _ORPHANS
        while time.monotonic() < deadline:
            if not self.appliance.processes():
                return []
            time.sleep(0.2)
        names = []
        for process in self.appliance.processes():
            with contextlib.suppress(psutil.Error):
                names.append(process.name())
        return names


class Caller:
    """Makes small predictions during a case; accepted ones are entered in the ledger."""

    def __init__(self, testbed: Testbed, pause: float = 0.2) -> None:
        """Calls are made from ``__enter__`` to ``__exit__``, ``pause`` seconds apart."""
        self._testbed = testbed
        self._pause = pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)

    def __enter__(self) -> Caller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _call(self) -> None:
        number = 0
        with self._testbed.client() as client:
            while not self._over.wait(self._pause):
                number += 1
                self._testbed.create(client, "test/echo", f"call {number}", text=f"call {number}")
