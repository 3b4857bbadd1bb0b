"""Rules of .dockerignore and .gitignore files."""

from __future__ import annotations

from typing import Literal

import pytest

from appliance.domain.ignore_rules import IgnoreRules


@pytest.mark.parametrize(
    ("syntax", "rule", "ignored", "kept"),
    [
        ("docker", "weights", ["weights", "weights/a.bin"], ["more/weights"]),
        ("docker", "*.bin", ["a.bin"], ["more/a.bin"]),
        ("docker", "**/*.bin", ["a.bin", "more/a.bin"], ["a.txt"]),
        ("git", "*.bin", ["a.bin", "more/a.bin"], ["a.txt"]),
        ("git", "weights/", ["weights/a.bin", "more/weights/a.bin"], ["weighted"]),
        ("git", "/weights", ["weights/a.bin"], ["more/weights/a.bin"]),
        ("git", "more/a.*", ["more/a.bin"], ["a.bin"]),
        ("git", "# comment", [], ["# comment"]),
    ],
)
def test_a_rule_leaves_out_the_paths_that_it_matches(
    syntax: Literal["docker", "git"], rule: str, ignored: list[str], kept: list[str]
) -> None:
    rules = IgnoreRules(f"{rule}\n", syntax)
    assert [path for path in [*ignored, *kept] if rules.ignored(path)] == ignored


def test_the_last_matching_rule_decides() -> None:
    rules = IgnoreRules("*\n!kept.py\n\n")
    assert [path for path in ("a.py", "kept.py", "b/c.py") if rules.ignored(path)] == ["a.py", "b/c.py"]
