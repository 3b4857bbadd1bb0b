"""The code in the README and in docs/, run as it stands against a running appliance."""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from playwright.sync_api import Browser, expect

from appliance import config
from tests.e2e.browsing import watched
from tests.support.appliance_process import PATIENCE, ROOT, Appliance

pytestmark = pytest.mark.e2e

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = str(Path(sys.executable).parent)
README_LINES = 150


class Block(NamedTuple):
    """A block of code in a page."""

    page: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.code.split()[:2])}"


BLOCKS = [
    Block(str(page.relative_to(ROOT)), language, code)
    for page in PAGES
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


def blocks(language: str) -> list[Block]:
    """The blocks in ``language``; there is at least one."""
    found = [block for block in BLOCKS if block.language == language]
    assert found, f"no page has a {language} block"
    return found


def run(appliance: Appliance, command: list[str], cwd: Path = ROOT) -> str:
    """Output of ``command``, run with the environment that the README exports."""
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
    assert {block.language for block in BLOCKS} == {
        *("console", "python", "javascript", "sh", "yaml"),
        "nginx",  # test_behind_nginx
    }


def test_the_readme_is_a_front_page() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= README_LINES


@pytest.mark.models("manual")
def test_python(appliance: Appliance) -> None:
    def result(block: Block) -> tuple[Block, str]:
        return block, run(appliance, [sys.executable, "-c", block.code])

    with ThreadPoolExecutor() as pool:  # as several people would
        printed = dict(pool.map(result, blocks("python")))
    for block, text in printed.items():
        assert len(text.split()) > 5, block
    (poem,) = (text.lower() for block, text in printed.items() if "poem about a robot" in block.code)
    assert len(poem.split()) > 30
    assert "robot" in poem or "feel" in poem


def test_javascript(appliance: Appliance) -> None:
    for block in blocks("javascript"):
        printed = run(appliance, ["node", "--input-type=module", "--eval", block.code], ROOT / ".clients/js")
        assert len(printed.split()) > 5


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_shell(appliance: Appliance, block: Block) -> None:
    printed = run(appliance, ["bash", "-euo", "pipefail", "-c", block.code])
    if "capital of France" in block.code:
        assert "Paris" in printed


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_models_yaml(tmp_path: Path, block: Block) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(block.code)
    (tmp_path / "client.secret").touch()
    assert config.load(file).models


def test_commands_that_only_a_person_gives_exist(appliance: Appliance) -> None:
    listed = commands(appliance)
    for block in blocks("console"):
        for line in block.code.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            if program == "appliance":
                assert arguments[0] in listed, line
            else:
                known = {"export", "source", "pip", "uv", "uvx", "tar", "podman", "kubectl", "curl"}
                known |= {".venv/bin/appliance"}
                places = (ROOT / program, ROOT / "scripts" / "bundle" / program)  # of a checkout, of a bundle
                assert program in known or any(os.access(place, os.X_OK) for place in places), line


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith("https://"):
                assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_readme_links_the_contents_which_link_every_page() -> None:
    contents = ROOT / "docs" / "index.md"
    assert "](docs/index.md)" in PAGES[0].read_text()
    linked = {contents.parent / link for link in re.findall(r"\]\(([^)#]+)\)", contents.read_text())}
    assert set(PAGES[1:]) - linked == {contents}


def test_the_navigation_of_the_manual_lists_every_page() -> None:
    assert sorted(navigation()) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES[1:])


def test_the_manual_is_served_without_a_token(appliance: Appliance) -> None:
    with httpx.Client(base_url=appliance.url, timeout=PATIENCE, trust_env=False) as client:
        for page in navigation():
            path = "" if page == "index.md" else f"{page.removesuffix('.md')}/"
            reply = client.get(f"/manual/{path}", headers={"Accept": "text/html"})
            assert reply.status_code == 200, path
            (title,) = re.findall(r"^# (.+)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)[:1]
            assert title in html.unescape(reply.text), path
        assert client.get("/manual/nothing/").status_code == 404
        assert client.get("/manual/..%2f..%2f..%2fmodels.yaml").status_code == 404


def test_the_manual_can_be_searched_and_asks_no_other_server(appliance: Appliance, browser: Browser) -> None:
    with watched(browser, appliance.url) as page:
        page.goto("/manual/")
        page.get_by_role("link", name="Architecture", exact=True).first.click()
        expect(page.get_by_role("heading", name="The life of a prediction")).to_be_visible()
        page.get_by_role("textbox", name="Search").fill("zygote")
        expect(page.get_by_role("link", name=re.compile("Glossary")).first).to_be_visible()


def test_the_table_names_every_command(appliance: Appliance) -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    assert set(re.findall(r"^\| `appliance (\w+)`", page, re.MULTILINE)) == commands(appliance)


def navigation() -> list[str]:
    """The pages in the navigation of mkdocs.yml."""
    listed: list[Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    found: list[str] = []
    while listed:
        entry = listed.pop()
        if isinstance(entry, str):
            found.append(entry)
        else:
            for below in entry.values():
                listed += [below] if isinstance(below, str) else below
    return found


def commands(appliance: Appliance) -> set[str]:
    """The commands that ``appliance --help`` lists."""
    shown = run(appliance, ["appliance", "--help"])
    return set(re.findall(r"^\W*│ ([a-z]+)  ", shown, re.MULTILINE))
