"""Waits until this machine may be the head of its cluster, and notices when it is no longer the head.

Only one of the machines with the same database on PostgreSQL and a ``cluster`` section is the head. The
others are standbys: they have prepared their start, and wait for the lease of the head.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import msgspec
from rich.console import Console

from appliance.config import Config
from appliance.domain.errors import EncryptionError, LeaseLost, StoreError, StoreUnavailable
from appliance.driver import service_manager
from appliance.gateway.settings import GatewaySettings
from appliance.store import RETRY_STORE, Lease, is_temporary
from appliance.store.encryption import check_files_key

T = TypeVar("T")
_log = logging.getLogger(__name__)

_AT: Final = " at "  # between the name and the IP address of a machine
_POLL: Final = 0.5  # seconds between attempts of a standby to get the lease
_RENEWALS: Final = 10  # of the lease in the time in which it would end
_CHECK_INTERVAL: Final = 0.2  # seconds between checks of whether the lease was renewed


def lease_of(settings: GatewaySettings) -> Lease | None:
    """Return the lease for which this machine has to wait; None if no other machine can take over."""
    cluster, head, url = settings.config.cluster, settings.head, settings.config.store.url
    if cluster is None or head is None or url is None:
        return None
    return Lease(url, f"{head.name}{_AT}{head.host}", cluster.lost_after)


def files_warning(config: Config, home: Path) -> str | None:
    """Return a warning if a machine that takes over would not find the files of predictions, or None."""
    if config.cluster is None or config.store.url is None or config.files.s3 is not None:
        return None
    folder = home / "files"
    if folder.is_symlink() or os.path.ismount(folder):  # the operator has put it elsewhere
        return None
    return (
        f"uploads and output files are only on this machine, in {folder}: if another machine takes over as "
        "the head, it does not find them. Set files.s3, or let this folder be one that all machines share"
    )


def head_address(holder: str) -> str | None:
    """Return the IP address in the name that ``lease_of`` gives a machine; None if there is none."""
    _, separator, host = holder.rpartition(_AT)
    return host if separator else None


async def wait(
    lease: Lease,
    database: Path,
    stop: asyncio.Event,
    console: Console,
    on_waiting: Callable[[str | None], Awaitable[None]],
) -> HeldLease | None:
    """Wait until this machine is the head; return None once ``stop`` is set.

    ``database`` is the path of the SQLite database in the data folder, beside which encryption.json is; it
    need not exist. ``on_waiting`` is called when this machine begins to wait as a standby, and each time that
    another machine has become the head. It gets the IP address of the head; None if it is not known.

    Raises:
        StoreError: the first attempt failed, although the server answered.
        EncryptionError: this machine cannot read the encrypted files.
    """
    shown, connected = "", False
    at_terminal = os.isatty(0)

    def hung_up() -> None:
        if at_terminal and not os.isatty(0):
            stop.set()
        else:
            console.print("standby: models.yaml is not reloaded: restart this appliance to apply changes")

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up)
    while not stop.is_set():
        pause = _POLL
        try:
            await asyncio.to_thread(_check_files_key, lease, database)
            if await asyncio.to_thread(lease.acquire):
                return HeldLease(lease)
            connected = True
            holder = await asyncio.to_thread(lease.holder)
            head, text = head_address(holder), f"standby: {holder} is the head; waiting"
        except EncryptionError:
            raise
        except StoreError as error:
            if not (shown or isinstance(error, StoreUnavailable)):
                raise
            if connected:  # After a restart of the server, the head gets its lease back first.
                pause = lease.seconds
            connected = False
            head, text = None, f"standby: {error}: trying again"
        if text != shown:
            await on_waiting(head)
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            _log.info("%s", text)
            service_manager.standing_by(text)
            shown = text
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await stop.wait()
    return None


def _check_files_key(lease: Lease, database: Path) -> None:
    """Check that this machine can read the files; close the lease if it cannot.

    Raises:
        EncryptionError: this machine does not have the key of the files.
    """
    try:
        check_files_key(database, lease.files_key_id())
    except EncryptionError:
        lease.close()
        raise


class HeldLease:
    """Renews the lease in a thread of its own, because the start of Ray blocks the event loop for seconds."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._renewed = time.monotonic()  # when the last successful renewal began
        self._has_standby = True
        self._lost: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    @property
    def alone(self) -> bool:
        """Whether no other machine waited for the lease at the last renewal."""
        return not self._has_standby

    def in_term(self, settings: GatewaySettings) -> GatewaySettings:
        """Return the settings of the gateway with the term of this lease."""
        assert settings.head is not None, "only the head of a cluster needs a lease"
        head = msgspec.structs.replace(settings.head, term=self._lease.term)
        return msgspec.structs.replace(settings, head=head)

    async def watch(self) -> NoReturn:
        """Check whether this machine is still the head.

        If no machine waited for the lease when the server last answered, this machine stays the head as long
        as the server does not answer.

        Raises:
            LeaseLost: another machine has become the head, or may become the head from now on.
        """
        while True:
            self._raise_if_lost()
            await asyncio.sleep(_CHECK_INTERVAL)

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise LeaseLost(self._lost)
        silence = time.monotonic() - self._renewed
        if not self.alone and silence >= self._lease.seconds:
            raise LeaseLost(
                f"{self._lease.name} has not answered for {silence:.1f} s, so another machine may become "
                "the head of the cluster"
            )

    async def retry(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``work``, which is called again after each temporary error of the database.

        Raises:
            LeaseLost: another machine has become, or may become, the head.
        """
        while True:
            try:
                return await work()
            except StoreError as error:
                if not is_temporary(error):
                    raise
                self._raise_if_lost()
                _log.warning("%s: trying again", error)
            await asyncio.sleep(RETRY_STORE)

    def release(self) -> None:
        """Free the lease, so that another machine takes over at once."""
        self._end.set()
        self._thread.join(_CHECK_INTERVAL)
        if not self._thread.is_alive():  # else the server does not answer
            self._lease.close()

    def _renew(self) -> None:
        reported = False
        while not self._end.wait(min(1.0, self._lease.seconds / _RENEWALS)):
            began = time.monotonic()
            try:
                self._has_standby = self._lease.renew()
                self._renewed, reported = began, False
            except LeaseLost as error:
                self._lost = error.detail
                return
            except Exception as error:  # noqa: BLE001 - with any error, the lease is not renewed
                if not reported:
                    _log.warning("the lease of the head is not renewed: %s", error)
                reported = True
