"""Imports go one way only, and each heavy or special library has its one place."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "appliance"
PAGE = ROOT / "docs" / "architecture.md"
#: The packages in the order of the table on the architecture page: each may import those before it.
PACKAGES = re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), flags=re.MULTILINE)

#: library -> the only places that may import it
PLACES = {
    "argon2": ("gateway.sign_on",),
    "joserfc": ("gateway.sign_on",),
    "ray": ("cluster",),
    "sqlite3": ("store",),
    "sqlcipher3": ("store",),
    "gradio": ("ui",),
    "fastapi": ("ui",),  # what Gradio mounts its applications on
    "torch": ("runners", "weights.gguf"),
    "vllm": ("runners",),
    "transformers": ("runners", "weights.gguf"),
    "typer": ("cli",),
    "starlette": ("gateway.api", "ui"),
    "python_multipart": ("gateway.api",),
    "peft": ("runners",),
    "uvicorn": ("gateway", "ui", "runners.cog.start_python_server"),
    "cog": ("builds.describe_cog", "builds.describe_python_server", "runners.cog"),
    "av": ("runners",),
    "PIL": ("runners",),
    "faster_whisper": ("runners.whisper", "runners.voice_encoder"),
    "scipy": ("runners.speakers",),
    "piper": ("runners.piper", "runners.kokoro"),
    "cv2": ("runners.ocr",),
    "onnxruntime": ("runners.onnx_session", "runners.piper"),
    "pandas": ("ui",),
    "prometheus_client": ("observability.metrics", "observability.engine_metrics"),
    "opentelemetry": ("observability.tracing",),
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``runners.echo`` for ``appliance/runners/echo.py``; a package's ``__init__`` is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(parse(path)))


@functools.cache
def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@functools.cache
def package_of(module: str) -> str:
    """The longest package of the table that ``module`` belongs to."""
    return max((name for name in PACKAGES if f"{module}.".startswith(f"{name}.")), key=len, default="")


def runtime_imports(node: ast.AST) -> Iterator[str]:
    """Imported modules, without those that only the type checker imports."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from runtime_imports(child)


def test_every_module_is_in_a_package() -> None:
    """Only the package itself, which holds the version, is in none."""
    assert [name for name in map(name_of, SOURCES) if not package_of(name)] == [""]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_packages_above_them(package: str) -> None:
    allowed = {"", *PACKAGES[: PACKAGES.index(package) + 1]}
    files = [path for path in SOURCES if package_of(name_of(path)) == package]
    assert files, f"docs/architecture.md lists {package}, which does not exist"
    wrong = [
        f"{name_of(path)} imports {imported}"
        for path in files
        for imported in imports(path)
        if imported.startswith("appliance.")
        and package_of(imported.removeprefix("appliance.")) not in allowed
    ]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    modules = {f"appliance.{name_of(path)}": path for path in SOURCES if name_of(path)}
    graph = {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in runtime_imports(parse(path))
            if name.startswith("appliance.")
        }
        for module, path in modules.items()
    }
    graph = {module: found & graph.keys() for module, found in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_special_libraries_stay_in_their_place() -> None:
    wrong = [
        f"{name_of(path)} imports {imported}, which belongs in {' and '.join(places)}"
        for path in SOURCES
        for imported in imports(path)
        if (places := PLACES.get(imported.partition(".")[0])) is not None
        and not any(f"{name_of(path)}.".startswith(f"{place}.") for place in places)
    ]
    assert wrong == []


def test_files_are_short_enough_to_be_read() -> None:
    assert [name_of(path) for path in SOURCES if len(path.read_text().splitlines()) > 500] == []


def test_a_class_name_is_used_once() -> None:
    """Private classes, with an underscore, may repeat."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and node.col_offset == 0 and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_lines_end_in_line_feeds() -> None:
    """These end lines at characters too that models, projects and people write, such as U+2028 and U+0085."""
    wrong = {"splitlines", "iter_lines", "aiter_lines"}
    found = [
        f"{name_of(path)} line {node.lineno}: use split('\\n') instead of {node.attr}"
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr in wrong
    ]
    assert found == []


def test_texts_that_are_split_over_lines_keep_their_spaces() -> None:
    """Where a description or a message is written in several literals, no words run together."""
    wrong = []
    for path in SOURCES:
        before = ""
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.STRING:
                text = re.sub(r"^\w*[\"']+|[\"']+$", "", token.string)
                prose = " " in before and "\\" not in before
                if prose and re.search(r"[\w.,;:]$", before) and re.match(r"\w", text):
                    wrong.append(f"{name_of(path)} line {token.start[0]}: ...{before[-20:]}{text[:20]}...")
                before = text
            elif token.type not in {tokenize.NL, tokenize.COMMENT}:
                before = ""
    assert wrong == []


def test_logging_is_set_up_in_one_place() -> None:
    """So that what it masks is masked in every process."""
    found = {name_of(path) for path in SOURCES if "basicConfig(" in path.read_text(encoding="utf-8")}
    assert found == set()
