"""Text to speech, with Piper voices in ONNX form; computed on the CPU, on machines with a GPU as well.

Inputs are those of the speech models on Replicate. piper-tts is under the
GPL-3.0; it is used as a library, in the engine host alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.progress import bar
from appliance.runners.threads import stepwise

#: Sounds that are computed at once. Memory grows with their square; a sentence has about a hundred.
_AT_ONCE: Final = 400
_PHONEMES: Final = ("espeak", "text")  # what is installed; other languages' need packages of their own
_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string", "minLength": 1, "description": "Text to speak"},
    "voice": {"type": "string", "description": "Voice that speaks"},
    "speed": {
        "type": "number",
        "default": 1.0,
        "minimum": 0.1,
        "maximum": 5.0,
        "description": "How fast it speaks; 2 is twice as fast",
    },
    "output_format": {
        "type": "string",
        "enum": list(audio.FORMATS),
        "default": "wav",
        "description": "Format of the file",
    },
    "speaker": {
        "type": "string",
        "description": "Name or number of the speaker, of voices that have several",
    },
    "noise_scale": {
        "type": "number",
        "minimum": 0,
        "maximum": 2,
        "description": "How lively it speaks. Default: as the voice was made for",
    },
    "noise_w": {
        "type": "number",
        "minimum": 0,
        "maximum": 2,
        "description": "How uneven its pace is. Default: as the voice was made for",
    },
}


class PiperRunner:
    """Runs voices of kind `piper`; ``options.py`` has its options, with the voices that the weights hold."""

    kind: ClassVar[str] = "piper"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._voices: dict[str, Any] = {}  # by name

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a folder of voices."""
        inputs = dict(_INPUTS)
        found = options.get("found", ())
        if found:
            names = [*found, *(name for name in options["voices"] if name not in found)]
            inputs["voice"] = {**inputs["voice"], "enum": names, "default": found[0]}
        return interface_of(
            inputs, dict(FILE), required=("text",), aliases={"prompt": "text", "input": "text"}
        )

    async def setup(self) -> None:
        """Load the model."""
        place = Path(self._spec.weights or "")
        if self._spec.weights is None or not place.exists():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        files = {file.stem: file for file in _voice_files(place)}
        if not files:
            raise LoadFailed(f"{self._spec.model}: {place} has no voice, which is a file that ends in .onnx")
        for name, file in files.items():
            try:
                self._voices[name] = await asyncio.to_thread(self._load, file)
            # onnxruntime's errors have no base of their own
            except Exception as error:
                raise LoadFailed(f"{self._spec.model}: the voice {file} cannot be loaded: {error}") from error
        for name, voice in self._spec.options["voices"].items():
            if voice not in files:
                raise LoadFailed(
                    f"{self._spec.model}: options.voices.{name} names the voice {voice}; "
                    f"there are {', '.join(files)}"
                )

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        import numpy as np

        text = job.input["text"]
        voice = self._voice(job.input.get("voice"))
        speaker = _speaker(voice, job.input.get("speaker"))
        began = time.perf_counter()
        yield Metric("input_character_count", len(text))
        sentences = _pieces(await asyncio.to_thread(voice.phonemize, text))
        if not sentences:
            raise PredictionFailed("input.text: there is nothing in it that can be spoken")
        spoken: list[audio.Samples] = []
        async for samples in stepwise(_speak(voice, sentences, job.input, speaker)):
            spoken.append(samples)
            yield Log(f"{bar(len(spoken), len(sentences))}\n")
        folder = Path(job.folder)
        file = folder / f"output.{job.input['output_format']}"
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        rate = voice.config.sample_rate
        whole = np.concatenate(spoken)
        await asyncio.to_thread(audio.write, file, whole, rate)
        yield Metric("audio_duration", round(whole.size / rate, 3))
        yield Metric("real_time_factor", round((time.perf_counter() - began) * rate / whole.size, 4))
        yield Output([file], append=False)

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    def _load(self, file: Path) -> Any:
        """One voice.

        Raises:
            LoadFailed: it cannot be spoken with what is installed.
        """
        import onnxruntime
        from piper.config import PiperConfig
        from piper.voice import PiperVoice

        onnxruntime.disable_telemetry_events()  # where the environment does not say so already
        described = json.loads(Path(f"{file}.json").read_bytes())
        config = PiperConfig.from_dict(described)
        if config.phoneme_type.value not in _PHONEMES:
            raise ValueError(f"its phonemes are of type {config.phoneme_type.value}, which is not supported")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._spec.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return PiperVoice(session=session, config=config)

    def _voice(self, asked: str | None) -> Any:
        """The voice that is called so; the first one where none is named.

        Raises:
            PredictionFailed: there is none.
        """
        if asked is None:
            return next(iter(self._voices.values()))
        others = self._spec.options["voices"]
        name = others.get(asked, asked)
        if name not in self._voices:
            known = ", ".join([*self._voices, *others])
            raise PredictionFailed(f"input.voice: there is no voice {asked!r}; there are {known}")
        return self._voices[name]


def _voice_files(place: Path) -> list[Path]:
    """Return the voice files by name."""
    if place.is_file():
        return [place]
    return sorted(place.rglob("*.onnx"), key=lambda file: file.stem)


def _speaker(voice: Any, asked: str | None) -> int | None:
    """The number of a speaker; None is the voice's own choice.

    Raises:
        PredictionFailed: it has no such speaker.
    """
    if asked is None:
        return None
    count = voice.config.num_speakers
    number = voice.config.speaker_id_map.get(asked, int(asked) if asked.isdecimal() else -1)
    if count <= 1:
        raise PredictionFailed("input.speaker: this voice has one speaker only; leave it out")
    if not 0 <= number < count:
        names = ", ".join(list(voice.config.speaker_id_map)[:20])
        raise PredictionFailed(
            f"input.speaker: there is no speaker {asked!r}; there are 0 to {count - 1}"
            + (f", such as {names}" if names else "")
        )
    return int(number)


def _pieces(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """Sentences as phonemes, those that are too long broken where words end."""
    pieces: list[list[str]] = []
    for sentence in sentences:
        rest = list(sentence)
        while len(rest) > _AT_ONCE:
            spaces = [at for at in range(_AT_ONCE // 2, _AT_ONCE) if rest[at] == " "]
            cut = spaces[-1] if spaces else _AT_ONCE
            pieces.append(rest[:cut])
            rest = rest[cut:]
        pieces.append(rest)
    return [piece for piece in pieces if any(not part.isspace() for part in piece)]


def _speak(
    voice: Any, pieces: Sequence[list[str]], asked: Mapping[str, Any], speaker: int | None
) -> Generator[audio.Samples, None, None]:
    """The sound of each piece, as loud as can be, as Piper itself makes it."""
    import numpy as np
    from piper.config import SynthesisConfig

    config = SynthesisConfig(
        speaker_id=speaker,
        length_scale=voice.config.length_scale / asked["speed"],
        noise_scale=asked.get("noise_scale"),
        noise_w_scale=asked.get("noise_w"),
    )
    for piece in pieces:
        samples = voice.phoneme_ids_to_audio(voice.phonemes_to_ids(piece), config)
        loudest = float(np.max(np.abs(samples), initial=0.0))
        yield (samples / max(loudest, 1e-8)).astype(np.float32)
