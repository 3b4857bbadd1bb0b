"""Log records: one line each, with the prediction and the model, without credentials."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from appliance.config import LoggingConfig
from appliance.domain.errors import ConfigError
from appliance.domain.prediction import Prediction
from appliance.observability import logs
from appliance.scheduler import Event, EventKind

SECRET = "an admin \"secret\\'"  # holds what JSON escapes

JSON = LoggingConfig(format="json")

_log = logging.getLogger("appliance.test")


@pytest.fixture(autouse=True)
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves the root logger as it was."""
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    monkeypatch.delenv(logs.LEVEL_VARIABLE, raising=False)
    monkeypatch.delenv("APPLIANCE_TOKEN", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # configure closes what it finds, and these are pytest's
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "appliance.log"


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_a_line_of_text_has_time_level_logger_and_message(file: Path) -> None:
    logs.configure(file)
    _log.info("model %s is ready", "a/b")
    (line,) = lines(file)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO appliance\.test model a/b is ready", line
    )


def test_without_a_file_records_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    _log.info("hello")
    assert capsys.readouterr().err.endswith("hello\n")


def test_a_record_is_one_line_whatever_its_message(file: Path) -> None:
    logs.configure(file)
    _log.info("first\nsecond\r\x1b[31m\u2028\ud800")
    (line,) = lines(file)
    assert line.endswith(r"first\nsecond\r\x1b[31m\u2028\ud800")


def test_a_json_line_is_an_object(file: Path) -> None:
    logs.configure(file, JSON)
    with logs.bind(prediction="p1", model="a/b"):
        _log.warning("two\nlines \ud800")
    (line,) = lines(file)
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "WARNING",
        "logger": "appliance.test",
        "prediction": "p1",
        "model": "a/b",
        "message": "two\nlines \\ud800",
    }


def test_a_traceback_follows_indented_or_is_a_field(file: Path) -> None:
    for config in (LoggingConfig(), JSON):
        logs.configure(file, config)
        try:
            raise ValueError("what\nwent wrong")
        except ValueError:
            _log.exception("it failed")
    *human, as_json = lines(file)
    assert human[0].endswith("it failed")
    assert all(line.startswith("    ") for line in human[1:])
    assert human[-2:] == ["    ValueError: what", "    went wrong"]
    assert json.loads(as_json)["exception"].endswith("ValueError: what\nwent wrong")


def test_the_environment_overrides_the_config(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "warning")
    logs.configure(file, LoggingConfig(format="text", level="debug"))
    _log.info("quiet")
    _log.warning("loud")
    (line,) = lines(file)
    assert json.loads(line)["message"] == "loud"


@pytest.mark.parametrize("variable", [logs.FORMAT_VARIABLE, logs.LEVEL_VARIABLE])
def test_unknown_values_in_the_environment_are_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "xml")
    with pytest.raises(ConfigError, match=rf"{variable}: 'xml' should be one of"):
        logs.configure()


def test_a_record_has_the_prediction_and_model_of_its_arguments(file: Path) -> None:
    prediction = Prediction(
        id="p1", model="a/b", version="v", owner="me", input={}, created_at=0, stream_token="", parent="p0"
    )
    happening = Event(number=1, at=0, kind=EventKind.READY, model="a/c", devices=("cpu",), memory=1)
    for config in (JSON, LoggingConfig()):
        logs.configure(file, config)
        with logs.bind(prediction="bound"):
            _log.info("%s waits", prediction)
            _log.info("%s", happening)
    one, two, *text = lines(file)
    first, second = json.loads(one), json.loads(two)
    assert (first["prediction"], first["model"], first["message"]) == ("p1", "a/b", "p1 (child of p0) waits")
    assert (second["prediction"], second["model"]) == ("bound", "a/c")
    assert text[0].endswith(" [a/b] p1 (child of p0) waits")  # what the text says is not said twice
    assert text[1].endswith(" [bound] model a/c is ready after 0.0 s of loading")


async def test_bound_names_belong_to_their_task(file: Path) -> None:
    logs.configure(file)

    async def work(name: str) -> None:
        with logs.bind(prediction=name):
            await asyncio.sleep(0)
            _log.info("works")

    with logs.bind(model="a/b"):
        await asyncio.gather(work("p1"), work("p2"))
        _log.info("inner")
    _log.info("outer")
    endings = [line.split("appliance.test ")[1] for line in lines(file)]
    assert endings == ["[p1 a/b] works", "[p2 a/b] works", "[a/b] inner", "outer"]


def test_names_in_extra_override_others(file: Path) -> None:
    logs.configure(file)
    with logs.bind(prediction="bound"):
        _log.info("x", extra={"prediction": "given"})
    assert lines(file)[0].endswith("[given] x")


@pytest.mark.parametrize("format", ["text", "json"])
def test_credentials_are_masked_everywhere(
    file: Path, format: Literal["text", "json"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPLIANCE_TOKEN", SECRET)
    logs.configure(file, LoggingConfig(format=format))
    _log.info("headers %r", {"authorization": "Bearer abcdefgh12345678"})
    _log.info("Authorization: Token abcdefgh12345678")
    _log.info("made r8_abcdefgh12345678", extra={"model": SECRET})
    try:
        raise ValueError(f"refused abc: {SECRET}, bearer abcdefgh12345678")
    except ValueError:
        _log.exception("failed")
    text = file.read_text()
    assert "12345678" not in text
    assert "an admin" not in text
    for kept in ("Bearer ***", "Token ***", "r8_***", "refused abc: ***, bearer ***"):
        assert kept in text


@pytest.mark.parametrize("text", ["output_token_count 141", "token throughput fell", "the bearer of news"])
def test_ordinary_words_are_not_masked(file: Path, text: str) -> None:
    logs.configure(file)
    _log.info(text)
    assert lines(file)[0].endswith(text)


def test_configuring_again_replaces_the_file_and_levels_hold(tmp_path: Path) -> None:
    logs.configure(tmp_path / "one")
    logs.configure(tmp_path / "two", LoggingConfig(level="warning"))
    _log.info("quiet")
    _log.warning("loud")
    assert lines(tmp_path / "one") == []
    assert len(lines(tmp_path / "two")) == 1


def test_warnings_are_records_too(file: Path) -> None:
    logs.configure(file)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings has put the plain hook back, of which logging does not know.
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old call" in lines(file)[0]


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("POST https://u:secret@hooks.example/a/b?token=secret#secret", "POST https://hooks.example/a/b?***"),
        ("GET http://x.example?secret answered", "GET http://x.example?*** answered"),
        ("redis://:secret@cache:6379/0", "redis://cache:6379/0"),
        ("at https://x.example/#access_token=secret.", "at https://x.example/#***"),
        ("<a href='https://x.example/?secret'>", "<a href='https://x.example/?***'>"),
        ("/v1/files/x/download?owner=me&signature=secret is gone", "/v1/files/x/download?*** is gone"),
        ("signed with whsec_c2VjcmV0c2VjcmV0", "signed with whsec_***"),
        ("listening on http://127.0.0.1:8000, is it? a=b", "listening on http://127.0.0.1:8000, is it? a=b"),
    ],
)
def test_urls_are_logged_without_their_secrets(
    file: Path, format: Literal["text", "json"], text: str, shown: str
) -> None:
    logs.configure(file, LoggingConfig(format=format))
    _log.info("%s", text)
    (line,) = lines(file)
    assert (json.loads(line)["message"] if format == "json" else line).endswith(shown)


def test_libraries_do_not_report_every_request(file: Path) -> None:
    logs.configure(file)
    logging.getLogger("httpx").info("HTTP Request: POST http://x/")
    logging.getLogger("httpx").warning("loud")
    assert len(lines(file)) == 1


def test_a_long_line_is_masked_in_time_that_grows_with_it(file: Path) -> None:
    logs.configure(file)
    _log.info("%s", "a://" * 50_000 + "?" * 50_000 + "x?" * 50_000)
    assert len(lines(file)) == 1
