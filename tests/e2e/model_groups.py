"""Models that take long to prepare, in groups.

The marker ``models`` of an end-to-end test names the groups that the test needs, as in
``pytest.mark.models("cog")``. The appliance of a run serves only the groups that some test of the run needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import tiny_models
from tests.support.appliance_process import ROOT

PROJECTS = ROOT / "tests" / "projects"
COG_MODELS: list[dict[str, Any]] = [
    {"name": f"cog/{name}", "kind": "cog", "memory": "256MiB", "source": {"path": str(PROJECTS / name)}}
    for name in (
        "everything",
        "concurrent",
        "broken",
        "fragile",
        "pupil",
        "caller",
        "hello",
        "resize",
        "words",
    )
] + [
    {
        "name": "example/storyteller",
        "kind": "cog",
        "memory": "256MiB",
        "source": {"path": str(ROOT / "examples" / "storyteller")},
    },
    {
        "name": "cog/odd",
        "kind": "cog",
        "memory": "256MiB",
        "source": {"path": str(PROJECTS / "odd")},
        "options": {"environment": {"COG_WEIGHTS": "/srv/fine-tuned.tar"}},
    },
]

#: Tiny models that are trained before the appliance starts, in folders next to models.yaml.
TASK_MODELS: list[dict[str, Any]] = [
    {
        "name": "test/colours",
        "kind": "transformers",
        "source": {"path": "colours"},
        "options": {"task": "image-classification"},
    },
    {
        "name": "test/reranker",
        "kind": "transformers",
        "source": {"path": "reranker"},
        "options": {"task": "reranking"},
        "aliases": ["rerank-english-v3.0"],
    },
]


def _models_in_the_manual() -> list[dict[str, Any]]:
    """The models in the manual whose weights are in Python packages."""
    pages = [ROOT / "docs/models" / name for name in ("tasks.md", "onnx.md", "speech.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    models = [model for block in blocks for model in yaml.safe_load(block)["models"]]
    return [model for model in models if "pypi" in model.get("source", {})]


@cache
def _groups() -> dict[str, list[dict[str, Any]]]:
    return {"cog": COG_MODELS, "tasks": TASK_MODELS, "manual": _models_in_the_manual()}


def needed(tests: Iterable[pytest.Item]) -> set[str]:
    """The groups that the markers of ``tests`` name."""
    groups = set()
    for test in tests:
        for group in (group for mark in test.iter_markers("models") for group in mark.args):
            if group not in _groups():
                known = ", ".join(_groups())
                raise pytest.UsageError(f"{test.nodeid}: no group of models {group!r}; there are {known}")
            groups.add(group)
    return groups


def prepare(group: str, home: Path) -> list[dict[str, Any]]:
    """Entries of a group for the file models.yaml in ``home``."""
    if group == "tasks":
        tiny_models.image_classification(home / "colours")
        tiny_models.reranking(home / "reranker")
    return _groups()[group]


def missing_markers(tests: Iterable[pytest.Item], failure: str) -> Iterator[str]:
    """Yield which marker to add, for each model that a failure names and this run does not serve."""
    for group in sorted(_groups().keys() - needed(tests)):
        for model in _groups()[group]:
            if any(name in failure for name in (model["name"], *model.get("aliases", ()))):
                yield f'{model["name"]}: mark the test with @pytest.mark.models("{group}")'
