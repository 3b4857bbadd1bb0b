"""Text to speech with Piper voices in ONNX format, computed on the CPU even where there is a GPU.

Inputs are those of the speech models on Replicate. piper-tts is under the GPL-3.0: only the worker process
imports it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio, failures
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.piper.voices import voice_files
from appliance.runners.schemas import choice, number, string
from appliance.runners.speech_output import speech_output

#: Phonemes that are computed together. Memory grows with their square; a sentence has about a hundred.
_MAX_PHONEMES: Final = 400
_PHONEME_TYPES: Final = ("espeak", "text")  # the others need packages that are not installed
_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "text": string("Text to speak", minLength=1),
    "voice": string("Voice to speak with"),
    "speed": number("Speed of speech; 2 is twice as fast as usual", default=1.0, ge=0.1, le=5.0),
    "output_format": choice("Format of the audio file", audio.FORMATS, default="wav"),
    "speaker": string("Name or number of the speaker, for voices with several speakers"),
    "noise_scale": number("Variability of the sound. Default: the voice's own", ge=0, le=2),
    "noise_w": number("Variability of the pace. Default: the voice's own", ge=0, le=2),
}


class PiperRunner:
    """Runs models of kind `piper`; the options are those of ``FoundPiperOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._voices: dict[str, Any] = {}  # by name

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        inputs = dict(_INPUTS)
        found = options.get("found", ())
        if found:
            names = [*found, *(name for name in options["voices"] if name not in found)]
            inputs["voice"] = {**inputs["voice"], "enum": names, "default": found[0]}
        return interface_of(
            inputs, dict(FILE), required=("text",), aliases={"prompt": "text", "input": "text"}
        )

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        files = {file.stem: file for file in voice_files(weights)}
        if not files:
            raise LoadFailed(
                f"model {self._spec.model}: {weights} has no voice (.onnx file); correct its source"
            )
        for name, file in files.items():
            try:
                self._voices[name] = await asyncio.to_thread(self._load, file)
            except Exception as error:  # onnxruntime's errors share no base class
                raise LoadFailed(
                    f"model {self._spec.model}: the voice {file} cannot be loaded: {error}"
                ) from error
        for name, voice in self._spec.options["voices"].items():
            if voice not in files:
                raise LoadFailed(
                    f"model {self._spec.model}: options.voices.{name} names the voice {voice}, which the "
                    f"weights do not have; choose one of {', '.join(files)}"
                )

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        text = job.input["text"]
        voice = self._voice(job.input.get("voice"))
        speaker = _speaker(voice, job.input.get("speaker"))
        began = time.perf_counter()
        yield Metric("input_character_count", len(text))
        pieces = _pieces(await asyncio.to_thread(voice.phonemize, text.replace("\0", " ")))
        if not pieces:
            raise PredictionFailed("input.text: the text has nothing that can be spoken; write words")
        parts = _speak(voice, pieces, job.input, speaker)
        async for event in speech_output(job, parts, len(pieces), voice.config.sample_rate, began):
            yield event

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _load(self, file: Path) -> Any:
        import onnxruntime
        from piper.config import PiperConfig
        from piper.voice import PiperVoice

        onnxruntime.disable_telemetry_events()
        config = PiperConfig.from_dict(json.loads(Path(f"{file}.json").read_bytes()))
        if config.phoneme_type.value not in _PHONEME_TYPES:
            raise ValueError(f"its phonemes are of type {config.phoneme_type.value}, which is not supported")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._spec.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return PiperVoice(session=session, config=config)

    def _voice(self, requested: str | None) -> Any:
        """Return the requested voice; without a request, the first voice of the weights.

        Raises:
            PredictionFailed: there is no such voice.
        """
        if requested is None:
            return next(iter(self._voices.values()))
        aliases = self._spec.options["voices"]
        name = aliases.get(requested, requested)
        if name not in self._voices:
            known = ", ".join([*self._voices, *aliases])
            raise PredictionFailed(f"input.voice: there is no voice {requested!r}; choose one of {known}")
        return self._voices[name]


def _speaker(voice: Any, requested: str | None) -> int | None:
    """Return the number of the requested speaker; None: the voice's default speaker.

    Raises:
        PredictionFailed: the voice has no such speaker.
    """
    if requested is None:
        return None
    count, numbers = voice.config.num_speakers, voice.config.speaker_id_map
    if count <= 1:
        raise PredictionFailed("input.speaker: this voice has only one speaker; leave this input out")
    number = numbers.get(requested, int(requested) if requested.isdecimal() else -1)
    if not 0 <= number < count:
        names = ", ".join(list(numbers)[:20])
        raise PredictionFailed(
            f"input.speaker: there is no speaker {requested!r}; choose a number from 0 to {count - 1}"
            + (f" or a name such as {names}" if names else "")
        )
    return int(number)


def _pieces(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """Split sentences of more than ``_MAX_PHONEMES`` between words, and drop sentences without phonemes."""
    pieces: list[list[str]] = []
    for sentence in sentences:
        rest = list(sentence)
        while len(rest) > _MAX_PHONEMES:
            spaces = [at for at in range(_MAX_PHONEMES // 2, _MAX_PHONEMES) if rest[at] == " "]
            cut = spaces[-1] if spaces else _MAX_PHONEMES
            pieces.append(rest[:cut])
            rest = rest[cut:]
        pieces.append(rest)
    return [piece for piece in pieces if any(not part.isspace() for part in piece)]


def _speak(
    voice: Any, pieces: Sequence[list[str]], input: Mapping[str, Any], speaker: int | None
) -> Generator[audio.Samples, None, None]:
    """Yield the samples of each piece, normalized to full volume as in Piper itself."""
    import numpy as np
    from piper.config import SynthesisConfig

    config = SynthesisConfig(
        speaker_id=speaker,
        length_scale=voice.config.length_scale / input["speed"],
        noise_scale=input.get("noise_scale"),
        noise_w_scale=input.get("noise_w"),
    )
    for piece in pieces:
        samples = voice.phoneme_ids_to_audio(voice.phonemes_to_ids(piece), config)
        loudest = float(np.max(np.abs(samples), initial=0.0))
        yield (samples / max(loudest, 1e-8)).astype(np.float32)
