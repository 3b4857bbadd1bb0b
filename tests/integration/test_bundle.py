"""A bundle, installed and served in a network namespace that reaches no other machine.

Reduced: the bundle has two packages of requirements/cpu.lock instead of about 200, because those are 1.1 GiB
to download and take minutes to compile. The others are those of the tests, through PYTHONPATH. It has no
Python, which comes from GitHub. Everything else is real: the hashes of the lock file, the package index, uv,
the wheel of the appliance, the weights as they are stored, both scripts, and the appliance that they start.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from rich.progress import Progress

from appliance import config
from appliance.bundle import create
from appliance.bundle.models import weights_folder
from tests.support import offline_site, tiny_models
from tests.support.appliance_process import ROOT, free_port, link_weights

pytestmark = pytest.mark.integration

PACKAGES = ("msgspec", "packaging")
HUMANIZE = "4.12.3"  # a package that the appliance does not have
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def reduced_lock() -> str:
    """The entries of ``PACKAGES`` in the lock file for CPUs."""
    entries = re.split(r"^(?=[a-z])", (ROOT / "requirements" / "cpu.lock").read_text(), flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.startswith(tuple(f"{name}==" for name in PACKAGES)))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a bundle is made from, with the reduced lock file."""
    root = tmp_path_factory.mktemp("checkout")
    if not (ROOT / "appliance" / "assets" / "manual" / "index.html").exists():
        subprocess.run([ROOT / "scripts" / "install", "--dev"], check=True)
    for name in ("appliance", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "models.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "requirements").mkdir()
    (root / "requirements" / "cpu.lock").write_text(reduced_lock())
    return root


def test_it_is_served_without_a_network(checkout: Path, tmp_path: Path) -> None:
    possible = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, check=False)
    if possible.returncode != 0:
        pytest.skip(f"this kernel lets no user create a network namespace: {possible.stderr.strip()}")

    tiny_models.text_classification(tmp_path / "tiny")
    entry = next(
        part
        for part in re.split(r"^  (?=- name: )", (ROOT / "models.yaml").read_text(), flags=re.MULTILINE)
        if part.startswith("- name: appliance/all-minilm-l6-v2\n")
    )
    models = tmp_path / "models.yaml"
    models.write_text(
        "server:\n  account: ${ACCOUNT:-someone}\nmodels:\n"
        "  - {name: test/echo, kind: echo}\n"
        f"  - {{name: test/own, kind: echo, environment: {{requirements: [humanize=={HUMANIZE}]}}}}\n"
        f"  - {{name: test/tiny, kind: transformers, source: {{path: {tmp_path / 'tiny'}}}, "
        "options: {task: text-classification}}\n"
        f"  {entry}"
    )
    home = tmp_path / "home"
    link_weights(home)
    loaded = config.load(models)
    planned = create.plan(checkout, loaded, home, [], "cpu", python=False)
    assert sorted(wheel.package for wheel in planned.wheels) == sorted(PACKAGES)
    target = tmp_path / "appliance.tar"
    create.create(checkout, models, loaded, home, target, planned, Progress(disable=True))

    there = tmp_path / "there"
    there.mkdir()
    subprocess.run(["tar", "--extract", "--file", target, "--directory", there], check=True)
    for path in (target, models, home / "weights"):  # so that nothing of this machine can be used
        path.unlink()
    shutil.rmtree(tmp_path / "tiny")
    (bundle,) = there.iterdir()
    requests = [
        ("test/echo", {"prompt": "Hello"}),
        ("test/own", {"prompt": "Hello"}),
        ("test/tiny", {"text": "the cat is good"}),
        ("appliance/all-minilm-l6-v2", {"text": "Hello"}),
    ]
    names = ("PIP_FIND_LINKS", "UV_FIND_LINKS", "PIP_INDEX_URL", "UV_DEFAULT_INDEX", "APPLIANCE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"APPLIANCE_TOKEN": "secret", "PYTHONPATH": sysconfig.get_path("purelib")}
    port = str(free_port())
    command = [sys.executable, offline_site.__file__, bundle, there / "home", port, json.dumps(requests)]
    ran = subprocess.run(
        [*NAMESPACE, *map(str, command)], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert [answer["status"] for answer in result["answers"]] == ["succeeded"] * 4, result
    assert result["status"] == 0
    (package,) = (there / "home").glob("environments/*/venv/lib/python*/site-packages/humanize-*.dist-info")
    assert package.name == f"humanize-{HUMANIZE}.dist-info"
    installed = {path.name.partition("-")[0] for path in (bundle / ".venv").rglob("*.dist-info")}
    assert installed == {*PACKAGES, "appliance"}
    minilm = weights_folder(there / "home", loaded.models[3])
    assert minilm is not None
    assert minilm.is_dir()
