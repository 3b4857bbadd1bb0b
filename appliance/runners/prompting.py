"""The inputs of language models on Replicate, and what they mean. Pure: no tokenizer, no engine."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, Final

from appliance.errors import PredictionFailed
from appliance.runners.base import Interface

#: What other models and clients call an input (replicate-api section 9.1).
ALIASES: Final = {
    "max_new_tokens": "max_tokens",  # Llama 2; LiteLLM, for nearly every model
    "max_length": "max_tokens",  # LlamaIndex
    "max_completion_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop": "stop_sequences",
}
_PLACES: Final = frozenset({"prompt", "system_prompt"})


def interface(options: Mapping[str, Any]) -> Interface:
    """Inputs and output of a language model; ``options`` are those of ``VllmOptions`` and give the defaults."""
    properties: dict[str, dict[str, Any]] = {
        "prompt": {"type": "string", "description": "Text given to the model"},
        "system_prompt": {
            "type": "string",
            "default": options["system_prompt"],
            "description": "Instructions that come before the prompt; left out where the model knows none",
        },
        "max_tokens": {
            "type": "integer",
            "default": options["max_tokens"],
            "minimum": 1,
            "description": "Longest output, in tokens",
        },
        "min_tokens": {
            "type": "integer",
            "default": 0,
            "minimum": -1,
            "description": "Shortest output, in tokens; -1 and 0 mean any",
        },
        "temperature": {
            "type": "number",
            "default": options["temperature"],
            "minimum": 0,
            "maximum": 5,
            "description": "How freely tokens are chosen; 0 always takes the likeliest",
        },
        "top_p": {
            "type": "number",
            "default": options["top_p"],
            "minimum": 0,
            "maximum": 1,
            "description": "Choose among the likeliest tokens whose probabilities add up to this",
        },
        "top_k": {
            "type": "integer",
            "default": options["top_k"],
            "minimum": 0,
            "description": "Choose among this many of the likeliest tokens; 0 is off",
        },
        "presence_penalty": {
            "type": "number",
            "default": options["presence_penalty"],
            "minimum": -2,
            "maximum": 2,
            "description": "Over 0 favours tokens that are not in the output yet",
        },
        "frequency_penalty": {
            "type": "number",
            "default": options["frequency_penalty"],
            "minimum": -2,
            "maximum": 2,
            "description": "Over 0 holds back tokens the more often they are in the output",
        },
        "stop_sequences": {
            "type": "string",
            "x-appliance-list": True,
            "description": "Texts that end the output, separated by commas, or as a list; they are not part of it",
        },
        "prompt_template": {
            "type": "string",
            "description": "What the model reads, with {prompt} and perhaps {system_prompt} in it; "
            "by default the model's own chat template",
        },
        "seed": {"type": "integer", "description": "The same seed gives the same output"},
    }
    for order, (name, schema) in enumerate(properties.items()):
        schema |= {"title": name.replace("_", " ").title(), "x-order": order}
    return Interface(
        input={"type": "object", "title": "Input", "required": ["prompt"], "properties": properties},
        output={
            "type": "array",
            "title": "Output",
            "items": {"type": "string"},
            "x-cog-array-type": "iterator",
            "x-cog-array-display": "concatenate",
        },
        aliases=ALIASES,
    )


def fill_template(template: str, prompt: str, system_prompt: str) -> str:
    """``template`` with the prompts in it.

    Only the two names themselves are places: a template is a caller's text, and Python's own formatting would
    let it reach into objects.

    Raises:
        PredictionFailed: the template has no ``{prompt}``, or is no template.
    """
    filled: list[str] = []
    places = set()
    try:
        for text, name, form, conversion in string.Formatter().parse(template):
            filled.append(text)
            if name is None:
                continue
            if name not in _PLACES or form or conversion:
                raise PredictionFailed(
                    f"E1004 PromptTemplateError: prompt_template has {{{name}}}; it may have {{prompt}} and "
                    "{system_prompt}, and a brace is written twice"
                )
            places.add(name)
            filled.append(prompt if name == "prompt" else system_prompt)
    except ValueError as error:
        raise PredictionFailed(f"E1004 PromptTemplateError: prompt_template: {error}") from error
    if "prompt" not in places:
        raise PredictionFailed(
            "E1003 BadPromptTemplate: prompt_template must contain {prompt}, where the prompt goes"
        )
    return "".join(filled)


def messages(prompt: str, system_prompt: str) -> list[dict[str, str]]:
    """The conversation a chat template is given."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def stops(given: str | list[str] | None) -> list[str]:
    """The texts that end the output; blanks around them count, empty ones do not."""
    parts = given.split(",") if isinstance(given, str) else given or []
    return [part for part in parts if part]


def lengths(asked: Mapping[str, Any], prompt_tokens: int, context: int) -> tuple[int, int]:
    """The longest and the shortest output that fit behind the prompt, in tokens.

    Raises:
        PredictionFailed: the prompt leaves no room for a token.
    """
    room = context - prompt_tokens
    if room < 1:
        raise PredictionFailed(
            f"E1002 PromptTooLong: the prompt has {prompt_tokens} tokens with its template; this model reads "
            f"{context} tokens, output included"
        )
    longest = min(asked["max_tokens"], room)
    return longest, max(0, min(asked["min_tokens"], longest))
