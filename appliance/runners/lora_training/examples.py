"""Training data of language models: JSONL, checked line by line. Pure but for reading the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import inputs

_ROLES: Final = ("system", "user", "assistant")
_FORMS: Final = 'it needs "prompt" and "completion", or "messages", or "text"'
#: Writes messages down as the model reads them; ``answer`` leaves off where the model would begin.
Render = Callable[..., str]


class Example(NamedTuple):
    """One line: a conversation, or text that is learnt as a whole."""

    line: int  # from 1
    messages: list[dict[str, str]]
    text: str


class TextSegment(NamedTuple):
    """A part of an example's text."""

    text: str
    learnt: bool


def read(path: Path, system_prompt: str) -> list[Example]:
    """Every example of the file; prompts without a conversation get ``system_prompt``.

    Raises:
        PredictionFailed: names the first line that is wrong, and why.
    """
    examples = []
    try:
        with path.open(encoding="utf-8-sig") as file:  # editors on Windows write a byte order mark
            for number, line in enumerate(file, 1):
                if line.strip():
                    examples.append(_example(number, line, system_prompt))
    except UnicodeDecodeError as error:
        raise PredictionFailed(f"train_data: the file is not text in UTF-8: {error}") from error
    if not examples:
        raise PredictionFailed("train_data: the file has no examples")
    return examples


def _example(number: int, line: str, system_prompt: str) -> Example:
    where = f"train_data: line {number}"
    try:
        given = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PredictionFailed(f"{where} is not JSON: {error}") from error
    match given:
        case {"prompt": str(prompt), "completion": str(completion)}:
            system = given.get("system_prompt", system_prompt)
            if not isinstance(system, str):
                raise PredictionFailed(f'{where}: "system_prompt" must be text')
            conversation = inputs.messages(prompt, system)
            return Example(number, [*conversation, {"role": "assistant", "content": completion}], "")
        case {"messages": list(messages)}:
            return Example(number, list(_messages(where, messages)), "")
        case {"text": str(text)} if text:
            return Example(number, [], text)
    raise PredictionFailed(f"{where} cannot be used: {_FORMS}")


def _messages(where: str, messages: list[Any]) -> Iterator[dict[str, str]]:
    for at, message in enumerate(messages):
        match message:
            case {"role": str(role), "content": str(content)} if role in _ROLES:
                yield {"role": role, "content": content}
            case _:
                raise PredictionFailed(
                    f'{where}: messages.{at} needs a "role" of {", ".join(_ROLES)} and "content" that is text'
                )
    if not any(message["role"] == "assistant" for message in messages):
        raise PredictionFailed(f'{where}: "messages" has no answer of the assistant to learn')


def segments(example: Example, render: Render | None) -> list[TextSegment]:
    """The text of an example, cut where learning begins and ends.

    Without ``render``, for models that know no conversations, contents follow each other as they are.
    """
    if not example.messages:
        return [TextSegment(example.text, learnt=True)]
    if render is None:
        return [TextSegment(part["content"], part["role"] == "assistant") for part in example.messages]
    found: list[TextSegment] = []
    done = ""
    for at, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        asked = render(example.messages[:at], answer=True)
        whole = render(example.messages[: at + 1], answer=False)
        if not (asked.startswith(done) and whole.startswith(asked)):  # a template that rewrites the past
            return [TextSegment(render(example.messages, answer=False), learnt=True)]
        found += [
            TextSegment(asked[len(done) :], learnt=False),
            TextSegment(whole[len(asked) :], learnt=True),
        ]
        done = whole
    return found
