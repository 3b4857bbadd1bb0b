"""What a language model is asked, without a model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import inputs as prompting
from appliance.runners.vllm.inputs import Defaults, fill, messages, request, room, stop_strings

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
    assert stop_strings(value) == strings


@given(before=plain, between=plain, after=plain, prompt=anything, system=anything)
def test_a_template_keeps_its_text_and_what_it_is_given(
    before: str, between: str, after: str, prompt: str, system: str
) -> None:
    template = f"{before}{{system_prompt}}{between}{{prompt}}{after}"
    assert fill(template, prompt, system) == f"{before}{system}{between}{prompt}{after}"


def test_braces_are_written_twice_and_fields_of_a_prompt_stay_as_they_are() -> None:
    assert fill('{{"q": "{prompt}"}} {prompt}', "{system_prompt}", "s") == (
        '{"q": "{system_prompt}"} {system_prompt}'
    )


@given(anything)
def test_an_empty_template_is_the_prompt_itself(prompt: str) -> None:
    assert fill("", prompt, "ignored") == prompt


@pytest.mark.parametrize("template", ["text", "{system_prompt}", "{{prompt}}"])
def test_a_template_without_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(PredictionFailed, match=r"^E1003 BadPromptTemplate: "):
        fill(template, "p", "s")


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
def test_a_template_that_asks_for_more_is_refused(template: str) -> None:
    with pytest.raises(PredictionFailed, match=r"^E1004 PromptTemplateError: "):
        fill(template, "p", "s")


def test_how_much_room_a_prompt_leaves() -> None:
    assert room(1, 10) == 9
    assert room(9, 10) == 1
    with pytest.raises(PredictionFailed, match=r"^E1002 PromptTooLong: .* 10 tokens; .* at most 9,"):
        room(10, 10)


def test_an_empty_system_prompt_is_no_message() -> None:
    assert messages("hi", "") == [{"role": "user", "content": "hi"}]
    assert [message["role"] for message in messages("hi", "be brief")] == ["system", "user"]


def test_what_is_not_asked_comes_from_the_options() -> None:
    defaults = Defaults.of({"max_tokens": 7, "top_k": 3, "system_prompt": "S", "kv_cache": 1})
    asked = request({"prompt": "p"}, defaults)
    assert (asked.max_tokens, asked.top_k, asked.system_prompt) == (7, 3, "S")
    assert (asked.temperature, asked.min_tokens, asked.seed, asked.stop) == (0.6, 0, None, ())
    assert asked.prompt_template is None


def test_what_is_asked_wins_over_the_options_even_when_it_is_nothing() -> None:
    asked = request(
        {"prompt": "p", "system_prompt": "", "temperature": 0, "top_k": 0, "prompt_template": "", "seed": 0},
        Defaults(),
    )
    assert (asked.system_prompt, asked.temperature, asked.top_k) == ("", 0, 0)
    assert (asked.prompt_template, asked.seed) == ("", 0)


def test_no_minimum_as_llama_2_callers_say_it() -> None:
    assert request({"prompt": "p", "min_tokens": -1}, Defaults()).min_tokens == 0


def test_a_minimum_over_the_maximum_is_refused() -> None:
    with pytest.raises(PredictionFailed, match=r"min_tokens \(5\) is over max_tokens \(4\)"):
        request({"prompt": "p", "min_tokens": 5, "max_tokens": 4}, Defaults())


@given(st.integers(-(2**53), 2**53))
def test_any_seed_is_one_that_torch_takes(seed: int) -> None:
    taken = request({"prompt": "p", "seed": seed}, Defaults()).seed
    assert taken is not None
    assert 0 <= taken < 2**63
    assert taken == seed or seed < 0


def test_every_alias_leads_to_an_input() -> None:
    inputs = prompting.interface({}).input["properties"]
    assert set(prompting.ALIASES.values()) <= set(inputs)
    assert not set(prompting.ALIASES) & set(inputs)
