"""A whole bundle, made of small wheels and without a network, and what its scripts do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from appliance import config
from appliance.bundle import create, licences, models, place, toolchain, wheels
from appliance.bundle.create import BundlePlan, Created
from appliance.bundle.wheels import BundledWheel
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.weights import http_download

ROOT = Path(__file__).parents[3]
#: The environment that stands in for the one that uv would fill.
PACKAGES = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
QUIET = Progress(disable=True)
TEXT = """
models:
  - {name: test/echo, kind: echo}
  - name: test/language
    kind: vllm
    license_url: https://example.org/licence
    source: {hub: a/b, revision: main}
"""
#: A uv that only records how it is called, and makes an environment of this Python.
UV = f"""#!/bin/bash
echo "$*" >> "$LOG"
folder=${{!#}}
[[ $1 != venv ]] || {{ mkdir -p "$folder/bin" && ln -s {sys.executable} "$folder/bin/python"; }}
"""


def make_wheel(folder: Path, name: str, headers: str = "") -> Path:
    file = folder / f"{name}-1-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}-1.dist-info/METADATA", f"Name: {name}\nVersion: 1\n{headers}\n\ntext")
        archive.writestr(f"{name}-1.dist-info/licenses/LICENSE", "licence")
        archive.writestr(f"{name}-1.dist-info/LICENSE.txt", "licence")
    return file


class Site:
    """A checkout with a lock of one package, its config and data folder, and folders to unpack a bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "checkout"
        self.home = folder / "home"
        self.target = folder / "bundle.tar"
        self.log = folder / "log"
        (self.root / "requirements").mkdir(parents=True)
        (self.root / "requirements" / "cpu.lock").write_text("x==1\n")
        (self.root / "pyproject.toml").touch()
        (self.root / "appliance" / "assets" / "manual").mkdir(parents=True)
        (self.root / "appliance" / "assets" / "manual" / "index.html").touch()
        (self.root / "scripts").symlink_to(ROOT / "scripts")
        self.config = folder / "models.yaml"
        self.config.write_text(TEXT)
        weights = models.weights_folder(self.home, self.loaded().models[1])
        assert weights is not None
        self.weights = weights
        self.weights.mkdir(parents=True)
        (self.weights / "model.safetensors").write_bytes(b"weights")
        (self.weights / "LICENSE").write_text("licence of the weights")

    def loaded(self) -> config.Config:
        return config.load(self.config)

    def plan(self, *names: str, python: bool = False) -> BundlePlan:
        return create.plan(self.root, self.loaded(), self.home, names, "cpu", python=python)

    def create(self, planned: BundlePlan | None = None) -> Created:
        planned = planned or self.plan()
        return create.create(self.root, self.config, self.loaded(), self.home, self.target, planned, QUIET)

    def unpacked(self) -> Path:
        there = self.folder / "there"
        there.mkdir()
        subprocess.run(["tar", "xf", self.target, "-C", there], check=True)
        (found,) = there.iterdir()
        return found

    def install(self, bundle: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.log.touch()
        environment = {**os.environ, "LOG": str(self.log), "PYTHONPATH": PACKAGES, **variables}
        environment.setdefault("APPLIANCE_HOME", str(self.folder / "home there"))
        return subprocess.run(
            [bundle / "install", "--python", sys.executable, *arguments]
            if "--python" not in arguments
            else [bundle / "install", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path)
    file = make_wheel(tmp_path / "wheels", "x", "License-Expression: MIT")
    digest = http_download.sha256_of(file)
    wheel = BundledWheel("x", "1", file.name, file.as_uri(), digest, file.stat().st_size, 28)
    monkeypatch.setattr(wheels, "resolve", lambda *_: [wheel])
    monkeypatch.setattr(toolchain, "build_wheel", lambda _root, folder: make_wheel(folder, "appliance"))
    (tmp_path / "uv").write_text(UV)
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setattr(toolchain, "uv_program", lambda: str(tmp_path / "uv"))
    monkeypatch.delenv("APPLIANCE_CATALOGUE", raising=False)
    return site


def test_every_file_has_its_checksum(site: Site) -> None:
    planned = site.plan()
    assert planned.missing == []
    assert planned.weights == len(b"weights" + b"licence of the weights")
    assert planned.size > planned.packages + planned.weights
    created = site.create(planned)
    assert created.size == site.target.stat().st_size
    assert created.sha256 == http_download.sha256_of(site.target)
    bundle = site.unpacked()
    sums = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, capture_output=True)
    assert sums.returncode == 0, sums.stderr
    listed = {line.partition("  ")[2] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files == listed | {"SHA256SUMS"}
    assert len(files) == created.files + 1
    assert files == {
        *("install", "serve", "uv", "bundle.conf", "SHA256SUMS", "licences.json", "requirements.lock"),
        *("scripts/preflight", "config/models.yaml"),
        *("wheels/x-1-py3-none-any.whl", "wheels/appliance-1-py3-none-any.whl"),
        *(f"weights/hub/{site.weights.name}/{name}" for name in ("model.safetensors", "LICENSE")),
    }
    assert os.access(bundle / "install", os.X_OK)
    assert (bundle / "config" / "models.yaml").read_text() == TEXT


def test_licences_are_listed(site: Site) -> None:
    site.create()
    found = json.loads((site.unpacked() / "licences.json").read_text())
    language = found["models"][1]
    assert language["license_url"] == "https://example.org/licence"
    assert language["source"] == {"hub": "a/b", "revision": "main", "file": None}
    assert language["files"] == [f"weights/hub/{site.weights.name}/LICENSE"]
    (package,) = [each for each in found["packages"] if each["name"] == "x"]
    assert package["licence"] == "MIT"
    assert package["files"] == ["x-1.dist-info/licenses/LICENSE", "x-1.dist-info/LICENSE.txt"]


def test_a_licence_that_is_not_known_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise WeightsError("the hub cannot be reached")

    monkeypatch.setattr(licences, "list_repository", unreachable)
    site.config.write_text(TEXT.replace("    license_url: https://example.org/licence\n", ""))
    (site.weights / "LICENSE").unlink()
    assert site.create().notes == [
        "the licence of model test/language is not known: read it at the source of its weights"
    ]


def test_an_own_catalogue_is_in_the_bundle(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.folder / "own.yaml").write_text("version: 1\nmodels: []\n")
    monkeypatch.setenv("APPLIANCE_CATALOGUE", str(site.folder / "own.yaml"))
    site.create()
    assert (site.unpacked() / "catalogue.yaml").read_text() == "version: 1\nmodels: []\n"


def test_a_file_is_never_replaced(site: Site) -> None:
    site.target.write_text("mine")
    with pytest.raises(ApplianceError, match=r"bundle\.tar exists already: choose another name"):
        site.create()
    assert site.target.read_text() == "mine"


def test_an_interrupted_bundle_leaves_only_its_downloads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    before = set(site.folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(create, "add_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            site.create()
    assert set(site.folder.iterdir()) - before == {site.folder / ".bundle.tar.downloads"}
    site.create()
    assert set(site.folder.iterdir()) - before == {site.target}


def test_a_full_disk_is_named_with_sizes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(site.folder)._replace(free=1024**2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ApplianceError, match=r"has 1\.0 MiB of free space, and the bundle needs 400\.\d MiB"):
        site.create()
    assert not site.target.exists()


def test_weights_that_cannot_be_downloaded_are_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.rmtree(site.weights)
    planned = site.plan()
    assert planned.missing == ["test/language"]
    with pytest.raises(
        ApplianceError,
        match=r"weights of model test/language are not on this machine, .*run `appliance pull test/language`",
    ):
        site.create(planned)
    assert site.create(site.plan("test/echo")).files == 10


ADAPTERS = """    adapters:
      - {name: test/style, source: {hub: a/style, revision: main}}
      - {name: test/own, source: {path: own}}
"""


def test_adapters_that_cannot_be_downloaded_are_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (site.folder / "own").mkdir()
    site.config.write_text(TEXT + ADAPTERS)
    planned = site.plan()
    assert planned.missing == ["test/style"]
    with pytest.raises(
        ApplianceError,
        match=r"weights of model test/style are not on this machine, .*run `appliance pull test/language` .*"
        r"leave the model test/language out",
    ):
        site.create(planned)


def test_a_bundle_needs_a_checkout(site: Site) -> None:
    (site.root / "appliance" / "assets" / "manual" / "index.html").unlink()
    with pytest.raises(ApplianceError, match=r"manual, .* has not been built: run scripts/install"):
        site.plan()
    shutil.rmtree(site.root / "requirements")
    with pytest.raises(ApplianceError, match="a bundle is made from a checkout"):
        site.plan()


# -- on the other machine ----------------------------------------------------------------------------------


def test_it_installs_packages_weights_and_config(site: Site) -> None:
    site.create()
    bundle = site.unpacked()
    ran = site.install(bundle)
    assert ran.returncode == 0, ran.stderr
    calls = site.log.read_text().splitlines()
    assert calls[0] == f"venv --quiet --python {sys.executable} .venv"
    assert "--no-index --find-links wheels --require-hashes" in calls[1]
    assert calls[2].endswith(" wheels/appliance-1-py3-none-any.whl")
    assert (bundle / "models.yaml").read_text() == TEXT
    placed = site.folder / "home there" / site.weights.relative_to(site.home) / "model.safetensors"
    assert placed.read_bytes() == b"weights"
    assert placed.stat().st_nlink == 2  # no second copy on the disk
    (bundle / "models.yaml").write_text("edited")
    again = subprocess.run([bundle / "install"], capture_output=True, text=True, check=True)
    assert (again.stdout, len(site.log.read_text().splitlines())) == ("", 3)
    environment = {**os.environ, "PYTHONPATH": PACKAGES}
    command = [str(bundle / "install"), "--home", str(site.folder / "other")]
    subprocess.run(command, env=environment, check=True)
    assert (bundle / "models.yaml").read_text() == "edited"


def test_it_installs_adapters(site: Site) -> None:
    site.config.write_text(TEXT + ADAPTERS)
    (site.folder / "own").mkdir()
    (site.folder / "own" / "LICENSE").write_text("own")
    style = models.weights_folder(site.home, models.all_weights(site.loaded().models)[2])
    assert style is not None
    style.mkdir()
    (style / "LICENSE").write_text("style")
    site.create()
    shutil.rmtree(site.folder / "own")
    bundle = site.unpacked()
    ran = site.install(bundle)
    assert ran.returncode == 0, ran.stderr
    assert (site.folder / "home there" / style.relative_to(site.home) / "LICENSE").read_text() == "style"
    own = models.all_weights(config.load(bundle / "models.yaml").models)[3]
    assert isinstance(own.source, config.FolderSource)
    assert own.source.path.is_relative_to(bundle / "local")
    assert (own.source.path / "LICENSE").read_text() == "own"
    described = json.loads((bundle / "licences.json").read_text())["models"]
    assert {each["name"]: len(each["files"]) for each in described} == {
        "test/echo": 0,
        "test/language": 1,
        "test/style": 1,
        "test/own": 1,
    }


def test_another_data_folder_is_remembered(site: Site) -> None:
    site.create()
    bundle = site.unpacked()
    assert site.install(bundle, "--home", str(site.folder / "other")).returncode == 0
    assert (bundle / ".home").read_text() == f"{site.folder}/other\n"
    assert (site.folder / "other" / site.weights.relative_to(site.home)).is_dir()
    program = bundle / ".venv" / "bin" / "appliance"
    program.write_text('#!/bin/bash\necho "$APPLIANCE_HOME $*"\n')
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "APPLIANCE_HOME"}
    command = [str(bundle / "serve"), "--port", "9"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{site.folder}/other serve --config {bundle}/models.yaml --port 9\n"


@pytest.mark.parametrize(
    "name",
    ["bundle.conf", "scripts/preflight", "wheels/x-1-py3-none-any.whl", "config/models.yaml", "weights"],
)
@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "missing"])
def test_a_damaged_file_is_named_before_anything_is_used(site: Site, name: str, gone: bool) -> None:
    site.create()
    bundle = site.unpacked()
    file = bundle / name
    if name == "weights":
        (file,) = file.rglob("*.safetensors")
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    ran = site.install(bundle)
    assert ran.returncode == 1
    assert f"these files are damaged or missing: {file.relative_to(bundle)}: copy" in ran.stderr
    assert not (bundle / ".venv").exists()
    assert site.log.read_text() == ""


def test_a_list_of_checksums_that_is_not_whole_is_refused(site: Site) -> None:
    site.create()
    bundle = site.unpacked()
    with (bundle / "SHA256SUMS").open("a") as sums:
        sums.write("not a line of sha256sum\n")
    ran = site.install(bundle)
    assert (ran.returncode, site.log.read_text()) == (1, "")
    assert "damaged or missing: SHA256SUMS" in ran.stderr


def fake(folder: Path, program: str, text: str) -> str:
    """Put a program before all others, and return PATH."""
    folder.mkdir(exist_ok=True)
    (folder / program).write_text(f"#!/bin/bash\n{text}\n")
    (folder / program).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("program", "text", "says"),
    [
        ("uname", "[[ $1 == -s ]] && echo Linux || echo riscv64", "this machine has Linux on riscv64"),
        (
            "getconf",
            "echo glibc 2.27",
            "this bundle needs glibc 2.28 or newer, and this system has glibc 2.27",
        ),
        ("df", "printf 'Avail\\n100\\n'", "free disk space: the packages need 1 GiB, and "),
    ],
)
def test_a_machine_that_does_not_fit_is_refused(site: Site, program: str, text: str, says: str) -> None:
    site.create()
    bundle = site.unpacked()
    ran = site.install(bundle, PATH=fake(site.folder / "bin", program, text))
    assert (ran.returncode, site.log.read_text()) == (1, "")
    assert says in ran.stderr


def test_another_python_is_refused(site: Site) -> None:
    site.create()
    bundle = site.unpacked()
    old = site.folder / "bin" / "old"
    path = fake(site.folder / "bin", "old", "exit 1")
    assert f"{old} is not Python {toolchain.VERSION}" in site.install(bundle, "--python", str(old)).stderr
    for name in (f"python{toolchain.VERSION}", "python3"):
        fake(site.folder / "bin", name, "exit 1")
    ran = subprocess.run(
        [bundle / "install"], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert (
        f"has no Python, and Python {toolchain.VERSION} is not on PATH: install it, or name it" in ran.stderr
    )


def test_the_python_of_the_bundle_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an archive that stands in for the one that uv downloads: it has a link to this Python."""
    packed = site.folder / "python.tar"
    (site.folder / "python" / "bin").mkdir(parents=True)
    (site.folder / "python" / "bin" / "python3").symlink_to(sys.executable)
    subprocess.run(["tar", "cf", packed, "-C", site.folder, "python"], check=True)
    monkeypatch.setattr(toolchain, "pack_python", lambda _: packed)
    site.create(site.plan(python=True))
    bundle = site.unpacked()
    environment = {**os.environ, "LOG": str(site.log), "PYTHONPATH": PACKAGES}
    home = str(site.folder / "home there")
    subprocess.run([bundle / "install", "--home", home], env=environment, check=True)
    assert site.log.read_text().startswith(f"venv --quiet --python {bundle}/.python/python/bin/python3 ")


def test_weights_need_space_on_another_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.create()
    bundle = site.unpacked()
    other = Path("/dev/shm") / site.folder.name  # a file system of its own
    other.mkdir()
    try:
        usage = shutil.disk_usage(other)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
            with pytest.raises(
                ApplianceError, match=r"has 1 bytes of free space, and the weights need 29 bytes"
            ):
                place.place(bundle, other, QUIET)
        place.place(bundle, other, QUIET)
        assert (other / site.weights.relative_to(site.home) / "model.safetensors").read_bytes() == b"weights"
        assert not list((other / "weights" / ".partial").iterdir())
    finally:
        shutil.rmtree(other)
