"""The task `text-to-audio` of kind `transformers`: music and sounds with MusicGen."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio
from appliance.runners.progress import bar
from appliance.runners.transformers.loading import (
    Compute,
    LoadRequest,
    TaskInput,
    TaskResult,
    check_fits,
    load_model,
    load_processor,
    model_type,
    on_device,
)

if TYPE_CHECKING:
    import torch

#: Model types -> whether the model can continue audio. MusicGen Melody follows the melody of audio instead,
#: for which transformers needs torchaudio, which is not installed.
_MODEL_TYPES: Final = {"musicgen": True, "musicgen_melody": False}
MAX_SECONDS: Final = 30  # length of the audio that MusicGen was trained on
_TOKENS_BETWEEN_BARS: Final = 50  # one second of audio


def text_to_audio(loading: LoadRequest) -> Compute:
    """Generate music or sounds from a text, and from audio to continue.

    Raises:
        LoadFailed: the model is of another type than MusicGen.
    """
    from transformers import AutoTokenizer

    type_name = model_type(loading)
    if type_name not in _MODEL_TYPES:
        raise LoadFailed(
            f"text-to-audio supports the model types {' and '.join(_MODEL_TYPES)}, not {type_name!r}; for "
            "models that speak, use the task text-to-speech"
        )
    model = load_model(loading, "AutoModelForTextToWaveform")
    tokenizer = load_processor(AutoTokenizer, loading)
    codec = model.config.audio_encoder

    def compute(request: TaskInput) -> TaskResult:
        import torch

        input = request.input
        check_fits(model, tokenizer, input["prompt"], "prompt")
        inputs: dict[str, Any] = dict(tokenizer([input["prompt"]], return_tensors="pt"))
        prompt_tokens = 0
        if input.get("input_audio") is not None:
            start = _audio_to_continue(input, type_name, model)
            prompt_tokens = math.ceil(start.shape[-1] / codec.sampling_rate * codec.frame_rate)
            inputs["input_values"] = start
        seed = input.get("seed", -1)
        seed = random.SystemRandom().randrange(2**32) if seed < 0 else seed
        print(f"Using seed: {seed}", file=sys.stderr)
        tokens = math.ceil(input["duration"] * codec.frame_rate)
        # The codebooks of a channel are delayed: each begins one token after the one before.
        delay = model.decoder.config.num_codebooks // model.decoder.config.audio_channels - 1
        torch.manual_seed(seed)
        values = model.generate(
            **on_device(model, inputs),
            **_sampling(input),
            max_new_tokens=tokens - prompt_tokens + delay,
            stopping_criteria=_progress_criterion(request.cancelled, prompt_tokens, tokens + delay),
        )
        samples = values[0].float().cpu().numpy()[:, : round(input["duration"] * codec.sampling_rate)]
        request.folder.mkdir(parents=True, exist_ok=True)
        file = request.folder / f"output.{input['output_format']}"
        audio.write(file, samples, codec.sampling_rate)
        seconds = round(samples.shape[1] / codec.sampling_rate, 3)
        return TaskResult(file, {"audio_duration": seconds, "output_token_count": tokens - prompt_tokens})

    return compute


def _sampling(input: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``generate`` that choose the next token."""
    by_share = {"top_k": 0, "top_p": input["top_p"]}
    by_count = {"top_k": input["top_k"], "top_p": 1.0}
    return {
        "do_sample": True,
        "temperature": input["temperature"],
        **(by_share if input["top_p"] > 0 else by_count),
        "guidance_scale": input["classifier_free_guidance"],
    }


def _audio_to_continue(input: Mapping[str, Any], type_name: str, model: Any) -> torch.Tensor:
    """Return the samples of ``input_audio`` in the shape (1, channels, samples).

    Raises:
        PredictionFailed: the model cannot continue audio, or the audio is as long as the output.
    """
    import torch

    if not _MODEL_TYPES[type_name]:
        raise PredictionFailed(
            "input.input_audio: MusicGen Melody cannot continue audio, and following the melody of "
            "input_audio is not supported: leave this input out, or use MusicGen or MusicGen Stereo"
        )
    rate = model.config.audio_encoder.sampling_rate
    samples = audio.read(Path(input["input_audio"]), rate, "input_audio", longest=MAX_SECONDS)
    if samples.size >= input["duration"] * rate:
        raise PredictionFailed(
            f"input.duration: the output begins with input_audio, which has {samples.size / rate:.1f} s; "
            "choose a longer duration, or send shorter audio"
        )
    channels = model.decoder.config.audio_channels
    return torch.from_numpy(samples).expand(1, channels, -1)


def _progress_criterion(cancelled: threading.Event, done: int, total: int) -> Any:
    """Return a ``StoppingCriteria`` that prints the progress.

    It raises ``PredictionFailed`` once the prediction is cancelled. It never ends the generation itself,
    because MusicGen cannot decode audio that ends early. ``done`` and ``total`` are the tokens of one
    codebook at the start and at the end.
    """
    import torch
    from transformers import StoppingCriteriaList

    def watch(tokens: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        nonlocal done
        if cancelled.is_set():
            raise PredictionFailed("the prediction was canceled")
        done += 1
        if done % _TOKENS_BETWEEN_BARS == 0 or done == total:
            print(bar(done, total), file=sys.stderr)
        return torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)

    return StoppingCriteriaList([watch])
