"""Git repositories that hold projects: fetched with git into folders that are whole or not there."""

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

_TIMEOUT: Final = 1800.0  # seconds for one command
_TAIL: Final = 500  # characters of what git said that are passed on
#: Nothing of the repository is run, nobody is asked for a password, and no other transport is spoken.
_OPTIONS: Final = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
_ENVIRONMENT: Final = {"GIT_ALLOW_PROTOCOL": "https:ssh:file", "GIT_TERMINAL_PROMPT": "0"}


def folder(home: Path, source: GitSource) -> Path:
    """Where the repository is, or will be: apart for each address and revision."""
    told = f"{source.git}@{source.revision}" + ("+submodules" if source.submodules else "")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.git.rstrip("/").rpartition("/")[2]).removesuffix(".git")
    return home / "weights" / "git" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}-{name}"


def project(home: Path, source: GitSource) -> Path:
    """The folder of the project in it."""
    return folder(home, source) / (source.path or "")


def fetch(home: Path, source: GitSource) -> None:
    """Make the repository present; does nothing if it is. A branch is fetched once and then kept.

    Raises:
        WeightsError: it cannot be had, or does not have the revision or the path.
    """
    target = folder(home, source)
    if not target.exists():
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            _check_out(source, unfinished)
            shutil.rmtree(unfinished / ".git")
            unfinished.rename(target)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not (isinstance(error, OSError) and target.exists()):  # another process was faster
                raise
    found = project(home, source).resolve()
    if not found.is_dir() or not found.is_relative_to(target.resolve()):
        raise WeightsError(f"{source.git} has no folder {source.path} at {source.revision}")


def _check_out(source: GitSource, place: Path) -> None:
    _git(place, "init", "--quiet")
    # A server need not hand out a commit by its name, and none knows an abbreviated one: then all is fetched.
    wanted = "FETCH_HEAD"
    if not _try(place, "fetch", "--quiet", "--depth=1", source.git, source.revision):
        _git(place, "fetch", "--quiet", "--tags", source.git, "+refs/heads/*:refs/remotes/origin/*")
        wanted = source.revision
        if not _try(place, "rev-parse", "--quiet", "--verify", f"{wanted}^{{commit}}"):
            raise WeightsError(f"{source.git} has no revision {source.revision}: no commit, tag or branch")
    _git(place, "checkout", "--quiet", "--detach", wanted)
    if source.submodules:
        _git(place, "submodule", "update", "--quiet", "--init", "--recursive", "--depth=1")


def _try(place: Path, *arguments: str) -> bool:
    try:
        _git(place, *arguments)
    except WeightsError:
        return False
    return True


def _git(place: Path, *arguments: str) -> None:
    """Run git.

    Raises:
        WeightsError: it is missing, takes too long or fails; the text ends in what it said.
    """
    try:
        ran = subprocess.run(
            ["git", *_OPTIONS, *arguments],
            cwd=place,
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise WeightsError("git is not installed; the source of a project needs it") from error
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"git {arguments[0]} did not end within {_TIMEOUT:g} s") from error
    if ran.returncode != 0:
        said = (ran.stderr or ran.stdout).strip()[-_TAIL:]
        raise WeightsError(f"git {arguments[0]} failed: {said or f'exit code {ran.returncode}'}")
