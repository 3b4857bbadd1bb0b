"""The rows of the contract's checklist, which tests are named after."""

from __future__ import annotations

import re

COUNTS = {"A": 23, "M": 24, "P": 45, "S": 22, "W": 13, "F": 24, "T": 6, "D": 6, "C": 22, "L": 10}
ROWS = tuple(f"{letter}{number}" for letter, count in COUNTS.items() for number in range(1, count + 1))

#: Rows without a test, and why.
LEFT_OUT: dict[str, str] = {}
#: Rows held by the tests with an appliance of their own, which scripts/test runs in another process.
APART = {"P41": "test_secure.py", "F17": "test_secure.py", "F18": "test_secure.py"}


def named(test: str) -> set[str]:
    """The rows in a test's name: ``test_a1_p22_...`` is about A1 and P22."""
    match = re.match(r"test_((?:[a-z]\d+_)+)", test)
    rows = {part.upper() for part in match[1].split("_") if part} if match else set()
    return rows & set(ROWS)
