"""Chooses the files of a Cog project that its build gets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.domain.ignore_rules import IgnoreRules

_IGNORED: Final = shutil.ignore_patterns(".git", ".cog", "__pycache__", ".venv", "venv", "*.pyc")


def left_out(project: Path) -> Callable[[str, list[str]], set[str]]:
    """Return a function for ``copytree``: the names in a folder that are not copied.

    These are caches, environments, and what .dockerignore leaves out of an image.
    """
    file = project / ".dockerignore"
    rules = IgnoreRules(file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "")

    def names(folder: str, found: list[str]) -> set[str]:
        inside = Path(folder).relative_to(project)
        files = [name for name in found if not Path(folder, name).is_dir()]
        return _IGNORED(folder, found) | {name for name in files if rules.ignored((inside / name).as_posix())}

    return names
