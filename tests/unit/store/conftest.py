"""The databases on which the tests of the store run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import postgres_server, store_files
from tests.support.postgres_databases import Databases
from tests.support.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    if postgres_server.programs() is None:
        pytest.skip(postgres_server.MISSING)
    with postgres_server.running() as server:
        yield server


@pytest.fixture(scope="session")
def databases(server: PostgresServer) -> Databases:
    return Databases(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on both databases."""
    name: str = request.param
    if name == "sqlite":
        yield name
        return
    with store_files.on_server(request.getfixturevalue("databases")):
        yield name


@pytest.fixture
def postgres(databases: Databases) -> Iterator[PostgresServer]:
    """Run a test on PostgreSQL only."""
    with store_files.on_server(databases):
        yield databases.server
