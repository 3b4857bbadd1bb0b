"""The models of a bundle: which are chosen, their config files, and their weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import config
from appliance.bundle import models
from appliance.config.redact import secret_keys
from appliance.domain.errors import ApplianceError, ConfigError
from appliance.runners.adapters import with_downloads

HUB = "{hub: a/b, revision: main}"
TEXT = f"""
# a comment
server:
  account: ${{ACCOUNT:-someone}}
models:
  - name: test/echo # the first
    kind: echo
    aliases: [say]
  - name: test/language
    kind: vllm
    source: {HUB}
    readme: texts/language.md
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "texts" / "language.md", "# Language")
    write(
        tmp_path / "models.d" / "more.yaml", f"models:\n  - {{name: test/more, kind: vllm, source: {HUB}}}\n"
    )
    return write(tmp_path / "models.yaml", TEXT)


#: Name of the LoRA in the options of IMAGES.
INK = "a/images, options.loras.ink"
IMAGES = """models:
  - name: a/images
    kind: diffusers
    source: {hub: a/sdxl, revision: main}
    options:
      controlnets:
        canny: {hub: a/canny, revision: main}
        depth: {path: depth} # of this machine
      loras: {ink: ink.safetensors}
    adapters:
      - {name: a/hub-style, source: {hub: a/style, revision: main}}
      - name: a/own-style
        source:
          path: style
"""


def texts(file: Path, *names: str) -> dict[str, str]:
    loaded = config.load(file)
    return models.config_files(file, loaded, models.choose(loaded, names)).texts


def test_models_are_chosen_by_name_or_alias(file: Path) -> None:
    loaded = config.load(file)
    assert [model.name for model in models.choose(loaded, ["test/more", "say"])] == ["test/echo", "test/more"]
    assert len(models.choose(loaded, [])) == 3
    with pytest.raises(ConfigError, match=r"models\.yaml has no model test/none: choose among test/echo, "):
        models.choose(loaded, ["test/none"])


def test_a_cog_project_is_refused(tmp_path: Path) -> None:
    text = f"code: {{cog: true}}\nmodels:\n  - {{name: a/cog, kind: cog, source: {{path: {tmp_path}}}}}\n"
    loaded = config.load(write(tmp_path / "models.yaml", text))
    with pytest.raises(ApplianceError, match=r"model a/cog is a Cog project, .* with --models"):
        models.choose(loaded, [])


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            '{requirements: ["timm @ https://example.org/timm-1-py3-none-any.whl"]}',
            "has 'timm @ .*and a bundle contains only packages of a package index",
        ),
        ('{requirements: [timm], python: "3.13"}', r"needs Python 3\.13, .* contains only Python 3\.11: "),
    ],
)
def test_an_environment_that_another_machine_cannot_build_is_refused(
    tmp_path: Path, environment: str, says: str
) -> None:
    text = f"models:\n  - {{name: a/model, kind: echo, environment: {environment}}}\n"
    with pytest.raises(ApplianceError, match=rf"^model a/model: .*{says}.*--models"):
        models.choose(config.load(write(tmp_path / "models.yaml", text)), [])


def test_all_config_files_are_taken_as_they_are(file: Path) -> None:
    assert texts(file) == {
        "models.yaml": TEXT,
        "texts/language.md": "# Language",
        "models.d/more.yaml": (file.parent / "models.d" / "more.yaml").read_text(),
    }


def test_models_that_are_not_chosen_are_removed(file: Path) -> None:
    found = texts(file, "test/echo")
    assert found["models.yaml"].startswith("\n# a comment\nserver:\n  account: ${ACCOUNT:-someone}\n")
    assert "test/language" not in found["models.yaml"]
    assert "texts/language.md" not in found
    assert "test/more" not in found["models.d/more.yaml"]


def test_collections_must_not_name_models_that_are_left_out(file: Path, tmp_path: Path) -> None:
    collection = "collections:\n  - {slug: all, name: All, description: x, models: [test/language]}\n"
    file.write_text(f"{collection}{TEXT}")
    loaded = config.load(file)
    for names, valid in (([], True), (["say"], False)):
        folder = tmp_path / ("valid" if valid else "invalid")
        for name, text in texts(file, *names).items():
            write(folder / name, text)
        if valid:
            models.check_written(folder, loaded)
            continue
        with pytest.raises(
            ApplianceError, match=r"not valid with only the models of the bundle: .*test/language"
        ):
            models.check_written(folder, loaded)


def test_tls_files_stay_here(tmp_path: Path) -> None:
    for name in ("certificate.pem", "key.pem"):
        write(tmp_path / name, "secret")
    text = (
        "server:\n  tls: {certificate: certificate.pem, key: key.pem}\nmodels:\n  - {name: a/b, kind: echo}\n"
    )
    loaded = config.load(write(tmp_path / "models.yaml", text))
    files = models.config_files(tmp_path / "models.yaml", loaded, loaded.models)
    assert files.texts == {"models.yaml": text}
    assert "key.pem, which are not in the bundle: copy them" in files.notes[0]
    models.check_written(write(tmp_path / "there" / "models.yaml", text).parent, loaded)


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        ("http://me:pass@collector:4318", False),
        ("http://${USER}:${OTLP_PASSWORD}@collector:4318", True),
        ("http://me:${OTLP_PASSWORD:-pass}@collector:4318", False),
        ("http://collector:4318/?token=${OTLP_PASSWORD}", True),
        ("http://collector:4318/?token=abc", False),
        ("http://collector:4318", True),
    ],
)
def test_a_secret_in_the_file_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str, fine: bool
) -> None:
    monkeypatch.setenv("OTLP_PASSWORD", "hidden")
    monkeypatch.setenv("USER", "me")
    file.write_text(f"telemetry: {{otlp_endpoint: '{value}'}}\n{TEXT}")
    if fine:
        assert value in texts(file)["models.yaml"]
        return
    with pytest.raises(
        ApplianceError, match=r"key telemetry\.otlp_endpoint contains a secret, .* \$\{SECRET\}"
    ):
        texts(file)


def test_a_readme_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    readme = write(tmp_path / "readme.md", "x")
    text = f"models:\n  - {{name: a/b, kind: echo, readme: {readme}}}\n"
    file = write(tmp_path / "folder" / "models.yaml", text)
    with pytest.raises(ApplianceError, match=r"model a/b: the readme .* use a relative path"):
        texts(file)


def test_weights_at_a_path_move_into_the_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "the weights"
    write(folder / "config.json", "{}")
    write(folder / "deep" / "model.safetensors", "w")
    (folder / "link.json").symlink_to(folder / "config.json")
    text = f"models:\n  - name: a/b\n    kind: vllm\n    source:\n      path: {folder} # here\n"
    file = write(tmp_path / "models.yaml", text)
    model = config.load(file).models[0]
    name = models.local_name(model)
    assert name.startswith("local/")
    assert name.endswith("-the weights")
    assert texts(file)["models.yaml"] == text.replace(str(folder), name)
    members = models.weight_files(tmp_path / "home", [model])
    assert [member.name for member in members] == [
        f"{name}/config.json",
        f"{name}/link.json",
        f"{name}/deep/model.safetensors",
    ]


def test_downloaded_weights_keep_their_place_in_the_data_folder(file: Path, tmp_path: Path) -> None:
    loaded = config.load(file)
    folder = models.weights_folder(tmp_path / "home", loaded.models[1])
    assert folder is not None
    with pytest.raises(ApplianceError, match="the weights of model test/language are missing"):
        models.weight_files(tmp_path / "home", loaded.models)
    write(folder / "config.json", "{}")
    # two models with the same source
    assert [member.name for member in models.weight_files(tmp_path / "home", loaded.models)] == [
        f"weights/hub/{folder.name}/config.json"
    ]


def images(folder: Path) -> Path:
    """Write IMAGES, and the files that it names by a path."""
    write(folder / "depth" / "model.safetensors", "depth")
    write(folder / "style" / "adapter.safetensors", "style")
    write(folder / "ink.safetensors", "ink")
    return write(folder / "models.yaml", IMAGES)


def test_weights_of_components_and_adapters_are_taken(tmp_path: Path) -> None:
    home = tmp_path / "home"
    chosen = config.load(images(tmp_path)).models
    loaded = models.all_weights(chosen)
    names = [each.name for each in loaded]
    assert names == [
        *("a/images", "a/images, options.controlnets.canny", "a/images, options.controlnets.depth"),
        *("a/hub-style", "a/own-style", "a/images, options.loras.ink"),
    ]
    assert {each.name for each in with_downloads(chosen)} <= set(names)
    for at, missing in ((1, "a/images, options.controlnets.canny"), (3, "a/hub-style")):
        with pytest.raises(ApplianceError, match=f"the weights of model {missing} are missing"):
            models.weight_files(home, [loaded[at]])
    for at in (0, 1, 3):
        folder = models.weights_folder(home, loaded[at])
        assert folder is not None
        write(folder / "x.safetensors", "x")
    tops = [models.weights_name(home, each) for each in loaded]
    assert [member.name for member in models.weight_files(home, loaded)] == [
        f"{tops[0]}/x.safetensors",
        f"{tops[1]}/x.safetensors",
        f"{tops[2]}/model.safetensors",
        f"{tops[3]}/x.safetensors",
        f"{tops[4]}/adapter.safetensors",
        tops[5],
    ]
    assert [str(top).partition("/")[0] for top in tops] == [
        *("weights", "weights", "local", "weights", "local", "local")
    ]


def test_paths_of_components_and_adapters_are_changed_to_those_in_the_bundle(tmp_path: Path) -> None:
    file = images(tmp_path)
    loaded = config.load(file)
    by_name = {each.name: each for each in models.all_weights(loaded.models)}
    depth = models.local_name(by_name["a/images, options.controlnets.depth"])
    style, ink = models.local_name(by_name["a/own-style"]), models.local_name(by_name[INK])
    written = texts(file)["models.yaml"]
    assert written == (
        IMAGES.replace("path: depth", f"path: {depth}")
        .replace("path: style", f"path: {style}")
        .replace("ink.safetensors", ink)
    )
    there = tmp_path / "there"
    models.check_written(write(there / "models.yaml", written).parent, loaded)
    found = {each.name: each.source for each in models.all_weights(config.load(there / "models.yaml").models)}
    for name, path in (("a/own-style", style), (INK, ink)):
        assert found[name] == config.FolderSource(path=there / path)


def test_a_path_that_cannot_be_changed_is_named(tmp_path: Path) -> None:
    images(tmp_path)
    text = IMAGES.replace("depth: {path: depth}", "depth: &same {path: depth}\n        scribble: *same")
    file = write(tmp_path / "models.yaml", text)
    with pytest.raises(ConfigError, match=r"key options\.controlnets\.depth\.path of model a/images by hand"):
        texts(file)


def test_secrets_are_found_by_their_keys() -> None:
    data = {
        "models": [{"options": {"environment": {"ANY": "x"}, "api_token": "t", "max_tokens": "5"}}],
        "url": "https://me@host/?password=p&page=2",
        "plain": "words",
    }
    assert list(secret_keys(data)) == [
        ("models.options.environment.ANY", "x"),
        ("models.options.api_token", "t"),
        ("url", "me"),
        ("url", "p"),
    ]
