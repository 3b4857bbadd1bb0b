"""Routes of OpenAI's transcriptions and translations, for whisper models, and speech, for piper and
kokoro models.

A request for a stream is a prediction with an operation, whose output is the events of the stream. Every
other request is an ordinary prediction of the model.
"""

from __future__ import annotations

import math
from base64 import b64decode
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.domain.errors import PredictionFailed
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses, stored_file
from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import DATA, ApiFormat
from appliance.gateway.api.compat.forms import Form, received
from appliance.gateway.api.errors import OPENAI, CompatError
from appliance.gateway.api.services import services_of
from appliance.protocols.compat_types import (
    SpeechRequest,
    TranscribedSegment,
    TranscribedWord,
    TranscriptionFields,
    TranscriptionResponse,
)
from appliance.protocols.media import from_data
from appliance.runners import kinds_with_operation, operations

TRANSCRIBING: Final = kinds_with_operation(operations.TRANSCRIPTIONS)
SPEAKING: Final = kinds_with_operation(operations.SPEECH)

#: Format of audio -> its media type.
CONTENT_TYPES: Final = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_MAX_STREAMED: Final = 4096  # characters, as in OpenAI's API, because the gateway keeps the audio in memory

_PLAIN: Final = "plain text"  # a choice of the input ``transcription`` of whisper models


async def transcribe(request: Request) -> Response:
    """``POST /audio/transcriptions``: a form with one file."""
    return await _transcribe(request, "transcription")


async def translate(request: Request) -> Response:
    """``POST /audio/translations``: a transcription in English."""
    return await _transcribe(request, "translation")


async def speak(request: Request) -> Response:
    """``POST /audio/speech``: the response is the audio file."""
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    asked = await calls.parse(request, SpeechRequest)
    entry = calls.find_model(request, asked.model, caller, SPEAKING)
    input: dict[str, Any] = {"text": asked.input, "output_format": asked.response_format or "mp3"}
    if asked.voice is not None:
        input["voice"] = asked.voice
    if asked.speed is not None:
        input["speed"] = asked.speed
    if asked.stream_format is not None:
        if len(asked.input) > _MAX_STREAMED:
            raise calls.invalid(
                "input", f"a text of over {_MAX_STREAMED} characters cannot be streamed; omit stream_format"
            )
        raw = ApiFormat(_audio, _broken, idle=b"", content_type=CONTENT_TYPES[input["output_format"]])
        format = raw if asked.stream_format == "audio" else DATA
        return await calls.stream_translated(request, caller, entry, input, operations.SPEECH, format)
    record = await calls.predict(request, caller, entry, input)
    if isinstance(record, Response):
        return record
    headers = calls.id_headers(record)
    if isinstance(record.output, OutputFile):
        files = services_of(request).files
        path, kind = files.folder / record.output.path, CONTENT_TYPES[input["output_format"]]
        return await stored_file.respond(request, files, path, media_type=kind, headers=headers)
    _, audio = from_data(record.output)  # with `files.outputs: data`
    return Response(audio, 200, headers, CONTENT_TYPES[input["output_format"]])


def _audio(event: dict[str, Any]) -> bytes:
    """Return the audio in an event of a stream of speech."""
    return b64decode(event.get("audio", ""))


def _broken(error: CompatError, number: int) -> bytes:
    """Close the connection: an audio stream cannot contain an error message.

    Raises:
        PredictionFailed: always.
    """
    raise PredictionFailed(error.message)


async def _transcribe(request: Request, task: str) -> Response:
    caller = await calls.find_caller(request, Scope.RUN, creates=True)
    async with received(request, caller) as form:
        calls.check_required(form.fields, TranscriptionFields)
        asked = requests.convert(form.fields, TranscriptionFields)
        entry = calls.find_model(request, asked.model, caller, TRANSCRIBING)
        input = transcription_input(asked, translate=task == "translation")
        input["audio"] = f"{requests.base_url(request)}/v1/files/{_file(form)}"
        if asked.stream == "true":
            if task == "translation":
                raise calls.invalid("stream", "translations cannot be streamed")
            if asked.response_format not in {None, "json", "text"}:
                raise calls.invalid("response_format", "can only be json or text if stream is true")
            return await calls.stream_translated(
                request, caller, entry, input, operations.TRANSCRIPTIONS, DATA
            )
        record = await calls.predict(request, caller, entry, input)
        return record if isinstance(record, Response) else _transcript(record, task, asked)


def _transcript(record: Prediction, task: str, asked: TranscriptionFields) -> Response:
    text, headers = record.output[task], calls.id_headers(record)
    if asked.response_format in {"text", "srt", "vtt"}:
        return PlainTextResponse(text, headers=headers)
    found = TranscriptionResponse(text=text)
    if asked.response_format == "verbose_json":
        segments = record.output["segments"]
        found.task = "translate" if task == "translation" else "transcribe"
        found.language = record.output["detected_language"]
        end = max((segment["end"] for segment in segments), default=0.0)
        found.duration = record.metrics.get("audio_duration", end)
        found.segments = msgspec.convert(segments, list[TranscribedSegment])
        if "word" in (asked.timestamp_granularities or ()):
            found.words = [
                msgspec.convert({**word, "word": word["word"].strip()}, TranscribedWord)
                for segment in segments
                for word in segment.get("words", ())
            ]
    return responses.json(found, 200, headers)


def transcription_input(asked: TranscriptionFields, *, translate: bool) -> dict[str, Any]:
    """Return the input of a whisper model for a request, without the audio.

    Raises:
        InvalidInput: the temperature is not a finite number.
    """
    subtitles = asked.response_format if asked.response_format in {"srt", "vtt"} else None
    input: dict[str, Any] = {"transcription": subtitles or _PLAIN}
    if asked.language:
        input["language"] = asked.language
    if asked.prompt:
        input["initial_prompt"] = asked.prompt
    if asked.temperature:
        try:
            input["temperature"] = float(asked.temperature)
        except ValueError as error:
            raise calls.invalid("temperature", "Must be a number") from error
        if not math.isfinite(input["temperature"]):
            raise calls.invalid("temperature", "Must be a finite number")
    if translate:
        input["translate"] = True
    if "word" in (asked.timestamp_granularities or ()):
        input["word_timestamps"] = True
    return input


def _file(form: Form) -> str:
    """Return the id of the file in ``form``.

    Raises:
        InvalidInput: the form has no file or several.
    """
    files = form.files.get("file", [])
    if len(files) != 1:
        raise calls.invalid("file", f"Must be one file; there are {len(files)}")
    return files[0].id


ROUTES: Final = (
    Route(f"{OPENAI}/v1/audio/transcriptions", transcribe, methods=["POST"]),
    Route(f"{OPENAI}/v1/audio/translations", translate, methods=["POST"]),
    Route(f"{OPENAI}/v1/audio/speech", speak, methods=["POST"]),
)
