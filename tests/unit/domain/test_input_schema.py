"""What a model's interface lets pass, what it refuses and in which words, and the document it publishes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput
from appliance.domain.interface import Interface
from appliance.runners import runner_class
from appliance.runners.transformers.tasks import TASKS

TEXT = {"type": "string"}
INTERFACE = Interface(
    input={
        "type": "object",
        "title": "Input",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string", "x-order": 0},
            "steps": {"type": "integer", "default": 4, "minimum": 1, "maximum": 4, "x-order": 1},
            "scale": {"type": "number", "default": 0.5, "minimum": 0, "maximum": 2.5, "x-order": 2},
            "format": {"allOf": [{"$ref": "#/components/schemas/format"}], "default": "jpg", "x-order": 3},
            "image": {"type": "string", "format": "uri", "x-order": 4},
            "images": {"type": "array", "items": {"type": "string", "format": "uri"}, "x-order": 5},
            "name": {"type": "string", "minLength": 2, "maxLength": 3, "pattern": "^a", "x-order": 6},
            "fast": {"type": "boolean", "default": False, "x-order": 7},
            "stops": {"type": "string", "x-appliance-list": True, "x-order": 8},
            "extra": {"type": "object", "x-order": 9},
            "anything": {"x-order": 10},
            "whole": {"type": "integer", "x-order": 11},
            "either": {"anyOf": [TEXT, {"type": "array", "items": {"type": "integer"}}], "x-order": 12},
            "maybe": {**TEXT, "nullable": True, "default": None, "x-order": 13},
            "maybe_either": {
                "anyOf": [{**TEXT, "nullable": True}, {"type": "number", "nullable": True}],
                "nullable": True,
                "x-order": 14,
            },
        },
    },
    output={"type": "string"},
    components={"format": {"type": "string", "title": "format", "enum": ["jpg", "png"]}},
    aliases={"num_steps": "steps"},
)
DEFAULTS = {"steps": 4, "scale": 0.5, "format": "jpg", "fast": False}


def validated(**given: Any) -> dict[str, Any]:
    return input_schema.validate(INTERFACE, {"prompt": "p", **given})


def refused(given: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(InvalidInput) as caught:
        input_schema.validate(INTERFACE, given)
    return [(one.type, one.field, one.description) for one in caught.value.problems]


def test_defaults_are_filled_in_and_unknown_keys_dropped() -> None:
    assert validated(stream=True, seed=1) == {"prompt": "p", **DEFAULTS}


def test_null_for_an_optional_key_is_no_key() -> None:
    assert validated(steps=None, image=None) == {"prompt": "p", **DEFAULTS}


def test_a_default_of_null_is_no_key() -> None:
    """Cog's runtime refuses null, and puts None in for what is not there."""
    assert validated(maybe=None).keys() == validated().keys() == {"prompt", *DEFAULTS}


@pytest.mark.parametrize(
    "given",
    [{"either": "x"}, {"either": [1, 2]}, {"either": []}, {"maybe_either": 1.5}, {"maybe_either": 2}],
    ids=str,
)
def test_any_of_several_types_is_taken_as_it_is(given: dict[str, Any]) -> None:
    assert validated(**given) == {"prompt": "p", **DEFAULTS, **given}


def test_null_for_an_optional_key_of_several_types_is_no_key() -> None:
    assert validated(maybe_either=None, either=None) == {"prompt": "p", **DEFAULTS}


def test_numbers_become_what_is_declared() -> None:
    found = validated(steps=3.0, scale=1)
    assert (found["steps"], type(found["steps"])) == (3, int)
    assert (found["scale"], type(found["scale"])) == (1.0, float)


def test_an_alias_counts_unless_the_name_itself_is_given() -> None:
    assert validated(num_steps=2)["steps"] == 2
    assert validated(num_steps=2, steps=3)["steps"] == 3
    assert validated(num_steps=2, steps=None)["steps"] == 2


def test_a_string_marked_so_may_be_a_list() -> None:
    assert validated(stops=["a", "b"])["stops"] == ["a", "b"]
    assert validated(stops="a,b")["stops"] == "a,b"
    assert refused({"prompt": "p", "stops": ["a", 1]}) == [
        ("invalid_type", "input.stops.1", "Invalid type. Expected: string, given: integer")
    ]


def test_other_types_pass_as_they_are() -> None:
    given = {"extra": {"a": [1]}, "anything": [None], "images": ["data:,x"], "fast": True}
    assert validated(**given).items() >= given.items()


@pytest.mark.parametrize(
    ("given", "row"),
    [
        ({}, ("required", "input", "prompt is required")),
        ({"prompt": None}, ("invalid_type", "input.prompt", "Invalid type. Expected: string, given: null")),
        ({"prompt": 1}, ("invalid_type", "input.prompt", "Invalid type. Expected: string, given: integer")),
        ({"steps": "3"}, ("invalid_type", "input.steps", "Invalid type. Expected: integer, given: string")),
        ({"steps": 2.5}, ("invalid_type", "input.steps", "Invalid type. Expected: integer, given: number")),
        ({"steps": True}, ("invalid_type", "input.steps", "Invalid type. Expected: integer, given: boolean")),
        ({"scale": []}, ("invalid_type", "input.scale", "Invalid type. Expected: number, given: array")),
        ({"extra": "x"}, ("invalid_type", "input.extra", "Invalid type. Expected: object, given: string")),
        ({"fast": 1}, ("invalid_type", "input.fast", "Invalid type. Expected: boolean, given: integer")),
        ({"images": {}}, ("invalid_type", "input.images", "Invalid type. Expected: array, given: object")),
        ({"steps": 0}, ("number_gte", "input.steps", "Must be greater than or equal to 1")),
        ({"steps": 5}, ("number_lte", "input.steps", "Must be less than or equal to 4")),
        ({"whole": 2**63}, ("number_lte", "input.whole", f"Must be less than or equal to {2**63 - 1}")),
        ({"whole": -(2**63)}, ("number_gte", "input.whole", f"Must be greater than or equal to {1 - 2**63}")),
        ({"whole": 1e300}, ("number_lte", "input.whole", f"Must be less than or equal to {2**63 - 1}")),
        ({"extra": {"a": [2**70]}}, ("number_lte", "input", "Integers must fit in 64 bits")),
        ({"scale": 3}, ("number_lte", "input.scale", "Must be less than or equal to 2.5")),
        ({"scale": math.nan}, ("number", "input.scale", "Must be a finite number")),
        ({"scale": -math.inf}, ("number", "input.scale", "Must be a finite number")),
        ({"format": "gif"}, ("enum", "input.format", 'format must be one of the following: "jpg", "png"')),
        ({"name": "a"}, ("string_gte", "input.name", "String length must be greater than or equal to 2")),
        ({"name": "abcd"}, ("string_lte", "input.name", "String length must be less than or equal to 3")),
        ({"name": "ba"}, ("pattern", "input.name", "Does not match pattern '^a'")),
        ({"image": "x"}, ("format", "input.image", "Does not match format 'uri'")),
        ({"image": "http://["}, ("format", "input.image", "Does not match format 'uri'")),
        ({"images": ["x"]}, ("format", "input.images.0", "Does not match format 'uri'")),
        (
            {"either": True},
            ("invalid_type", "input.either", "Invalid type. Expected: string or array, given: boolean"),
        ),
        (
            {"either": [1, "x"]},
            ("invalid_type", "input.either.1", "Invalid type. Expected: integer, given: string"),
        ),
        (
            {"maybe_either": {}},
            ("invalid_type", "input.maybe_either", "Invalid type. Expected: string or number, given: object"),
        ),
        ({"num_steps": 9}, ("number_lte", "input.num_steps", "Must be less than or equal to 4")),
    ],
)
def test_refusals_are_worded_as_on_replicate(given: dict[str, Any], row: tuple[str, str, str]) -> None:
    complete = given if "prompt" in given or not given else {"prompt": "p", **given}
    assert refused(complete) == [row]


@pytest.mark.parametrize(
    ("pattern", "fitting", "unfitting"),
    [
        ("^[a-z]+$", "ab", "ab\n"),
        ("^(a|[^:/]*([/?]|$))", "bc", "bc\n:"),
        (r"^\d\$$", "1$", "1$\n"),
        ("^[]$]+$", "$]", "$]\n"),
        (r"^[\]$]+$", "$]", "$]\n"),
        ("(?m)^a$", "a\nb", "b"),
    ],
)
def test_a_dollar_sign_matches_only_the_end_of_the_text(pattern: str, fitting: str, unfitting: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert input_schema.fits(fitting, schema)
    assert not input_schema.fits(unfitting, schema)


@pytest.mark.parametrize(("given", "name"), [(None, "null"), ([], "array"), ("x", "string"), (1.5, "number")])
def test_an_input_that_is_no_object_is_refused(given: Any, name: str) -> None:
    assert refused(given) == [("invalid_type", "input", f"Invalid type. Expected: object, given: {name}")]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1, {"b": math.nan}], "c": math.inf}, "a.1.b"),
        ([0.5, -math.inf], "1"),
        (math.nan, ""),
        ({"a": [1, 2.5, None, "nan", {}]}, None),
    ],
)
def test_where_a_number_is_not_finite(value: Any, place: str | None) -> None:
    assert input_schema.non_finite(value) == place


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        input_schema.validate(INTERFACE, {"steps": 5})
    body = caught.value.body()
    assert body["detail"] == "- input: prompt is required\n- input.steps: Must be less than or equal to 4\n"
    assert [row["type"] for row in body["invalid_fields"]] == ["required", "number_lte"]
    assert body["status"] == 422


OPTIONS: dict[str, dict[str, Any]] = {
    "echo": {"stream": True},
    "vllm": {
        "system_prompt": "Be brief.", "max_tokens": 8, "temperature": 0.6, "top_p": 0.9, "top_k": 50,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_model_len": None,
    },
    "lora": {"max_adapter_rank": 16},
    "embeddings": {"max_batch": 64},
    "whisper": {},
    "piper": {"voices": {"alloy": "en_GB-a-medium"}, "found": ["en_GB-a-medium"]},
    "kokoro": {"voices": {"alloy": "af_alloy"}, "found": ["af_alloy"]},
    **{f"transformers {task}": {"task": task} for task in TASKS},
    "transformers csm": {"task": "text-to-speech", "model_type": "csm"},
}  # fmt: skip


@pytest.mark.parametrize("kind", OPTIONS)  # a Cog project says its own
def test_the_document_of_every_kind_is_whole(kind: str) -> None:
    interface = runner_class(kind.partition(" ")[0]).interface(OPTIONS[kind])
    document = input_schema.document(interface)
    schemas = document["components"]["schemas"]
    references = [part.partition('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]]
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= schemas.keys()
    assert {"/predictions", "/health-check"} == document["paths"].keys()
    properties = schemas["Input"]["properties"]
    assert sorted(part["x-order"] for part in properties.values()) == list(range(len(properties)))
    assert all((part.get("title") or part["allOf"]) and part["description"] for part in properties.values())
    assert all("default" in part for part in properties.values() if "allOf" in part), "a choice has a default"
    assert schemas["Output"]["title"] == "Output"
    needed = dict.fromkeys(("audio", "image", "train_data"), "data:,x")
    needed |= dict.fromkeys(("prompt", "texts", "text", "query", "documents", "labels"), "x")
    for name, part in properties.items():  # what is declared as a default is itself valid
        if "default" in part:
            assert (
                input_schema.validate(interface, {**needed, name: part["default"]})[name] == part["default"]
            )
