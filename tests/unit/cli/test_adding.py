"""The commands search, add, remove, update and prune, on folders and against a hub on loopback."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from appliance import config
from appliance.adding import propose
from appliance.adding.proposal import split_revision
from appliance.cli import main
from tests.support.stub_hub import StubHub, serving_hub
from tests.support.web_server import Answer, serving

CONFIG = "# mine\nmodels:\n  - name: test/echo # for tests\n    kind: echo\n\ncode: {cog: true} # mine too\n"
LLM = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
FILES = {"config.json": LLM, "model.safetensors": bytes(200_000)}

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    for name in ("APPLIANCE_TOKEN", "REPLICATE_API_TOKEN", "APPLIANCE_CATALOGUE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "models.yaml").write_text(CONFIG)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["appliance", *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    with serving_hub() as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


def difference(old: str) -> list[str]:
    new = Path("models.yaml").read_text()
    return [line for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]


def folder(name: str, files: dict[str, Any]) -> Path:
    path = Path(name)
    for file, content in files.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("vllm", FILES),
        ("embeddings", {**FILES, "modules.json": []}),
        (
            "diffusers",
            {
                "model_index.json": {"_class_name": "FluxPipeline", "unet": ["diffusers", "X"]},
                "unet/a.safetensors": b"x",
                "unet/config.json": {},
            },
        ),
        ("whisper", {"model.bin": b"x", "config.json": {}, "vocabulary.txt": b"x"}),
        ("piper", {"joe.onnx": b"x", "joe.onnx.json": {}}),
    ],
)
def test_a_folder_is_added_with_one_new_entry(command: Command, kind: str, files: dict[str, Any]) -> None:
    path = folder("My Model", files)
    code, out, err = command("add", "./My Model", "--yes")
    assert (code, err) == (0, "")
    assert f"kind {kind}" in out
    entry = ["+   - name: local/my-model", f"+     kind: {kind}", "+     source:"]
    assert difference(CONFIG) == [*entry, f"+       path: {path.absolute()}"]
    assert [model.kind for model in config.load(Path("models.yaml")).models] == ["echo", kind]


def test_weights_that_the_kind_cannot_load_are_refused(command: Command) -> None:
    folder("model", {"model_index.json": {"unet": ["diffusers", "X"]}, "unet/a.safetensors": b"x"})
    code, _, err = command("add", "./model", "--yes")
    assert (code, Path("models.yaml").read_text()) == (1, CONFIG)
    assert "names the pipeline None, which diffusers does not have" in err


def test_a_dry_run_shows_the_change_and_makes_none(command: Command) -> None:
    path = folder("model", FILES)
    code, out, err = command("add", "./model", "--dry-run")
    assert (code, err, Path("models.yaml").read_text()) == (0, "", CONFIG)
    lines = ["+  - name: local/model", "+    kind: vllm", "+    source:", f"+      path: {path.absolute()}"]
    assert [line for line in out.splitlines() if line[0] in "+-"] == [
        "--- models.yaml",
        "+++ models.yaml",
        *lines,
    ]


def test_on_a_head_that_runs_no_models_it_is_not_known_what_fits(command: Command) -> None:
    head = "hardware: {devices: none}\ncluster: {address: a}\n"
    Path("models.yaml").write_text(head + CONFIG)
    folder("model", FILES)
    code, out, err = command("add", "./model", "--dry-run")
    assert (code, err) == (0, "")
    assert "not known whether it fits, because no node has joined" in out
    folder("project", {"cog.yaml": b"run: run.py:Runner\n", "run.py": b"class Runner: pass\n"})
    code, _, err = command("add", "./project", "--yes")
    assert code == 1
    assert "Cog project: it runs only on the head of the cluster, which runs no models" in err


def test_a_kind_and_a_task_are_written(command: Command) -> None:
    t5 = json.dumps({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}).encode()
    folder("t5", {**FILES, "config.json": t5})
    code, _, err = command("add", "./t5", "--yes")
    assert (code, Path("models.yaml").read_text()) == (1, CONFIG)
    assert "name the task with --task" in err
    assert command("add", "./t5", "--kind", "transformers", "--task", "summarize", "--yes")[0] == 1
    code, out, err = command("add", "./t5", "--kind", "transformers", "--task", "summarization", "--yes")
    assert (code, err) == (0, ""), err
    assert "T5ForConditionalGeneration, for summarization" in out
    assert difference(CONFIG)[-2:] == ["+     options:", "+       task: summarization"]


def test_the_hub_is_searched(command: Command, hub: StubHub) -> None:
    hub.add("Org/Whisper-Model", FILES)
    hub.add("Org/Other", FILES)
    code, out, err = command("search", "whisper", "--hub")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["source", "hub:Org/Whisper-Model"]
    assert json.loads(command("search", "other", "--hub", "--json")[1])[0]["licence"] == "apache-2.0"
    code, _, err = command("search", "zzz", "--hub")
    assert (code, "the hub has no model whose name contains 'zzz'" in err) == (1, True)


def test_a_repository_is_added_updated_removed_and_pruned(command: Command, hub: StubHub) -> None:
    first = hub.add("Org/Model", FILES)
    code, out, err = command("add", "hub:Org/Model", "--name", "me/llm", "--yes")
    assert (code, err) == (0, ""), err
    assert "195.3 KiB to download" in out
    assert "licence   apache-2.0" in out
    assert "models.yaml was not reloaded" in out
    lines = ["- name: me/llm", "  kind: vllm", "  source:", "    hub: Org/Model", f"    revision: {first}"]
    assert difference(CONFIG) == [f"+   {line}" for line in lines]
    assert command("update", "me/llm", "--yes")[1] == f"me/llm is at the newest revision, {first}\n"

    added = Path("models.yaml").read_text()
    second = hub.add("Org/Model", {**FILES, "model.safetensors": bytes(100_000)})
    code, out, err = command("update", "me/llm", "--yes")
    assert (code, err) == (0, "")
    assert f"me/llm: {first} -> {second}" in out
    assert [line for line in difference(added) if line[0] == "+"] == [f"+       revision: {second}"]

    code, out, err = command("prune", "--yes")
    assert (code, err) == (0, "")
    assert "Model" in out
    assert "freed 195" in out
    code, out, err = command("remove", "me/llm", "--yes", "--prune")
    assert (code, err) == (0, "")
    assert Path("models.yaml").read_text() == CONFIG
    assert "there is nothing unused" in command("prune", "--yes")[1]
    assert list(Path("home/weights/hub").iterdir()) == []


def test_a_short_name_is_looked_up_in_the_catalogue(command: Command, hub: StubHub) -> None:
    hub.add("Systran/faster-whisper-large-v3", {"model.bin": bytes(9000), "config.json": b"{}"})
    code, out, err = command("add", "whisper-large-v3", "--yes", "--force")
    assert (code, err) == (0, "")
    assert "has not been run with the appliance yet" in out
    added = config.load(Path("models.yaml")).models[1]
    assert (added.name, added.aliases) == ("systran/whisper-large-v3", ("openai/whisper",))


def test_a_git_repository_with_a_cog_project_is_recognised(command: Command, tmp_path: Path) -> None:
    project = folder("project", {"cog.yaml": b"build: {}\n"}).absolute()
    for arguments in (
        ("init", "--quiet"),
        ("add", "."),
        ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "x"),
    ):
        subprocess.run(["git", *arguments], cwd=project, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, check=True, capture_output=True, text=True
    ).stdout.strip()
    proposal = propose(f"git:{project}", tmp_path / "home")
    assert proposal.entry["source"] == {"git": str(project), "revision": head}
    assert (proposal.name, proposal.entry["kind"]) == ("local/project", "cog")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("https://h/o/r", ("https://h/o/r", "")),
        ("https://h/o/r.git@feature/x", ("https://h/o/r.git", "feature/x")),
        ("https://me@h/o/r", ("https://me@h/o/r", "")),
        ("git@h:o/r.git", ("git@h:o/r.git", "")),
        ("git@h:o/r.git@v1", ("git@h:o/r.git", "v1")),
        ("/srv/r@v1", ("/srv/r", "v1")),
    ],
)
def test_a_revision_follows_the_url(text: str, parts: tuple[str, str]) -> None:
    assert split_revision(text) == parts


def test_the_running_appliance_is_asked_and_reloaded(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {
        "devices": [
            {
                "name": "cuda:0",
                "kind": "cuda",
                "memory": 3 * 1024**3,
                "is_main_memory": False,
                "free": 0,
                "reserved": {"test/echo": 3 * 1024**3},
            }
        ],
        "models": [{"name": "test/echo", "pinned": False}],
    }
    folder("model", FILES)
    with serving() as origin:
        origin.answers["/admin/status"] = Answer(json.dumps(status).encode())
        monkeypatch.setenv("APPLIANCE_URL", origin.url)
        monkeypatch.setenv("APPLIANCE_TOKEN", "t")
        origin.posted["/admin/reload"] = Answer(b'{"added": ["local/model"]}')
        code, out, err = command("add", "./model", "--yes")
    assert (code, err) == (0, "")
    assert "fits on cuda:0 after evicting test/echo" in out
    assert out.endswith("added local/model\n")


def test_a_failing_reload_puts_the_file_back(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    folder("model", FILES)
    with serving() as origin:
        origin.answers["/admin/status"] = Answer(b'{"devices": [], "models": []}')
        monkeypatch.setenv("APPLIANCE_URL", origin.url)
        monkeypatch.setenv("APPLIANCE_TOKEN", "t")
        problem = b'{"title": "Bad request", "detail": "it has an error", "status": 400}'
        origin.posted["/admin/reload"] = Answer(problem, status=400)
        code, _, err = command("remove", "test/other", "--yes")
        assert (code, "has no model test/other" in err) == (2, True)
        Path("models.yaml").write_text(
            before := CONFIG.replace("code:", "  - name: a/a\n    kind: echo\ncode:")
        )
        code, _, err = command("remove", "a/a", "--yes")
    assert code == 1
    assert "the appliance did not reload: " in err
    assert "it has an error" in err
    assert err.rstrip().endswith("models.yaml is as before")
    assert Path("models.yaml").read_text() == before


def test_nothing_is_written_without_a_yes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    folder("model", FILES)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert command("add", "./model")[0] == 1
    assert command("remove", "test/echo")[0] != 0
    assert Path("models.yaml").read_text() == CONFIG


def test_what_cannot_be_added_is_refused_and_nothing_is_written(command: Command) -> None:
    folder("readme", {"README.md": b"x"})
    folder("model", FILES)
    for arguments, code, message in (
        (("add", "./readme"), 1, "is not recognised: looked for cog.yaml"),
        (("add", "./missing"), 1, "./missing is neither a folder nor in the catalogue"),
        (("add", "qwen2.5-0.5"), 1, "did you mean qwen2.5-0.5b"),
        (("add", "./model", "--name", "test/echo"), 2, "has a model test/echo already"),
        (("add", "./model", "--name", "nothing"), 1, "choose a name with --name owner/name"),
        (("add", "pypi:thing"), 1, "write pypi:package==version/path"),
        (("remove", "no/model"), 2, "has no model no/model: choose among test/echo"),
        (("remove", "test/echo"), 2, "should have at least one item"),
        (("update", "test/echo"), 1, "is not from the hub or from git"),
        (("search", "zzzzzz"), 1, "the catalogue has no model like 'zzzzzz'"),
    ):
        ended, _, err = command(*arguments, *(("--yes",) if arguments[0] != "search" else ()))
        assert (ended, message in err) == (code, True), err
    assert Path("models.yaml").read_text() == CONFIG


def test_a_model_that_fits_nowhere_is_added_only_by_force(command: Command) -> None:
    Path("models.yaml").write_text(f"{CONFIG}hardware:\n  devices: [{{name: small, memory: 100MiB}}]\n")
    folder("model", FILES)
    before = Path("models.yaml").read_text()
    code, _, err = command("add", "./model", "--yes")
    assert (code, Path("models.yaml").read_text()) == (1, before)
    assert "the largest device has 100.0 MiB: choose a smaller model, or add it anyway with --force" in err


def test_search_shows_what_fits(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models.yaml").write_text(f"{CONFIG}hardware:\n  devices: [{{name: small, memory: 4GiB}}]\n")
    code, out, _ = command("search", "wisper")
    assert code == 0
    assert out.splitlines()[0].split()[-2:] == ["here", "tested"]
    rows = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert "fits on small" in rows["whisper-small"]
    assert "does not fit" in rows["whisper-large-v3"]
    monkeypatch.setenv("COLUMNS", "80")
    assert "whisper-large-v3 " in command("search", "whisper")[1]
    found = json.loads(command("search", "sdxl", "--json")[1])
    assert [(model["short"], model["fit"]["state"]) for model in found] == [("sdxl", "does not fit")]


def test_help_shows_that_a_revision_is_optional(command: Command) -> None:
    """Rich would read ``[@revision]`` as markup and drop it."""
    _, out, _ = command("add", "--help")
    assert "hub:owner/name[@revision]" in out
    assert "git:URL[@revision]" in out
