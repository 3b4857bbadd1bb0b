"""OpenAI's and Anthropic's APIs for one loaded language model, by vLLM's own serving classes.

vLLM's classes handle templates, tools, reasoning, structured output, log probabilities and the validation of
requests. This module adds response ids, the model's name as in the request, metrics, and errors that name
keys of models.yaml. It is written for vLLM 0.32 and tested by ``tests/integration/test_vllm.py``.
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
from appliance.runners.operations import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    MESSAGES,
    RESPONSE_PREFIX,
    RESPONSES,
    streams,
)
from appliance.runners.vllm import errors

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from appliance.runners.base import LoadSpec

_MAX_PROBLEMS: Final = 4  # in one error: pydantic reports a problem for every variant of a message

_UNKNOWN: Final = "the response ended early, for an unknown reason"
_ANTHROPIC: Final = {MESSAGES, COUNT_TOKENS}
#: Fields of a request for ``RESPONSES`` that the gateway has carried out.
_OF_GATEWAY: Final = ("previous_response_id", "background", "store")

#: Prefixes of response ids, before the prediction's id. For the other operations vLLM adds the prefix.
_PREFIXES: Final = {RESPONSES: RESPONSE_PREFIX, MESSAGES: "msg_"}


class _Refused(Exception):
    """An error response to the caller, as an object in OpenAI's format whose ``code`` is the HTTP status."""

    def __init__(self, error: dict[str, Any]) -> None:
        message = errors.translate(str(error["message"]))
        super().__init__(message)
        self.error = {**error, "message": message}


class CompatApis:
    """Runs the operations of one loaded model.

    Raises:
        LoadFailed: the parsers in the model's options do not fit the model.
    """

    def __init__(self, engine: AsyncLLM, spec: LoadSpec) -> None:
        from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
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
        settings: dict[str, Any] = {
            "request_logger": None,
            "chat_template": spec.options["chat_template"],
            "chat_template_content_format": "auto",
            "tool_parser": self._tool_parser,
            "enable_auto_tools": self._tool_parser is not None,
            # Make the arguments of every call match their schema, even if the tool does not set `strict`.
            "tool_strict_level": "parameter",
            "reasoning_parser": spec.options["reasoning_parser"] or "",
        }
        try:
            renderer = OnlineRenderer(engine.model_config, engine.renderer, **settings)
            settings["online_renderer"] = renderer
            chat = OpenAIServingChat(engine, self._models, "assistant", **settings)
            messages = AnthropicServingMessages(engine, self._models, "assistant", **settings)
            responses = OpenAIServingResponses(engine, self._models, **settings)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:  # raised by parsers
            raise LoadFailed(
                f"the tool_parser or reasoning_parser of {spec.model} does not fit its weights: "
                f"{errors.translate(str(error))}"
            ) from error
        completion = OpenAIServingCompletion(
            engine, self._models, online_renderer=renderer, request_logger=None
        )
        self._handlers: dict[str, tuple[Any, Any]] = {
            CHAT: (ChatCompletionRequest, chat.create_chat_completion),
            COMPLETIONS: (CompletionRequest, completion.create_completion),
            RESPONSES: (ResponsesRequest, responses.create_responses),
            MESSAGES: (AnthropicMessagesRequest, messages.create_messages),
            COUNT_TOKENS: (AnthropicCountTokensRequest, messages.count_tokens),
        }

    async def run(self, job: Job, adapter: LoRARequest | None) -> AsyncGenerator[Output | Metric]:
        """Run one operation, with the weights of ``adapter`` if there is one, and yield its events.

        Raises:
            PredictionFailed: vLLM refused the request or failed; the last output is the error response.
        """
        metrics = _Metrics()
        streaming = streams(job.input) and job.operation != COUNT_TOKENS
        output_sent = token_seen = False
        try:
            async with contextlib.aclosing(self._responses(job, adapter)) as responses:
                async for item in responses:
                    _rename(item, job)
                    error = _error_in(item)
                    if error is not None and not output_sent:
                        raise _Refused(error)
                    if streaming and not token_seen and _has_token(item):
                        token_seen = True
                        yield metrics.first_token()
                    for metric in metrics.count(item):
                        yield metric
                    if _is_requested(item, job):
                        output_sent = True
                        yield Output([item], append=streaming)
                    if error is not None:
                        raise PredictionFailed(errors.translate(str(error["message"])))
        except _Refused as refusal:
            yield Output([{"error": refusal.error}], append=False)
            raise PredictionFailed(str(refusal)) from refusal
        yield metrics.speed()

    async def _responses(self, job: Job, adapter: LoRARequest | None) -> AsyncGenerator[dict[str, Any]]:
        """Yield the response, or the events of the stream, as JSON objects.

        Raises:
            _Refused: vLLM answered with an error.
        """
        from vllm.entrypoints.serve import create_error_response
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.v1.engine.exceptions import EngineDeadError

        request = self._request(job, adapter)
        _, handle = self._handlers[str(job.operation)]
        try:
            response = await handle(request)
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001  # as vLLM's server does: the class decides the HTTP status
            response = create_error_response(error)
        _raise_if_canceled()
        if isinstance(response, ErrorResponse):
            raise _Refused(response.error.model_dump(mode="json"))
        if not hasattr(response, "__aiter__"):
            yield response.model_dump(mode="json", by_alias=True, exclude_none=job.operation in _ANTHROPIC)
            return
        async with contextlib.aclosing(response) as events:
            async for event in events:
                _raise_if_canceled()
                if not isinstance(event, str):
                    yield event.model_dump(mode="json", by_alias=True)
                elif (data := payload(event)) is not None:
                    yield data

    def _request(self, job: Job, adapter: LoRARequest | None) -> Any:
        """Return the body of ``job`` as a request object of vLLM.

        Raises:
            _Refused: the body is not a valid request.
        """
        from pydantic import ValidationError
        from vllm.entrypoints.serve import create_error_response

        body = dict(job.input)
        media.make_base64_plain(body)
        if job.operation == RESPONSES:
            body = {name: value for name, value in body.items() if name not in _OF_GATEWAY}
        self._check_tools(body)
        body["model"] = self._name
        if adapter is not None:
            self._models.lora_requests[adapter.lora_name] = adapter
            body["model"] = adapter.lora_name
        if job.operation in {CHAT, COMPLETIONS, RESPONSES}:
            body["request_id"] = _PREFIXES.get(job.operation, "") + job.id
        if job.operation in {CHAT, COMPLETIONS} and streams(body):
            options = body.get("stream_options") or {}
            if isinstance(options, dict):  # for the metrics; `_is_requested` removes it again
                body["stream_options"] = {**options, "include_usage": True}
        kind, _ = self._handlers[str(job.operation)]
        try:
            request = kind.model_validate(body)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ")
                for each in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            more = len(problems) - _MAX_PROBLEMS
            text = "; ".join(problems[:_MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
            raise _invalid(text) from error
        except Exception as error:  # raised by vLLM's own validators
            raise _Refused(create_error_response(error).error.model_dump(mode="json")) from error
        _check_finite({name: getattr(request, name) for name in request.model_fields_set})
        return request

    def _check_tools(self, body: dict[str, Any]) -> None:
        """Check the request's tools. vLLM would ignore some, and name options of its command line for others.

        Raises:
            _Refused: the model does not support tools, or not tools of this type.
        """
        tools = body.get("tools")
        if not tools or body.get("tool_choice") in ("none", {"type": "none"}):
            return
        if self._tool_parser is None:
            raise _invalid(
                f"the model {self._name} does not support tools, because its options in models.yaml have no "
                "tool_parser",
                "tools",
            )
        types = {str(tool.get("type", "function")) for tool in tools if isinstance(tool, dict)}
        unsupported = sorted(types - {"function", "custom"})
        if unsupported:
            raise _invalid(
                f"the type of a tool can only be function or custom, not {', '.join(unsupported)}", "tools"
            )


def _check_finite(fields: dict[str, Any]) -> None:
    """Check that ``fields`` have no NaN or infinity, to which pydantic converts strings such as "nan".

    Raises:
        _Refused: a field is or contains such a number.
    """
    place = input_schema.non_finite(
        {name: value for name, value in fields.items() if isinstance(value, float | dict)}
    )
    if place is not None:
        raise _invalid(f"{place} must be a finite number", place.partition(".")[0])


class _Metrics:
    """Metrics of one operation: time to the first token, numbers of tokens, and speed."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._output = 0

    def first_token(self) -> Metric:
        return Metric("time_to_first_token", round(time.perf_counter() - self._started, 6))

    def count(self, item: dict[str, Any]) -> Iterator[Metric]:
        """Yield the token counts in ``item``, a response or an event of a stream."""
        for usage in (each["usage"] for each in _with_nested(item) if isinstance(each.get("usage"), dict)):
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            output = usage.get("completion_tokens", usage.get("output_tokens"))
            if prompt:
                yield Metric("input_token_count", prompt)
            if output is not None:
                self._output = output
                yield Metric("output_token_count", output)
        if isinstance(item.get("input_tokens"), int):  # a response of the operation COUNT_TOKENS
            yield Metric("input_token_count", item["input_tokens"])

    def speed(self) -> Metric:
        return Metric("tokens_per_second", round(self._output / (time.perf_counter() - self._started), 6))


def _with_nested(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a response or an event, and the response inside the event."""
    yield item
    for name in ("response", "message"):
        if isinstance(item.get(name), dict):
            yield item[name]


def _rename(item: dict[str, Any], job: Job) -> None:
    """Replace vLLM's name of the model by the name in the request, and message ids by the prediction's id.

    Response objects also get the request's fields that the gateway has handled instead of vLLM.
    """
    for each in _with_nested(item):
        if isinstance(each.get("model"), str):
            each["model"] = job.input["model"]
        if each.get("object") == "response":
            asked = job.input
            each["previous_response_id"] = asked.get("previous_response_id")
            each["background"] = asked.get("background") is True
            each["store"] = asked.get("store") is not False
        if job.operation == MESSAGES and str(each.get("id", "")).startswith("chatcmpl-"):
            each["id"] = _PREFIXES[MESSAGES] + job.id


def _error_in(item: dict[str, Any]) -> dict[str, Any] | None:
    """Return the error if ``item`` is an error response or an error event; otherwise None."""
    error, kind = item.get("error"), item.get("type")
    if isinstance(error, dict) and "choices" not in item and "output" not in item:
        return {"message": _UNKNOWN, "code": 500, **error}
    if kind == "error":
        return {"message": _UNKNOWN, **item, "code": 500}
    failed = item.get("response") if kind == "response.failed" else None
    if isinstance(failed, dict):
        return {"message": _UNKNOWN, **(failed.get("error") or {}), "code": 500}
    return None


def _has_token(item: dict[str, Any]) -> bool:
    """Return whether an event contains a token; the first events of OpenAI's Responses API do not."""
    kind = str(item.get("type", ""))
    return not kind.startswith("response.") or kind.endswith(".delta")


def _is_requested(item: dict[str, Any], job: Job) -> bool:
    """Return False for the usage at the end of a stream if the caller has not requested the usage."""
    if job.operation not in {CHAT, COMPLETIONS} or not streams(job.input):
        return True
    usage = (job.input.get("stream_options") or {}).get("include_usage") is True
    return usage or bool(item.get("choices")) or "error" in item


def payload(event: str) -> dict[str, Any] | None:
    """Return the JSON object of a server-sent event; None if the event has none."""
    for line in event.split("\n"):  # not splitlines: JSON does not escape all line ends
        if line.startswith("data:"):
            text = line.removeprefix("data:").strip()
            if text == "[DONE]":
                return None
            found: dict[str, Any] = json.loads(text)
            return found
    return None


def _invalid(message: str, parameter: str | None = None) -> _Refused:
    return _Refused({"message": message, "type": "invalid_request_error", "param": parameter, "code": 400})


def _raise_if_canceled() -> None:
    """Raise ``CancelledError`` if the task is cancelled: vLLM catches it and returns an error response."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
