"""What an edited models.yaml changes, and that what is in force outlives the process that applied it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance import config as configuration
from appliance.config import Config, compare, runtime
from tests.support.appliance_process import ROOT

ECHO = {"name": "test/echo", "kind": "echo"}


def config(*models: dict[str, Any], **sections: Any) -> Config:
    return Config.model_validate({**sections, "models": list(models) or [ECHO]})


def test_the_same_file_changes_nothing() -> None:
    shipped = configuration.load(ROOT / "models.yaml")
    changes = compare(shipped, configuration.load(ROOT / "models.yaml"))
    assert (changes.added, changes.removed, changes.changed) == ((), (), {})
    assert (changes.settings, changes.needs_restart) == ((), ())
    assert changes.config == shipped


def test_models_are_told_apart_by_name() -> None:
    old = config(ECHO, {"name": "test/gone", "kind": "echo"})
    new = config({"name": "test/fresh", "kind": "echo"}, ECHO)
    changes = compare(old, new)
    assert (changes.added, changes.removed, changes.changed) == (("test/fresh",), ("test/gone",), {})


def test_changed_keys_are_named_as_in_the_file() -> None:
    edited = {**ECHO, "aliases": ["a/b"], "priority": 2, "options": {"concurrency": 3, "stream": True}}
    assert compare(config(), config(edited)).changed == {
        "test/echo": ("aliases", "priority", "options.concurrency", "options.stream")
    }


def test_another_kind_is_said_and_not_its_every_option() -> None:
    other = {"name": "test/echo", "kind": "embeddings", "source": {"path": "/srv/weights"}}
    assert compare(config(), config(other)).changed == {"test/echo": ("kind",)}


def test_settings_are_applied_but_for_those_that_need_a_restart() -> None:
    new = config(
        limits={"queue": 7},
        retention={"predictions": "1h"},
        server={"port": 9000, "account": "me"},
        hardware={"threads": 3, "host_memory": "1GiB"},
        collections=[{"slug": "c", "name": "C", "description": "", "models": ["test/echo"]}],
    )
    changes = compare(config(), new)
    assert set(changes.settings) == {"server.account", "limits.queue", "retention.predictions", "collections"}
    assert set(changes.needs_restart) == {"server.port", "hardware.threads", "hardware.host_memory"}
    assert changes.config.limits.queue == 7
    assert changes.config.server.account == "me"
    assert changes.config.server.port == 8000
    assert changes.config.hardware == config().hardware
    # Whoever reloads again is told again: it is still not so.
    assert set(compare(changes.config, new).needs_restart) == set(changes.needs_restart)


def test_a_bucket_needs_a_restart_and_its_key_is_secret() -> None:
    bucket = {"url": "s3://bucket/prefix/", "access_key_id": "id", "secret_access_key": "very secret"}
    new = config(files={"keep": "2h", "s3": bucket})
    changes = compare(config(), new)
    assert (changes.settings, changes.needs_restart) == (("files.keep",), ("files.s3",))
    assert (changes.config.files.s3, changes.config.files.keep) == (None, 7200.0)
    assert new.files.s3 is not None
    assert (new.files.s3.bucket, new.files.s3.prefix) == ("bucket", "prefix")
    assert "very secret" not in str(configuration.redact(new))


@pytest.mark.parametrize(
    ("bucket", "problem"),
    [
        ({"url": "https://bucket"}, r'should be a URL such as "s3://bucket" or "s3://bucket/prefix"'),
        ({"url": "s3://b"}, "should be a URL such as"),
        ({"url": "s3://bucket/../other"}, "should be a URL such as"),
        ({"url": "s3://bucket", "access_key_id": "id"}, "belong together: set both or neither"),
    ],
)
def test_a_bucket_that_is_not_right_is_refused(bucket: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        config(files={"s3": bucket})


def test_what_is_in_force_is_read_back_as_it_was(tmp_path: Path) -> None:
    started_with = config()
    assert runtime.read(tmp_path, started_with) is started_with
    shipped = configuration.load(ROOT / "models.yaml")
    runtime.write(tmp_path, shipped)
    assert runtime.read(tmp_path, started_with) == shipped
    assert [path.stat().st_mode & 0o077 for path in tmp_path.iterdir()] == [0]  # it may hold secrets
    runtime.forget(tmp_path)
    assert runtime.read(tmp_path, started_with) is started_with


@pytest.mark.parametrize("devices", ["auto", [{"name": "a", "memory": "1GiB"}]])
def test_every_source_and_section_can_be_kept(tmp_path: Path, devices: Any) -> None:
    kept = config(
        {"name": "a/hub", "kind": "vllm", "source": {"hub": "o/n", "revision": "main"}, "gpu": 0.5},
        {"name": "a/folder", "kind": "piper", "source": {"path": "/v"}, "options": {"voices": {"a": "b"}}},
        {"name": "a/git", "kind": "cog", "source": {"git": "https://x.org/y.git", "revision": "main"}},
        {
            "name": "a/task",
            "kind": "transformers",
            "source": {"path": "/t"},
            "options": {"task": "translation"},
        },
        code={"cog": True},
        egress={"allow": ["10.0.0.0/8"]},
        hardware={"devices": devices},
        server={"tls": {"certificate": "/c.pem", "key": "/k.pem"}, "trusted_proxies": ["127.0.0.1/32"]},
    )
    runtime.write(tmp_path, kept)
    assert runtime.read(tmp_path, config()) == kept
