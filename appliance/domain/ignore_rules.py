"""The rules of .dockerignore and .gitignore files."""

from __future__ import annotations

import re
from typing import Literal


class IgnoreRules:
    """Rules that leave files out. For each path, the last matching rule decides.

    In a .dockerignore file, a rule is relative to the folder of the file. In a .gitignore file, a rule
    without a slash inside applies in every folder.
    """

    def __init__(self, text: str, syntax: Literal["docker", "git"] = "docker") -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in text.split("\n"):
            rule = line.strip()
            if rule and not rule.startswith("#"):
                back = rule.startswith("!")
                rule = rule.removeprefix("!").strip()
                anywhere = syntax == "git" and "/" not in rule.rstrip("/")
                self._rules.append((_pattern(rule.strip("/"), anywhere=anywhere), not back))

    def ignored(self, path: str) -> bool:
        """Return whether the file at this relative path is left out."""
        return next((out for pattern, out in reversed(self._rules) if pattern.fullmatch(path)), False)


def _pattern(text: str, *, anywhere: bool) -> re.Pattern[str]:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = re.split(r"(\*\*/|\*\*|\*|\?)", text.removeprefix("./"))
    start = "(?:.*/)?" if anywhere else ""
    return re.compile(start + "".join(parts.get(part, re.escape(part)) for part in found) + "(?:/.*)?")
