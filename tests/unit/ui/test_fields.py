"""Inputs of models as fields of a form, and the input of a prediction from their values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from appliance.domain.errors import InvalidInput
from appliance.runners.echo.runner import EchoRunner
from appliance.runners.vllm.inputs import interface
from appliance.ui.fields import FormField, Widget, fields, read_input


def document(properties: dict[str, Any], required: tuple[str, ...] = (), **schemas: Any) -> dict[str, Any]:
    return {
        "components": {
            "schemas": {"Input": {"properties": properties, "required": list(required)}, **schemas}
        }
    }


def field(schema: dict[str, Any], name: str = "x", **schemas: Any) -> FormField:
    (found,) = fields(document({name: schema}, **schemas))
    return found


@pytest.mark.parametrize(
    ("schema", "widget"),
    [
        ({"type": "string"}, Widget.LINE),
        ({"type": "string", "format": "uri"}, Widget.FILE),
        ({"type": "string", "format": "password"}, Widget.SECRET),
        ({"type": "array", "items": {"type": "string", "format": "uri"}}, Widget.FILES),
        ({"type": "array", "items": {"type": "integer"}}, Widget.LIST),
        ({"type": "array", "items": {"type": "object"}}, Widget.JSON),
        ({"type": "object"}, Widget.JSON),
        ({}, Widget.JSON),
        ({"type": "boolean"}, Widget.SWITCH),
        ({"type": "integer"}, Widget.NUMBER),
        ({"type": "integer", "minimum": 1, "maximum": 50, "default": 25}, Widget.SLIDER),
        ({"type": "number", "minimum": 0, "maximum": 5, "default": 0.6}, Widget.SLIDER),
        ({"type": "integer", "minimum": 0, "maximum": 2**53, "default": 0}, Widget.NUMBER),  # a seed
        ({"type": "integer", "minimum": 1, "maximum": 50}, Widget.NUMBER),  # a slider cannot be left alone
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, Widget.NUMBER),
        ({"allOf": [{"$ref": "#/components/schemas/Choice"}], "default": "b"}, Widget.CHOICE),
    ],
)
def test_each_kind_of_input_has_its_widget(schema: dict[str, Any], widget: Widget) -> None:
    found = field(schema, Choice={"type": "string", "enum": ["a", "b"]})
    assert found.widget is widget
    if widget is Widget.CHOICE:
        assert (found.choices, found.default) == (("a", "b"), "b")


def test_an_input_of_several_types_takes_json_and_text_where_that_is_one_of_them() -> None:
    numbers = {"type": "array", "items": {"type": "integer"}}
    either = field({"anyOf": [{"type": "string"}, numbers]})
    assert either.widget is Widget.JSON
    assert [either.from_widget(given) for given in ("[1, 2]", "hello", "")] == [[1, 2], "hello", None]
    assert either.to_widget("hello") == "hello"
    with pytest.raises(InvalidInput, match="must be JSON"):
        field({"anyOf": [{"type": "boolean"}, numbers]}).from_widget("hello")


def test_order_is_that_of_the_schema_and_what_is_rarely_needed_is_folded() -> None:
    found = fields(document({}, ()))
    assert found == ()
    model = interface({})
    language = fields(
        {"components": {"schemas": {"Input": model.input, **model.components}}},
    )
    assert [one.name for one in language] == list(model.input["properties"])
    assert next(one.name for one in language if not one.folded) == "prompt"
    assert language[0].widget is Widget.TEXT
    assert sum(not one.folded for one in language) == 5  # the prompt and four more
    short = fields(document({name: {"type": "string"} for name in "abcdef"}))
    assert not any(one.folded for one in short)
    shuffled = fields(document({"b": {"x-order": 1}, "a": {"x-order": 0}, "c": {}}))
    assert [one.name for one in shuffled] == ["a", "b", "c"]


def test_what_is_left_alone_is_not_sent() -> None:
    model = EchoRunner.interface({})
    known = fields({"components": {"schemas": {"Input": model.input, **model.components}}})
    untouched = [one.to_widget(one.default) for one in known]
    assert read_input(known, untouched) == {}
    as_browsers_say = [
        {Widget.SWITCH: False, Widget.NUMBER: one.default, Widget.SLIDER: one.default}.get(
            one.widget, one.default if one.default is not None else ""
        )
        for one in known
    ]
    assert read_input(known, as_browsers_say) == {}


def test_values_are_of_the_types_that_the_model_wants() -> None:
    known = fields(
        document(
            {
                "prompt": {"type": "string", "default": "hi"},
                "steps": {"type": "integer", "minimum": 1, "maximum": 50, "default": 25},
                "scale": {"type": "number"},
                "numbers": {"type": "array", "items": {"type": "integer"}},
                "stops": {"type": "array", "items": {"type": "string"}},
                "config": {"type": "object"},
                "fast": {"type": "boolean", "default": True},
                "needed": {"type": "string"},
            },
            ("needed",),
        )
    )
    values = ["", 30.0, 2, "1\n\n2\n", " a\nb, c", '{"a": [1]}', False, "hi"]
    by_name = dict(
        zip(("prompt", "steps", "scale", "numbers", "stops", "config", "fast", "needed"), values, strict=True)
    )
    given = read_input(known, [by_name[one.name] for one in known])
    assert given == {
        "prompt": "",  # there is a default, and it was taken away
        "steps": 30,
        "scale": 2.0,
        "numbers": [1, 2],
        "stops": [" a", "b, c"],
        "config": {"a": [1]},
        "fast": False,
        "needed": "hi",
    }
    assert isinstance(given["steps"], int)
    again = [one.to_widget(given.get(one.name, one.default)) for one in known]
    assert read_input(known, again) == given


def test_items_of_a_list_are_lines_that_end_in_line_feeds() -> None:
    known = fields(document({"words": {"type": "array", "items": {"type": "string"}}}))
    assert read_input(known, ["a\u2028b\r\nc\x85d\n"]) == {"words": ["a\u2028b", "c\x85d"]}


def test_what_cannot_be_read_is_named() -> None:
    known = fields(
        document(
            {
                "config": {"type": "object"},
                "numbers": {"type": "array", "items": {"type": "number"}},
                "seed": {"type": "integer"},
            }
        )
    )
    with pytest.raises(InvalidInput) as caught:
        read_input(known, ["{", "1\nx", "1.5"])
    assert [problem.field for problem in caught.value.problems] == ["config", "numbers", "seed"]
    assert read_input(known, ["", "", "7"]) == {"seed": 7}
    with pytest.raises(InvalidInput) as caught:
        read_input(known, ['{"a": NaN}', "1\nInfinity", math.inf])
    assert [problem.field for problem in caught.value.problems] == ["config", "numbers", "seed"]
