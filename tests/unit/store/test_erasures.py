"""The erasure of an account in the database: no table and no page keeps what was erased."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from appliance.domain.audit import AuditEvent
from appliance.domain.conversation import ConversationContent, ConversationSettings, new_conversation
from appliance.domain.erasure import AccountData
from appliance.domain.file import File
from appliance.domain.model import Adapter, Build
from appliance.domain.prediction import Prediction, Status, Webhook
from appliance.domain.token import Scope, Token
from appliance.domain.user import Session, User
from appliance.store import Store, VersionRow, erasures
from tests.support.store_files import created, query

pytestmark = pytest.mark.usefixtures("database")

ACT = AuditEvent(action="account.erase", object="ada", owner="me")
WEBHOOK = Webhook(url="https://x.example/hook", events=("completed",), origin="https://y.example")
MARKER = "Marker-of-ada"


def prediction(id: str, owner: str, text: str, **changes: object) -> Prediction:
    record = Prediction(
        id=id,
        model="a/b",
        version="v",
        owner=owner,
        input={"prompt": text},
        created_at=1.0,
        stream_token=id,
        token=f"{owner}-token",
    )
    return record.evolve(**changes)


async def fill(store: Store, owner: str, marker: str) -> None:
    """Store a row of each kind for an account."""
    big = f"{marker} " * 2000  # on overflow pages
    for number in range(30):
        record = prediction(f"{owner}{number}", owner, big if number % 2 else marker)
        started = record.started(2.0, 0.0, None)
        ended = started.evolve(output=[f"{marker} out"], logs=f"{marker} logs")
        if number % 3 == 0:  # stored once
            await store.create(ended.finished(Status.SUCCEEDED, 3.0))
        else:
            webhook = WEBHOOK if number % 3 == 1 else None
            await store.create(record.evolve(webhook=webhook))
            await store.claim(started.evolve(webhook=webhook))
            await store.finish(ended.evolve(webhook=webhook).finished(Status.FAILED, 3.0, f"{marker} broke"))
    training = prediction(f"{owner}-training", owner, marker, destination="a/trained")
    await store.create(training.started(2.0, 0.0, None).finished(Status.SUCCEEDED, 3.0))
    for file, of in ((f"{owner}-upload", None), (f"{owner}-output", f"{owner}1")):
        await store.files.add(
            File(
                id=file,
                owner=owner,
                name=f"{marker}.txt",
                content_type="text/plain",
                size=7,
                sha256="",
                md5="",
                created_at=1.0,
                prediction=of,
                path=f"uploads/{file}",
            )
        )
    content = ConversationContent(settings=ConversationSettings(), messages=[], leaf=None)
    await store.conversations.add(new_conversation(owner, f"{marker} title", "a/b", content, 1.0))
    build = Build(id=f"{owner}-build", model="a/c", owner=owner, source="x", created_at=1.0, memory=None)
    await store.registry.put_build(msgspec.structs.replace(build, logs=marker))
    version = f"{owner}-version"
    await store.registry.add_adapter(
        Adapter(
            version=version,
            model="a/trained",
            base_model="a/b",
            base_version="v",
            training=f"{owner}-training",
            created_at=3.0,
            path=f"versions/{version}",
        )
    )
    await store.record_version(VersionRow(id=version, model="a/trained", created_at=3.0, document={}))
    await store.registry.add_example("a/b", f"{owner}2")
    await store.add_webhook_key(owner, f"whsec_{owner}", 1.0, 3600.0)
    await store.add_token(
        Token(
            id=f"{owner}-token",
            name=f"{marker} laptop",
            owner=owner,
            digest=owner,
            created_at=1.0,
            scope=Scope.RUN,
        )
    )
    user = User(name=owner, created_at=1.0, issuer="https://id.example", subject=f"{marker} subject")
    session = Session(
        id=f"{owner}-session",
        user=owner,
        digest=f"{owner}-session",
        created_at=1.0,
        expires_at=9e9,
        address="192.0.2.1",
        browser=f"{marker} browser",
    )
    await store.users.sign_in(user, session, lambda signed_in: ACT)


async def erase(store: Store, account: str) -> AccountData:
    """Do what ``gateway.engine.erasures`` does with the database."""
    await store.erasures.begin(account, ACT)
    for version in await store.erasures.trained_versions(account):
        await store.erasures.remove_version(account, version)
    while await store.erasures.remove_predictions(account, 7):
        pass
    while await store.erasures.remove_uploads(account, 7):
        pass
    assert await store.erasures.remove_others(account) is not None
    assert await store.compact()
    return await store.erasures.end(account)


def traces(folder: Path, text: str) -> dict[str, int]:
    """Count ``text`` in all files of the database, the WAL included."""
    found = {file.name: file.read_bytes().count(text.encode()) for file in folder.iterdir() if file.is_file()}
    return {name: count for name, count in found.items() if count}


async def test_nothing_of_the_account_is_left_and_everything_of_others(tmp_path: Path, database: str) -> None:
    store = await created(tmp_path / "db")
    await fill(store, "ben", "Marker-of-ben")
    others = await store.erasures.data_of("ben")
    await fill(store, "ada", MARKER)
    await store.indexed()
    assert database == "postgresql" or traces(tmp_path, MARKER)
    before = await store.erasures.data_of("ada")
    assert before == AccountData(
        predictions=30,
        trainings=1,
        versions=1,
        uploads=1,
        output_files=1,
        bytes=14,
        conversations=1,
        builds=1,
        examples=1,
        tokens=1,
        sessions=1,
        users=1,
        webhook_keys=1,
        usage=2,
    )
    assert await erase(store, "ada") == before
    assert traces(tmp_path, MARKER) == {}
    assert await store.erasures.data_of("ada") == AccountData()
    assert await store.erasures.data_of("ben") == others
    assert await store.erasures.pending() == []
    await store.close()
    assert traces(tmp_path, MARKER) == {}
    assert traces(tmp_path, "ada-token") == {}


async def test_the_sums_of_the_usage_stay(tmp_path: Path) -> None:
    store = await created(tmp_path / "db")
    for owner in ("ada", "ben", "eve"):
        await fill(store, owner, owner)
    await store.indexed()

    async def succeeded(owner: str | None) -> int:
        rows = await store.usage.rows((), owner=owner)
        return sum(row.succeeded for row in rows)

    before = await succeeded(None)
    for owner in ("ada", "ben"):
        await erase(store, owner)
    assert await succeeded(None) == before
    assert await succeeded("ada") == 0
    await store.close()


async def test_new_predictions_are_erased_before_the_tokens(tmp_path: Path) -> None:
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    await store.erasures.begin("ada", ACT)
    assert await store.erasures.remove_others("ada") is None
    found = await store.token("ada-token")
    assert found is not None
    assert found.revoked_at is not None
    await store.close()


async def test_counts_continue_in_another_process(tmp_path: Path) -> None:
    store = await created(tmp_path / "db")
    await fill(store, "ada", MARKER)
    before = await store.erasures.data_of("ada")
    await store.erasures.begin("ada", ACT)
    await store.erasures.remove_predictions("ada", 7)
    await store.close()
    store = await created(tmp_path / "db")
    (pending,) = await store.erasures.pending()
    assert pending.erased.predictions + pending.erased.trainings == 7
    for version in await store.erasures.trained_versions("ada"):
        await store.erasures.remove_version("ada", version)
    while await store.erasures.remove_predictions("ada", 7):
        pass
    while await store.erasures.remove_uploads("ada", 7):
        pass
    await store.erasures.remove_others("ada")
    erased = await store.erasures.end("ada")
    assert erased.predictions == before.predictions
    assert erased.bytes == before.bytes
    await store.close()


async def test_what_happens_to_each_column_with_an_account_is_decided(tmp_path: Path, database: str) -> None:
    await (await created(tmp_path / "db")).close()
    columns = {
        "sqlite": "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_xinfo(t.name) AS c"
        " WHERE t.type = 'table'",
        "postgresql": "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public'",
    }
    found = {
        f"{table}.{column}"
        for table, column in query(tmp_path / "db", columns[database])
        if re.fullmatch(r"owner|account|user|username|subject|email", column)
    }
    assert found == set(erasures.ERASED), "decide what an erasure does with these columns"
