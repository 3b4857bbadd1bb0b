"""Edits of models.yaml: only the lines of one entry differ."""

from __future__ import annotations

import difflib
import errno
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance import config
from appliance.config import yaml_source
from appliance.config.edit import add_entry, change_entry, remove_entry
from appliance.config.edit_file import edit_file, put_back
from appliance.domain.errors import ConfigError
from tests.support.appliance_process import ROOT

ENTRY: dict[str, Any] = {
    "name": "new/model",
    "kind": "vllm",
    "source": {"hub": "org/name", "revision": "0123"},
    "aliases": ["a/b"],
}
FIRST = {"name": "a/a", "kind": "echo"}
SHIPPED = (ROOT / "models.yaml").read_text()

TEXTS = {
    "empty": "",
    "comment only": "# mine\n",
    "no models": "server: {port: 1}\n",
    "models without value": "models:\nserver: {port: 1}\n",
    "models without value, comment": "models: # none yet\nserver: {port: 1}\n",
    "null": "models: null # none\nserver: {port: 1}\n",
    "empty list": "models: []\nserver: {port: 1}\n",
    "plain": "models:\n  - name: a/a # first\n    kind: echo\n",
    "no indentation": "models:\n- name: a/a\n  kind: echo\nserver:\n  port: 1\n",
    "deep indentation": "models:\n    -   name: a/a\n        kind: echo\n\n\n# end\nserver:\n    port: 1\n",
    "dash alone": "models:\n  - # - the first\n    name: a/a\n    kind: echo\nserver: {port: 1}\n",
    "CRLF": "models:\r\n  - name: a/a\r\n    kind: echo\r\n\r\nserver:\r\n  port: 1\r\n",
    "no final newline": "models:\n  - name: a/a\n    kind: echo",
    "comments after": "models:\n  - name: a/a\n    kind: echo\n    # pin: true\n  # b\n\nserver: {port: 1}\n",
    "flow entries": "models:\n  - {name: a/a, kind: echo} # one\n  - {name: b/b, kind: echo}\n",
    "flow list": "models: [{name: a/a, kind: echo}] # list\nserver: {port: 1}\n",
    "flow list on lines": "models: [\n  {name: a/a, kind: echo}, # one\n]\n",
    "flow file": "{models: [{name: a/a, kind: echo}]}\n",
    "block text": "models:\n  - name: a/a\n    kind: echo\n"
    "    description: |\n      x\n\n      y\n\nserver: {port: 1}\n",
    "kept blank lines": "models:\n  - name: a/a\n    kind: echo\n"
    "    description: |+\n      x\n\nserver: {port: 1}\n",
    "alias at the end": "server: &s {port: 1}\nmodels:\n  - kind: echo\n    name: a/a\n    options: &o {}\n"
    "  - kind: echo\n    name: c/c\n    options: *o\n# end\n",
    "blank lines between": "models:\n  - name: a/a\n    kind: echo\n\n"
    "  # two\n  - name: b/b\n    kind: echo\n# x\n",
    "shipped": SHIPPED,
}


def lines_of(old: str, new: str) -> tuple[list[str], list[str]]:
    """Removed and added lines, by the shortest difference."""
    found = list(difflib.ndiff(old.splitlines(keepends=True), new.splitlines(keepends=True)))
    return [line[2:] for line in found if line[0] == "-"], [line[2:] for line in found if line[0] == "+"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_an_added_entry_is_the_only_difference(text: str) -> None:
    new = add_entry(text, ENTRY)
    old_data = yaml.safe_load(text) or {}
    models = old_data.get("models") or []
    assert yaml.safe_load(new) == {**old_data, "models": [*models, ENTRY]}
    assert ("\r\n" in text) == ("\r\n" in new)
    assert new.count("\r") == (new.count("\n") if "\r" in text else 0)
    if "[" not in text.partition("\n")[0] and "null" not in text and text.endswith("\n"):
        removed, _ = lines_of(text, new)
        assert removed == []


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_removing_what_was_added_gives_the_old_text(text: str) -> None:
    old = (yaml.safe_load(text) or {}).get("models")
    restored = remove_entry(add_entry(text, ENTRY), ENTRY["name"])
    if old and text.endswith("\n"):
        assert restored == text
    elif old:
        assert restored == f"{text}\n"
    else:
        assert yaml.safe_load(restored)["models"] == []


def test_the_first_of_several_entries_is_removed() -> None:
    text = "models:\n  # a\n  - name: a/a\n    kind: echo\n    # pin: true\n\n  - name: b/b\n    kind: echo\n"
    assert remove_entry(text, "a/a") == "models:\n  # a\n\n  - name: b/b\n    kind: echo\n"
    flow = "models: [{name: a/a, kind: echo}, {name: b/b, kind: echo}]\n"
    assert remove_entry(flow, "a/a") == "models: [{name: b/b, kind: echo}]\n"


@pytest.mark.parametrize("written", ["main # branch", '"main" # branch', "'main'"])
def test_a_changed_value_is_the_only_difference(written: str) -> None:
    text = f"models:\n  - name: a/a\n    source:\n      hub: x/y\n      revision: {written}\n    kind: vllm\n"
    new = change_entry(text, "a/a", ("source", "revision"), "0123456")
    removed, added = lines_of(text, new)
    assert removed == [f"      revision: {written}\n"]
    comment = written.partition(" ")[2]
    assert added == [f'      revision: "0123456"{" " + comment if comment else ""}\n']  # unquoted: a number


@pytest.mark.parametrize("flow", [True, False])
def test_an_item_of_a_list_is_changed(flow: bool) -> None:
    second = "{name: a/c, source: {path: two}}" if flow else "name: a/c\n        source:\n          path: two"
    text = (
        "models:\n  - name: a/a\n    kind: vllm\n    adapters:\n"
        f"      - {{name: a/b, source: {{path: one}}}}\n      - {second}\n"
    )
    path = ("adapters", 1, "source", "path")
    assert change_entry(text, "a/a", path, "local/x") == text.replace("two", "local/x")
    with pytest.raises(ConfigError, match=r"model a/a, key adapters\.2\.source\.path: is missing: add it"):
        change_entry(text, "a/a", ("adapters", 2, "source", "path"), "local/x")


def test_a_key_that_is_missing_is_not_changed() -> None:
    with pytest.raises(ConfigError, match=r"model a/a, key source.revision: is missing: add it"):
        change_entry("models: [{name: a/a, kind: echo}]", "a/a", ("source", "revision"), "x")


def test_what_cannot_be_edited_is_refused() -> None:
    anchored = "models:\n  - &a {name: a/a, kind: echo}\n  - {<<: *a, name: b/b}\n"
    with pytest.raises(
        ConfigError, match="cannot be edited without changing other keys: add, change or remove model a/a"
    ):
        remove_entry(anchored, "a/a")
    with pytest.raises(ConfigError, match="has a model a/a already"):
        add_entry(anchored, FIRST)
    with pytest.raises(ConfigError, match="has no model c/c: choose among a/a, b/b"):
        remove_entry(anchored, "c/c")
    with pytest.raises(ConfigError, match="should be a mapping"):
        add_entry("- 1\n", FIRST)
    with pytest.raises(ConfigError, match="key models: should be a list"):
        add_entry("models: {a: 1}\n", FIRST)


def test_a_file_is_replaced_only_by_a_valid_one(tmp_path: Path) -> None:
    file = tmp_path / "real.yaml"
    file.write_bytes(b"\xef\xbb\xbfmodels:\n  - name: a/a\n    kind: echo\n")
    file.chmod(0o640)
    link = tmp_path / "models.yaml"
    link.symlink_to(file)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="there is no kind 'no'"):
        edit_file(link, lambda text: add_entry(text, {"name": "b/b", "kind": "no"}))
    assert file.read_bytes() == before
    edited = edit_file(link, lambda text: add_entry(text, {"name": "b/b", "kind": "echo"})).config
    assert [model.name for model in edited.models] == ["a/a", "b/b"]
    assert file.read_bytes() == before + b"  - name: b/b\n    kind: echo\n"
    assert (link.is_symlink(), file.stat().st_mode & 0o777) == (True, 0o640)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models.yaml", "real.yaml"]


def _add(file: Path, number: int) -> None:
    edit_file(file, lambda text: add_entry(text, {"name": f"m/m{number}", "kind": "echo"}))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(file, number)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {model.name for model in config.load(file).models} == {f"m/m{number}" for number in range(8)}


def test_an_edit_by_hand_at_the_same_time_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("models:\n  - name: a/a\n    kind: echo\n")
    by_hand = ["# a comment\n"]

    def edit(text: str) -> str:
        if by_hand:
            file.write_text(by_hand.pop() + text)
        return add_entry(text, {"name": "b/b", "kind": "echo"})

    edited = edit_file(file, edit)
    assert edited.old.startswith("# a comment\n")
    assert file.read_text() == edited.old + "  - name: b/b\n    kind: echo\n"


def test_an_edit_is_put_back_unless_the_file_has_changed_since(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(before := "models:\n  - name: a/a\n    kind: echo\n")
    edited = edit_file(file, lambda text: add_entry(text, {"name": "b/b", "kind": "echo"}))
    assert edited.diff(file).splitlines()[-2:] == ["+  - name: b/b", "+    kind: echo"]
    assert put_back(file, edited)
    assert file.read_text() == before
    edited = edit_file(file, lambda text: add_entry(text, {"name": "b/b", "kind": "echo"}))
    file.write_text(changed := edited.new + "# by hand\n")
    assert not put_back(file, edited)
    assert file.read_text() == changed


def test_a_file_that_cannot_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(before := "models:\n  - name: a/a\n    kind: echo\n")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"models\.yaml: cannot be written: Read-only file system: correct"):
        edit_file(file, lambda text: add_entry(text, {"name": "b/b", "kind": "echo"}))
    assert file.read_text() == before


def test_a_dollar_sign_in_an_entry_is_no_reference_to_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    path = tmp_path / "models.yaml"
    source = {"hub": "o/r", "file": "${SECRET}$.gguf", "revision": "1"}
    text = add_entry("", {"name": "a/a", "kind": "vllm", "source": source})
    text = change_entry(text, "a/a", ("source", "revision"), "${SECRET}")
    path.write_text(text)
    (model,) = yaml_source.read(path, os.environ).data["models"]
    assert model["source"] == {"hub": "o/r", "file": "${SECRET}$.gguf", "revision": "${SECRET}"}
