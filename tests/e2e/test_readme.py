"""The README's code, run as it stands against a running appliance."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance import config
from tests.running import PATIENCE, ROOT, Appliance

pytestmark = pytest.mark.e2e

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = str(Path(sys.executable).parent)


def blocks(language: str) -> list[str]:
    """The README's blocks in ``language``; there is at least one."""
    found = [code for tag, code in BLOCKS if tag == language]
    assert found, f"README.md has no {language} block"
    return found


def run(appliance: Appliance, command: list[str], cwd: Path = ROOT) -> str:
    """What ``command`` prints, with the environment that the README exports."""
    environment = {
        **appliance.environment,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "APPLIANCE_PORT": str(appliance.port),
    }
    ran = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_block_is_run_or_looked_at() -> None:
    assert {tag for tag, _ in BLOCKS} == {"console", "python", "javascript", "sh", "yaml"}


def test_python(appliance: Appliance) -> None:
    with ThreadPoolExecutor() as pool:  # as several people would
        shown = pool.map(lambda code: (code, run(appliance, [sys.executable, "-c", code])), blocks("python"))
    printed = dict(shown)
    assert min(len(text.split()) for text in printed.values()) > 5
    (poem,) = (text.lower() for code, text in printed.items() if "poem about a robot" in code)
    assert len(poem.split()) > 30
    assert "robot" in poem or "feel" in poem


def test_javascript(appliance: Appliance) -> None:
    for code in blocks("javascript"):
        printed = run(appliance, ["node", "--input-type=module", "--eval", code], ROOT / ".clients" / "js")
        assert len(printed.split()) > 5


@pytest.mark.parametrize("code", blocks("sh"), ids=lambda code: code.split()[0] + " " + code.split()[1])
def test_shell(appliance: Appliance, code: str) -> None:
    printed = run(appliance, ["bash", "-euo", "pipefail", "-c", code])
    if "capital of France" in code:
        assert "Paris" in printed


def test_models_yaml(tmp_path: Path) -> None:
    for text in blocks("yaml"):
        file = tmp_path / "models.yaml"
        file.write_text(text)
        assert config.load(file).models


def test_commands_that_only_a_person_gives_exist() -> None:
    for line in "".join(blocks("console")).splitlines():
        words = shlex.split(line.removeprefix("$ "))
        assert words[0] == "export" or os.access(ROOT / words[0], os.X_OK), line


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in (link for link in links if not link.startswith("https://")):
        assert (ROOT / link).exists(), link


def test_the_table_names_every_command(appliance: Appliance) -> None:
    named = set(re.findall(r"^\| `appliance (\w+)`", README, re.MULTILINE))
    shown = run(appliance, ["appliance", "--help"])
    listed = set(re.findall(r"^\W*│ ([a-z]+)  ", shown, re.MULTILINE))
    assert named == listed
