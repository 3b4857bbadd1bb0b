"""`-i key=value` of the command line: read as the model declares the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.client import declared_inputs, parse_input
from appliance.domain.errors import ApplianceError

INPUTS: dict[str, Any] = {
    "prompt": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "loud": {"type": "boolean"},
    "names": {"type": "array", "items": {"type": "string"}},
    "image": {"type": "string", "format": "uri"},
    "stop": {"type": "string", "x-appliance-list": True},
    "size": {"type": "integer", "description": "how large"},
    "either": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]},
}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("prompt=true", "true"),
        ("prompt=", ""),
        ("prompt=a=b", "a=b"),
        ("count=3", 3),
        ("count=many", "many"),
        ("share=0.5", 0.5),
        ("loud=true", True),
        ('names=["a", "b"]', ["a", "b"]),
        ('stop=["a", "b"]', ["a", "b"]),
        ("stop=1,2", "1,2"),
        ("either=[1, 2]", [1, 2]),
        ("either=7", "7"),
        ("either=seven", "seven"),
        ("unknown=7", 7),
        ("unknown=seven", "seven"),
    ],
)
def test_values_are_read_as_the_model_declares_them(given: str, value: Any) -> None:
    key, parsed = parse_input(given, INPUTS)
    assert key == given.partition("=")[0]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("given", ["share=NaN", "share=-Infinity", "count=1e999", 'names=["a", NaN]'])
def test_numbers_that_are_not_finite_are_refused_by_name(given: str) -> None:
    with pytest.raises(ApplianceError, match=rf"^-i {re.escape(given)}: the value must be a finite number"):
        parse_input(given, INPUTS)


def test_files_become_text_or_a_data_url(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"12")
    assert parse_input(f"prompt=@{file}", INPUTS) == ("prompt", "12")
    assert parse_input(f"image=@{file}", INPUTS) == ("image", "data:image/png;base64,MTI=")


@pytest.mark.parametrize("given", ["prompt", "=x", "prompt=@/no/such/file", "prompt=@binary"])
def test_what_cannot_be_an_input_is_named(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ApplianceError, match=given.partition("@")[0]):
        parse_input(given, INPUTS)


def test_choices_are_read_from_where_cog_puts_them() -> None:
    choice = {"allOf": [{"$ref": "#/components/schemas/size"}], "default": 1}
    schemas = {"Input": {"properties": {"size": choice}}, "size": {"type": "integer", "enum": [1, 2]}}
    declared = declared_inputs({"components": {"schemas": schemas}})
    assert parse_input("size=2", declared) == ("size", 2)
