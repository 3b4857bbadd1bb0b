"""A store, an engine without Ray, and the routes over it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from appliance.domain import token
from appliance.domain.token import Scope, Token
from appliance.store import Store, VersionRow
from tests.support.api_client import SECRET, Api, services_of
from tests.support.engine_bench import Bench
from tests.support.store_files import opened

settings.register_profile("appliance", deadline=None)  # no test says how fast anything is: machines differ
settings.load_profile("appliance")


@pytest.fixture(scope="session", autouse=True)
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HTTP clients trust no authority: each would take 40 ms of CPU to read certifi's certificates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual umask, whatever a command that ran in this process has set."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def light_passwords() -> Iterator[None]:
    """Hash passwords with little memory: the appliance takes 0.1 s of CPU for each hash."""
    import argon2

    from appliance.gateway.sign_on import passwords

    with pytest.MonkeyPatch.context() as patch:
        light = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        patch.setattr(passwords, "_HASHER", light)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "appliance.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = await opened(path)
    yield store
    await store.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = await Bench(tmp_path).start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


@pytest.fixture
async def api(bench: Bench) -> AsyncIterator[Api]:
    async with api_of(bench) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """An API for all tests of a module whose requests are refused. They run with ``loop_scope="module"``."""
    bench = await Bench(tmp_path_factory.mktemp("shared_api")).start()
    async with api_of(bench) as client:
        yield client
    await bench.stop()
    await bench.cluster.close()


@asynccontextmanager
async def api_of(bench: Bench) -> AsyncIterator[Api]:
    written: list[Awaitable[object]] = []
    for name, secret, owner in (("first", SECRET, "me"), ("second", "other", "you")):
        digest = token.digest(secret)
        added = Token(id=name, name=name, owner=owner, digest=digest, created_at=0, scope=Scope.ADMIN)
        written.append(bench.store.add_token(added))
    for entry in bench.catalogue.entries:
        row = VersionRow(id=entry.version, model=entry.name, created_at=1.0, document=entry.document)
        written.append(bench.store.record_version(row))
    await asyncio.gather(*written)  # in one commit
    services = services_of(bench)
    async with Api(services) as client:
        yield client
    await services.webhooks.close()
