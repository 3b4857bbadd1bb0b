"""Models in the files of the folder models.d."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import includes, load
from appliance.domain.errors import ConfigError

ONE = "models:\n  - {name: test/one, kind: echo}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models.yaml").write_text(f"logging: {{format: json}}\n{ONE}")
    (tmp_path / "models.d").mkdir()
    return tmp_path / "models.d"


def refused(folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as refusal:
        load(folder.parent / "models.yaml")
    return refusal.value


def test_models_are_read_in_the_order_of_the_names_of_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "good")
    (folder / "20.yaml").write_text("models:\n  - {name: test/last, kind: echo, readme: README.md}\n")
    (folder / "10.yaml").write_text("models: [{name: test/b, kind: echo, description: '${WORD}'}]\n")
    (folder / "30.yaml").write_text("# nothing yet\n")
    (folder / "notes.txt").write_text("no YAML: [")
    (folder / ".hidden.yaml").write_text("no YAML: [")
    (folder.parent / "README.md").write_text("read me")
    config = load(folder.parent / "models.yaml")
    assert [model.name for model in config.models] == ["test/one", "test/b", "test/last"]
    assert config.models[1].description == "good"
    assert config.models[2].readme == folder.parent / "README.md"
    assert [file.name for file in includes.files(folder.parent / "models.yaml")] == [
        "10.yaml",
        "20.yaml",
        "30.yaml",
    ]


def test_the_main_file_may_have_no_models(folder: Path) -> None:
    (folder.parent / "models.yaml").write_text("logging: {format: json}\n")
    (folder / "a.yaml").write_text(ONE)
    assert [model.name for model in load(folder.parent / "models.yaml").models] == ["test/one"]


def test_errors_name_file_line_model_and_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    (folder / "a.yaml").write_text("\nmodels:\n  - name: test/two\n    kind: echo\n    gpu: x\n")
    error = refused(folder)
    assert (error.file, error.line, error.model, error.key) == (str(folder / "a.yaml"), 5, "test/two", "gpu")
    (folder / "a.yaml").write_text("models:\n  - name: test/two\n    kind: echo\n    gpu: ${MISSING}\n")
    error = refused(folder)
    assert (error.file, error.line, error.model, error.key) == (str(folder / "a.yaml"), 4, "test/two", "gpu")
    (folder / "a.yaml").write_text("models: [\n")
    assert refused(folder).file == str(folder / "a.yaml")


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("{name: test/one, kind: echo}", "name"),
        ("{name: test/two, kind: echo, aliases: [test/x, test/one]}", "aliases[1]"),
    ],
)
def test_a_name_in_two_files_names_both(folder: Path, entry: str, key: str) -> None:
    (folder / "a.yaml").write_text(f"models:\n  - {entry}\n")
    error = refused(folder)
    assert (error.file, error.line, error.key) == (str(folder / "a.yaml"), 2, key)
    assert f"this name is also in {folder.parent / 'models.yaml'}:3: remove" in error.message


def test_a_name_in_two_included_files_names_both(folder: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (folder / name).write_text("models:\n  - {name: test/two, kind: echo}\n")
    error = refused(folder)
    assert error.file == str(folder / "b.yaml")
    assert f"{folder / 'a.yaml'}:2" in error.message


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("- a\n", 1, "should have the key models"),
        ("models: 3\n", 1, "should have the key models"),
        (f"{ONE.replace('one', 'two')}logging: {{format: text}}\n", 3, "has only the key models"),
    ],
)
def test_other_content_is_refused(folder: Path, text: str, line: int, says: str) -> None:
    (folder / "a.yaml").write_text(text)
    error = refused(folder)
    assert (error.file, error.line) == (str(folder / "a.yaml"), line)
    assert says in error.message
