"""The task `text-to-speech` of kind `transformers`: VITS, and CSM, which clones the voice of a recording."""

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
    load_model,
    load_processor,
    make_pipeline,
    model_type,
    on_device,
    stopping_criteria,
)
from appliance.runners.transformers.options import CSM

if TYPE_CHECKING:
    import torch
    from transformers.generation.streamers import BaseStreamer

SHORTEST_REFERENCE: Final = 1  # seconds of reference_audio
LONGEST_REFERENCE: Final = 30
LONGEST_OUTPUT: Final = 90  # seconds; with the longest reference, half a page of text still fits
_SILENCE: Final = 0.003  # a recording whose peak amplitude is lower is refused as silent
_TOP_K: Final = 50  # as in the code of CSM's authors: https://github.com/SesameAILabs/csm
_FRAMES_BETWEEN_BARS: Final = 25  # two seconds of audio


def text_to_speech(loading: LoadRequest) -> Compute:
    """Load CSM or a model such as VITS, and return the function that synthesizes speech.

    Separate vocoders are not supported.
    """
    return _csm(loading) if model_type(loading) == CSM else _by_pipeline(loading)


def _by_pipeline(loading: LoadRequest) -> Compute:
    from transformers import AutoTokenizer

    model = load_model(loading, "AutoModelForTextToWaveform")
    pipe = make_pipeline(loading, "text-to-audio", model, tokenizer=load_processor(AutoTokenizer, loading))

    def compute(request: TaskInput) -> TaskResult:
        import numpy as np

        more = {"stopping_criteria": stopping_criteria(request.cancelled)} if model.can_generate() else {}
        made = pipe(request.input["text"], **({"generate_kwargs": more} if more else {}))
        samples = np.asarray(made["audio"], dtype=np.float32).reshape(-1)
        if not samples.size:
            raise PredictionFailed("input.text: the text has nothing that can be spoken; write words")
        return _written(request, samples, int(made["sampling_rate"]))

    return compute


def _csm(loading: LoadRequest) -> Compute:
    """Load CSM.

    Its prompt is a conversation whose first message is the reference recording and its transcript.

    Raises:
        LoadFailed: the weights have no chat template, which the format of the text depends on.
    """
    from transformers import AutoProcessor

    processor = load_processor(AutoProcessor, loading)
    if processor.chat_template is None:
        raise LoadFailed(
            "the weights have no chat_template.jinja, which CSM needs; correct the model's source"
        )
    model = load_model(loading, "AutoModelForTextToWaveform")
    codec = model.config.codec_config
    # CSM has tokens, such as the one for padding, that its codec cannot decode.
    without_sound = list(range(codec.codebook_size, model.config.vocab_size))

    def compute(request: TaskInput) -> TaskResult:
        import torch

        input = request.input
        inputs = _conversation(processor, input, codec.sampling_rate)
        frames = math.ceil(input["max_duration"] * codec.frame_rate)
        _check_fits(inputs["input_ids"].shape[1], frames, model.config.max_position_embeddings)
        seed = input.get("seed", -1)
        seed = random.SystemRandom().randrange(2**32) if seed < 0 else seed
        print(f"Using seed: {seed}", file=sys.stderr)
        sampling = {
            "do_sample": True,
            "temperature": input["temperature"],
            "top_k": _TOP_K,
            "suppress_tokens": without_sound,
        }
        torch.manual_seed(seed)
        with torch.inference_mode():
            codes = model.generate(
                **on_device(model, inputs),
                **sampling,
                **{f"depth_decoder_{name}": value for name, value in sampling.items()},
                max_new_tokens=frames,
                streamer=_progress_streamer(request.cancelled, frames),
            )[0]
            spoken = until_end(codes, model.config.codebook_eos_token_id)
            if not len(spoken):
                raise PredictionFailed(
                    "the model ended the speech before its first word: try another seed, or another text"
                )
            values = model.codec_model.decode(spoken.T[None]).audio_values[0, 0]
        samples = values.float().cpu().numpy()[: round(input["max_duration"] * codec.sampling_rate)]
        return _written(request, samples, codec.sampling_rate)

    return compute


def _conversation(processor: Any, input: Mapping[str, Any], rate: int) -> dict[str, torch.Tensor]:
    """Return the inputs of CSM.

    Raises:
        PredictionFailed: only one of ``reference_audio`` and ``reference_text`` is given, the recording
            cannot be used, or a text is empty or has the token that stands for audio.
    """
    text, transcript = input["text"].strip(), input.get("reference_text", "").strip()
    if not text:
        raise PredictionFailed("input.text: the text has nothing that can be spoken; write words")
    for name, value in (("text", text), ("reference_text", transcript)):
        if processor.audio_token in value:
            raise PredictionFailed(f"input.{name}: remove {processor.audio_token} from this text")
    messages: list[dict[str, Any]] = [_message(text)]
    recordings = {}
    if input.get("reference_audio") is not None:
        if not transcript:
            raise PredictionFailed(
                "input.reference_text: this model needs the words that are spoken in reference_audio; "
                "write them here"
            )
        recordings = {"audio": [_reference(Path(input["reference_audio"]), rate)]}
        messages.insert(0, _message(transcript, {"type": "audio"}))
    elif transcript:
        raise PredictionFailed(
            "input.reference_audio: reference_text is the transcript of this recording; send the recording, "
            "or leave reference_text out"
        )
    prompt = processor.apply_chat_template(messages, tokenize=False)
    return dict(processor(text=prompt, **recordings))


def _message(text: str, *more: dict[str, str]) -> dict[str, Any]:
    """Return a message of the first speaker, as CSM's chat template takes it."""
    return {"role": "0", "content": [{"type": "text", "text": text}, *more]}


def _reference(file: Path, rate: int) -> audio.Samples:
    """Return the samples of the recording.

    Raises:
        PredictionFailed: the recording is too long, too short or silent, or cannot be decoded.
    """
    samples = audio.read(file, rate, "reference_audio", longest=LONGEST_REFERENCE)
    if samples.size < SHORTEST_REFERENCE * rate:
        raise PredictionFailed(
            f"input.reference_audio: this recording is {samples.size / rate:.1f} s long; send one with at "
            f"least {SHORTEST_REFERENCE} s of speech"
        )
    if abs(samples).max() < _SILENCE:
        raise PredictionFailed("input.reference_audio: this recording is silent; send one with speech")
    return samples


def _check_fits(tokens: int, frames: int, limit: int) -> None:
    """Check that the input and the output fit in the context of the model.

    Raises:
        PredictionFailed: they do not fit.
    """
    if tokens + frames > limit:
        raise PredictionFailed(
            f"input.text: the text and the reference take {tokens} tokens, and max_duration takes {frames}, "
            f"but the context of this model is {limit} tokens; shorten the text or reference_audio, or lower "
            "max_duration"
        )


def until_end(codes: torch.Tensor, end: int) -> torch.Tensor:
    """Return the frames before the first one that marks the end; the shape is (frames, codebooks).

    As in transformers, the last codebook does not count.
    """
    ends = (codes[:, :-1] == end).all(dim=1).nonzero()
    return codes[: int(ends[0])] if len(ends) else codes


def _progress_streamer(cancelled: threading.Event, frames: int) -> BaseStreamer:
    """Return a streamer that prints the progress; ``frames`` is the maximum length of the output.

    It raises ``PredictionFailed`` once the prediction is cancelled. CSM ignores stopping criteria.
    """
    from transformers.generation.streamers import BaseStreamer

    class Progress(BaseStreamer):  # type: ignore[misc]  # transformers has no types
        done = -1  # the first value is the prompt

        def put(self, value: Any) -> None:
            if cancelled.is_set():
                raise PredictionFailed("the prediction was canceled")
            self.done += 1
            if self.done and (self.done % _FRAMES_BETWEEN_BARS == 0 or self.done == frames):
                print(bar(self.done, frames), file=sys.stderr)

        def end(self) -> None:
            if self.done < frames and self.done % _FRAMES_BETWEEN_BARS:
                print(bar(self.done, frames), file=sys.stderr)

    return Progress()


def _written(request: TaskInput, samples: audio.Samples, rate: int) -> TaskResult:
    """Write the output file."""
    request.folder.mkdir(parents=True, exist_ok=True)
    file = request.folder / f"output.{request.input['output_format']}"
    audio.write(file, samples, rate)
    return TaskResult(file, {"audio_duration": round(samples.size / rate, 3)})
