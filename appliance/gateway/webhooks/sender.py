"""Webhooks: events of predictions, signed and sent to the URL in the request.

The last event of a prediction is stored in the same transaction as the prediction's end, and stays stored
until it is delivered or given up. So neither a restart nor an unreachable receiver loses the event. Earlier
events are sent once, because the last event contains their data.

The result of an attempt is stored, with retries, before the next attempt: a full disk delays webhooks and
repeats none.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import httpx

from appliance import __version__
from appliance.domain.errors import StoreError
from appliance.domain.prediction import Prediction, Status, new_id
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.webhooks.slots import DeliverySlots
from appliance.protocols import serializers
from appliance.store import RETRY_STORE, Delivery, Receiver, Store

_log = logging.getLogger(__name__)

#: Seconds before each further attempt at the last event; the last one is about a minute after the first.
RETRIES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
THROTTLE: Final = 0.5  # seconds between events about output or logs of one prediction
TIMEOUT: Final = 10.0  # seconds for one whole attempt
AT_ONCE: Final = 64  # requests with last events at a time; also, separately, of requests with earlier events
_PREFIX: Final = "whsec_"
_KEY_BYTES: Final = 24


def new_key() -> str:
    """Return a new signing key in standard base64, because two official clients split keys at underscores."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def signature(key: str, id: str, timestamp: int, body: bytes) -> str:
    """Return ``v1,<base64>``: HMAC-SHA256 over id, timestamp and the body as sent."""
    secret = base64.b64decode(key.removeprefix(_PREFIX))
    signed = b".".join((id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def headers(keys: Sequence[str], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a webhook, signed with every valid key, so that keys can be rotated."""
    return {
        "content-type": "application/json",
        "user-agent": f"appliance/{__version__}",
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(key, id, timestamp, body) for key in keys),
    }


async def keys(store: Store, owner: str, now: float) -> Sequence[str]:
    """Return the valid keys of an account, newest first; create one if the account has none.

    Raises:
        StoreError: the keys cannot be read, or the new one cannot be stored.
    """
    found = await store.webhook_keys(owner, now)
    if not found:
        await store.add_first_webhook_key(owner, new_key(), now)
        found = await store.webhook_keys(owner, now)
    return found


class _Watched:
    """The events of a running prediction that were sent, or will be sent, to its webhook."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.output: Any = None
        self.logs = ""
        self.latest: Prediction | None = None  # to be sent when the timer ends
        self.sent_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.sending = False  # whether an event is being sent; one at a time


class Webhooks:
    """Sends webhooks. Used on the gateway's event loop only."""

    def __init__(self, store: Store, guard: FetchGuard, account: str) -> None:
        """``account`` is ``server.account`` of models.yaml. Nothing is sent before ``start``."""
        self._store = store
        self._guard = guard
        self._account = account
        self._client: httpx.AsyncClient | None = None
        self._slots = DeliverySlots(AT_ONCE)
        self._slots_before_the_end = DeliverySlots(AT_ONCE)
        self._watched: dict[str, _Watched] = {}
        self._sending: set[str] = set()  # predictions of which an event other than the last is being sent
        self._under_way: set[str] = set()
        self._recorded: set[str] = set()  # deliveries that ended since the last read of due ones
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        #: Number of attempts since the start by result; a failed attempt is retried or given up.
        self.outcomes = {"delivered": 0, "retried": 0, "given_up": 0}

    async def start(self) -> None:
        """Create the account's key if it has none, and begin to send pending webhooks."""
        self._client = self._guard.client(TIMEOUT)
        await self._store.claim_webhook_keys(self._account)
        await keys(self._store, self._account, time.time())
        self._spawn(self._deliver_for_ever())

    async def close(self) -> None:
        """Stop sending; pending deliveries stay stored."""
        for watched in self._watched.values():
            if watched.timer is not None:
                watched.timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def observe(self, record: Prediction) -> None:
        """Send the events of a prediction's new ``record``, whose status is already stored."""
        webhook = record.webhook
        if webhook is None:
            return
        if record.status.terminal:
            watched = self._watched.pop(record.id, None)
            if watched is not None and watched.timer is not None:
                watched.timer.cancel()
            self._wake.set()
        elif record.status is Status.PROCESSING:
            watched = self._watched.get(record.id)
            if watched is None or watched.attempt != record.attempt:
                watched = self._watched[record.id] = _Watched(record.attempt)
                if "start" in webhook.events:
                    self._send_in_order(watched, record)
                return
            self._send_if_changed(watched, record, webhook.events)

    def _send_if_changed(self, watched: _Watched, record: Prediction, events: Sequence[str]) -> None:
        new = ("output" in events and record.output is not watched.output) or (
            "logs" in events and record.logs != watched.logs
        )
        watched.output, watched.logs = record.output, record.logs
        if new:
            watched.latest = record
            self._schedule(watched)

    def _schedule(self, watched: _Watched) -> None:
        if watched.timer is None and not watched.sending:
            loop = asyncio.get_running_loop()
            delay = max(0.0, watched.sent_at + THROTTLE - loop.time())
            watched.timer = loop.call_later(delay, self._send_latest, watched)

    def _send_latest(self, watched: _Watched) -> None:
        watched.timer = None
        watched.sent_at = asyncio.get_running_loop().time()
        if watched.latest is not None:
            latest, watched.latest = watched.latest, None
            self._send_in_order(watched, latest)

    def _send_in_order(self, watched: _Watched, record: Prediction) -> None:
        """Send an event other than the last; later events of the prediction wait until it is sent."""
        watched.sending = True
        self._sending.add(record.id)
        self._spawn(self._send_of(watched, record))

    async def _send_of(self, watched: _Watched, record: Prediction) -> None:
        try:
            await self._send_once(record)
        finally:
            watched.sending = False
            self._sending.discard(record.id)
            self._wake.set()  # its last event may be due
        if watched.latest is not None and self._watched.get(record.id) is watched:
            self._schedule(watched)

    async def _send_once(self, record: Prediction) -> None:
        """Send an event other than the last; drop the event if no slot becomes free in time."""
        assert record.webhook is not None, "only predictions with a webhook are sent"
        receiver = Receiver(record.owner, record.webhook.host)
        problem: str | None = f"requests to {receiver.hostname} took all slots for {TIMEOUT:g} s"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                await self._slots_before_the_end.wait(receiver)
            try:
                problem = await self._post(record, f"msg_{new_id()}")
            except StoreError as error:
                problem = error.detail
            finally:
                self._slots_before_the_end.give_back(receiver)
        self.outcomes["delivered" if problem is None else "given_up"] += 1
        if problem is not None:
            _log.info("a webhook of prediction %s was not delivered: %s", record, problem)

    async def _deliver_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                patience = await self._deliver_due()
            except StoreError as error:
                _log.error("due webhooks could not be read, retrying: %s", error)
                await asyncio.sleep(RETRY_STORE)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):  # before Python 3.12 wait_for may lose a cancellation
                    await self._wake.wait()

    async def _deliver_due(self) -> float | None:
        """Start due deliveries while slots are free; return the seconds until the next check.

        Raises:
            StoreError: the due deliveries cannot be read.
        """
        self._recorded.clear()
        for delivery in await self._store.due_deliveries(time.time(), AT_ONCE):
            known = delivery.id in self._under_way or delivery.id in self._recorded
            early = delivery.prediction in self._sending
            if not known and not early and self._slots.take(delivery.receiver):
                self._under_way.add(delivery.id)
                self._spawn(self._deliver(delivery))
        at = await self._store.next_delivery()
        # Deliveries in progress still count as due. Their end wakes the loop, and so does every new delivery.
        return None if at is None else max(THROTTLE, at - time.time())

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._record(delivery, await self._attempt(delivery))
        finally:
            self._recorded.add(delivery.id)
            self._under_way.discard(delivery.id)
            self._slots.give_back(delivery.receiver)
            self._wake.set()

    async def _attempt(self, delivery: Delivery) -> Callable[[], asyncio.Future[None]]:
        """Try once to send a last event; return a function that stores the result."""
        try:
            record = await self._store.get(delivery.prediction)
            problem = None if record is None else await self._post(record, delivery.id)
        except StoreError as error:  # nothing was sent, so this does not count as an attempt
            _log.error(
                "the webhook of prediction %s cannot be sent yet, retrying: %s", delivery.prediction, error
            )
            return partial(self._postpone, delivery, delivery.attempts, RETRIES[-1], error.detail)
        if problem is None:
            self.outcomes["delivered"] += record is not None
            return partial(self._store.end_delivery, delivery.id)
        if delivery.attempts >= len(RETRIES):
            text = "gave up the webhook of prediction %s after %d attempts: %s"
            _log.warning(text, record, delivery.attempts + 1, problem)
            self.outcomes["given_up"] += 1
            return partial(self._store.end_delivery, delivery.id, problem)
        self.outcomes["retried"] += 1
        delay = RETRIES[delivery.attempts]
        return partial(self._postpone, delivery, delivery.attempts + 1, delay, problem)

    def _postpone(
        self, delivery: Delivery, attempts: int, delay: float, problem: str
    ) -> asyncio.Future[None]:
        return self._store.postpone_delivery(delivery.id, attempts, time.time() + delay, problem)

    async def _record(self, delivery: Delivery, write: Callable[[], asyncio.Future[None]]) -> None:
        """Store the result of an attempt with ``write``; retry until the store accepts it."""
        refused = False
        while True:
            try:
                return await write()
            except StoreError as error:
                if not refused:
                    text = "the result of the webhook of prediction %s is not stored yet, retrying: %s"
                    _log.error(text, delivery.prediction, error)
                refused = True
            await asyncio.sleep(RETRY_STORE)

    async def _post(self, record: Prediction, id: str) -> str | None:
        """Send one event; return None, or the reason of the failure, which must not be shown to API callers.

        Raises:
            StoreError: the signing key cannot be read or created.
        """
        if record.webhook is None:
            return None
        assert self._client is not None, "nothing is sent before start"
        body = serializers.encode(
            serializers.prediction_or_training(record, record.webhook.origin), record.webhook.origin
        )
        now = time.time()
        signed = headers(await keys(self._store, record.owner, now), id, int(now), body)
        try:
            async with (
                asyncio.timeout(TIMEOUT),  # httpx only limits the time between two chunks
                self._client.stream("POST", record.webhook.url, content=body, headers=signed) as reply,
            ):
                return None if reply.is_success else f"HTTP {reply.status_code}"
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} s"
        # No error of a URL or receiver may end more than this attempt.
        except Exception as error:  # noqa: BLE001
            return str(error) or type(error).__name__

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            name = getattr(task.get_coro(), "__qualname__", "")
            _log.error("the background task %s for webhooks failed", name, exc_info=error)
