"""The tables of models, trained and pushed versions, builds, deployments and example predictions."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, TypeVar

from appliance.domain.audit import AuditEvent
from appliance.domain.deployment import Release
from appliance.domain.errors import StoreError
from appliance.domain.model import Adapter, Build, Model, Project
from appliance.store import rows
from appliance.store.queries import QUERIES
from appliance.store.unindexed import Unindexed

T = TypeVar("T")


class Registry:
    """Models, versions, builds, deployments and examples, available as ``Store.registry``."""

    def __init__(self, connections: Unindexed) -> None:
        self._connections = connections

    async def models(self) -> list[Model]:
        """Return every model created through the API, oldest first."""
        return await self._bodies("all_models", {}, Model)

    def add_model(self, model: Model, event: AuditEvent | None = None) -> asyncio.Future[None]:
        """Store a new model; the future fails with ``StoreError`` if there is a model with its name."""
        columns = {"name": model.name, "created_at": model.created_at, "body": rows.pack(model)}
        return self._insert("insert_model", columns, f"model {model.name}", event)

    def update_model(self, model: Model, event: AuditEvent | None = None) -> asyncio.Future[None]:
        return self._change("update_model", {"name": model.name, "body": rows.pack(model)}, event)

    def remove_model(self, name: str, event: AuditEvent | None = None) -> asyncio.Future[None]:
        """Delete a model that has no versions."""
        return self._change("delete_model", {"name": name}, event)

    async def adapters(self) -> list[Adapter]:
        """Return every trained version, oldest first."""
        return await self._bodies("all_adapters", {}, Adapter)

    def add_adapter(self, adapter: Adapter) -> asyncio.Future[None]:
        columns = {"version": adapter.version, "model": adapter.model, "body": rows.pack(adapter)}
        return self._connections.change("insert_adapter", columns)

    async def projects(self) -> list[Project]:
        """Return every pushed version, oldest first."""
        return await self._bodies("all_projects", {}, Project)

    def add_project(self, project: Project) -> asyncio.Future[None]:
        columns = {"version": project.version, "model": project.model, "body": rows.pack(project)}
        return self._connections.change("insert_project", columns)

    def put_build(self, build: Build) -> asyncio.Future[None]:
        columns = {"id": build.id, "over": build.over, "body": rows.pack(build)}
        return self._connections.change("put_build", columns)

    async def build(self, id: str) -> Build | None:
        row = await self._connections.row("build", {"id": id})
        return None if row is None else rows.unpack(row[0], Build)

    async def unfinished_builds(self) -> list[Build]:
        return await self._bodies("unfinished_builds", {}, Build)

    async def deployments(self, owner: str | None = None) -> list[Release]:
        """Return the newest release of every deployment, newest first."""
        return await self._bodies("deployments", {"owner": owner}, Release)

    async def deployment(self, owner: str, name: str) -> Release | None:
        row = await self._connections.row("deployment", {"owner": owner, "name": name})
        return None if row is None else rows.unpack(row[0], Release)

    def add_release(self, release: Release, event: AuditEvent | None = None) -> asyncio.Future[None]:
        """Store a release; the future fails with ``StoreError`` if the release number exists."""
        key = {"owner": release.owner, "name": release.name, "number": release.number}
        columns = key | {"body": rows.pack(release)}
        return self._insert(
            "insert_release", columns, f"release {release.number} of {release.deployment}", event
        )

    def remove_deployment(
        self, owner: str, name: str, event: AuditEvent | None = None
    ) -> asyncio.Future[None]:
        return self._change("delete_deployment", {"owner": owner, "name": name}, event)

    async def last_use(self, deployment: str) -> float | None:
        """Return the Unix time of the last prediction made through a deployment; None if there was none."""
        await self._connections.indexed()
        row = await self._connections.row("last_use_of_deployment", {"deployment": deployment})
        return None if row is None else row[0]

    async def examples(self) -> dict[str, list[str]]:
        def action(connection: sqlite3.Connection) -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for model, prediction in connection.execute(QUERIES["all_examples"]):
                found.setdefault(model, []).append(prediction)
            return found

        return await self._connections.read(action)

    def add_example(
        self, model: str, prediction: str, event: AuditEvent | None = None
    ) -> asyncio.Future[None]:
        """Make a prediction an example of its model, so that its data is never deleted because of its age."""
        return self._change("insert_example", {"model": model, "prediction": prediction}, event)

    def remove_example(
        self, model: str, prediction: str, event: AuditEvent | None = None
    ) -> asyncio.Future[None]:
        return self._change("delete_example", {"model": model, "prediction": prediction}, event)

    def _change(
        self, query: str, parameters: dict[str, Any], event: AuditEvent | None
    ) -> asyncio.Future[None]:
        def action(connection: sqlite3.Connection) -> None:
            connection.execute(QUERIES[query], parameters)

        return self._connections.audited(action, event)

    def _insert(
        self, query: str, columns: dict[str, Any], subject: str, event: AuditEvent | None
    ) -> asyncio.Future[None]:
        def action(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(QUERIES[query], columns)
            except sqlite3.IntegrityError as exc:
                raise StoreError(f"{subject} exists already ({exc})") from exc

        return self._connections.audited(action, event)

    async def _bodies(self, query: str, parameters: dict[str, Any], type: type[T]) -> list[T]:
        def action(connection: sqlite3.Connection) -> list[T]:
            return [rows.unpack(body, type) for (body,) in connection.execute(QUERIES[query], parameters)]

        return await self._connections.read(action)
