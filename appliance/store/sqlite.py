"""The store in one SQLite file: predictions, versions, tokens and webhooks."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Unpack

from appliance.domain import usage
from appliance.domain.errors import StatusConflict, StoreError
from appliance.domain.prediction import MOVES, Done, Prediction, Status, new_id
from appliance.domain.token import Token
from appliance.domain.usage import Usage
from appliance.store import rows
from appliance.store.base import (
    Cursor,
    Deliveries,
    Filter,
    Ids,
    Keys,
    Predictions,
    Progress,
    Store,
    Tokens,
    VersionRow,
    Versions,
)
from appliance.store.connections import Connections, Parameters
from appliance.store.database import Durability, shrink
from appliance.store.files import FileTable
from appliance.store.footprints import FootprintTable
from appliance.store.queries import QUERIES, narrowed
from appliance.store.registry import Registry
from appliance.store.usage import UsageTable

_EMPTY: Final = rows.pack({})
_VACUUM_PAGES: Final = 2000  # given back to the disk at a time, 8 MB

#: status -> the statuses it may be reached from; all have two at most
_SOURCES: Final = {
    status: [source.value for source in Status if status in MOVES[source]] for status in Status
}


class SQLiteStore(Connections, Store):
    """A ``Store`` in the file ``path``; its folder is made if need be.

    A committed write survives the death of the process at either ``durability``. ``full`` also waits for the
    disk at each commit, so that it survives a power cut; ``normal`` may then lose the last moments, without
    damage to the rest.

    Of 100,000 records a finished one is read in 60 us on the event loop, in 300 us through a thread: so
    single rows are read on the loop. Lists, and records with events to apply, go to the reader threads.
    """

    def __init__(self, path: Path, *, durability: Durability = "full") -> None:
        """Touches nothing; ``open`` does."""
        super().__init__(path, durability=durability)
        self.files = FileTable(self)
        self.footprints = FootprintTable(self)
        self.registry = Registry(self)
        self.usage = UsageTable(self)

    def check(self) -> asyncio.Future[None]:
        """See ``Store.check``."""
        return self.change("write_something", {"at": time.time()})

    # -- writing predictions

    def create(self, prediction: Prediction) -> asyncio.Future[None]:
        """See ``Store.create``."""
        if prediction.status is not Status.STARTING:
            raise ValueError(f"prediction {prediction.id} cannot be created {prediction.status}")

        def action(connection: sqlite3.Connection) -> None:
            columns = rows.prediction_columns(prediction)
            body = rows.pack(prediction.input)
            try:
                number = connection.execute(QUERIES["insert_prediction"], columns).lastrowid
            except sqlite3.IntegrityError as exc:
                raise StoreError(f"prediction {prediction.id} exists already ({exc})") from exc
            connection.execute(QUERIES["insert_input"], {"prediction": number, "body": body})

        return self.write(action)

    def claim(self, prediction: Prediction) -> asyncio.Future[None]:
        """See ``Store.claim``."""
        if prediction.status is not Status.PROCESSING:
            raise ValueError(f"prediction {prediction.id} cannot be claimed {prediction.status}")
        return self._move(prediction, prediction.attempt - 1)

    def requeue(self, prediction: Prediction) -> asyncio.Future[None]:
        """See ``Store.requeue``."""
        if prediction.status is not Status.STARTING:
            raise ValueError(f"prediction {prediction.id} cannot be requeued {prediction.status}")
        return self._move(prediction, prediction.attempt)

    def finish(self, prediction: Prediction) -> asyncio.Future[None]:
        """See ``Store.finish``."""
        if not prediction.status.terminal:
            raise ValueError(f"prediction {prediction.id} cannot be finished {prediction.status}")
        # Of any attempt: a cancel may be decided while the claim of the next attempt is on its way here.
        return self._move(prediction, None)

    def _move(self, prediction: Prediction, from_attempt: int | None) -> asyncio.Future[None]:
        sources = _SOURCES[prediction.status]

        def action(connection: sqlite3.Connection) -> None:
            took = usage.of(prediction) if prediction.status.terminal else Usage()
            columns = rows.prediction_columns(prediction) | {
                "predict_us": took.predict_us,
                "cold_start_us": took.cold_start_us,
                "input_tokens": took.input_tokens,
                "output_tokens": took.output_tokens,
                "from_status": sources[0],
                "or_from_status": sources[-1],
                "from_attempt": from_attempt,
            }
            if connection.execute(QUERIES["move_prediction"], columns).rowcount != 1:
                raise _conflict(connection, prediction.id, f"become {prediction.status}")
            webhook = prediction.webhook
            if prediction.status.terminal and webhook is not None and "completed" in webhook.events:
                due = {
                    "id": f"msg_{new_id()}",
                    "prediction": prediction.id,
                    "due_at": time.time(),
                    "receiver": f"{prediction.owner} {webhook.host}",
                }
                connection.execute(QUERIES["insert_delivery"], due)

        return self.write(action)

    def append(self, id: str, attempt: int, events: Sequence[tuple[int, Progress]]) -> asyncio.Future[None]:
        """See ``Store.append``."""
        if any(isinstance(event, Done) for _, event in events):
            raise ValueError(f"prediction {id}: Done is no progress; call finish")

        def action(connection: sqlite3.Connection) -> None:
            bodies = [(n, rows.pack(event)) for n, event in events]
            found = connection.execute(QUERIES["running"], {"id": id, "attempt": attempt}).fetchone()
            if found is None:
                raise _conflict(connection, id, f"take events of attempt {attempt}")
            connection.executemany(
                QUERIES["insert_event"],
                [{"prediction": found[0], "attempt": attempt, "n": n, "body": body} for n, body in bodies],
            )

        return self.write(action)

    # -- reading predictions

    async def get(self, id: str) -> Prediction | None:
        """See ``Store.get``."""
        return await self._prediction("prediction_by_id", {"id": id})

    async def by_stream_token(self, token: str) -> Prediction | None:
        """See ``Store.by_stream_token``."""
        return await self._prediction("prediction_by_stream_token", {"stream_token": token})

    async def list(
        self,
        owner: str | None,
        *,
        cursor: Cursor | None = None,
        limit: int = 100,
        **filters: Unpack[Filter],
    ) -> Predictions:
        """See ``Store.list``."""
        training = filters.get("training", False)
        after = _given(filters.get("created_after"), -math.inf)
        before = _given(filters.get("created_before"), math.inf)
        # As a place, a bound narrows the range of the index; ids are never empty, so ("bound", "") is exact.
        backwards = cursor is not None and cursor.backwards
        places = [(after, "") if backwards else (before, "")]
        if cursor is not None:
            places.append((cursor.created_at, cursor.id))
        place = max(places) if backwards else min(places)
        subject = "all_predictions" if owner is None or training is None else "predictions"
        parameters: Parameters = {
            "owner": owner,
            "place_created_at": place[0],
            "place_id": place[1],
            "model": filters.get("model"),
            "status": filters.get("status"),
            "source": filters.get("source"),
            "training": training,
            "parent": filters.get("parent"),
            "token": filters.get("token"),
            "created_after": after,
            "created_before": before,
            "limit": limit,
        }
        query = narrowed(f"{subject}_{'newer' if backwards else 'older'}", parameters)

        def action(connection: sqlite3.Connection) -> Predictions:
            page = [rows.prediction(row) for row in connection.execute(query, parameters)]
            return page[::-1] if backwards else page

        return await self.read(action)

    async def parts(self, parent: str) -> Ids:
        """See ``Store.parts``."""
        return await self.read(
            lambda connection: [row[0] for row in connection.execute(QUERIES["parts"], {"parent": parent})]
        )

    async def unfinished(self) -> Predictions:
        """See ``Store.unfinished``."""

        def action(connection: sqlite3.Connection) -> Predictions:
            found = connection.execute(QUERIES["unfinished_predictions"]).fetchall()
            return [_folded(connection, rows.prediction(row)) for row in found]

        return await self.read(action)

    async def run_counts(self) -> dict[str, int]:
        """See ``Store.run_counts``."""
        return await self.read(lambda connection: dict(connection.execute(QUERIES["run_counts"])))

    # Versions

    def record_version(self, row: VersionRow) -> asyncio.Future[VersionRow]:
        """See ``Store.record_version``."""

        def action(connection: sqlite3.Connection) -> VersionRow:
            columns: Parameters = {
                "id": row.id,
                "model": row.model,
                "created_at": row.created_at,
                "document": rows.pack(row.document),
            }
            connection.execute(QUERIES["record_version"], columns)
            return rows.version(connection.execute(QUERIES["version"], columns).fetchone())

        return self.write(action)

    def forget_versions(self, model: str, served: str) -> asyncio.Future[None]:
        """See ``Store.forget_versions``."""
        return self.change("forget_versions", {"model": model, "served": served})

    async def versions(self, model: str) -> Versions:
        """See ``Store.versions``."""

        def action(connection: sqlite3.Connection) -> Versions:
            found = connection.execute(QUERIES["versions_of_model"], {"model": model})
            return [rows.version(row) for row in found]

        return await self.read(action)

    async def version(self, id: str, model: str | None = None) -> VersionRow | None:
        """See ``Store.version``."""
        row = self.row("version", {"id": id, "model": model})
        return None if row is None else rows.version(row)

    # Tokens

    def add_token(self, token: Token) -> asyncio.Future[None]:
        """See ``Store.add_token``."""

        def action(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(QUERIES["insert_token"], rows.token_columns(token))
            except sqlite3.IntegrityError as exc:
                raise StoreError(f"token {token.id} exists already ({exc})") from exc

        return self.write(action)

    async def find_token(self, digest: str) -> Token | None:
        """See ``Store.find_token``."""
        row = self.row("token_by_digest", {"digest": digest})
        return None if row is None else rows.token(row)

    async def list_tokens(self) -> Tokens:
        """See ``Store.list_tokens``."""
        return await self.read(
            lambda connection: [rows.token(row) for row in connection.execute(QUERIES["all_tokens"])]
        )

    def revoke_token(self, id: str) -> asyncio.Future[Token | None]:
        """See ``Store.revoke_token``."""
        now = time.time()

        def action(connection: sqlite3.Connection) -> Token | None:
            connection.execute(QUERIES["revoke_token"], {"id": id, "revoked_at": now})
            row = connection.execute(QUERIES["token_by_id"], {"id": id}).fetchone()
            return None if row is None else rows.token(row)

        return self.write(action)

    # -- retention

    def remove_data(self, before: float, limit: int) -> asyncio.Future[Ids]:
        """See ``Store.remove_data``."""

        def action(connection: sqlite3.Connection) -> Ids:
            found = connection.execute(QUERIES["predictions_with_data"], {"before": before, "limit": limit})
            return _empty(connection, found.fetchall())

        return self.write(action)

    def remove_files_over(self, limit: int, batch: int) -> asyncio.Future[Ids]:
        """See ``Store.remove_files_over``."""

        def action(connection: sqlite3.Connection) -> Ids:
            (taken,) = connection.execute(QUERIES["output_bytes"]).fetchone()
            oldest = (
                connection.execute(QUERIES["oldest_with_files"], {"limit": batch}) if taken > limit else ()
            )
            removed: list[tuple[int, str]] = []
            for number, id, size in oldest:
                if taken <= limit:
                    break
                removed.append((number, id))
                taken -= size
            return _empty(connection, removed)

        return self.write(action)

    def remove_version(self, id: str, model: str) -> asyncio.Future[Ids]:
        """See ``Store.remove_version``."""

        def action(connection: sqlite3.Connection) -> Ids:
            names = {"id": id, "model": model}
            found = connection.execute(QUERIES["predictions_of_version"], names).fetchall()
            removed = _empty(connection, found)
            connection.executemany(QUERIES["delete_prediction"], [{"number": number} for number, _ in found])
            for query in ("delete_version", "delete_adapter", "delete_project"):
                connection.execute(QUERIES[query], names)
            return removed

        return self.write(action)

    # -- webhooks

    async def due_deliveries(self, now: float, each: int) -> Deliveries:
        """See ``Store.due_deliveries``."""
        query, parameters = QUERIES["due_deliveries"], {"now": now, "each": each}
        return await self.read(
            lambda connection: [rows.delivery(row) for row in connection.execute(query, parameters)]
        )

    async def next_delivery(self) -> float | None:
        """See ``Store.next_delivery``."""
        row = self.row("next_delivery", {})
        return None if row is None else row[0]

    def postpone_delivery(self, id: str, attempts: int, due_at: float, problem: str) -> asyncio.Future[None]:
        """See ``Store.postpone_delivery``."""
        failed: Parameters = {"id": id, "attempts": attempts, "due_at": due_at, "problem": problem}
        return self.change("postpone_delivery", failed)

    def end_delivery(self, id: str, problem: str | None = None) -> asyncio.Future[None]:
        """See ``Store.end_delivery``."""
        return self.change("end_delivery", {"id": id, "problem": problem, "now": time.time()})

    async def deliveries(self, prediction: str) -> Deliveries:
        """See ``Store.deliveries``."""
        query, parameters = QUERIES["deliveries"], {"prediction": prediction}
        return await self.read(
            lambda connection: [rows.delivery(row) for row in connection.execute(query, parameters)]
        )

    async def webhook_keys(self, owner: str, now: float) -> Keys:
        """See ``Store.webhook_keys``."""
        query, parameters = QUERIES["webhook_keys"], {"owner": owner, "now": now}
        return await self.read(lambda connection: [row[0] for row in connection.execute(query, parameters)])

    def add_webhook_key(self, owner: str, key: str, now: float, keep: float) -> asyncio.Future[None]:
        """See ``Store.add_webhook_key``."""
        added: Parameters = {"owner": owner, "key": key, "now": now, "expires_at": now + keep}

        def action(connection: sqlite3.Connection) -> None:
            for query in ("delete_webhook_keys", "expire_webhook_keys", "insert_webhook_key"):
                connection.execute(QUERIES[query], added)

        return self.write(action)

    def add_first_webhook_key(self, owner: str, key: str, now: float) -> asyncio.Future[None]:
        """See ``Store.add_first_webhook_key``."""
        return self.change("insert_first_webhook_key", {"owner": owner, "key": key, "now": now})

    def claim_webhook_keys(self, owner: str) -> asyncio.Future[None]:
        """See ``Store.claim_webhook_keys``."""
        return self.change("claim_webhook_keys", {"owner": owner})

    async def _prediction(self, query: str, parameters: Parameters) -> Prediction | None:
        row = self.row(query, parameters)
        if row is None:
            return None
        record = rows.prediction(row)
        if record.status.terminal:
            return record

        def action(connection: sqlite3.Connection) -> Prediction:
            # Read again: between two transactions it may have finished, and its events gone.
            found = connection.execute(QUERIES[query], parameters).fetchone()
            return _folded(connection, rows.prediction(found))

        return await self.read(action)


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _empty(connection: sqlite3.Connection, found: list[tuple[int, str]]) -> list[str]:
    """Remove the data of predictions, and all that is known of their files; gives their ids."""
    emptied = [{"number": number, "id": id, "body": _EMPTY} for number, id in found]
    for query in ("remove_data", "empty_input", "delete_files_of_prediction"):
        connection.executemany(QUERIES[query], emptied)
    if emptied:
        shrink(connection, _VACUUM_PAGES)
    return [id for _, id in found]


def _folded(connection: sqlite3.Connection, record: Prediction) -> Prediction:
    found = connection.execute(QUERIES["events_of_attempt"], {"id": record.id, "attempt": record.attempt})
    return rows.fold(record, found)


def _conflict(connection: sqlite3.Connection, id: str, wish: str) -> StatusConflict:
    found = connection.execute(QUERIES["standing"], {"id": id}).fetchone()
    state = "it is not stored" if found is None else f"it is {found[0]} in attempt {found[1]}"
    return StatusConflict(f"prediction {id} cannot {wish}: {state}")
