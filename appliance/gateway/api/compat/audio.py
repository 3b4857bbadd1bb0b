"""OpenAI's transcriptions, translations and speech: predictions of whisper and piper models."""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import checked
from appliance.gateway.api.compat.forms import Form, received
from appliance.gateway.api.errors import OPENAI
from appliance.gateway.api.services import services_of
from appliance.protocols.media import from_data

HEARS: Final = ("whisper",)
SPEAKS: Final = ("piper",)

_TEXT: Final = {"type": "string"}
_SPEECH_BODY: Final[dict[str, dict[str, Any]]] = {
    "model": _TEXT,
    "input": _TEXT,
    "voice": _TEXT,
    "response_format": {"type": "string", "enum": ["mp3", "opus", "flac", "wav"]},
    "speed": {"type": "number"},
    "stream": {"type": "boolean", "enum": [False]},
    "stream_format": {"type": "string", "enum": ["audio"]},
}
_TRANSCRIPTION_BODY: Final[dict[str, dict[str, Any]]] = {
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
_PLAIN: Final = "plain text"  # name of this format in the inputs of whisper models
_SEGMENT: Final = (
    *("id", "seek", "start", "end", "text", "tokens", "temperature"),
    *("avg_logprob", "compression_ratio", "no_speech_prob"),
)


async def transcribe(request: Request) -> Response:
    """``POST /audio/transcriptions``: a form with one file."""
    return await _transcribe(request, "transcription")


async def translate(request: Request) -> Response:
    """``POST /audio/translations``: transcription into English."""
    return await _transcribe(request, "translation")


async def speak(request: Request) -> Response:
    """``POST /audio/speech``: the response is the audio file."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    given = await calls.body(request, "input")
    input_schema.check(given, _SPEECH_BODY)
    entry = calls.find_model(request, given["model"], caller, SPEAKS)
    input = {"text": given["input"], "output_format": given.get("response_format") or "mp3"}
    input |= {key: given[key] for key in ("voice", "speed") if given.get(key) is not None}
    record = await calls.predict(request, caller, entry, input)
    if isinstance(record, Response):
        return record
    headers = calls.id_headers(record)
    if isinstance(record.output, OutputFile):
        path = services_of(request).files.folder / record.output.path
        return FileResponse(path, headers=headers, media_type=record.output.content_type)
    kind, audio = from_data(record.output)  # with `files.outputs: data`
    return Response(audio, 200, headers, kind)


async def _transcribe(request: Request, task: str) -> Response:
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    async with received(request, caller) as form:
        given = checked(_without(form.fields, "stream"))
        input_schema.check(form.fields, _TRANSCRIPTION_BODY)
        entry = calls.find_model(request, given["model"], caller, HEARS)
        shape = given.get("response_format") or "json"
        input = transcription_input(given, shape, translate=task == "translation")
        input["audio"] = f"{requests.origin(request)}/v1/files/{_file(form)}"
        record = await calls.predict(request, caller, entry, input)
        return record if isinstance(record, Response) else _transcript(record, task, shape, given)


def _transcript(record: Prediction, task: str, shape: str, given: dict[str, Any]) -> Response:
    text, headers = record.output[task], calls.id_headers(record)
    if shape in {"text", "srt", "vtt"}:
        return PlainTextResponse(text, headers=headers)
    found: dict[str, Any] = {"text": text}
    if shape == "verbose_json":
        found = {"task": _TASKS[task], **found, **verbose(record)}
        if "word" not in given.get("timestamp_granularities", ()):
            del found["words"]
    return responses.json(found, 200, headers)


def transcription_input(given: dict[str, Any], shape: str, *, translate: bool) -> dict[str, Any]:
    """Return the input of a speech recognition model for a request, without the audio.

    Raises:
        InvalidInput: the temperature is not a finite number.
    """
    input: dict[str, Any] = {"transcription": shape if shape in {"srt", "vtt"} else _PLAIN}
    for name, spelled in (("language", "language"), ("prompt", "initial_prompt")):
        if given.get(name):
            input[spelled] = given[name]
    if given.get("temperature"):
        try:
            input["temperature"] = float(given["temperature"])
        except ValueError as error:
            raise calls.invalid("temperature", "Must be a number") from error
        if not math.isfinite(input["temperature"]):
            raise calls.invalid("temperature", "Must be a finite number")
    if translate:
        input["translate"] = True
    if "word" in given.get("timestamp_granularities", ()):
        input["word_timestamps"] = True
    return input


def verbose(record: Prediction) -> dict[str, Any]:
    """Return the additional fields of ``verbose_json``; times are in seconds."""
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
    """Return the id of the file in ``form``.

    Raises:
        InvalidInput: the form has no file or several.
    """
    files = form.files.get("file", [])
    if len(files) != 1:
        raise calls.invalid("file", f"Must be one file; there are {len(files)}")
    return files[0].id


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


ROUTES: Final = (
    Route(f"{OPENAI}/v1/audio/transcriptions", transcribe, methods=["POST"]),
    Route(f"{OPENAI}/v1/audio/translations", translate, methods=["POST"]),
    Route(f"{OPENAI}/v1/audio/speech", speak, methods=["POST"]),
)
