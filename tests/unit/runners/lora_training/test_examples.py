"""Lines of training data, and the text that is learnt from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners.lora_training.examples import Example, TextSegment, read, segments

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


def written(folder: Path, text: str) -> Path:
    file = folder / "train.jsonl"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_forms_of_a_line(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": "Hi", "completion": "Hello", "system_prompt": ""},
        {"messages": [USER, REPLY]},
        {"text": "all of this"},
    ]
    text = "\n\n".join(map(json.dumps, lines))  # empty lines are ignored, but counted
    assert read(written(tmp_path, text), "Be brief.") == [
        Example(1, [{"role": "system", "content": "Be brief."}, USER, REPLY], ""),
        Example(3, [USER, REPLY], ""),
        Example(5, [USER, REPLY], ""),
        Example(7, [], "all of this"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", 'line 2 cannot be used: the line needs "prompt" and "completion"'),
        ('{"prompt": "x"}', "line 2 cannot be used"),
        ('{"text": ""}', "line 2 cannot be used"),
        ('{"prompt": "x", "completion": "y", "system_prompt": 1}', '"system_prompt" must be text'),
        ('{"messages": []}', 'line 2: "messages" has no message of the assistant'),
        ('{"messages": [{"role": "tool", "content": "x"}]}', r'messages\.0 needs a "role"'),
        ('{"messages": [{"role": "user", "content": []}]}', '"content" that is text'),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(PredictionFailed, match=reason):
        read(written(tmp_path, f'{{"text": "x"}}\n{line}\n'), "")


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionFailed, match="the file has no examples"):
        read(written(tmp_path, "\n \n"), "")


def test_a_template_that_changes_earlier_text_makes_all_text_learnt() -> None:
    def render(messages: list[dict[str, str]], *, prompt: bool) -> str:
        return f"{len(messages)} messages {prompt}"

    assert segments(Example(1, [USER, REPLY], ""), render) == [TextSegment("2 messages False", learnt=True)]
