"""Search that knows kinds and synonyms, and tolerates typos."""

from __future__ import annotations

import pytest

from appliance.ui.search import KIND_NAMES, KIND_WORDS, Findable, find

MODELS = [
    Findable(name, f"{kind} {KIND_NAMES[kind]} {KIND_WORDS[kind]}", text, kind)
    for name, kind, text in (
        ("appliance/smollm2-135m-instruct", "vllm", "A small language model that answers on a CPU."),
        ("appliance/tiny-shapes", "diffusers", "Draws one coloured shape, from a short prompt."),
        ("appliance/whisper-tiny-en", "whisper", "Writes down spoken English."),
        ("appliance/piper-joe", "piper", "Joe, a voice that reads English texts aloud."),
        ("appliance/all-minilm-l6-v2", "embeddings", "Turns texts into vectors for search and comparison."),
    )
]


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("speech", {"whisper", "piper"}),
        ("picture", {"diffusers"}),
        ("pictures", {"diffusers"}),
        ("transcribe", {"whisper"}),
        ("transcribing", {"whisper"}),
        ("transcirbe", {"whisper"}),  # two letters swapped
        ("a model to draw", {"diffusers"}),
        ("wisper", {"whisper"}),
        ("smolm", {"vllm"}),  # unfinished, and with a typo
        ("tiny shapes", {"diffusers"}),
        ("embedings", {"embeddings"}),
        ("tiny nothing", set()),
        ("xyz", set()),
        ("", set(KIND_NAMES) & {model.value for model in MODELS}),
    ],
)
def test_models_are_found_by_kind_task_and_synonym_with_typos(query: str, kinds: set[str]) -> None:
    assert {found.value for found in find(query, MODELS)} == kinds


def test_a_name_comes_before_a_synonym_and_a_synonym_before_a_description() -> None:
    items = [
        Findable("c", "", "speech of the day"),
        Findable("b", "speech"),
        Findable("speech"),
        Findable("speeches"),
    ]
    assert [found.title for found in find("speech", items)] == ["speech", "speeches", "b", "c"]


def test_every_kind_of_models_has_a_name_and_words() -> None:
    from appliance.runners import model_configs

    assert set(KIND_NAMES) == set(KIND_WORDS) == set(model_configs())
