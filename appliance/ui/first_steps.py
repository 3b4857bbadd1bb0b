"""The first steps on a new appliance: a run to try, and lines to copy for clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from appliance.protocols.response_types import ModelResponse
from appliance.runners import KINDS
from appliance.ui import output, snippets
from appliance.ui.session import UserSession

#: Inputs to try, by kind of model; kinds that people like to see first come first.
EXAMPLES: Final = {
    "vllm": "Write one sentence about the sea.",
    "diffusers": "a large red star on a white background",
    "piper": "Hello! This voice was made on your own machine.",
    "kokoro": "Hello! This voice was made on your own machine.",
    "embeddings": "A cat sleeps on the sofa.",
    "echo": "Hello!",
}
_LANGUAGES: Final = (
    ("python", "Python", snippets.python),
    ("javascript", "JavaScript", snippets.javascript),
    ("curl", "curl", snippets.curl),
    ("openai", "OpenAI", snippets.openai),
)


def example(kind: str | None) -> dict[str, str]:
    """Return an input to try for a model of this kind; empty if the kind has none."""
    field = None if kind not in KINDS else KINDS[kind].example_input
    return {} if kind is None or field is None else {field: EXAMPLES[kind]}


async def card(
    user: UserSession, models: Sequence[ModelResponse], kinds: Mapping[str, str | None]
) -> dict[str, Any] | None:
    """Return the first steps; None if there have been predictions, or if no model has an example.

    ``kinds`` has the kind of each model by name.
    """
    if not user.may_run or (await user.caller.get("/admin/predictions", limit=1))["results"]:
        return None
    return steps(models, kinds, user.caller.base_url)


def steps(
    models: Sequence[ModelResponse], kinds: Mapping[str, str | None], base_url: str
) -> dict[str, Any] | None:
    """Return the model to try first, its input, and programs that call it."""
    known = {f"{model.owner}/{model.name}": model for model in models if model.latest_version is not None}
    for kind, text in EXAMPLES.items():
        name = next((name for name in known if kinds.get(name) == kind), None)
        field = KINDS[kind].example_input
        if name is None or field is None:
            continue
        version = known[name].latest_version
        assert version is not None
        call = snippets.ExampleCall(
            model=name,
            kind=kind,
            base_url=base_url,
            input={field: text},
            output=output.kind_of(version.openapi_schema),
        )
        programs = [(id, title, made) for id, title, make in _LANGUAGES if (made := make(call)) is not None]
        return {"model": name, "field": field, "text": text, "programs": programs}
    return None
