"""Inputs of language models, and prompt templates.

Names, defaults and descriptions of inputs are those of the Llama models on Replicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, Final

import msgspec

from appliance.domain.errors import PredictionFailed
from appliance.domain.interface import Interface
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.schemas import integer

#: Name of an input in other models and client libraries -> its name here. To every model, LiteLLM sends
#: max_new_tokens and LlamaIndex max_length.
ALIASES: Final[dict[str, str]] = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop": "stop_sequences",
}

#: The same for models that accept images.
_IMAGE_ALIASES: Final = {**ALIASES, "media": "image", "input_image": "image", "image_input": "images"}

_SEED_BITS: Final = 2**63 - 1  # torch generators accept seeds of 63 bits
_LARGEST_INTEGER: Final = 2**53 - 1  # JSON readers in other languages round larger ones
_FIELDS: Final = ("prompt", "system_prompt")


class Defaults(msgspec.Struct, frozen=True):
    """Defaults of a prediction's inputs; the model's options can set them."""

    system_prompt: str = "You are a helpful assistant."
    max_tokens: int = 512
    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 50
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Defaults:
        """Return the defaults of a model with these options, which may be incomplete."""
        known = cls.__struct_fields__
        return cls(**{name: value for name, value in options.items() if name in known})


#: Types of the fields of ``Defaults``; all others are floats. The input 4.0 is an integer too.
_TYPES: Final[dict[str, type]] = {"system_prompt": str, "max_tokens": int, "top_k": int}


class PredictionInput(Defaults, frozen=True, kw_only=True):
    """The complete input of one prediction."""

    prompt: str
    prompt_template: str | None
    min_tokens: int
    stop: tuple[str, ...]
    seed: int | None
    images: tuple[str, ...] = ()  # paths
    video: str | None = None  # path
    video_frames: int = 0


def interface(options: Mapping[str, Any]) -> Interface:
    output = {
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    }
    declared = _inputs(Defaults.of(options))
    if not options.get("accepts_images"):
        return interface_of(declared, output, required=("prompt",), aliases=ALIASES)
    return interface_of({**declared, **_IMAGES}, output, required=("prompt",), aliases=_IMAGE_ALIASES)


def request(input: Mapping[str, Any], defaults: Defaults) -> PredictionInput:
    """Return a validated input with all defaults filled in.

    Raises:
        PredictionFailed: ``min_tokens`` is larger than ``max_tokens``.
    """
    values = {}
    for name in Defaults.__struct_fields__:
        value = input.get(name)
        values[name] = _TYPES.get(name, float)(getattr(defaults, name) if value is None else value)
    min_tokens, max_tokens, seed = int(input.get("min_tokens") or 0), values["max_tokens"], input.get("seed")
    if min_tokens > max_tokens:
        raise PredictionFailed(
            f"min_tokens ({min_tokens}) is over max_tokens ({max_tokens}); lower min_tokens or raise "
            "max_tokens"
        )
    return PredictionInput(
        **values,
        prompt=input.get("prompt") or "",
        prompt_template=input.get("prompt_template"),
        min_tokens=max(min_tokens, 0),
        stop=stop_strings(input.get("stop_sequences")),
        seed=None if seed is None else seed & _SEED_BITS,
        images=_images(input),
        video=input.get("video"),
        video_frames=int(input.get("video_frames") or _VIDEO_FRAMES),
    )


def _images(input: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of the images, that of the input ``image`` first.

    Raises:
        PredictionFailed: there are images or a video, and a prompt template, which has no place for them.
    """
    first = input.get("image")
    paths = (*((first,) if first else ()), *(input.get("images") or ()))
    if (paths or input.get("video")) and input.get("prompt_template") is not None:
        raise PredictionFailed("input.prompt_template cannot be combined with images: leave it out")
    return paths


def chat_request(
    request: PredictionInput, images: Sequence[str], *, system_in_prompt: bool
) -> dict[str, Any]:
    """Return the body of a chat completion with images, for vLLM's implementation of OpenAI's API.

    Args:
        request: the input of the prediction.
        images: ``data:`` URLs.
        system_in_prompt: whether to put the system prompt before the prompt.
    """
    prompt, system_prompt = request.prompt, request.system_prompt
    if system_in_prompt and system_prompt:
        prompt, system_prompt = f"{system_prompt}\n\n{prompt}", ""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    content = [*parts, {"type": "text", "text": prompt}]
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    body = {
        "messages": [*system, {"role": "user", "content": content}],
        "stream": True,
        "max_tokens": request.max_tokens,
        "min_tokens": min(request.min_tokens, request.max_tokens),
        "temperature": 0.0 if request.top_p == 0 else request.temperature,
        "top_p": request.top_p or 1.0,
        "top_k": max(request.top_k, 0),
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "stop": list(request.stop),
    }
    return body if request.seed is None else {**body, "seed": request.seed}


def stop_strings(value: str | Sequence[str] | None) -> tuple[str, ...]:
    r"""Return the stop sequences in a list, or in a text that separates them by commas.

    Empty sequences are left out. Spaces count: ``\n, User:`` stops at ``\n`` and at `` User:``.
    """
    if value is None:
        return ()
    pieces = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(piece for piece in pieces if piece))


def messages(prompt: str, system_prompt: str) -> list[dict[str, str]]:
    """Return the conversation for a chat template; an empty system prompt adds no message."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def fill_template(template: str, prompt: str, system_prompt: str) -> str:
    """Replace ``{prompt}`` and ``{system_prompt}`` in ``template``; an empty template gives the prompt.

    Raises:
        PredictionFailed: E1003 if there is no ``{prompt}``; E1004 if the template is not a format string or
            has other fields.
    """
    if not template:
        return prompt
    pieces = list(_pieces(template))
    if all(field != "prompt" for _, field in pieces):
        raise PredictionFailed(
            "E1003 BadPromptTemplate: You have submitted a prompt template that doesn't include '{prompt}'. "
            "Your prompt would not be used."
        )
    values = {"prompt": prompt, "system_prompt": system_prompt}
    return "".join(text + (values[field] if field else "") for text, field in pieces)


def _pieces(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield each literal text and the field after it.

    ``str.format`` is not used, because it would evaluate fields such as ``{prompt.__class__}``.
    """
    try:
        for text, field, spec, conversion in Formatter().parse(template):
            if field is not None and (field not in _FIELDS or spec or conversion):
                shown = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise _bad_template(f"it has {{{shown}}}")
            yield text, field
    except ValueError as error:
        raise _bad_template(str(error)) from error


def _bad_template(why: str) -> PredictionFailed:
    return PredictionFailed(
        "E1004 PromptTemplateError: Prompt template must be a valid Python format string with the fields "
        f"{{prompt}} and {{system_prompt}} only, and with other braces doubled: {why}."
    )


def max_output_tokens(prompt_tokens: int, context: int) -> int:
    """Return how many tokens of output fit after the prompt.

    ``context`` is the maximum number of tokens of prompt and output together.

    Raises:
        PredictionFailed: E1002, the prompt leaves no room for output.
    """
    if prompt_tokens >= context:
        raise PredictionFailed(
            "E1002 PromptTooLong: Prompt length exceeds maximum input length. The prompt has "
            f"{prompt_tokens} tokens; this model accepts at most {context - 1}, so that one of output fits."
        )
    return context - prompt_tokens


_VIDEO_FRAMES: Final = 8
_MOST_FRAMES: Final = 32
_IMAGES: Final[dict[str, dict[str, Any]]] = {
    "image": {**FILE, "description": "Image that the prompt is about."},
    "images": {
        "type": "array",
        "items": FILE,
        "description": "Further images that the prompt is about, in order, after `image`.",
    },
    "video": {
        **FILE,
        "description": "Video that the prompt is about. The model gets some of its frames as images, after "
        "`image` and `images`. It gets no sound.",
    },
    "video_frames": integer(
        "Number of frames of `video`, evenly spaced", default=_VIDEO_FRAMES, ge=1, le=_MOST_FRAMES
    ),
}


def _inputs(defaults: Defaults) -> dict[str, dict[str, Any]]:
    return {
        "prompt": {"type": "string", "description": "Prompt to send to the model."},
        "system_prompt": {
            "type": "string",
            "default": defaults.system_prompt,
            "description": "System prompt to send to the model. It guides how the model answers. Models "
            "without a chat template ignore it, unless prompt_template says where it goes.",
        },
        "max_tokens": {
            "type": "integer",
            "default": defaults.max_tokens,
            "minimum": 1,
            "description": "The maximum number of tokens the model should generate as output. It is lowered "
            "to what fits into the model's context after the prompt.",
        },
        "min_tokens": {
            "type": "integer",
            "default": 0,
            "minimum": -1,  # what Llama 2 callers send for "none"
            "description": "The minimum number of tokens the model should generate as output.",
        },
        "temperature": {
            "type": "number",
            "default": defaults.temperature,
            "minimum": 0,
            "maximum": 5,
            "description": "The value used to modulate the next token probabilities; 0 always takes the "
            "likeliest token.",
        },
        "top_p": {
            "type": "number",
            "default": defaults.top_p,
            "minimum": 0,
            "maximum": 1,
            "description": "A probability threshold for generating the output. If < 1.0, only keep the top "
            "tokens with cumulative probability >= top_p (nucleus filtering). 0 takes the likeliest token.",
        },
        "top_k": {
            "type": "integer",
            "default": defaults.top_k,
            "minimum": -1,
            "description": "The number of highest probability tokens to consider for generating the output. "
            "If > 0, only keep the top k tokens with highest probability (top-k filtering). 0 or -1 is off.",
        },
        "presence_penalty": {
            "type": "number",
            "default": defaults.presence_penalty,
            "minimum": -2,
            "maximum": 2,
            "description": "Presence penalty: above 0, tokens that are in the output become less likely.",
        },
        "frequency_penalty": {
            "type": "number",
            "default": defaults.frequency_penalty,
            "minimum": -2,
            "maximum": 2,
            "description": "Frequency penalty: above 0, tokens become less likely the more often they are "
            "in the output.",
        },
        "stop_sequences": {
            "type": "string",
            "x-appliance-list": True,
            "description": "A comma-separated list of sequences to stop generation at. For example, "
            "'<end>,<stop>' will stop generation at the first instance of '<end>' or '<stop>'. A list of "
            "strings is accepted too.",
        },
        "prompt_template": {
            "type": "string",
            "description": "A template to format the prompt with: a Python format string that must contain "
            "{prompt} and may contain {system_prompt}. If not provided, the chat template of the model is "
            "used; an empty one sends the prompt as it is.",
        },
        "seed": {
            "type": "integer",
            "minimum": -_LARGEST_INTEGER,
            "maximum": _LARGEST_INTEGER,
            "description": "Random seed. Leave blank to randomize the seed.",
        },
    }
