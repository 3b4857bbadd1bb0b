"""Text to speech with Kokoro in ONNX format, computed on the CPU even where there is a GPU.

Inputs are those of jaaari/kokoro-82m on Replicate. espeak-ng, which piper-tts contains, makes the phonemes.
piper-tts is under the GPL-3.0: only the worker process imports it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from zipfile import BadZipFile

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio, failures
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.kokoro import files, phonemes
from appliance.runners.kokoro.files import LANGUAGES, VoiceFile
from appliance.runners.onnx_session import DTYPES, described, open_session
from appliance.runners.schemas import choice, number, string
from appliance.runners.speech_output import speech_output

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Styles = npt.NDArray[np.float32]  # a style vector for each number of tokens

_RATE: Final = 24_000  # samples/s
_PAD: Final = 0  # token before the first and after the last phoneme
_TOKENS: Final = ("input_ids", "tokens")  # names of the input for tokens in newer and older exports
_FLOATS: Final = ("float32", "float16")
_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "text": string("Text to speak", minLength=1),
    "voice": string("Voice to speak with"),
    "speed": number("Speed of speech; 2 is twice as fast as usual", default=1.0, ge=0.1, le=5.0),
    "output_format": choice("Format of the audio file", audio.FORMATS, default="wav"),
}


class KokoroRunner:
    """Runs models of kind `kokoro`; the options are those of ``FoundKokoroOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._session: Any
        self._inputs: dict[str, str] = {}  # name of each input of the model -> its dtype
        self._vocabulary: dict[str, int] = {}
        self._voices: dict[str, Styles] = {}
        self._phonemizer: Any

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        inputs = dict(_INPUTS)
        found = tuple(options.get("found", ()))
        if found:
            names = [*found, *(name for name in options["voices"] if name not in found)]
            inputs["voice"] = {**inputs["voice"], "enum": names, "default": files.default_voice(found)}
        return interface_of(
            inputs, dict(FILE), required=("text",), aliases={"prompt": "text", "input": "text"}
        )

    async def setup(self) -> None:
        await asyncio.to_thread(self._load)

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        text = job.input["text"]
        voice = self._voice(job.input.get("voice"))
        began = time.perf_counter()
        yield Metric("input_character_count", len(text))
        parts = await asyncio.to_thread(self._parts, text, LANGUAGES[voice[0]])
        if not parts:
            raise PredictionFailed("input.text: the text has nothing that can be spoken; write words")
        spoken = self._speak(parts, self._voices[voice], job.input["speed"])
        async for event in speech_output(job, spoken, len(parts), _RATE, began):
            yield event

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _load(self) -> None:
        from piper.phonemize_espeak import EspeakPhonemizer

        folder, model = failures.existing_weights(self._spec), self._spec.model
        try:
            file = files.model_file(folder)
            self._vocabulary = files.vocabulary(folder)
        except (OSError, ValueError) as error:
            raise LoadFailed(f"model {model}: {error}") from error
        self._session = open_session(file, self._spec)
        inputs = self._session.get_inputs()
        self._inputs = {tensor.name: DTYPES.get(tensor.type, tensor.type) for tensor in inputs}
        tokens = [name for name in _TOKENS if self._inputs.get(name) == "int64"]
        floats = [self._inputs.get(name) for name in ("style", "speed")]
        if len(inputs) != 3 or not tokens or not all(each in _FLOATS for each in floats):
            raise LoadFailed(
                f"model {model}: {file} is not a Kokoro model: it has the inputs "
                f"{', '.join(map(described, inputs))}, but Kokoro has input_ids or tokens (int64), style and "
                "speed (float32 or float16); correct the source"
            )
        (width,) = (tensor.shape[-1] for tensor in inputs if tensor.name == "style")
        for name, voice in files.voice_files(folder).items():
            try:
                self._voices[name] = _styles(voice, width)
            except (OSError, ValueError, BadZipFile) as error:
                raise LoadFailed(
                    f"model {model}: the voice {name} of {voice.path} cannot be loaded: {error}"
                ) from error
        self._check_voices(folder)
        self._phonemizer = EspeakPhonemizer()

    def _check_voices(self, folder: object) -> None:
        if not self._voices:
            raise LoadFailed(
                f"model {self._spec.model}: {folder} has no voice of a supported language; add files such as "
                "voices/af_bella.bin"
            )
        for name, voice in self._spec.options["voices"].items():
            if voice not in self._voices:
                raise LoadFailed(
                    f"model {self._spec.model}: options.voices.{name} names the voice {voice}, which the "
                    f"weights do not have; choose one of {', '.join(self._voices)}"
                )

    def _voice(self, requested: str | None) -> str:
        """Return the name in the weights of the requested voice; without a request, the default voice.

        Raises:
            PredictionFailed: there is no such voice.
        """
        if requested is None:
            return files.default_voice(tuple(self._voices))
        aliases = self._spec.options["voices"]
        name = requested if requested in self._voices else aliases.get(requested)
        if name is None:
            known = ", ".join([*self._voices, *aliases])
            raise PredictionFailed(f"input.voice: there is no voice {requested!r}; choose one of {known}")
        return str(name)

    def _parts(self, text: str, language: str) -> list[str]:
        if not any(character.isalnum() for character in text):
            return []  # espeak-ng would read the names of punctuation marks
        sentences = self._phonemizer.phonemize(language, phonemes.speakable(text))
        return phonemes.parts(phonemes.known(sentences, self._vocabulary))

    def _speak(
        self, parts: Sequence[str], styles: Styles, speed: float
    ) -> Generator[audio.Samples, None, None]:
        """Yield the samples of each part. The style depends on the number of tokens, as in Kokoro itself."""
        import numpy as np

        for part in parts:
            tokens = [self._vocabulary[phoneme] for phoneme in part]
            style = styles[min(len(tokens), len(styles)) - 1]
            values = {"style": style[None], "speed": [speed]}
            given = {
                name: np.array(values.get(name, [[_PAD, *tokens, _PAD]]), dtype)
                for name, dtype in self._inputs.items()
            }
            yield np.asarray(self._session.run(None, given)[0], np.float32).ravel()


def _styles(voice: VoiceFile, width: object) -> Styles:
    """Return the style vectors of a voice; ``width`` is their length, if the model has a fixed one.

    Raises:
        ValueError: the file has no such vectors.
    """
    import numpy as np

    if voice.member is None:
        values = np.fromfile(voice.path, np.float32)
        length = width if isinstance(width, int) else 256
    else:
        with np.load(voice.path, allow_pickle=False) as archive:
            values = archive[voice.member].astype(np.float32)
        length = width if isinstance(width, int) else values.shape[-1]
    if not values.size or values.size % length:
        raise ValueError(f"it should have style vectors of {length} numbers, but has {values.size} numbers")
    styles: Styles = values.reshape(-1, length)
    return styles
