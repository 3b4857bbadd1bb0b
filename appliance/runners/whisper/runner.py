"""Speech to text, with faster-whisper, which runs Whisper in CTranslate2.

Inputs and output are those of openai/whisper on Replicate. On a CPU this has run;
on a GPU it has not yet.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
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
from appliance.runners.whisper import subtitles
from appliance.runners.whisper.subtitles import Cue

_RATE: Final = 16_000  # samples/s that Whisper hears
#: Samples that are transcribed at once: memory grows by 50 MB a minute. The cut is made where it is quietest
#: among the last ones.
_PART: Final = 300 * _RATE
_SEARCHED: Final = 30 * _RATE
_QUIET: Final = _RATE // 10  # samples that are looked at together for that
_CARRIED: Final = 500  # characters of what was said that the next part is told
_ATTEMPTS: Final = 20  # at most, at a passage that is hard to hear
_PLAIN: Final = "plain text"
_FORMATS: Final[dict[str, Callable[[Sequence[Cue]], str]]] = {
    _PLAIN: lambda cues: "".join(cue.text for cue in cues).strip(),
    "srt": subtitles.srt,
    "vtt": subtitles.vtt,
}
_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "audio": {**FILE, "description": "Sound to transcribe: any file with a sound track, films included"},
    "transcription": {
        "type": "string",
        "enum": list(_FORMATS),
        "default": _PLAIN,
        "description": "Format of the transcription, and of the translation",
    },
    "translate": {
        "type": "boolean",
        "default": False,
        "description": "Translate into English as well; not with models that know English only",
    },
    "language": {
        "type": "string",
        "default": "auto",
        "description": "Language that is spoken, as a code or a name in English; auto: it is found out",
    },
    "temperature": {
        "type": "number",
        "default": 0,
        "minimum": 0,
        "maximum": 5,
        "description": "Temperature of the first attempt; 0 takes the likeliest words",
    },
    "patience": {
        "type": "number",
        "minimum": 0.01,
        "maximum": 100,
        "description": "How long better transcripts are looked for; 1 is as long as usual",
    },
    "suppress_tokens": {
        "type": "string",
        "default": "-1",
        "description": "Comma-separated ids of tokens that are never said; -1: most special characters",
    },
    "initial_prompt": {
        "type": "string",
        "description": "Text that might have come before, such as names as they are to be spelled",
    },
    "condition_on_previous_text": {
        "type": "boolean",
        "default": True,
        "description": "Go on from what was heard so far; without it, errors do not carry on either",
    },
    "temperature_increment_on_fallback": {
        "type": "number",
        "default": 0.2,
        "minimum": 0,
        "maximum": 1,
        "description": "What is added to the temperature after an attempt that failed; 0: there is no other",
    },
    "compression_ratio_threshold": {
        "type": "number",
        "default": 2.4,
        "description": "An attempt whose text compresses better than this has failed: it repeats itself",
    },
    "logprob_threshold": {
        "type": "number",
        "default": -1.0,
        "description": "An attempt whose words are less likely than this on average has failed",
    },
    "no_speech_threshold": {
        "type": "number",
        "default": 0.6,
        "description": "What is more likely than this to be no speech, and has failed, is taken for silence",
    },
    "word_timestamps": {
        "type": "boolean",
        "default": False,
        "description": "Say of every word when it is spoken",
    },
}
_NUMBER: Final = {"type": "number"}
_TEXT: Final = {"type": "string"}
_WORD: Final = {
    "type": "object",
    "properties": {"word": _TEXT, "start": _NUMBER, "end": _NUMBER, "probability": _NUMBER},
}
_SEGMENT: Final = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "seek": {"type": "integer"},
        "start": _NUMBER,
        "end": _NUMBER,
        "text": _TEXT,
        "tokens": {"type": "array", "items": {"type": "integer"}},
        "temperature": _NUMBER,
        "avg_logprob": _NUMBER,
        "compression_ratio": _NUMBER,
        "no_speech_prob": _NUMBER,
        "words": {"type": "array", "items": _WORD},
    },
}
_OUTPUT: Final = {
    "type": "object",
    "properties": {
        "transcription": {**_TEXT, "title": "Transcription"},
        "detected_language": {**_TEXT, "title": "Detected Language"},
        "segments": {"type": "array", "items": _SEGMENT, "title": "Segments"},
        "translation": {**_TEXT, "title": "Translation"},
    },
    "required": ["transcription", "detected_language", "segments"],
}


class WhisperRunner:
    """Runs a model of kind `whisper`; ``options.py`` has its options."""

    kind: ClassVar[str] = "whisper"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._model: Any
        self._names: Mapping[str, str] = {}  # of languages, by their codes

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a model that hears."""
        return interface_of(
            _INPUTS,
            _OUTPUT,
            required=("audio",),
            aliases={"audio_file": "audio", "file": "audio", "prompt": "initial_prompt"},
        )

    async def setup(self) -> None:
        """Load the model."""
        folder = Path(self._spec.weights or "")
        if self._spec.weights is None or not folder.is_dir():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        for name in ("model.bin", "config.json", "tokenizer.json"):  # else it would be looked for on the hub
            if not (folder / name).is_file():
                raise LoadFailed(
                    f"{self._spec.model}: {folder} has no {name}; kind whisper takes a folder in the form of "
                    "CTranslate2, as ct2-transformers-converter --copy_files tokenizer.json writes it"
                )
        try:
            await asyncio.to_thread(self._load, folder)
        except (OSError, ValueError, RuntimeError, MemoryError, KeyError) as error:
            raise LoadFailed(f"{self._spec.model} cannot be loaded as a Whisper model: {error}") from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        language = self._language(job.input["language"])
        if job.input["translate"] and not self._model.model.is_multilingual:
            raise PredictionFailed("input.translate: this model knows English only, and translates nothing")
        began = time.perf_counter()
        sound = await asyncio.to_thread(
            audio.read, Path(job.input["audio"]), _RATE, "audio", longest=self._spec.options["max_duration"]
        )
        duration = sound.size / _RATE
        yield Metric("audio_duration", round(duration, 3))
        settings = _settings(job.input, self._model.hf_tokenizer.get_vocab_size()) | {
            "beam_size": self._spec.options["beam_size"],
            "vad_filter": self._spec.options["vad_filter"],
        }
        shape = _FORMATS[job.input["transcription"]]
        segments: list[dict[str, Any]] = []
        async for found in stepwise(self._segments(sound, language, "transcribe", settings)):
            if isinstance(found, str):
                language = found
                continue
            segments.append(found)
            yield Log(_line(found, duration))
        result: dict[str, Any] = {
            "transcription": shape(_cues(segments)),
            "detected_language": self._names.get(language or "", language),
            "segments": segments,
        }
        if job.input["translate"]:
            translated: list[dict[str, Any]] = []
            async for found in stepwise(self._segments(sound, language, "translate", settings)):
                if not isinstance(found, str):
                    translated.append(found)
                    yield Log(_line(found, duration))
            result["translation"] = shape(_cues(translated))
        seconds = math.ceil(duration)
        yield Log(f"{bar(seconds, seconds)}\n")  # what follows the last words is silence
        yield Metric("real_time_factor", round((time.perf_counter() - began) / duration, 4))
        yield Output([result], append=False)

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    def _load(self, folder: Path) -> None:
        from faster_whisper import WhisperModel
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        on_cpu = self._spec.device == "cpu"
        asked = self._spec.options["compute_type"]
        self._model = WhisperModel(
            str(folder),
            device="cpu" if on_cpu else "cuda",
            device_index=0 if on_cpu else list(range(len(self._spec.device.split(",")))),
            compute_type=("int8" if on_cpu else "float16") if asked == "auto" else asked,
            cpu_threads=self._spec.threads,
            local_files_only=True,
        )
        self._names = LANGUAGES

    def _segments(
        self, sound: audio.Samples, language: str | None, task: str, settings: dict[str, Any]
    ) -> Generator[str | dict[str, Any], None, None]:
        """The code of the language first, then segment by segment what is said."""
        prompt, count = settings["initial_prompt"], 0
        for begin, part in _parts(sound):
            asked = settings | {"initial_prompt": prompt}
            segments, about = self._model.transcribe(part, language=language, task=task, **asked)
            if begin == 0:
                language = about.language
                yield about.language
            said = ""
            for segment in segments:
                said += segment.text
                yield _segment(segment, count, begin / _RATE)
                count += 1
            if settings["condition_on_previous_text"] and said:
                prompt = said[-_CARRIED:]

    def _language(self, given: str) -> str | None:
        """The code of a language that callers name in several ways; None if it is to be found out.

        Raises:
            PredictionFailed: the model does not know it.
        """
        name = given.strip().lower()
        if name in {"", "auto", "none"}:
            return None
        codes = {known: code for code, known in self._names.items()}
        code = codes.get(name, name)
        if code not in self._model.supported_languages:
            known = "it knows English only"
            if self._model.model.is_multilingual:
                known = f"it knows auto and {', '.join(self._names)}"
            raise PredictionFailed(f"input.language: this model does not know {given!r}; {known}")
        return code


def _settings(asked: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The input as faster-whisper calls it; ``tokens`` is how many the model knows.

    Raises:
        PredictionFailed: the tokens to suppress are no numbers.
    """
    step, first = asked["temperature_increment_on_fallback"], asked["temperature"]
    attempts = [first]
    while step and attempts[-1] + step <= 1.0 + 1e-6 and len(attempts) < _ATTEMPTS:
        attempts.append(attempts[-1] + step)
    try:
        suppressed = [int(part) for part in asked["suppress_tokens"].split(",") if part.strip()]
    except ValueError as error:
        raise PredictionFailed(
            "input.suppress_tokens: this must be numbers with commas between them"
        ) from error
    if not all(-1 <= token < tokens for token in suppressed):
        raise PredictionFailed(f"input.suppress_tokens: tokens have numbers from 0 to {tokens - 1}, or -1")
    return {
        "temperature": attempts,
        "patience": asked.get("patience") or 1.0,
        "suppress_tokens": suppressed,
        "initial_prompt": asked.get("initial_prompt") or None,
        "condition_on_previous_text": asked["condition_on_previous_text"],
        "compression_ratio_threshold": asked["compression_ratio_threshold"],
        "log_prob_threshold": asked["logprob_threshold"],
        "no_speech_threshold": asked["no_speech_threshold"],
        "word_timestamps": asked["word_timestamps"],
    }


def _parts(sound: audio.Samples) -> Iterator[tuple[int, audio.Samples]]:
    """The sound in parts that are not too long, each with the number of its first sample."""
    begin = 0
    while sound.size - begin > _PART:
        searched = sound[begin + _PART - _SEARCHED : begin + _PART]
        loudness = abs(searched[: searched.size // _QUIET * _QUIET].reshape(-1, _QUIET)).mean(axis=1)
        end = begin + _PART - _SEARCHED + int(loudness.argmin()) * _QUIET + _QUIET // 2
        yield begin, sound[begin:end]
        begin = end
    yield begin, sound[begin:]


def _segment(found: Any, number: int, begin: float) -> dict[str, Any]:
    """One of faster-whisper's segments as the output has it; its numbers may be NumPy's.

    ``number`` counts segments from 0, and ``begin`` is where the part that it is in begins, in seconds.
    """
    segment = {
        "id": number,
        "seek": int(found.seek) + round(100 * begin),  # in hundredths of a second
        "start": round(float(found.start) + begin, 3),
        "end": round(float(found.end) + begin, 3),
        "text": found.text,
        "tokens": [int(token) for token in found.tokens],
        "temperature": float(found.temperature or 0.0),
        "avg_logprob": float(found.avg_logprob),
        "compression_ratio": float(found.compression_ratio),
        "no_speech_prob": float(found.no_speech_prob),
    }
    if found.words is not None:
        segment["words"] = [
            {
                "word": word.word,
                "start": round(float(word.start) + begin, 3),
                "end": round(float(word.end) + begin, 3),
                "probability": float(word.probability),
            }
            for word in found.words
        ]
    return segment


def _cues(segments: Sequence[Mapping[str, Any]]) -> list[Cue]:
    return [Cue(part["start"], part["end"], part["text"]) for part in segments]


def _line(segment: Mapping[str, Any], duration: float) -> str:
    """Return a log line: the newest text and the progress."""
    times = f"[{subtitles.time(segment['start'])} --> {subtitles.time(segment['end'])}]"
    total = math.ceil(duration)
    return f"{times} {segment['text'].strip()}\n{bar(min(total, math.ceil(segment['end'])), total)}\n"
