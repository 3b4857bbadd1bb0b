"""Reads the training data of language models, a JSONL file, and checks every line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from appliance.domain.errors import PredictionFailed
from appliance.runners.vllm import inputs

_ROLES: Final = ("system", "user", "assistant")
_FIELDS: Final = 'the line needs "prompt" and "completion", or "messages", or "text"'
#: Applies the chat template to messages. With ``prompt=True`` the text ends where the model's reply begins.
Render = Callable[..., str]


class Example(NamedTuple):
    """One line of the training data: a conversation, or a text that the model learns completely."""

    line: int  # from 1
    messages: list[dict[str, str]]  # empty if the line is a text
    text: str


class TextSegment(NamedTuple):
    """A part of an example's text."""

    text: str
    learnt: bool  # whether the model learns to write this text


def read(path: Path, system_prompt: str) -> list[Example]:
    """Return the examples in a file. ``system_prompt`` is for lines with a prompt but no system prompt.

    Raises:
        PredictionFailed: the file has no examples, or a line is wrong; the message has the line's number.
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
        raise PredictionFailed("train_data: the file has no examples; write one in each line")
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
    raise PredictionFailed(f"{where} cannot be used: {_FIELDS}")


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
        raise PredictionFailed(f'{where}: "messages" has no message of the assistant to learn from')


def segments(example: Example, render: Render | None) -> list[TextSegment]:
    """Split the text of an example into segments that the model learns and segments that it only reads.

    ``render`` is None for models without a chat template. Then every message is a segment.
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
        prompt = render(example.messages[:at], prompt=True)
        answered = render(example.messages[: at + 1], prompt=False)
        if not (prompt.startswith(done) and answered.startswith(prompt)):  # the template changes earlier text
            return [TextSegment(render(example.messages, prompt=False), learnt=True)]
        found += [
            TextSegment(prompt[len(done) :], learnt=False),
            TextSegment(answered[len(prompt) :], learnt=True),
        ]
        done = answered
    return found
