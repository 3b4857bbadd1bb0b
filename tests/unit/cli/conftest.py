"""The command line, built once for all tests."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import typer.main


@pytest.fixture(scope="session", autouse=True)
def commands() -> Iterator[None]:
    """Build the commands once: Typer takes 0.05 s of CPU to read their options, at each call of ``main``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield
