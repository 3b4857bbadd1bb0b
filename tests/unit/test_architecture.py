"""Imports go one way only, and each heavy or special library has its one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "appliance"

#: Lowest first. A module may import from lower layers, from its own package, and as the next table says.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("config", "prediction", "token", "file", "model", "deployment"),
    (
        "schema",
        "scheduler",
        "wire",
        "ratelimit",
        "slots",
        "media",
        "usage",
        "sse",
        "environment",
        "encodings",
        "proxies",
        "logs",
    ),
    (
        "store",
        "auth",
        "certificate",
        "egress",
        "weights",
        "hardware",
        "storage",
        "permissions",
        "connection",
        "runners.base",
        "frames",
        "leftovers",
        "listener",
        "outbox",
        "supervised",
        "temporary",
        "ui",
    ),
    ("runners", "webhooks", "files", "metrics", "tracing", "meter"),
    ("catalogue", "placement", "host", "inputs", "retention", "callback"),
    ("zygote", "hostprocess", "training", "pushing", "servable"),
    ("replica",),
    ("cluster",),
    ("engine",),
    ("reload",),
    ("api",),
    ("app",),
    ("driver", "doctor"),
    ("cli",),
)
#: Imports between modules of one layer, or upwards, that have a reason.
EXCEPTIONS = {
    ("schema", "runners.base"),  # the type of an interface, never loaded at run time
    ("frames", "runners.base"),  # a host is told what to load
}
#: library -> the only places that may import it
PLACES = {
    "ray": ("cluster",),
    "sqlite3": ("store",),
    "gradio": ("ui",),
    "fastapi": ("ui",),  # what Gradio mounts its applications on
    "torch": ("runners", "weights.gguf"),
    "vllm": ("runners",),
    "transformers": ("runners", "weights.gguf"),
    "typer": ("cli",),
    "starlette": ("api", "ui"),
    "python_multipart": ("api",),
    "peft": ("runners",),
    "uvicorn": ("app", "connection", "ui"),
    "cog": ("weights.describe_cog", "weights.cog_worker"),
    "av": ("runners",),
    "PIL": ("runners",),
    "faster_whisper": ("runners.whisper",),
    "piper": ("runners.piper",),
    "onnxruntime": ("runners.piper",),
    "pandas": ("ui",),
    "prometheus_client": ("metrics",),
    "opentelemetry": ("tracing",),
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``runners.echo`` for ``appliance/runners/echo.py``; a package's ``__init__`` is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(module: str) -> str | None:
    """The entry of ``LAYERS`` that a module of ours belongs to: the longest that fits."""
    known = [name for layer in LAYERS for name in layer]
    fitting = [name for name in known if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def level(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    here = name_of(path)
    if not here:
        return  # the package itself holds the version
    mine = unit(here)
    assert mine is not None, f"{here} has no layer yet: give it one in LAYERS and in DESIGN.md"
    for imported in imports(path):
        if not imported.startswith("appliance."):
            continue
        theirs = unit(imported.removeprefix("appliance."))
        if theirs is None or theirs == mine or (mine, theirs) in EXCEPTIONS:
            continue
        assert level(theirs) < level(mine), f"{here} imports {imported}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_special_libraries_stay_in_their_place(path: Path) -> None:
    here = name_of(path)
    for imported in imports(path):
        places = PLACES.get(imported.partition(".")[0])
        if places is not None:
            assert any(here == place or here.startswith(f"{place}.") for place in places), (
                f"{here} imports {imported}, which belongs in {' and '.join(places)}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_lines_end_in_line_feeds(path: Path) -> None:
    """These end lines at characters too that models, projects and people write, such as U+2028 and U+0085."""
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not names & {"splitlines", "iter_lines", "aiter_lines"}, 'split("\\n") instead'


def test_every_layer_is_in_the_design() -> None:
    design = (PACKAGE / "DESIGN.md").read_text()
    rows = [line for line in design.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(LAYERS)
    for number, (row, layer) in enumerate(zip(rows, LAYERS, strict=True)):
        _, first, modules, *_ = (cell.strip() for cell in row.split("|"))
        assert first == str(number)
        assert {name.strip() for name in modules.split(",")} == set(layer)


def test_every_exception_is_still_needed() -> None:
    used = {
        (unit(name_of(path)), unit(module.removeprefix("appliance.")))
        for path in SOURCES
        for module in imports(path)
    }
    assert used >= {pair for pair in EXCEPTIONS if level(pair[1]) >= level(pair[0])}


def test_logging_is_set_up_in_one_place() -> None:
    """So that what it masks is masked in every process."""
    found = {name_of(path) for path in SOURCES if "basicConfig(" in path.read_text(encoding="utf-8")}
    assert found == set()
