"""The start of the gateway."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from appliance.domain.errors import StoreError, StoreUnavailable
from appliance.gateway import app
from appliance.store import Store


class ScriptedStore(Store):
    """A database whose first answers are errors."""

    def __init__(self, path: Path, *errors: StoreError) -> None:
        super().__init__(path)
        self.errors = list(errors)

    async def open(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def own(self, patience: float = 0.0, *, term: int | None = None) -> None:
        if self.errors:
            raise self.errors.pop(0)


def busy() -> StoreError:
    error, cause = StoreError("another process held the write lock"), sqlite3.OperationalError()
    cause.sqlite_errorcode = sqlite3.SQLITE_BUSY
    error.__cause__ = cause
    return error


async def test_the_gateway_waits_for_a_database_that_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RETRY_STORE", 0.0)
    store = ScriptedStore(tmp_path / "one.db", busy(), StoreUnavailable("no answer"), busy())
    await app._open(store, 1)
    assert store.errors == []
    store.errors = [StoreError("two has become the head")]
    with pytest.raises(StoreError, match="two has become the head"):
        await app._open(store, 1)
