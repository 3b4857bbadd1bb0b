"""OpenAI's and Anthropic's APIs over one loaded language model, by vLLM's own serving classes.

All that is known of those classes is here, written for version 0.32; ``tests/integration/test_vllm.py`` runs
them. Templates, tools, reasoning, structured output, log probabilities and the checks of requests are theirs.
What is added: ids and the model's name as the caller knows them, numbers for the prediction's metrics, and
refusals that say what to change in models.yaml.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any, Final

from appliance.domain import input_schema
from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.prediction import Job, Metric, Output
from appliance.protocols import media
from appliance.runners.operations import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES, streams
from appliance.runners.vllm import errors

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from appliance.runners.base import LoadSpec

_MOST_PROBLEMS: Final = 4  # that a refusal names; a wrong message is wrong in every form it could have had

_ANTHROPIC: Final = {MESSAGES, COUNT_TOKENS}

#: What begins the ids in answers, before the prediction's id. Chat completions and completions add their own.
_PREFIXES: Final = {RESPONSES: "resp_", MESSAGES: "msg_"}


class _Refused(Exception):
    """The answer is an error object in OpenAI's shape; its ``code`` is the HTTP status."""

    def __init__(self, error: dict[str, Any]) -> None:
        message = errors.translate(str(error["message"]))
        super().__init__(message)
        self.error = {**error, "message": message}


class CompatApis:
    """Answers the operations of one loaded model."""

    def __init__(self, engine: AsyncLLM, spec: LoadSpec) -> None:
        """Made once the engine runs.

        Raises:
            LoadFailed: the parsers in the model's options do not fit the model.
        """
        from vllm.entrypoints.anthropic.protocol import (
            AnthropicCountTokensRequest,
            AnthropicMessagesRequest,
        )
        from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest
        from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
        from vllm.entrypoints.openai.models.protocol import BaseModelPath
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
        from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
        from vllm.renderers.online_renderer import OnlineRenderer

        self._name = spec.model
        self._tool_parser: str | None = spec.options["tool_parser"]
        self._models: OpenAIServingModels = OpenAIServingModels(
            engine, [BaseModelPath(name=spec.model, model_path=str(spec.weights))]
        )
        template: dict[str, Any] = {
            "request_logger": None,
            "chat_template": spec.options["chat_template"],
            "chat_template_content_format": "auto",
        }
        parsers: dict[str, Any] = {
            "tool_parser": self._tool_parser,
            "enable_auto_tools": self._tool_parser is not None,
            # The arguments of every call fit their schema, also where a tool does not call itself strict.
            "tool_strict_level": "parameter",
            "reasoning_parser": spec.options["reasoning_parser"] or "",
        }
        try:
            renderer = OnlineRenderer(engine.model_config, engine.renderer, **template, **parsers)
            common = {"online_renderer": renderer, **template, **parsers}
            chat = OpenAIServingChat(engine, self._models, "assistant", **common)
            messages = AnthropicServingMessages(engine, self._models, "assistant", **common)
            responses = OpenAIServingResponses(engine, self._models, **common)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:  # what parsers raise
            raise LoadFailed(
                f"the tool_parser or reasoning_parser of {spec.model} does not fit its weights: "
                f"{errors.translate(str(error))}"
            ) from error
        completion = OpenAIServingCompletion(
            engine, self._models, online_renderer=renderer, request_logger=None
        )
        self._calls: dict[str, tuple[Any, Any]] = {
            CHAT: (ChatCompletionRequest, chat.create_chat_completion),
            COMPLETIONS: (CompletionRequest, completion.create_completion),
            RESPONSES: (ResponsesRequest, responses.create_responses),
            MESSAGES: (AnthropicMessagesRequest, messages.create_messages),
            COUNT_TOKENS: (AnthropicCountTokensRequest, messages.count_tokens),
        }

    async def run(self, job: Job, adapter: LoRARequest | None) -> AsyncGenerator[Output | Metric]:
        """The events of one operation, with the weights of ``adapter`` over those of the model.

        Raises:
            PredictionFailed: it was refused, or broke off; the output is, or ends with, what says so.
        """
        measured = _Measured()
        asked = job.input["model"]
        streaming = streams(job.input) and job.operation != COUNT_TOKENS
        begun = spoken = False
        try:
            async with contextlib.aclosing(self._objects(job, adapter)) as objects:
                async for item in objects:
                    _rename(item, job, asked)
                    error = _error_in(item)
                    if error is not None:
                        error["message"] = errors.translate(str(error["message"]))
                    if error is not None and not begun:
                        raise _Refused(error)
                    if streaming and not spoken and _speaks(item):
                        spoken = True
                        yield measured.first()
                    for metric in measured.take(item):
                        yield metric
                    if _is_wanted(item, job):
                        begun = True
                        yield Output([item], append=streaming)
                    if error is not None:
                        raise PredictionFailed(str(error["message"]))
        except _Refused as refusal:
            yield Output([{"error": refusal.error}], append=False)
            raise PredictionFailed(str(refusal)) from refusal
        yield measured.speed()

    async def _objects(self, job: Job, adapter: LoRARequest | None) -> AsyncGenerator[dict[str, Any]]:
        """The answer, or the parts of its stream.

        Raises:
            _Refused: there is none.
        """
        from vllm.entrypoints.serve import create_error_response
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.v1.engine.exceptions import EngineDeadError

        request = self._request(job, adapter)
        _, call = self._calls[str(job.operation)]
        try:
            answer = await call(request)
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001  # as its own server does: the class says whose fault it is
            answer = create_error_response(error)
        _raise_if_canceled()
        if isinstance(answer, ErrorResponse):
            raise _Refused(answer.error.model_dump(mode="json"))
        if not hasattr(answer, "__aiter__"):
            yield answer.model_dump(mode="json", by_alias=True, exclude_none=job.operation in _ANTHROPIC)
            return
        async with contextlib.aclosing(answer) as parts:
            async for part in parts:
                _raise_if_canceled()
                if not isinstance(part, str):
                    yield part.model_dump(mode="json", by_alias=True)
                elif (data := payload(part)) is not None:
                    yield data

    def _request(self, job: Job, adapter: LoRARequest | None) -> Any:
        """Return the request for vLLM.

        Raises:
            _Refused: the body is none that it could be asked.
        """
        from pydantic import ValidationError
        from vllm.entrypoints.serve import create_error_response

        body = dict(job.input)
        media.make_base64_plain(body)
        _check_supported(body)
        self._check_tools(body)
        body["model"] = self._name
        if adapter is not None:
            self._models.lora_requests[adapter.lora_name] = adapter
            body["model"] = adapter.lora_name
        if job.operation in {CHAT, COMPLETIONS, RESPONSES}:
            body["request_id"] = _PREFIXES.get(job.operation, "") + job.id
        if job.operation in {CHAT, COMPLETIONS} and streams(body):
            given = body.get("stream_options") or {}
            if isinstance(given, dict):  # always counted; `_is_wanted` says whether the caller hears of it
                body["stream_options"] = {**given, "include_usage": True}
        kind, _ = self._calls[str(job.operation)]
        try:
            request = kind.model_validate(body)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ")
                for each in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            more = len(problems) - _MOST_PROBLEMS
            text = "; ".join(problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
            raise _refusal(text) from error
        except Exception as error:  # what vLLM's checks raise past pydantic
            raise _Refused(create_error_response(error).error.model_dump(mode="json")) from error
        _check_finite({name: getattr(request, name) for name in request.model_fields_set})
        return request

    def _check_tools(self, body: dict[str, Any]) -> None:
        """Refuse tools that would be passed over in silence, or in the words of vLLM's command line.

        Raises:
            _Refused: this model can do nothing with them.
        """
        tools = body.get("tools")
        if not tools or body.get("tool_choice") in ("none", {"type": "none"}):
            return
        if self._tool_parser is None:
            raise _refusal(
                f"the model {self._name} takes no tools: its options in models.yaml set no tool_parser",
                "tools",
            )
        kinds = {str(tool.get("type", "function")) for tool in tools if isinstance(tool, dict)}
        foreign = sorted(kinds - {"function", "custom"})
        if foreign:
            raise _refusal(f"tools can only be functions of your own here, not {', '.join(foreign)}", "tools")


def _check_finite(asked: dict[str, Any]) -> None:
    """Refuse NaN and infinite numbers, which pydantic makes of strings such as "nan".

    Raises:
        _Refused: ``asked`` has such a number.
    """
    place = input_schema.non_finite(
        {name: value for name, value in asked.items() if isinstance(value, float | dict)}
    )
    if place is not None:
        raise _refusal(f"{place} must be a finite number", place.partition(".")[0])


def _check_supported(body: dict[str, Any]) -> None:
    """Refuse what vLLM's classes would refuse in the words of their own server.

    Raises:
        _Refused: the request wants an earlier one remembered, or to be forgotten by its client.
    """
    if body.get("previous_response_id") is not None:
        raise _refusal(
            "conversations are not kept here: leave previous_response_id out and send the whole conversation",
            "previous_response_id",
        )
    if body.get("background"):
        raise _refusal("responses do not run in the background here; POST /v1/predictions does", "background")


class _Measured:
    """Measures the time to the first token and counts the tokens of one operation."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._output = 0

    def first(self) -> Metric:
        """The first token is there."""
        return Metric("time_to_first_token", round(time.perf_counter() - self._started, 6))

    def take(self, item: dict[str, Any]) -> Iterator[Metric]:
        """Add the token counts of ``item``."""
        for usage in (part["usage"] for part in _parts(item) if isinstance(part.get("usage"), dict)):
            read = usage.get("prompt_tokens", usage.get("input_tokens"))
            written = usage.get("completion_tokens", usage.get("output_tokens"))
            if read:
                yield Metric("input_token_count", read)
            if written is not None:
                self._output = written
                yield Metric("output_token_count", written)
        if isinstance(item.get("input_tokens"), int):  # nothing but counted
            yield Metric("input_token_count", item["input_tokens"])

    def speed(self) -> Metric:
        """Tokens a second over all."""
        return Metric("tokens_per_second", round(self._output / (time.perf_counter() - self._started), 6))


def _parts(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An answer or a part of a stream, and the answer that it may carry."""
    yield item
    for name in ("response", "message"):
        if isinstance(item.get(name), dict):
            yield item[name]


def _rename(item: dict[str, Any], job: Job, asked: str) -> None:
    """The model by the name that the caller knows, and Anthropic's ids by the prediction's."""
    for part in _parts(item):
        if isinstance(part.get("model"), str):
            part["model"] = asked
        if job.operation == MESSAGES and str(part.get("id", "")).startswith("chatcmpl-"):
            part["id"] = _PREFIXES[MESSAGES] + job.id


def _error_in(item: dict[str, Any]) -> dict[str, Any] | None:
    """The error that an object of a stream is, if it is one."""
    error = item.get("error")
    if isinstance(error, dict) and "choices" not in item and "output" not in item:
        return {"message": "the answer broke off", "code": 500, **error}
    if item.get("type") == "error":
        return {"message": "the answer broke off", **item, "code": 500}
    failed = item.get("response") if item.get("type") == "response.failed" else None
    if isinstance(failed, dict):
        return {"message": "the answer broke off", **(failed.get("error") or {}), "code": 500}
    return None


def _speaks(item: dict[str, Any]) -> bool:
    """Whether a part of a stream is one that waits for a token; Responses begin with events that do not."""
    kind = str(item.get("type", ""))
    return not kind.startswith("response.") or kind.endswith(".delta")


def _is_wanted(item: dict[str, Any], job: Job) -> bool:
    """Whether the caller asked for it: the number of tokens at the end of a stream only if it said so."""
    if job.operation not in {CHAT, COMPLETIONS} or not streams(job.input):
        return True
    asked = (job.input.get("stream_options") or {}).get("include_usage") is True
    return asked or bool(item.get("choices")) or "error" in item


def payload(event: str) -> dict[str, Any] | None:
    """The object in a server-sent event; None if it has none."""
    for line in event.split("\n"):  # models write other line ends too, which JSON does not escape
        if line.startswith("data:"):
            text = line.removeprefix("data:").strip()
            if text == "[DONE]":
                return None
            found: dict[str, Any] = json.loads(text)
            return found
    return None


def _refusal(message: str, parameter: str | None = None) -> _Refused:
    return _Refused({"message": message, "type": "invalid_request_error", "param": parameter, "code": 400})


def _raise_if_canceled() -> None:
    """End as the task was told to: vLLM makes an error of a cancellation, and goes on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
