from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from appliance.domain.interface import Interface
from appliance.runners import runner_class
from appliance.runners.vllm.compat import payload
from appliance.runners.vllm.options import VllmOptions
from appliance.runners.vllm.runner import VllmRunner


def interface_with(**options: Any) -> Interface:
    return VllmRunner.interface(VllmOptions(**options).model_dump())


def test_the_kind_vllm_has_this_runner() -> None:
    assert runner_class("vllm") is VllmRunner


def test_the_inputs_are_those_of_llama_models_on_replicate_in_order() -> None:
    properties = interface_with().input["properties"]
    by_order = sorted(properties, key=lambda name: properties[name]["x-order"])
    assert by_order == [
        "prompt",
        "system_prompt",
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "presence_penalty",
        "frequency_penalty",
        "stop_sequences",
        "prompt_template",
        "seed",
    ]
    assert [properties[name]["x-order"] for name in by_order] == list(range(12))
    assert properties["presence_penalty"]["title"] == "Presence Penalty"
    assert all(schema["description"] for schema in properties.values())
    assert interface_with().input["required"] == ["prompt"]


def test_a_model_with_a_part_for_images_has_inputs_for_them(tmp_path: Path) -> None:
    options = VllmOptions(max_num_seqs=7)
    assert options.completed(tmp_path) is options
    config = tmp_path / "config.json"
    for text in ('{"model_type": "llama"}', "[1]", "{"):
        config.write_text(text)
        assert options.completed(tmp_path) is options
    config.write_text('{"vision_config": {}}')
    completed = options.completed(tmp_path)
    assert completed.max_num_seqs == 7
    interface = VllmRunner.interface(completed.model_dump())
    assert interface.file_inputs == ["image", "images", "video"]
    assert interface.aliases["media"] == "image"
    assert interface.aliases["max_new_tokens"] == "max_tokens"
    assert interface_with().file_inputs == []
    assert "media" not in interface_with().aliases


def test_the_defaults_of_the_inputs() -> None:
    properties = interface_with().input["properties"]
    assert {name: schema["default"] for name, schema in properties.items() if "default" in schema} == {
        "system_prompt": "You are a helpful assistant.",
        "max_tokens": 512,
        "min_tokens": 0,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_a_models_options_are_its_defaults() -> None:
    asked = {"max_tokens": 9, "temperature": 0.0, "top_p": 0.5, "top_k": 0, "system_prompt": "Be brief."}
    properties = interface_with(**asked).input["properties"]
    assert {name: properties[name]["default"] for name in asked} == asked


def test_the_output_is_a_list_of_strings_that_is_concatenated() -> None:
    interface = interface_with()
    assert interface.iterates
    assert interface.output == {
        "type": "array",
        "title": "Output",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    }


def test_the_aliases_of_inputs() -> None:
    assert interface_with().aliases == {
        "max_new_tokens": "max_tokens",
        "max_length": "max_tokens",
        "min_new_tokens": "min_tokens",
        "stop": "stop_sequences",
    }
    assert interface_with().input["properties"]["stop_sequences"]["x-appliance-list"] is True


@pytest.mark.parametrize(
    ("input", "valid"),
    [
        ({"prompt": "hi"}, True),
        ({"prompt": "hi", "min_tokens": -1, "top_k": -1, "temperature": 5, "top_p": 0}, True),
        ({"prompt": "hi", "stream": True}, True),
        ({}, False),
        ({"prompt": 1}, False),
        ({"prompt": "hi", "max_tokens": 0}, False),
        ({"prompt": "hi", "temperature": 5.1}, False),
        ({"prompt": "hi", "top_p": 1.1}, False),
        ({"prompt": "hi", "frequency_penalty": -2.1}, False),
        ({"prompt": "hi", "seed": 2**64}, False),
    ],
)
def test_valid_and_invalid_inputs(input: dict[str, Any], valid: bool) -> None:
    validator = jsonschema.Draft7Validator(interface_with().input)
    assert validator.is_valid(input) is valid


def test_the_interface_imports_no_heavy_libraries() -> None:
    code = (
        "import sys; from appliance.runners import runner_class; runner_class('vllm').interface({});"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_unusual_line_ends_do_not_split_the_data_of_an_event() -> None:
    data = {"text": "one\u2028two\x85three\r\nfour"}
    event = f"event: x\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
    assert payload(event) == data
    assert payload("data: [DONE]\n\n") is None
    assert payload(": hi\n\n") is None
