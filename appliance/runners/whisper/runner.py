"""Speech to text with faster-whisper, which runs Whisper models in CTranslate2.

Inputs and output are those of openai/whisper on Replicate. Tested on a CPU, not on a GPU.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import audio, failures
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.operations import TRANSCRIPTIONS
from appliance.runners.progress import bar
from appliance.runners.schemas import boolean, choice, number, string
from appliance.runners.threads import stepwise
from appliance.runners.voice_encoder import Progress, VoiceEncoder, find_turns
from appliance.runners.voice_encoder import load as load_encoder
from appliance.runners.whisper import speaker_labels, subtitles

_RATE: Final = 16_000  # samples/s that Whisper expects
#: Samples that are transcribed together, because memory grows by 50 MB for each minute. Longer audio is cut
#: at the quietest span of ``_QUIET_SPAN`` samples among the last ``_CUT_WINDOW`` samples.
_CHUNK: Final = 300 * _RATE
_CUT_WINDOW: Final = 30 * _RATE
_QUIET_SPAN: Final = _RATE // 10
_CONTEXT: Final = 500  # characters of a chunk's transcript that become the prompt of the next chunk
_MAX_ATTEMPTS: Final = 20  # for a passage that is hard to understand
_PLAIN: Final = "plain text"
_FORMATS: Final[dict[str, Callable[[Sequence[Mapping[str, Any]]], str]]] = {
    _PLAIN: lambda segments: "".join(segment["text"] for segment in segments).strip(),
    "srt": subtitles.srt,
    "vtt": subtitles.vtt,
}
_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "audio": {**FILE, "description": "Audio to transcribe: any file with an audio track, videos included"},
    "transcription": choice("Format of the transcription and of the translation", _FORMATS, default=_PLAIN),
    "translate": boolean("Also translate into English; English-only models cannot", default=False),
    "language": string(
        "Spoken language, as a code or an English name; auto: detect the language", default="auto"
    ),
    "temperature": number(
        "Sampling temperature of the first attempt; 0 takes the likeliest words", default=0, ge=0, le=5
    ),
    "patience": number(
        "Patience of the beam search: above 1 it searches longer than usual, below 1 shorter", ge=0.01, le=100
    ),
    "suppress_tokens": string(
        "Comma-separated ids of tokens that are never generated; -1: most special characters", default="-1"
    ),
    "initial_prompt": string(
        "Text that could precede the audio, for example with names in their correct spelling"
    ),
    "condition_on_previous_text": boolean(
        "Use the transcript so far as context; false: an error does not affect later text", default=True
    ),
    "temperature_increment_on_fallback": number(
        "Increase of the temperature after each failed attempt; 0: no further attempt",
        default=0.2,
        ge=0,
        le=1,
    ),
    "compression_ratio_threshold": number(
        "An attempt fails if its text compresses better than this, because it repeats itself", default=2.4
    ),
    "logprob_threshold": number(
        "An attempt fails if the average log probability of its tokens is below this", default=-1.0
    ),
    "no_speech_threshold": number(
        "A failed attempt counts as silence if its probability of no speech is above this", default=0.6
    ),
    "word_timestamps": boolean("Return the start and end of every word", default=False),
}
_NUMBER: Final = {"type": "number"}
_TEXT: Final = {"type": "string"}
_WORD: Final = {
    "type": "object",
    "properties": {
        "word": _TEXT,
        "start": _NUMBER,
        "end": _NUMBER,
        "probability": _NUMBER,
        "speaker": _TEXT,
    },
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
        "speaker": _TEXT,
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
    """Runs models of kind `whisper`; the options are those of ``WhisperOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._model: Any
        self._encoder: VoiceEncoder | None = None
        self._languages: Mapping[str, str] = {}  # code -> English name

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return interface_of(
            _INPUTS | (speaker_labels.INPUTS if options.get("speaker_encoder") else {}),
            _OUTPUT,
            required=("audio",),
            aliases={"audio_file": "audio", "file": "audio", "prompt": "initial_prompt"},
        )

    async def setup(self) -> None:
        folder = failures.existing_weights(self._spec)
        for name in ("model.bin", "config.json", "tokenizer.json"):  # otherwise faster-whisper downloads them
            if not (folder / name).is_file():
                raise LoadFailed(
                    f"model {self._spec.model}: {folder} has no {name}; kind whisper needs a folder in the "
                    "format of CTranslate2, written by ct2-transformers-converter --copy_files tokenizer.json"
                )
        try:
            await asyncio.to_thread(self._load, folder)
        except (OSError, ValueError, RuntimeError, MemoryError, KeyError) as error:
            raise LoadFailed(
                f"model {self._spec.model} cannot be loaded as a Whisper model: {error}"
            ) from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        language = self._language(job.input["language"])
        if job.input["translate"] and not self._model.model.is_multilingual:
            raise PredictionFailed("input.translate: this model supports only English; leave this input out")
        began = time.perf_counter()
        samples = await asyncio.to_thread(
            audio.read, Path(job.input["audio"]), _RATE, "audio", longest=self._spec.options["max_duration"]
        )
        duration = samples.size / _RATE
        yield Metric("audio_duration", round(duration, 3))
        settings = _settings(job.input, self._model.hf_tokenizer.get_vocab_size()) | {
            "word_timestamps": job.input["word_timestamps"] or job.input.get("diarize", False),
            "beam_size": self._spec.options["beam_size"],
            "vad_filter": self._spec.options["vad_filter"],
        }
        found: dict[str, list[dict[str, Any]]] = {"transcribe": []}
        if job.input["translate"]:
            found["translate"] = []
        for task, segments in found.items():
            async for item in stepwise(self._segments(samples, language, task, settings)):
                if isinstance(item, str):
                    language = item
                else:
                    segments.append(item)
                    yield Log(_line(item, duration))
                    if job.operation == TRANSCRIPTIONS:
                        text = item["text"] if len(segments) > 1 else item["text"].lstrip()
                        yield Output([{"type": "transcript.text.delta", "delta": text}])
        if job.operation == TRANSCRIPTIONS:
            text = _FORMATS[_PLAIN](found["transcribe"])
            usage = {"type": "duration", "seconds": math.ceil(duration)}
            yield Output([{"type": "transcript.text.done", "text": text, "usage": usage}])
            return
        seconds = math.ceil(duration)
        yield Log(f"{bar(seconds, seconds)}\n")  # after the last words there is only silence
        if job.input.get("diarize"):
            async for event in self._label_speakers(found, samples, job.input):
                yield event
        yield Metric("real_time_factor", round((time.perf_counter() - began) / duration, 4))
        detected = self._languages.get(language or "", language)
        yield Output([_output(found, detected, job.input["transcription"])], append=False)

    async def _label_speakers(
        self, found: dict[str, list[dict[str, Any]]], samples: audio.Samples, input: Mapping[str, Any]
    ) -> AsyncIterator[Log]:
        """Add the speakers to the segments of each list in ``found``; yield the progress."""
        assert self._encoder is not None, "otherwise there is no input diarize"
        async for step in stepwise(find_turns(self._encoder, samples, input.get("num_speakers"))):
            if isinstance(step, Progress):
                yield Log(f"Speakers: {bar(step.done, step.total)}\n")
            else:
                for task, segments in found.items():
                    found[task] = speaker_labels.label_speakers(
                        segments, step, words=input["word_timestamps"]
                    )

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _load(self, folder: Path) -> None:
        from faster_whisper import WhisperModel
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        on_cpu = self._spec.device == "cpu"
        compute_type = self._spec.options["compute_type"]
        workers = self._spec.options.get("num_workers", 1)
        self._model = WhisperModel(
            str(folder),
            device="cpu" if on_cpu else "cuda",
            device_index=0 if on_cpu else list(range(len(self._spec.device.split(",")))),
            compute_type=("int8" if on_cpu else "float16") if compute_type == "auto" else compute_type,
            # threads of each worker; workers transcribe different predictions, and share the weights
            cpu_threads=max(1, self._spec.threads // workers),
            num_workers=workers,
            local_files_only=True,
        )
        self._languages = LANGUAGES
        encoder = self._spec.options.get("speaker_encoder")
        if encoder is not None:
            self._encoder = load_encoder(Path(encoder), self._spec)

    def _segments(
        self, samples: audio.Samples, language: str | None, task: str, settings: dict[str, Any]
    ) -> Generator[str | dict[str, Any], None, None]:
        """Yield the language's code, then each segment. The language is detected if ``language`` is None."""
        prompt, count = settings["initial_prompt"], 0
        for begin, chunk in _chunks(samples):
            segments, info = self._model.transcribe(
                chunk, language=language, task=task, **settings | {"initial_prompt": prompt}
            )
            if begin == 0:
                language = info.language
                yield info.language
            text = ""
            for segment in segments:
                text += segment.text
                yield _segment(segment, count, begin / _RATE)
                count += 1
            if settings["condition_on_previous_text"] and text:
                prompt = text[-_CONTEXT:]

    def _language(self, requested: str) -> str | None:
        """Return the code of the requested language, a code or an English name; None: detect the language.

        Raises:
            PredictionFailed: the model does not support the language.
        """
        name = requested.strip().lower()
        if name in {"", "auto", "none"}:
            return None
        code = {known: code for code, known in self._languages.items()}.get(name, name)
        if code not in self._model.supported_languages:
            known = "only English"
            if self._model.model.is_multilingual:
                known = f"auto and {', '.join(self._languages)}"
            raise PredictionFailed(
                f"input.language: this model does not support {requested!r}; it supports {known}"
            )
        return code


def _output(found: Mapping[str, list[dict[str, Any]]], language: str | None, format: str) -> dict[str, Any]:
    """Return the output for the segments of the transcript, and of the translation if there is one."""
    write = _FORMATS[format]
    output: dict[str, Any] = {
        "transcription": write(found["transcribe"]),
        "detected_language": language,
        "segments": found["transcribe"],
    }
    if "translate" in found:
        output["translation"] = write(found["translate"])
    return output


def _settings(input: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return keyword arguments for faster-whisper. ``vocabulary`` is the number of the model's tokens.

    Raises:
        PredictionFailed: ``suppress_tokens`` has something other than ids of tokens.
    """
    step, temperatures = input["temperature_increment_on_fallback"], [input["temperature"]]
    while step and temperatures[-1] + step <= 1.0 + 1e-6 and len(temperatures) < _MAX_ATTEMPTS:
        temperatures.append(temperatures[-1] + step)
    try:
        suppressed = [int(part) for part in input["suppress_tokens"].split(",") if part.strip()]
    except ValueError as error:
        raise PredictionFailed(
            "input.suppress_tokens: this must be whole numbers separated by commas"
        ) from error
    if not all(-1 <= token < vocabulary for token in suppressed):
        raise PredictionFailed(
            f"input.suppress_tokens: every token must be a number from 0 to {vocabulary - 1}, or -1"
        )
    return {
        "temperature": temperatures,
        "patience": input.get("patience") or 1.0,
        "suppress_tokens": suppressed,
        "initial_prompt": input.get("initial_prompt") or None,
        "condition_on_previous_text": input["condition_on_previous_text"],
        "compression_ratio_threshold": input["compression_ratio_threshold"],
        "log_prob_threshold": input["logprob_threshold"],
        "no_speech_threshold": input["no_speech_threshold"],
        "word_timestamps": input["word_timestamps"],
    }


def _chunks(samples: audio.Samples) -> Iterator[tuple[int, audio.Samples]]:
    """Cut the audio into chunks; yield the index of each chunk's first sample, and its samples."""
    begin = 0
    while samples.size - begin > _CHUNK:
        window_begin = begin + _CHUNK - _CUT_WINDOW
        window = samples[window_begin : begin + _CHUNK]
        spans = window[: window.size // _QUIET_SPAN * _QUIET_SPAN].reshape(-1, _QUIET_SPAN)
        quietest = int(abs(spans).mean(axis=1).argmin())
        end = window_begin + quietest * _QUIET_SPAN + _QUIET_SPAN // 2
        yield begin, samples[begin:end]
        begin = end
    yield begin, samples[begin:]


def _segment(found: Any, number: int, begin: float) -> dict[str, Any]:
    """Convert a segment of faster-whisper, whose numbers may be NumPy's, to JSON values.

    ``number`` is the segment's position in the output, and ``begin`` the start of its chunk in seconds.
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


def _line(segment: Mapping[str, Any], duration: float) -> str:
    """Return two log lines: the segment's text, and a progress bar."""
    times = f"[{subtitles.time(segment['start'])} --> {subtitles.time(segment['end'])}]"
    total = math.ceil(duration)
    return f"{times} {segment['text'].strip()}\n{bar(min(total, math.ceil(segment['end'])), total)}\n"
