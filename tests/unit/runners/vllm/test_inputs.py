from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import inputs
from appliance.runners.vllm.inputs import Defaults, fill_template, max_output_tokens, messages, request

plain = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]))
anything = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("value", "strings"),
    [
        (None, ()),
        ("", ()),
        ("<end>", ("<end>",)),
        ("<end>,<stop>", ("<end>", "<stop>")),
        ("\n, User:", ("\n", " User:")),
        (",,a,", ("a",)),
        ("a,b,a", ("a", "b")),
        ([], ()),
        (["one, two", ""], ("one, two",)),
    ],
)
def test_stop_sequences_come_as_text_or_as_a_list(value: Any, strings: tuple[str, ...]) -> None:
    assert inputs.stop_strings(value) == strings


@given(before=plain, between=plain, after=plain, prompt=anything, system=anything)
def test_a_filled_template_keeps_its_text_and_the_prompts(
    before: str, between: str, after: str, prompt: str, system: str
) -> None:
    template = f"{before}{{system_prompt}}{between}{{prompt}}{after}"
    assert fill_template(template, prompt, system) == f"{before}{system}{between}{prompt}{after}"


def test_doubled_braces_are_unescaped_and_fields_in_a_prompt_are_not_filled() -> None:
    assert fill_template('{{"q": "{prompt}"}} {prompt}', "{system_prompt}", "s") == (
        '{"q": "{system_prompt}"} {system_prompt}'
    )


@given(anything)
def test_an_empty_template_gives_the_prompt(prompt: str) -> None:
    assert fill_template("", prompt, "ignored") == prompt


@pytest.mark.parametrize("template", ["text", "{system_prompt}", "{{prompt}}"])
def test_a_template_without_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(PredictionFailed, match=r"^E1003 BadPromptTemplate: "):
        fill_template(template, "p", "s")


@pytest.mark.parametrize(
    "template",
    [
        "{prompt} {other}",
        "{prompt} {}",
        "{prompt} {0}",
        "{prompt.__class__}",
        "{prompt} {prompt[0]}",
        "{prompt!r}",
        "{prompt:>10}",
        "{prompt} {",
        "{prompt} }",
    ],
)
def test_a_template_with_other_fields_is_refused(template: str) -> None:
    with pytest.raises(PredictionFailed, match=r"^E1004 PromptTemplateError: "):
        fill_template(template, "p", "s")


def test_the_output_fits_into_the_context_after_the_prompt() -> None:
    assert max_output_tokens(1, 10) == 9
    assert max_output_tokens(9, 10) == 1
    with pytest.raises(PredictionFailed, match=r"^E1002 PromptTooLong: .* 10 tokens; .* at most 9,"):
        max_output_tokens(10, 10)


def test_an_empty_system_prompt_is_no_message() -> None:
    assert messages("hi", "") == [{"role": "user", "content": "hi"}]
    assert [message["role"] for message in messages("hi", "be brief")] == ["system", "user"]


def test_missing_inputs_come_from_the_options() -> None:
    defaults = Defaults.of({"max_tokens": 7, "top_k": 3, "system_prompt": "S", "kv_cache": 1})
    asked = request({"prompt": "p"}, defaults)
    assert (asked.max_tokens, asked.top_k, asked.system_prompt) == (7, 3, "S")
    assert (asked.temperature, asked.min_tokens, asked.seed, asked.stop) == (0.6, 0, None, ())
    assert asked.prompt_template is None


def test_empty_and_zero_inputs_override_the_options() -> None:
    asked = request(
        {"prompt": "p", "system_prompt": "", "temperature": 0, "top_k": 0, "prompt_template": "", "seed": 0},
        Defaults(),
    )
    assert (asked.system_prompt, asked.temperature, asked.top_k) == ("", 0, 0)
    assert (asked.prompt_template, asked.seed) == ("", 0)


def test_min_tokens_of_minus_one_is_no_minimum() -> None:
    assert request({"prompt": "p", "min_tokens": -1}, Defaults()).min_tokens == 0


def test_a_minimum_over_the_maximum_is_refused() -> None:
    with pytest.raises(PredictionFailed, match=r"min_tokens \(5\) is over max_tokens \(4\)"):
        request({"prompt": "p", "min_tokens": 5, "max_tokens": 4}, Defaults())


@given(st.integers(-(2**53), 2**53))
def test_any_seed_becomes_a_seed_that_torch_accepts(seed: int) -> None:
    taken = request({"prompt": "p", "seed": seed}, Defaults()).seed
    assert taken is not None
    assert 0 <= taken < 2**63
    assert taken == seed or seed < 0


def test_every_alias_leads_to_an_input() -> None:
    properties = inputs.interface({}).input["properties"]
    assert set(inputs.ALIASES.values()) <= set(properties)
    assert not set(inputs.ALIASES) & set(properties)


@pytest.mark.parametrize(
    ("given", "images"),
    [
        ({}, ()),
        ({"image": "/a"}, ("/a",)),
        ({"images": ["/b", "/c"]}, ("/b", "/c")),
        ({"images": ["/b"], "image": "/a"}, ("/a", "/b")),
    ],
)
def test_all_images_are_sent_in_order(given: dict[str, Any], images: tuple[str, ...]) -> None:
    assert request({"prompt": "x", **given}, Defaults()).images == images


def test_images_and_a_prompt_template_exclude_each_other() -> None:
    with pytest.raises(PredictionFailed, match=r"input\.prompt_template cannot be combined with images"):
        request({"prompt": "x", "image": "/a", "prompt_template": "{prompt}"}, Defaults())


def test_a_chat_request_has_the_images_before_the_prompt() -> None:
    asked = request(
        {"prompt": "what is this", "top_p": 0, "top_k": -1, "max_tokens": 4, "seed": 3}, Defaults()
    )
    body = inputs.chat_request(asked, ["data:a", "data:b"], system_in_prompt=False)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    assert user["content"][1]["image_url"] == {"url": "data:b"}
    assert user["content"][2]["text"] == "what is this"
    assert (body["temperature"], body["top_p"], body["top_k"], body["seed"]) == (0, 1, 0, 3)
    (only,) = inputs.chat_request(asked, ["data:a"], system_in_prompt=True)["messages"]
    assert only["content"][1]["text"] == "You are a helpful assistant.\n\nwhat is this"
