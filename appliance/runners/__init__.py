"""Model kinds: one module a kind. Importing any of them is cheap; heavy libraries load in ``setup``."""

from __future__ import annotations

import importlib
from typing import Final, cast

from appliance.runners.base import Runner

#: kind -> where its runner is; imported only when asked for.
RUNNERS: Final[dict[str, str]] = {
    "echo": "appliance.runners.echo:EchoRunner",
    "vllm": "appliance.runners.vllm:VllmRunner",
    "embeddings": "appliance.runners.embeddings:EmbeddingsRunner",
    "diffusers": "appliance.runners.diffusers:DiffusersRunner",
    "whisper": "appliance.runners.whisper:WhisperRunner",
    "piper": "appliance.runners.piper:PiperRunner",
    "transformers": "appliance.runners.transformers:TransformersRunner",
    "cog": "appliance.runners.cog:CogRunner",
    "cog-train": "appliance.runners.cog:CogTrainer",
    "lora": "appliance.runners.lora:LoraTrainer",
}

#: kind -> the kind of runner that trains new versions of its models
TRAINERS: Final[dict[str, str]] = {"vllm": "lora", "cog": "cog-train"}

_VLLM: Final = (
    "vllm",
    "transformers",
    "vllm.engine.arg_utils",
    "vllm.v1.engine.async_llm",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.openai.responses.serving",
    "vllm.entrypoints.anthropic.serving",
)

_EMBEDDINGS: Final = (
    "torch",
    "transformers",
    "transformers.models.auto",
    "transformers.models.bert.modeling_bert",
)

_DIFFUSERS: Final = (
    "torch",
    "PIL.Image",
    "PIL.WebPImagePlugin",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "diffusers.pipelines.auto_pipeline",
)

#: Not faster_whisper and piper themselves: they import onnxruntime, whose threads no fork would have.
_WHISPER: Final = ("av", "ctranslate2", "tokenizers", "transformers.models.whisper.tokenization_whisper")
_PIPER: Final = ("av", "numpy")
_TRANSFORMERS: Final = ("torch", "transformers", "transformers.models.auto", "transformers.pipelines")
_SAME: Final[dict[str, tuple[str, ...]]] = {
    "echo": (),
    "cog": (),
    "embeddings": _EMBEDDINGS,
    "diffusers": _DIFFUSERS,
    "whisper": _WHISPER,
    "piper": _PIPER,
    "transformers": _TRANSFORMERS,
}

#: kind of device -> kind of model -> modules that the zygote imports, so that its hosts start with them.
PRELOADS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "cpu": {**_SAME, "vllm": (*_VLLM, "vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner")},
    "cuda": {**_SAME, "vllm": _VLLM},
}


def runner_class(kind: str) -> type[Runner]:
    """The runner of a model kind.

    Raises:
        KeyError: there is no such kind; the config has refused it long before.
    """
    module, _, name = RUNNERS[kind].partition(":")
    return cast("type[Runner]", getattr(importlib.import_module(module), name))
