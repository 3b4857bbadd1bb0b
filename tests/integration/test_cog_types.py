"""The schema of a Cog project, type by type, as Cog's documentation and its own generator have it.

See https://github.com/replicate/cog: architecture/02-schema.md, docs/python.md and pkg/schema, which is that
generator.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from appliance.builds import project
from appliance.builds.build_process import BuildProcess
from appliance.config import CogModel
from appliance.domain import input_schema
from appliance.domain.errors import WeightsError
from appliance.domain.interface import Interface
from appliance.domain.prediction import Done
from appliance.runners.base import LoadSpec
from appliance.worker.replica import Replica
from tests.support.appliance_process import ROOT
from tests.support.worker_processes import Caller

pytestmark = pytest.mark.integration

TYPED = ROOT / "tests" / "projects" / "typed"
DESCRIBE = ROOT / "appliance" / "builds"
#: Runs in the project's environment: describes each function named in its arguments.
EACH = """
import json, sys
sys.path.insert(0, {folder!r})
import describe_cog
for name in sys.argv[1:]:
    try:
        print(json.dumps(describe_cog.main("run.py:" + name)["interface"]))
    except ValueError as error:
        print(json.dumps({{"refused": str(error)}}))
"""

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
NUMBER = {"type": "number"}
OBJECT = {"type": "object"}
FILE = {"type": "string", "format": "uri"}
SECRET = {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True}
NONE: dict[str, Any] = {"nullable": True, "default": None}

#: input -> its property, without title and order
INPUTS: dict[str, dict[str, Any]] = {
    "bare": STRING,
    "bare_optional": {**STRING, "nullable": True},
    "either": {"anyOf": [STRING, {"type": "array", "items": INTEGER}]},
    "either_or_none": {
        "anyOf": [{**INTEGER, "nullable": True}, {**STRING, "nullable": True}],
        "nullable": True,
    },
    "flag": {"type": "boolean"},
    "plain_default": {**INTEGER, "default": 3},
    "described_only": {**STRING, "description": "Say something"},
    "optional_described": {**INTEGER, "nullable": True, "description": "A number"},
    "optional_none": {**NUMBER, **NONE},
    "optional_list": {"type": "array", "items": STRING, **NONE},
    "none_of_no_optional": INTEGER,
    "shared": {**STRING, **NONE, "description": "Made elsewhere"},
    "bounded": {**NUMBER, "default": 0.5, "minimum": 0, "maximum": 1},
    "counted": {**INTEGER, "default": 5, "minimum": 1, "maximum": 10},
    "long": {**STRING, "default": "ab", "minLength": 1, "maxLength": 3, "pattern": "^[a-z]*$"},
    "old": {**STRING, "default": "", "deprecated": True},
    "chosen": {"allOf": [{"$ref": "#/components/schemas/chosen"}]},
    "chosen_number": {"allOf": [{"$ref": "#/components/schemas/chosen_number"}], "default": 2},
    "literal": {"allOf": [{"$ref": "#/components/schemas/literal"}], "default": "slow"},
    "file": {**FILE, "description": "A picture", "x-cog-accept": "image/*"},
    "files": {"type": "array", "items": FILE, "default": []},
    "handle": {**FILE, **NONE},
    "password": {**SECRET, **NONE, "description": "A password"},
    "needed_password": {**SECRET, "nullable": True},
    "mapping": {**OBJECT, "default": {}},
    "typed_mapping": {**OBJECT, "default": {"a": 1}},
    "mappings": {"type": "array", "items": OBJECT, "default": []},
    "point": {**OBJECT, **NONE},
    "anything": {**OBJECT, "default": {}},
    "opaque": {**OBJECT, "default": {}},
    "opaques": {"type": "array", "items": OBJECT, "default": []},
    "either_default": {"anyOf": [{"type": "boolean"}, NUMBER, OBJECT], "default": 1.5},
    "infinite": NUMBER,
    "modelID": {**STRING, "default": "x"},
}
REQUIRED = ["bare", "either", "either_or_none", "flag", "described_only", "chosen"]


def choices(name: str, kind: str, *values: Any) -> dict[str, Any]:
    return {"title": name, "type": kind, "enum": list(values), "description": "An enumeration."}


POINT = {
    "type": "object",
    "properties": {
        "x": {**NUMBER, "title": "X"},
        "label": {**STRING, "title": "Label"},
        "note": {**STRING, "title": "Note", "nullable": True},
    },
    "required": ["x", "note"],
}
BOX = {
    "type": "object",
    "properties": {"width": {**INTEGER, "title": "Width"}, "depth": {**INTEGER, "title": "Depth"}},
    "required": ["width"],
}
ONE_BY_ONE = {"type": "array", "x-cog-array-type": "iterator"}
#: function -> its output, without title
OUTPUTS: dict[str, dict[str, Any]] = {
    "text": STRING,
    "number": NUMBER,
    "path": FILE,
    "texts": {"type": "array", "items": STRING},
    "grid": {"type": "array", "items": {"type": "array", "items": INTEGER}},
    "anything": OBJECT,
    "mapping": OBJECT,
    "counts": {**OBJECT, "additionalProperties": {"type": "array", "items": INTEGER}},
    "mappings": {"type": "array", "items": OBJECT},
    "point": POINT,
    "part": {"type": "object", "properties": {"name": {**STRING, "title": "Name"}}},
    "points": {"type": "array", "items": POINT},
    "report": {
        "type": "object",
        "properties": {
            "text": {**STRING, "title": "Text"},
            "image": {**FILE, "title": "Image"},
            "boxes": {"type": "array", "items": BOX, "title": "Boxes"},
            "sizes": {**OBJECT, "additionalProperties": INTEGER, "title": "Sizes"},
            "score": {**NUMBER, "title": "Score", "nullable": True},
            "kind": {**STRING, "title": "Kind"},
        },
        "required": ["text", "image", "boxes", "sizes"],
    },
    "opaque": OBJECT,
    "opaques": {"type": "array", "items": OBJECT},
    "paths_one_by_one": {**ONE_BY_ONE, "items": FILE},
    "reports_one_by_one": {**ONE_BY_ONE, "items": BOX},
    "words": {**ONE_BY_ONE, "items": STRING, "x-cog-array-display": "concatenate"},
}
#: function -> what the refusal says
REFUSED = {
    "untyped_output": "must have a return type",
    "maybe": "neither Optional nor a union",
    "one_of": "neither Optional nor a union",
    "untyped": "input a has no type annotation",
    "many": "must name each input",
    "unknown": "input a: the type Thread is not supported",
    "grid_in": "input a: a list of lists",
    "file_or_text": "input a: Path, File and Secret",
    "bounded_either": "input a: choices and bounds",
    "accepting": "input a: accept is only for",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def built(home: Path) -> Path:
    """The project, which prints at exit, and leaves a thread and a process behind when it is described."""
    source = {"path": str(TYPED)}
    model = CogModel.model_validate({"name": "cog/typed", "kind": "cog", "source": source})
    log: list[str] = []
    build = project.build(home, model, log.append)
    assert "imported" in log
    return build


def test_every_input_is_described_as_by_cog(built: Path) -> None:
    """Of one thing it is not: Cog requires what has a default of None and may not be None."""
    found = project.described(built)["interface"]
    inputs = found["input"]
    assert list(inputs["properties"]) == list(INPUTS)
    for order, (name, expected) in enumerate(INPUTS.items()):
        title = {} if "allOf" in expected else {"title": titled(name)}
        assert inputs["properties"][name] == {**expected, **title, "x-order": order}, name
    assert inputs["required"] == REQUIRED
    assert found["components"] == {
        "chosen": choices("chosen", "string", "a", "b"),
        "chosen_number": choices("chosen_number", "integer", 1, 2),
        "literal": choices("literal", "string", "slow", "fast"),
    }
    published = json.loads((built / "project" / ".cog" / "openapi_schema.json").read_bytes())
    assert published["components"]["schemas"]["Input"] == inputs


def titled(name: str) -> str:
    return {"modelID": "ModelID"}.get(name, name.replace("_", " ").title())


def test_every_output_is_described_as_by_cog(built: Path) -> None:
    for name, found in zip(OUTPUTS, described(built, *OUTPUTS), strict=True):
        assert found["output"] == {**OUTPUTS[name], "title": "Output"}, name


def test_what_cannot_be_described_is_named(built: Path) -> None:
    for name, found in zip(REFUSED, described(built, *REFUSED), strict=True):
        assert REFUSED[name] in found["refused"], name


def described(build: Path, *functions: str) -> list[dict[str, Any]]:
    command = [str(project.python(build)), "-c", EACH.format(folder=str(DESCRIBE)), *functions]
    said = subprocess.run(command, cwd=build / "project", capture_output=True, text=True, check=True)
    return [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]


async def test_inputs_that_are_left_out_are_none_to_the_project(built: Path, tmp_path: Path) -> None:
    replica = Replica("runner-0", str(tmp_path / "none.sock"), str(tmp_path))
    await replica.load(
        LoadSpec(
            model="cog/typed",
            version="0" * 64,
            kind="cog",
            options={"build": str(built), "environment": {}},
            weights=None,
            device="cpu",
            memory=1,
            threads=1,
            concurrency=1,
            cache=str(tmp_path / "cache"),
        )
    )
    interface = msgspec.convert(project.described(built)["interface"], Interface)
    given = {"bare": "x", "either": [1, 2], "either_or_none": "y", "flag": True}
    given |= {"described_only": "z", "chosen": "a", "shared": None}
    caller = Caller(replica)
    try:
        assert await caller.run("one", **input_schema.validate(interface, given)) == Done("succeeded")
        assert caller.output("one")[-1] == {
            "bare_optional": None,
            "optional": [None, None, None, None],
            "none_of_no_optional": None,
            "either": ["list", [1, 2]],
            "infinite": "inf",
            "password": True,
        }
    finally:
        await replica.unload()


def test_what_a_project_leaves_running_ends_with_its_description(built: Path) -> None:
    left = [each for each in psutil.process_iter(["cwd"]) if str(built.parent) in (each.info["cwd"] or "")]
    assert left == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os\nprint('{}', flush=True)\nos._exit(0)\n", "the process ended during the import of"),
        ("raise RuntimeError('it is unwell')\n", "it is unwell"),
        ("x = 1\n", "run.py has no Runner"),
    ],
)
def test_a_project_that_cannot_be_described_is_refused(built: Path, source: str, said: str) -> None:
    """In the environment that is there: only the last step of a build is tried."""
    (built / "project" / "other.py").write_text(source)
    build = BuildProcess("cog/other", built, lambda _line: None, {})
    with pytest.raises(WeightsError, match=said.replace("run.py", "other.py")):
        project._described_by("describe_cog.py", ["other.py:Runner"], build, "the import of other.py:Runner")
