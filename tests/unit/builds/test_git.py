"""Projects in git repositories: what is fetched, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from appliance.builds import git as checkout
from appliance.config import CogModel, GitSource
from appliance.domain.errors import WeightsError


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    told = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return told.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: the first is tagged, the second is on the branch ``main``."""
    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in (1, 2):
        (folder / "inner" / "cog.yaml").write_text(f"# {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", str(number))
        if number == 1:
            git(folder, "tag", "v1")
    return folder


def source(repository: Path, revision: str, path: str | None = "inner") -> GitSource:
    return GitSource(git=str(repository), revision=revision, path=path)


def test_commits_tags_and_branches_are_fetched(repository: Path, tmp_path: Path) -> None:
    first, second = git(repository, "rev-parse", "v1"), git(repository, "rev-parse", "main")
    home = tmp_path / "home"
    for revision, content in ((first, 1), (first[:10], 1), ("v1", 1), (second, 2), ("main", 2)):
        wanted = source(repository, revision)
        checkout.fetch(home, wanted)
        assert (checkout.project(home, wanted) / "cog.yaml").read_text() == f"# {content}\n"
        assert not (checkout.folder(home, wanted) / ".git").exists()
    assert len(list((home / "weights" / "git").iterdir())) == 5


def test_a_branch_is_kept_as_it_was_fetched(repository: Path, tmp_path: Path) -> None:
    wanted = source(repository, "main")
    checkout.fetch(tmp_path, wanted)
    (repository / "inner" / "cog.yaml").write_text("# 3\n")
    git(repository, "commit", "--quiet", "-am", "3")
    checkout.fetch(tmp_path, wanted)
    assert (checkout.project(tmp_path, wanted) / "cog.yaml").read_text() == "# 2\n"


def test_what_is_not_there_is_named_and_nothing_is_left(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no revision v9"):
        checkout.fetch(tmp_path, source(repository, "v9"))
    with pytest.raises(WeightsError, match=r"git fetch failed: .*nowhere"):
        checkout.fetch(tmp_path, source(tmp_path / "nowhere", "main"))
    assert list((tmp_path / "weights" / "git").iterdir()) == []
    for path in ("outer", "../..", "inner/cog.yaml"):
        with pytest.raises(WeightsError, match="has no folder"):
            checkout.fetch(tmp_path, source(repository, "main", path))


def test_git_that_is_missing_is_said(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WeightsError, match="git is not installed"):
        checkout.fetch(tmp_path, source(repository, "main"))


def test_no_hook_is_run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "template"
    (template / "hooks").mkdir(parents=True)
    hook = template / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template))
    checkout.fetch(tmp_path, source(repository, "main"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("address", "revision"),
    [("--upload-pack=evil", "main"), ("ext::sh -c evil", "main"), ("git://example.org/a", "main"),
     ("https://example.org/a", "--output=x")],
)  # fmt: skip
def test_what_git_could_take_for_an_option_is_refused(address: str, revision: str) -> None:
    given = {"name": "a/b", "kind": "cog", "source": {"git": address, "revision": revision}}
    with pytest.raises(ValidationError):
        CogModel.model_validate(given)
