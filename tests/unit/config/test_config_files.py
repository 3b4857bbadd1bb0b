"""Files that are no config: they are refused by name and line, in bounded time and memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.cli.options import load_config
from appliance.config import Config, load, text_file
from appliance.domain.errors import ConfigError

ECHO = "models:\n  - name: test/echo\n    kind: echo\n"


def refused(file: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file))
    return caught.value


# -- what is not a file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to("/dev/null"), "is a device"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels"),
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.write_bytes(b"#" * text_file.LARGEST + b"\n"), "is larger than 1 MiB"),
    ],
)
def test_what_is_no_text_file_is_refused_by_what_it_is(
    tmp_path: Path, make: Callable[[Path], object], says: str
) -> None:
    file = tmp_path / "models.yaml"
    make(file)
    assert says in str(refused(file))


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "models.yaml"))
        assert "cannot be read" in str(refused(tmp_path / "models.yaml"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(ECHO)
    file.chmod(0)
    assert "Permission denied" in str(refused(file))


# -- what is not text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (ECHO.encode("utf-16"), None, "is UTF-16 text: save it as UTF-8"),
        (ECHO.encode("utf-16-be"), 1, "U+0000 is not allowed"),
        (ECHO.encode() + b"# caf\xe9\n", 4, "is not UTF-8 text"),
        (ECHO.encode() + b"    description: a\x07b\n", 4, "U+0007 is not allowed"),
        (ECHO.encode() + b"    description: \xed\xa0\x80\n", 4, "is not UTF-8 text"),
        (ECHO.encode() + b'    description: "\\ud83d"\n', 4, "a single surrogate"),
    ],
)
def test_other_encodings_are_refused(tmp_path: Path, content: bytes, line: int | None, says: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_bytes(content)
    error = refused(file)
    assert (error.line, says in str(error)) == (line, True), error


def test_byte_order_marks_and_pairs_of_escapes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + ECHO.encode() + b'    description: "\\ud83d\\ude00"\n')
    assert load(file).models[0].description == "\N{GRINNING FACE}"


# -- too much --------------------------------------------------------------------------------------------


def bomb(join: str) -> str:
    """Nine aliases of nine aliases of nine ...: 9 to the power of 12 values."""
    first = "a0: &a0 {k: 1}\n"
    return first + "".join(
        f"a{i}: &a{i} {join.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, 13)
    )


def merges(keys: int, times: int) -> str:
    """A mapping with ``keys`` keys, which is merged into ``times`` other mappings."""
    merged = ", ".join(f"k{i}: 1" for i in range(keys))
    return f"a: &a {{{merged}}}\n" + "".join(f"b{i}: {{<<: *a}}\n" for i in range(times))


def test_merges_of_merges_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(bomb("{{<<: [{}]}}"))
    refused(file)  # PyYAML 6.0.4 merges each key once, so that only an unknown key is left to refuse


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("models: " + "[" * 20_000 + "]" * 20_000, 1, "nested lists and mappings"),
        ("models:\n" + "- " * 20_000 + "1\n", 2, "nested lists and mappings"),
        ("models:\n" + " [\n" * 20_000, 51, "nested lists and mappings"),
        (bomb("[{}]"), 1, "aliases make more than"),
        (merges(1900, 12), 6, "(<<) make more than"),
        ("models: [" + "1, " * 30_000 + "]", 1, "has more than 20,000 keys"),
        (f"{'k' * 501}: 1\n", 1, "a key has more than"),
        (f"limits: {{queue: {'9' * 5000}}}\n", 1, "'" + "9" * 60 + "...' is not a valid value"),
        (f"limits: {{queue: 0x{'f' * 5000}}}\n", 1, "is too large"),
        ("ui:\n  enabled: !!bool maybe\n", 2, "is not a valid value of its type"),
        ("ui:\n  enabled: !!timestamp maybe\n", 2, "is not a valid value of its type"),
        ("ui:\n  enabled: !!int ''\n", 2, "is not a valid value of its type"),
    ],
)
def test_too_much_is_refused_with_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    error = refused(file)
    assert (error.line, says in str(error)) == (line, True), error
    assert len(str(error)) < 500 + len(str(file))


# -- paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["$HOME/data", "/srv/$NAME", "/srv/$$HOME"])
def test_a_path_that_names_an_environment_variable_is_refused(tmp_path: Path, path: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"server:\n  data: '{path}'\n{ECHO}")
    error = refused(file)
    assert (error.line, error.key) == (2, "server.data")
    assert "write environment variables as ${NAME}" in error.message


def test_other_dollars_are_part_of_a_path(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"server:\n  data: /srv/a$/$1\n{ECHO}")
    assert load(file).server.data == Path("/srv/a$/$1")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "is a folder"), ("caf\xe9".encode("latin-1"), "is not UTF-8 text")],
)
def test_a_readme_that_is_no_text_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    readme = tmp_path / "readme.md"
    if content is None:
        readme.mkdir()
    else:
        readme.write_bytes(content)
    file = tmp_path / "models.yaml"
    file.write_text(f"{ECHO}    readme: readme.md\n")
    error = refused(file)
    assert (error.line, error.model, error.key, says in str(error)) == (4, "test/echo", "readme", True)


# -- anything --------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        *Config.model_fields, "name", "kind", "options", "memory", "gpu", "source", "path", "hub", "data",
        "tls", "certificate", "key", "devices", "aliases", "readme", "pin", "concurrency", "slug", "<<", "=",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    [
        "echo", "vllm", "cog", "diffusers", "a/b", "auto", "1GiB", "9" * 400 + "GiB", "5m", "~nobody/x",
        "$HOME", ".", "..", "/dev/zero", "\0", "\ud800", "http://x", "10.0.0.0/8",
        "2024-02-31", "1e999", "0" * 50,
    ]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20) | st.dates()
    | st.binary(max_size=4) | st.integers(min_value=-(10**400), max_value=10**400)
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
MODELS = st.lists(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("memory", "gpu", "options", "source", "aliases", "readme", "pin"), VALUES),
    ).flatmap(
        lambda rest: st.fixed_dictionaries(
            {
                "name": st.sampled_from(["a/a", "a/b"]) | VALUES,
                "kind": st.sampled_from(["echo", "vllm", "cog", "piper"]) | VALUES,
            }
        ).map(lambda model: {**model, **rest})
    ),
    max_size=3,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4).flatmap(
    lambda document: (MODELS | VALUES).map(lambda models: {**document, "models": models})
)
CUTS = st.tuples(
    st.floats(0, 1), st.floats(0, 1), st.binary(max_size=3) | st.sampled_from([b"&a ", b"*a", b"!!bool "])
)


def damaged(text: bytes, damage: list[tuple[float, float, bytes]]) -> bytes:
    for begin, share, put in damage:
        at = int(begin * len(text))
        text = text[:at] + put + text[at + int(share * min(20, len(text) - at)) :]
    return text


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    DOCUMENTS,
    st.lists(CUTS, max_size=3),
    st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)
@example({"limits": {"queue": 10**400}}, [], "utf-8")
def test_anything_is_a_config_or_one_refusal_that_says_where(
    tmp_path: Path, document: Any, damage: list[tuple[float, float, bytes]], encoding: str
) -> None:
    written = yaml.dump(document, allow_unicode=True).encode(encoding, "replace")
    file = tmp_path / "models.yaml"
    file.write_bytes(damaged(written, damage))
    try:
        assert load(file).models
    except ConfigError as error:
        assert error.file == str(file)
        text = str(error)
        assert text.encode()  # no single surrogate, which cannot be printed
        assert len(text) < 50_000
        if error.line is not None:
            assert 1 <= error.line <= file.read_bytes().count(b"\n") + 1
        else:
            assert "UTF" in text or "is not YAML" in text or error.key
