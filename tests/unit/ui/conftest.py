"""The folder for files that are uploaded in the UI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import appliance.ui  # noqa: F401 - before tests import Gradio, so that it is imported as in the UI process


@pytest.fixture(scope="session", autouse=True)
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder, which Gradio notes in a page when it builds the page."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder
