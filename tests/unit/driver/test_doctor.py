"""The findings of the doctor, with their states and fixes."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import certifi
import msgspec
import pytest
from typer.testing import CliRunner

from appliance import config as configuration
from appliance import machine
from appliance.cli import local
from appliance.cli.application import app
from appliance.config import Config
from appliance.domain.errors import ApplianceError
from appliance.domain.file import File
from appliance.domain.model import Adapter
from appliance.driver import doctor, home_lock
from appliance.driver.doctor import CheckResult
from appliance.gateway.files import bucket
from appliance.gateway.files.bucket_mark import MARK
from appliance.gateway.sign_on import discover
from appliance.machine import landlock
from appliance.machine.proc import read_stat
from appliance.store import encryption
from appliance.store.bucket_objects import BUCKET_ID
from appliance.store.queries import STEPS
from appliance.worker.cleanup import PidFile, pid_folder
from tests.support.appliance_process import free_port, has_ipv6
from tests.support.identity_provider import ISSUER, IdentityProvider
from tests.support.memory_bucket import MemoryBucket
from tests.support.store_files import created, opened

ECHO = "models: [{name: test/echo, kind: echo}]"


def config(folder: Path, text: str = ECHO) -> Config:
    file = folder / "models.yaml"
    file.write_text(text)
    return configuration.load(file)


def listen() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def specs(**origins: str | None) -> Callable[[str], ModuleSpec | None]:
    """A ``find_spec`` that knows these modules only."""

    def find(name: str) -> ModuleSpec | None:
        origin = origins.get(name)
        return None if origin is None else ModuleSpec(name, None, origin=origin)

    return find


def test_all_checks_run_and_every_problem_has_a_fix(tmp_path: Path) -> None:
    found = doctor.examine(config(tmp_path), tmp_path, 1)
    assert {finding.subject for finding in found} >= {
        *("libraries", "bytecode", "devices", "disk", "data folder", "other runs", "port", "open files"),
        "shared memory",
    }
    assert all(finding.fix for finding in found if finding.state != "ok")


def test_libraries_that_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "ray.py"
    source.write_text("")
    monkeypatch.setattr(importlib.util, "find_spec", specs(ray=str(source)))
    (raw,) = doctor.libraries(config(tmp_path))
    assert (raw.state, "ray" in raw.found, "compileall" in raw.fix) == ("warning", True, True)
    compiled = Path(importlib.util.cache_from_source(str(source)))
    compiled.parent.mkdir(parents=True, exist_ok=True)
    compiled.write_bytes(b"")
    (fine,) = doctor.libraries(config(tmp_path))
    assert fine.state == "ok"


def test_libraries_that_a_configured_kind_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", specs(ray="built-in"))
    assert [finding.state for finding in doctor.libraries(config(tmp_path))] == ["ok"]
    model = f"models: [{{name: a/b, kind: vllm, source: {{path: {tmp_path}}}}}]"
    (missing,) = doctor.libraries(config(tmp_path, model))
    assert missing.state == "failed"
    assert "vllm" in missing.found
    assert "scripts/install" in missing.fix


def test_a_head_that_runs_no_models_needs_no_libraries_of_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", specs(ray="built-in"))
    models = f"models: [{{name: a/b, kind: vllm, source: {{path: {tmp_path}}}}}]"
    read = config(tmp_path, f"hardware: {{devices: none}}\ncluster: {{address: a}}\n{models}")
    assert [finding.state for finding in doctor.libraries(read)] == ["ok"]
    assert doctor.devices(read).found == "none: only the nodes of the cluster run models"
    own = "models: [{name: a/own, kind: echo, environment: {requirements: [cowsay]}}]"
    read = config(tmp_path, f"hardware: {{devices: none}}\ncluster: {{address: a}}\n{own}")
    (model,) = doctor.downloads(read, tmp_path / "home")
    assert model.found.startswith("a/own: environment of its own: it runs only on the head of the cluster")


def test_python_that_writes_no_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert doctor.bytecode().state == "warning"
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert doctor.bytecode().state == "ok"


def test_a_driver_that_does_not_answer_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def discover(_: object) -> None:
        raise ApplianceError("a GPU does not answer (gone)")

    monkeypatch.setattr(machine, "discover", discover)
    found = doctor.devices(config(tmp_path))
    assert (found.state, found.found) == ("failed", "a GPU does not answer (gone)")


def test_declared_devices_are_named(tmp_path: Path) -> None:
    declared = f"hardware: {{devices: [{{name: small, memory: 1GiB}}]}}\n{ECHO}"
    found = doctor.devices(config(tmp_path, declared))
    assert found.state == "ok"
    assert "small" in found.found


def test_a_full_disk_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.disk(tmp_path / "not" / "yet").found.endswith("not/yet")
    monkeypatch.setattr(doctor, "DISK", 2**80)
    assert doctor.disk(tmp_path).state == "failed"


def test_a_data_folder_open_to_others_is_a_warning(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert doctor.folder(home).state == "ok"
    home.chmod(0o755)
    found = doctor.folder(home)
    assert (found.state, found.fix, found.repair) == ("warning", "appliance doctor --fix", "permissions")
    (home / "private").touch(mode=0o644)
    repaired(found, home)
    assert doctor.folder(home).state == "ok"
    assert (home / "private").stat().st_mode & 0o077 == 0


def test_a_data_folder_that_cannot_be_written_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))  # answers None, as for False
    assert doctor.folder(tmp_path / "new").state == "failed"
    assert asked == [tmp_path]  # where it would have to be made


def test_other_runs(tmp_path: Path) -> None:
    assert doctor.leftovers(tmp_path).found == "no appliance has used this data folder yet"
    (tmp_path / "run" / "hosts").mkdir(parents=True)
    lock = tmp_path / "run" / "lock"
    lock.write_text("123")
    assert doctor.leftovers(tmp_path).found == "earlier runs have left nothing behind"
    (tmp_path / "run" / "hosts" / "4567").write_text("")
    crashed = doctor.leftovers(tmp_path)
    assert crashed.state == "warning"
    assert "4567" in crashed.found
    repaired(crashed, tmp_path)  # no process has this id, or it is not the one that wrote the file
    dead = subprocess.Popen(["true"])
    dead.wait()
    for left in (tmp_path / f".backup.x.{dead.pid}", tmp_path / "cog" / f".build.{dead.pid}"):
        left.mkdir(parents=True)
    interrupted = doctor.leftovers(tmp_path)
    assert f".backup.x.{dead.pid}" in interrupted.found
    repaired(interrupted, tmp_path)
    assert doctor.leftovers(tmp_path).found == "earlier runs have left nothing behind"
    (tmp_path / "run" / "hosts" / "4567").write_text("")
    lock.write_text("123")
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        running = doctor.leftovers(tmp_path)
    assert running.state == "ok"
    assert "process 123" in running.found


def repaired(finding: CheckResult, home: Path) -> str:
    assert finding.repair is not None
    repair, _ = doctor.REPAIRS[finding.repair]
    return repair(home)


def test_fix_ends_no_worker_process_of_a_running_appliance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        stat = read_stat(worker.pid)
        assert stat is not None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_file = pid_folder(tmp_path / "run") / str(worker.pid)
        pid_file.parent.mkdir(parents=True)
        pid_file.write_bytes(msgspec.json.encode(PidFile(stat.start, boot, "test/echo")))
        home_lock.take(tmp_path).close()
        finding = doctor.leftovers(tmp_path)
        assert str(worker.pid) in finding.found
        with home_lock.take(tmp_path):  # an appliance has been started since the examination
            with pytest.raises(ApplianceError, match="uses the data folder"):
                repaired(finding, tmp_path)
            local._repair(finding, tmp_path, ask=False)
            assert "not fixed: another appliance" in capsys.readouterr().err
            assert worker.poll() is None
            assert pid_file.exists()
        assert repaired(finding, tmp_path).startswith("ended 1 worker processes")
        assert worker.wait() == -signal.SIGKILL
    finally:
        worker.kill()
        worker.wait()


def test_no_appliance_can_start_during_a_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(run_dir: Path) -> list[int]:
        with pytest.raises(ApplianceError, match="uses the data folder"):
            home_lock.take(tmp_path)
        return [1, 2]

    monkeypatch.setattr("appliance.driver.repair.kill_leftover_workers", kill)
    assert doctor.REPAIRS["leftovers"][0](tmp_path).startswith("ended 2 worker processes")
    home_lock.take(tmp_path).close()


def test_a_lock_that_cannot_be_opened_counts_as_taken(tmp_path: Path) -> None:
    assert not home_lock.is_taken(tmp_path)
    home_lock.take(tmp_path).close()
    assert not home_lock.is_taken(tmp_path)
    home_lock.path(tmp_path).unlink()
    home_lock.path(tmp_path).mkdir()
    assert home_lock.is_taken(tmp_path)
    with pytest.raises(ApplianceError, match=r"cannot be locked: .*: Is a directory"):
        home_lock.take(tmp_path)


async def test_files_and_rows_that_do_not_match(tmp_path: Path) -> None:
    assert list(doctor.stored_files(tmp_path)) == []
    store = await opened(tmp_path / "appliance.db")
    file = File(
        id="a", owner="me", name="a", content_type="x/y", size=1, sha256="", md5="", created_at=1.0, path=""
    )
    await store.files.add(msgspec.structs.replace(file, id="u", path="uploads/u"))
    await store.files.add(msgspec.structs.replace(file, id="o", prediction="p", path="outputs/p/1/o.txt"))
    await store.close()
    for path in ("uploads/u", "outputs/p/1/o.txt", "uploads/old", "outputs/q/1/o.txt"):
        (tmp_path / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / path).write_bytes(b"12345")
    (found,) = doctor.stored_files(tmp_path)
    assert found.found.startswith("2 files and folders (10 bytes)")
    assert repaired(found, tmp_path) == "removed 2 files and folders (10 bytes)"
    assert not (tmp_path / "files" / "outputs" / "q").exists()
    assert [each.state for each in doctor.stored_files(tmp_path)] == ["ok"]
    (tmp_path / "files" / "outputs" / "p" / "1" / "o.txt").unlink()
    (lost,) = doctor.stored_files(tmp_path)
    assert lost.found.startswith("1 files are missing, such as ")
    assert lost.repair is None
    with (tmp_path / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list(doctor.stored_files(tmp_path)) == []


def test_a_database_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "appliance.db").write_bytes(b"hello " * 1000)
    (found,) = doctor.stored_files(tmp_path)
    assert found.state == "failed"
    assert "restore" in found.fix


@pytest.mark.parametrize(
    ("key", "says"),
    [(None, "is encrypted with the key"), ("11" * 32, "not with the given key"), ("x", "a key is 32 bytes")],
)
async def test_a_missing_or_wrong_key_is_no_reason_to_restore_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, says: str
) -> None:
    monkeypatch.setenv(encryption.VARIABLE, "00" * 32)
    await (await created(tmp_path / "appliance.db")).close()
    assert [each.state for each in doctor.stored_files(tmp_path)] == ["ok"]
    monkeypatch.delenv(encryption.VARIABLE)
    if key is not None:
        monkeypatch.setenv(encryption.VARIABLE, key)
    (found,) = doctor.stored_files(tmp_path)
    assert (found.state, found.fix) == ("failed", "")
    assert says in found.found
    assert "restore" not in found.found


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("y", False)])
def test_fix_asks_before_it_deletes(tmp_path: Path, answer: str, *, left: bool) -> None:
    home = tmp_path / "home"
    with sqlite3.connect(_made(home)) as connection:
        connection.executescript("\n".join(STEPS[:1]) + ";PRAGMA user_version = 1")
    upload = home / "files" / "uploads" / "old"
    upload.parent.mkdir(parents=True)
    upload.touch()
    home.chmod(0o755)
    config(tmp_path)
    arguments = ["doctor", "--fix", "--home", str(home), "--config", str(tmp_path / "models.yaml")]
    ran = CliRunner().invoke(app, arguments, input=f"{answer}\n")
    assert "delete them?" in ran.output
    assert f"fixed: removed the permissions of other users from {home}" in ran.output
    assert home.stat().st_mode & 0o077 == 0
    assert upload.exists() is left


def _made(home: Path) -> Path:
    home.mkdir()
    return home / "appliance.db"


def test_a_port_in_use_names_its_holder() -> None:
    with listen() as listener:
        port = listener.getsockname()[1]
        taken = doctor.listening_port("127.0.0.1", port)
        assert taken.state == "warning"
        assert f"(process {os.getpid()})" in taken.found
    assert doctor.listening_port("127.0.0.1", port) == CheckResult("port", "ok", f"127.0.0.1:{port} is free")
    if has_ipv6():
        assert doctor.listening_port("::1", port) == CheckResult("port", "ok", f"[::1]:{port} is free")
    assert "cannot listen on fe80::1%lo" in doctor.listening_port("fe80::1%lo", port).found
    assert f"no.such.host.invalid:{port}: " in doctor.listening_port("no.such.host.invalid", port).found
    assert doctor.holder(port) is None


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits, state in (((1024, 4096), "warning"), ((doctor.FILES, doctor.FILES), "ok"), ((-1, -1), "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        assert doctor.open_files().state == state


def test_isolation_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, state in ((7, "ok"), (2, "ok"), (1, "warning"), (-1, "warning")):
        monkeypatch.setattr(landlock, "_version", lambda version=version: version)
        assert doctor.isolation().state == state


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.shared_memory(tmp_path / "none").state == "failed"
    assert doctor.shared_memory(tmp_path).state == "ok"
    with monkeypatch.context() as read_only:
        read_only.setattr("os.access", lambda *_: False)
        assert doctor.shared_memory(tmp_path).found == f"{tmp_path} cannot be written"
    monkeypatch.setattr(doctor, "SHARED_MEMORY", 2**80)
    assert doctor.shared_memory(tmp_path).state == "failed"


def test_weights(tmp_path: Path) -> None:
    here, missing = tmp_path / "here", tmp_path / "missing"
    here.mkdir()
    sources = "".join(
        f"  - {{name: test/{path.name}, kind: vllm, source: {{path: {path}}}}}\n" for path in (here, missing)
    )
    first, second = doctor.downloads(config(tmp_path, f"models:\n{sources}"), tmp_path / "home")
    assert first.state == "ok"
    assert (second.state, "appliance pull test/missing" in second.fix) == ("warning", True)


def test_the_command_fails_only_if_a_check_failed(tmp_path: Path) -> None:
    config(tmp_path)
    home = tmp_path / "home"
    environment = {**os.environ, "APPLIANCE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", "from appliance.cli import main; main()", "doctor"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == int("failed" in ran.stdout), ran.stdout + ran.stderr
    assert "-> unset PYTHONDONTWRITEBYTECODE" in ran.stdout


def test_the_identity_provider_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = IdentityProvider()
    monkeypatch.setattr(doctor, "discover", partial(discover, transport=provider))
    fields: dict[str, Any] = {
        "server": {"public_url": "https://ai.example.org"},
        "sign_on": {"oidc": {"issuer": ISSUER, "client_id": "appliance"}},
        "models": [{"name": "test/echo", "kind": "echo"}],
    }
    config = Config.model_validate(fields)
    assert list(doctor.identity_provider(config)) == [
        CheckResult("identity provider", "ok", "https://id.example.org answers")
    ]
    plain = Config.model_validate(fields | {"server": {"public_url": "http://ai.example.org"}})
    assert [each.state for each in doctor.identity_provider(plain)] == ["warning"]
    provider.metadata = {"issuer": "https://other.example.org"}
    (found,) = doctor.identity_provider(config)
    assert (found.state, "names the issuer" in found.found) == ("failed", True)
    assert list(doctor.identity_provider(Config.model_validate({"models": fields["models"]}))) == []


def test_a_bucket_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    endpoint = f"http://127.0.0.1:{free_port()}"
    s3 = {"url": "s3://bucket", "endpoint": endpoint, "access_key_id": "a", "secret_access_key": "hidden"}
    model = {"name": "test/echo", "kind": "echo"}
    (found,) = doctor.bucket(Config.model_validate({"files": {"s3": s3}, "models": [model]}), tmp_path)
    assert (found.state, found.subject) == ("failed", "bucket")
    assert found.found.startswith(f"s3://bucket at {endpoint}: ")
    assert "check files.s3" in found.found
    assert "hidden" not in found.found
    assert list(doctor.bucket(Config.model_validate({"models": [model]}), tmp_path)) == []


@pytest.mark.parametrize(
    ("mark", "state", "text"),
    [
        ("own", "ok", "can be written and read"),
        ("other", "failed", "is used by another appliance"),
        (None, "failed", "has no object .appliance"),
    ],
)
async def test_a_bucket_of_another_appliance_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mark: str | None, state: str, text: str
) -> None:
    store = await opened(tmp_path / "appliance.db")
    assert await store.files.secret(BUCKET_ID, "own") == "own"
    await store.registry.add_adapter(
        Adapter(
            version="v",
            model="a/b",
            base_model="a/a",
            base_version="b",
            training="t",
            created_at=1.0,
            path="",
        )
    )
    assert await store.files.objects.begin("versions/v/weights", "v") == "uploading"
    await store.close()
    memory = MemoryBucket()
    if mark is not None:
        await memory.write(MARK, mark.encode())
    monkeypatch.setattr(bucket, "Bucket", lambda _: memory)
    model = {"name": "test/echo", "kind": "echo"}
    settings = Config.model_validate({"files": {"s3": {"url": "s3://bucket"}}, "models": [model]})
    (found,) = await asyncio.to_thread(lambda: list(doctor.bucket(settings, tmp_path)))
    assert (found.state, text in found.found) == (state, True)
