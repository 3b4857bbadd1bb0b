"""Counts and erases what the tables have of an account.

Every erasure that has begun is in the table ``erasures`` until it has ended. Each method commits its change
together with what it has erased, so a process that dies continues where it stopped.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import Any, Final

import msgspec

from appliance.domain.audit import AuditEvent
from appliance.domain.erasure import AccountData, Erasure
from appliance.domain.model import Adapter, Build
from appliance.store import audit_chain, rows
from appliance.store.database import overwriting
from appliance.store.queries import QUERIES
from appliance.store.unindexed import Unindexed

#: Column of a table that has the name of an account -> what an erasure does with the rows. A test compares
#: this with the schema.
ERASED: Final = {
    "conversations.owner": "deleted",
    "erasures.account": "deleted at the end",
    "files.owner": "deleted",
    "predictions.owner": "deleted",
    "releases.owner": "deleted",
    "sessions.user": "deleted",
    "tokens.owner": "deleted",
    "unindexed_predictions.owner": "moved to predictions before",
    "users.subject": "deleted",
    "usage.owner": "added to the rows without an account",
    "webhook_keys.owner": "deleted",
    "audit.owner": "kept, because every record is part of the chain of hashes",
}

_DELETIONS: Final = (
    *("delete_conversations_of", "delete_releases_of", "delete_files_of", "delete_tokens_of"),
    *("delete_sessions_of", "delete_user_of"),
    *("delete_webhook_keys_of", "keep_usage_without_account", "delete_usage_of"),
)


class ErasureTable:
    """Erasures of the data of accounts, available as ``Store.erasures``."""

    def __init__(self, connections: Unindexed) -> None:
        self._connections = connections

    async def data_of(self, account: str) -> AccountData:
        """Count what is stored of an account."""
        await self._connections.indexed()
        return await self._connections.read(lambda connection: _count(connection, account))

    async def credential_ids(self, account: str) -> list[str]:
        """Return the ids of the tokens and sessions of an account."""
        return await self._connections.read(lambda connection: _credential_ids(connection, account))

    async def pending(self, account: str | None = None) -> list[Erasure]:
        """Return the erasures that have not ended, or only the one of ``account``."""

        def action(connection: sqlite3.Connection) -> list[Erasure]:
            found = connection.execute(QUERIES["erasures"], {"account": account})
            return [rows.unpack(body, Erasure) for (body,) in found]

        return await self._connections.read(action)

    def begin(self, account: str, event: AuditEvent) -> asyncio.Future[None]:
        """Store that an erasure has begun, revoke tokens and end sessions, and record ``event``."""
        now = time.time()
        columns = {"account": account, "body": rows.pack(Erasure(account=account, event=event))}

        def action(connection: sqlite3.Connection) -> None:
            connection.execute(QUERIES["insert_erasure"], columns)
            connection.execute(QUERIES["revoke_tokens_of"], {"account": account, "now": now})
            connection.execute(QUERIES["end_sessions"], {"user": account, "now": now})

        return self._connections.audited(action, event)

    async def trained_versions(self, account: str) -> list[Adapter]:
        """Return the versions that trainings of the account created."""
        await self._connections.indexed()
        return await self._connections.read(lambda connection: _trained(connection, account))

    def remove_version(self, account: str, version: Adapter) -> asyncio.Future[None]:
        """Delete a trained version. Predictions that it ran stay; the caller deletes its weights."""

        def action(connection: sqlite3.Connection) -> None:
            names = {"id": version.version, "model": version.model}
            deleted = connection.execute(QUERIES["delete_adapter"], names).rowcount
            connection.execute(QUERIES["delete_version"], names)
            _add(connection, account, AccountData(versions=deleted))

        return self._connections.write(action)

    def remove_predictions(self, account: str, limit: int) -> asyncio.Future[list[str]]:
        """Delete up to ``limit`` ended predictions and trainings with all rows that refer to them.

        Returns their ids. The caller deletes the files.
        """

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(
                QUERIES["ended_predictions_of"], {"account": account, "limit": limit}
            ).fetchall()
            files = size = examples = 0
            with overwriting(connection):
                for number, id, _ in found:
                    count, taken = connection.execute(QUERIES["outputs_of_prediction"], {"id": id}).fetchone()
                    files, size = files + count, size + taken
                    examples += connection.execute(QUERIES["delete_example_of"], {"id": id}).rowcount
                    connection.execute(QUERIES["delete_files_of_prediction"], {"id": id})
                    connection.execute(QUERIES["delete_prediction"], {"number": number})
            trainings = sum(training for _, _, training in found)
            erased = AccountData(
                predictions=len(found) - trainings,
                trainings=trainings,
                examples=examples,
                output_files=files,
                bytes=size,
            )
            _add(connection, account, erased)
            return [id for _, id, _ in found]

        self._connections.index()
        return self._connections.write(action)

    def remove_uploads(self, account: str, limit: int) -> asyncio.Future[list[str]]:
        """Delete the rows of up to ``limit`` uploads; return the paths of their files."""

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(QUERIES["uploads_of"], {"account": account, "limit": limit}).fetchall()
            with overwriting(connection):
                connection.executemany(QUERIES["delete_file"], [{"id": id} for id, _, _ in found])
            size = sum(size for _, _, size in found)
            _add(connection, account, AccountData(uploads=len(found), bytes=size))
            return [path for _, path, _ in found]

        return self._connections.write(action)

    def remove_others(self, account: str) -> asyncio.Future[list[str] | None]:
        """Delete the rest of an account's data after predictions and uploads, and its name in the usage.

        Returns the ids of the deleted tokens and sessions. Returns None, and changes nothing, if there are
        predictions or uploads: they were created meanwhile.
        """
        names = {"account": account}

        def action(connection: sqlite3.Connection) -> list[str] | None:
            before = _count(connection, account)
            if before.predictions or before.trainings or before.uploads:
                return None
            credentials = _credential_ids(connection, account)
            with overwriting(connection):
                for id in _builds(connection, account):
                    connection.execute(QUERIES["delete_build"], {"id": id})
                for query in _DELETIONS:
                    connection.execute(QUERIES[query], names)
            _add(connection, account, before)
            return credentials

        self._connections.index()
        return self._connections.write(action)

    def end(self, account: str) -> asyncio.Future[AccountData]:
        """Record in the audit log what was erased, and forget the erasure."""

        def action(connection: sqlite3.Connection) -> AccountData:
            (body,) = connection.execute(QUERIES["erasures"], {"account": account}).fetchone()
            erasure: Erasure = rows.unpack(body, Erasure)
            counts = msgspec.to_builtins(erasure.erased)
            done = msgspec.structs.replace(erasure.event, action="account.erased", after=counts)
            connection.execute(QUERIES["delete_erasure"], {"account": account})
            audit_chain.append(connection, done)
            return erasure.erased

        return self._connections.with_head(self._connections.write(action))


def _credential_ids(connection: sqlite3.Connection, account: str) -> list[str]:
    return [row[0] for row in connection.execute(QUERIES["credential_ids_of"], {"account": account})]


def _add(connection: sqlite3.Connection, account: str, counts: AccountData) -> None:
    """Add to what the erasure has erased so far, if it has begun."""
    row = connection.execute(QUERIES["erasures"], {"account": account}).fetchone()
    if row is None:
        return
    erasure = rows.unpack(row[0], Erasure)
    body = rows.pack(msgspec.structs.replace(erasure, erased=erasure.erased + counts))
    connection.execute(QUERIES["update_erasure"], {"account": account, "body": body})


def _count(connection: sqlite3.Connection, account: str) -> AccountData:
    def row(name: str) -> tuple[Any, ...]:
        found: tuple[Any, ...] = connection.execute(QUERIES[name], {"account": account}).fetchone()
        return found

    predictions, trainings = row("count_predictions_of")
    uploads, uploaded = row("count_uploads_of")
    outputs, size = row("count_outputs_of")
    return AccountData(
        predictions=predictions,
        trainings=trainings,
        versions=len(_trained(connection, account)),
        uploads=uploads,
        output_files=outputs,
        bytes=uploaded + size,
        conversations=row("count_conversations_of")[0],
        deployments=row("count_deployments_of")[0],
        builds=len(_builds(connection, account)),
        examples=row("count_examples_of")[0],
        tokens=row("count_tokens_of")[0],
        sessions=row("count_sessions_of")[0],
        users=row("count_users_of")[0],
        webhook_keys=row("count_webhook_keys_of")[0],
        usage=row("count_usage_of")[0],
    )


def _trained(connection: sqlite3.Connection, account: str) -> list[Adapter]:
    found = [rows.unpack(body, Adapter) for (body,) in connection.execute(QUERIES["all_adapters"])]
    return [each for each in found if _owner(connection, each.training) == account]


def _owner(connection: sqlite3.Connection, prediction: str) -> str | None:
    row = connection.execute(QUERIES["owner_of_prediction"], {"id": prediction}).fetchone()
    return None if row is None else row[0]


def _builds(connection: sqlite3.Connection, account: str) -> list[str]:
    found = connection.execute(QUERIES["builds_of_all"])
    return [id for id, body in found if rows.unpack(body, Build).owner == account]
