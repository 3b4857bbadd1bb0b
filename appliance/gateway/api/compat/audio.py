"""OpenAI's transcriptions, translations and speech: predictions of models that hear or speak."""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import FieldProblem, InvalidInput
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.compat.calls import Calls, checked
from appliance.gateway.api.compat.forms import Form, received
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import Services
from appliance.protocols.media import from_data

HEARS: Final = ("whisper",)
SPEAKS: Final = ("piper",)

_TEXT: Final = {"type": "string"}
_SPOKEN: Final[dict[str, dict[str, Any]]] = {
    "model": _TEXT,
    "input": _TEXT,
    "voice": _TEXT,
    "response_format": {"type": "string", "enum": ["mp3", "opus", "flac", "wav"]},
    "speed": {"type": "number"},
    "stream": {"type": "boolean", "enum": [False]},
    "stream_format": {"type": "string", "enum": ["audio"]},
}
_HEARD: Final[dict[str, dict[str, Any]]] = {
    "model": _TEXT,
    "language": _TEXT,
    "prompt": _TEXT,
    "response_format": {"type": "string", "enum": ["json", "text", "srt", "vtt", "verbose_json"]},
    "temperature": _TEXT,
    "timestamp_granularities": {
        "type": "array",
        "items": {"type": "string", "enum": ["word", "segment"]},
    },
    "stream": {"type": "string", "enum": ["false"]},
}
_TASKS: Final = {"transcription": "transcribe", "translation": "translate"}
_PLAIN: Final = "plain text"  # what models that hear call it
_SEGMENT: Final = (
    *("id", "seek", "start", "end", "text", "tokens", "temperature"),
    *("avg_logprob", "compression_ratio", "no_speech_prob"),
)


class Audio:
    """The routes about sound."""

    def __init__(self, services: Services) -> None:
        """``services`` is what they work with."""
        self._services = services
        self._calls = Calls(services)

    def routes(self) -> list[Route]:
        """What this resource answers."""
        return [
            Route(f"{OPENAI}/v1/audio/transcriptions", self.transcribe, methods=["POST"]),
            Route(f"{OPENAI}/v1/audio/translations", self.translate, methods=["POST"]),
            Route(f"{OPENAI}/v1/audio/speech", self.speak, methods=["POST"]),
        ]

    async def transcribe(self, request: Request) -> Response:
        """``POST /audio/transcriptions``: a form with one file."""
        return await self._heard(request, "transcription")

    async def translate(self, request: Request) -> Response:
        """``POST /audio/translations``: the same, into English."""
        return await self._heard(request, "translation")

    async def speak(self, request: Request) -> Response:
        """``POST /audio/speech``: the sound itself."""
        caller = await self._calls.caller(request, Scope.RUN, creates=True)
        given = await self._calls.body(request, "input")
        input_schema.check(given, _SPOKEN)
        entry = self._calls.entry(given["model"], caller, SPEAKS)
        asked = {"text": given["input"], "output_format": given.get("response_format") or "mp3"}
        asked |= {key: given[key] for key in ("voice", "speed") if given.get(key) is not None}
        record = await self._calls.predicted(request, caller, entry, asked)
        if isinstance(record, Response):
            return record
        told = self._calls.told(record)
        if isinstance(record.output, OutputFile):
            path = self._services.files.folder / record.output.path
            return FileResponse(path, headers=told, media_type=record.output.content_type)
        kind, sound = from_data(record.output)  # as `files.outputs: data` has it
        return Response(sound, 200, told, kind)

    async def _heard(self, request: Request, task: str) -> Response:
        caller = await self._calls.caller(request, Scope.RUN, creates=True)
        async with received(request, self._services, caller) as form:
            given = checked(_without(form.fields, "stream"))
            input_schema.check(form.fields, _HEARD)
            entry = self._calls.entry(given["model"], caller, HEARS)
            shape = given.get("response_format") or "json"
            asked = heard(given, shape, translate=task == "translation")
            asked["audio"] = f"{requests.origin(request, self._services)}/v1/files/{_file(form)}"
            record = await self._calls.predicted(request, caller, entry, asked)
            return record if isinstance(record, Response) else self._told(record, task, shape, given)

    def _told(self, record: Prediction, task: str, shape: str, given: dict[str, Any]) -> Response:
        text, told = record.output[task], self._calls.told(record)
        if shape in {"text", "srt", "vtt"}:
            return PlainTextResponse(text, headers=told)
        found: dict[str, Any] = {"text": text}
        if shape == "verbose_json":
            found = {"task": _TASKS[task], **found, **verbose(record)}
            if "word" not in given.get("timestamp_granularities", ()):
                del found["words"]
        return responses.json(found, 200, told)


def heard(given: dict[str, Any], shape: str, *, translate: bool) -> dict[str, Any]:
    """What a model that hears is asked for a request, but for the sound.

    Raises:
        InvalidInput: the temperature is no number.
    """
    asked: dict[str, Any] = {"transcription": shape if shape in {"srt", "vtt"} else _PLAIN}
    for name, spelled in (("language", "language"), ("prompt", "initial_prompt")):
        if given.get(name):
            asked[spelled] = given[name]
    if given.get("temperature"):
        try:
            asked["temperature"] = float(given["temperature"])
        except ValueError as error:
            raise _wrong("temperature", "Must be a number") from error
        if not math.isfinite(asked["temperature"]):
            raise _wrong("temperature", "Must be a finite number")
    if translate:
        asked["translate"] = True
    if "word" in given.get("timestamp_granularities", ()):
        asked["word_timestamps"] = True
    return asked


def verbose(record: Prediction) -> dict[str, Any]:
    """Everything that is known of a transcript; times in seconds."""
    segments = record.output["segments"]
    words = [word for segment in segments for word in segment.get("words", ())]
    end = max((segment["end"] for segment in segments), default=0.0)
    return {
        "language": record.output["detected_language"],
        "duration": record.metrics.get("audio_duration", end),
        "segments": [{key: segment[key] for key in _SEGMENT if key in segment} for segment in segments],
        "words": [{**word, "word": word["word"].strip()} for word in words],
    }


def _file(form: Form) -> str:
    """The id of the one file in ``form``.

    Raises:
        InvalidInput: there is none, or there are several.
    """
    files = form.files.get("file", [])
    if len(files) != 1:
        raise _wrong("file", f"Must be one file; there are {len(files)}")
    return files[0].id


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _wrong(field: str, why: str) -> InvalidInput:
    return InvalidInput([FieldProblem("invalid", field, why)])
