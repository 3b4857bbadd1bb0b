"""Checkouts of git repositories with Cog projects, in folders that exist only when they are complete."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from appliance.config import GitSource
from appliance.domain.errors import WeightsError
from appliance.runners.child_environment import without_secrets

_TIMEOUT: Final = 1800.0  # seconds for one command
_TAIL: Final = 500  # characters of the output of git in an error message
#: These settings run no hooks, ask for no password, and allow only the transports https, ssh and file.
_OPTIONS: Final = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
_ENVIRONMENT: Final = {"GIT_ALLOW_PROTOCOL": "https:ssh:file", "GIT_TERMINAL_PROMPT": "0"}


def folder(home: Path, source: GitSource) -> Path:
    """Return the folder of the checkout of a URL and revision; it may not exist yet."""
    identity = f"{source.git}@{source.revision}" + ("+submodules" if source.submodules else "")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.git.rstrip("/").rpartition("/")[2]).removesuffix(".git")
    return home / "weights" / "git" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{name}"


def project(home: Path, source: GitSource) -> Path:
    """Return the project's folder in the checkout."""
    return folder(home, source) / (source.path or "")


def fetch(home: Path, source: GitSource) -> None:
    """Fetch the repository unless its checkout exists. A branch is thus never updated.

    Raises:
        WeightsError: the repository cannot be fetched, or has no such revision or path.
    """
    target = folder(home, source)
    if not target.exists():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            _fetch_commit(source, unfinished)
            shutil.rmtree(unfinished / ".git")
            unfinished.rename(target)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not (isinstance(error, OSError) and target.exists()):  # another process was faster
                raise
    found = project(home, source).resolve()
    if not found.is_dir() or not found.is_relative_to(target.resolve()):
        raise WeightsError(
            f"{source.git} has no folder {source.path} at revision {source.revision}: correct source.path"
        )


def newest(url: str, revision: str) -> str:
    """Return the commit that a branch, a tag or HEAD of a remote repository is at. A commit stays as it is.

    Raises:
        WeightsError: the repository cannot be reached, or has no such branch or tag.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    found = {}
    for line in _git(Path(), "ls-remote", "--", url).split("\n"):
        commit, _, name = line.partition("\t")
        found[name] = commit
    for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}"):
        if name in found:
            return found[name]
    raise WeightsError(f"{url} has no revision {revision}: name a branch, a tag or a full 40-digit commit")


def _fetch_commit(source: GitSource, folder: Path) -> None:
    _git(folder, "init", "--quiet")
    # Servers may refuse to send a commit by its hash, and refuse short hashes: then fetch everything.
    wanted = "FETCH_HEAD"
    if not _try(folder, "fetch", "--quiet", "--depth=1", source.git, source.revision):
        _git(folder, "fetch", "--quiet", "--tags", source.git, "+refs/heads/*:refs/remotes/origin/*")
        wanted = source.revision
        if not _try(folder, "rev-parse", "--quiet", "--verify", f"{wanted}^{{commit}}"):
            raise WeightsError(
                f"{source.git} has no revision {source.revision}: name a commit, tag or branch"
            )
    _git(folder, "checkout", "--quiet", "--detach", wanted)
    if source.submodules:
        _git(folder, "submodule", "update", "--quiet", "--init", "--recursive", "--depth=1")


def _try(folder: Path, *arguments: str) -> bool:
    try:
        _git(folder, *arguments)
    except WeightsError:
        return False
    return True


def _git(folder: Path, *arguments: str) -> str:
    """Run git, and return what it printed.

    Raises:
        WeightsError: git is missing, takes too long or fails; the message has the end of its output.
    """
    try:
        result = subprocess.run(
            ["git", *_OPTIONS, *arguments],
            cwd=folder,
            env={**without_secrets(), **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise WeightsError("git is not installed: install it, because a model has a git source") from error
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"git {arguments[0]} did not end within {_TIMEOUT:g} s") from error
    if result.returncode != 0:
        output = (result.stderr or result.stdout).strip()[-_TAIL:]
        raise WeightsError(f"git {arguments[0]} failed: {output or f'exit code {result.returncode}'}")
    return result.stdout
