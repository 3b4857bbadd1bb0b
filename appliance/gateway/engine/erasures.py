"""Erases the data of accounts. An erasure that a crash interrupted is continued at the next start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from appliance.domain.audit import AuditEvent
from appliance.domain.erasure import AccountData
from appliance.domain.errors import Conflict, NotFound, StoreError
from appliance.domain.model import Adapter
from appliance.domain.prediction import Status
from appliance.gateway.catalogue.builds import ProjectBuilds
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.gateway.catalogue.trainings import Trainings
from appliance.gateway.engine.engine import Engine
from appliance.gateway.files.file_store import FileStore
from appliance.store import RETRY_STORE, Store

_log = logging.getLogger(__name__)

BATCH: Final = 100  # predictions or uploads in one transaction, so that other writes wait only briefly
_POLL: Final = 0.02  # seconds between searches for unfinished predictions
_UNFINISHED: Final = (Status.STARTING, Status.PROCESSING)


class Erasures:
    """Erases the data of accounts; used on the gateway's event loop only."""

    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        catalogue: Catalogue,
        files: FileStore,
        trainings: Trainings,
        builds: ProjectBuilds,
        forget_token: Callable[[str], None],
    ) -> None:
        """``forget_token`` gets the id of each token and session that was ended."""
        self._store = store
        self._engine = engine
        self._catalogue = catalogue
        self._files = files
        self._trainings = trainings
        self._builds = builds
        self._forget_token = forget_token
        self._tasks: dict[str, asyncio.Task[AccountData]] = {}  # by account
        self._beginning = Counter[str]()  # accounts whose erasure is being stored

    async def resume(self) -> None:
        """Continue the erasures that an earlier gateway has begun."""
        for erasure in await self._store.erasures.pending():
            _log.info("continuing to erase the data of the account %s", erasure.account)
            self._start(erasure.account)

    async def close(self) -> None:
        """Stop; the next start continues."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def is_erasing(self, account: str) -> bool:
        """Return whether the data of the account is being erased."""
        return account in self._tasks or self._beginning[account] > 0

    def refuse_new_data(self, account: str) -> None:
        """Do nothing, unless the data of the account is being erased. Call this just before storing data.

        Raises:
            Conflict: the data is being erased.
        """
        if self.is_erasing(account):
            raise Conflict(
                f'The data of the account "{account}" is being erased: try again when the erasure has ended.'
            )

    def owned_models(self, account: str) -> list[str]:
        """Return the names of the models whose owner is the account. They and their pushed versions stay."""
        return sorted(name for name in self._catalogue.cards if name.partition("/")[0] == account)

    async def erase(self, account: str, event: AuditEvent) -> AccountData:
        """Erase the data of the account and return what was erased.

        If that has begun already, wait for it. It goes on if the caller is cancelled.

        Raises:
            StoreError: the beginning could not be stored.
        """
        if account in self._tasks:
            await self._store.audit.record(event)
        else:
            self._beginning[account] += 1
            try:
                await self._store.erasures.begin(account, event)
            finally:
                self._beginning[account] -= 1
        return await asyncio.shield(self._tasks.get(account) or self._start(account))

    def _start(self, account: str) -> asyncio.Task[AccountData]:
        task = asyncio.get_running_loop().create_task(self._run(account))
        self._tasks[account] = task
        task.add_done_callback(lambda _: self._tasks.pop(account, None))
        return task

    async def _run(self, account: str) -> AccountData:
        while True:
            try:
                return await self._erase(account)
            except (StoreError, OSError) as error:
                _log.error("the data of the account %s is not erased yet, retrying: %s", account, error)
                await asyncio.sleep(RETRY_STORE)

    async def _erase(self, account: str) -> AccountData:
        erasures = self._store.erasures
        for id in await erasures.credential_ids(account):
            self._forget_token(id)
        while True:
            await self._cancel(account)
            for version in await erasures.trained_versions(account):
                await self._remove_version(account, version)
            while removed := await erasures.remove_predictions(account, BATCH):
                await self._files.remove_outputs(removed)
            while paths := await erasures.remove_uploads(account, BATCH):
                await asyncio.to_thread(self._unlink, paths)
                self._files.delete_objects()
            credentials = await erasures.remove_others(account)
            if credentials is not None:
                break
            await asyncio.sleep(0)  # a request that was accepted before has created something
        for id in credentials:  # also those that were made after the beginning
            self._forget_token(id)
        await self._engine.deployed()
        while not await self._store.compact():
            await asyncio.sleep(RETRY_STORE)
        erased = await erasures.end(account)
        self._engine.budgets.erase_account(account)
        _log.info("erased the data of the account %s: %d predictions", account, erased.predictions)
        return erased

    async def _cancel(self, account: str) -> None:
        """Cancel the unfinished predictions, trainings and builds of the account, and wait for their ends."""
        for build in self._builds.under_way(account):
            with contextlib.suppress(NotFound):
                await self._builds.cancel(build.id, account)
        for status in _UNFINISHED:
            while found := await self._engine.list(account, status=status, training=None):
                for record in found:
                    with contextlib.suppress(NotFound):
                        await self._engine.cancel(record.id, account)
                await asyncio.sleep(_POLL)

    async def _remove_version(self, account: str, version: Adapter) -> None:
        served = self._catalogue.served(version.model) if version.model in self._catalogue.cards else ()
        for entry in tuple(served):
            if entry.version == version.version:
                self._catalogue.remove_version(entry)
                if entry.kind == "cog":
                    await self._engine.unload(entry)
        await self._store.erasures.remove_version(account, version)
        await self._trainings.remove(version.version)

    def _unlink(self, paths: list[str]) -> None:
        for path in paths:
            (self._files.folder / path).unlink(missing_ok=True)
