"""Error responses in the format of the API that was called: Replicate's, OpenAI's or Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from starlette.responses import Response

from appliance.domain.errors import (
    ApplianceError,
    BucketUnavailable,
    BudgetSpent,
    InvalidInput,
    ModelNotFound,
    NotFound,
    StoreUnavailable,
    Throttled,
    Unauthenticated,
)
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine import INTERRUPTED
from appliance.protocols.compat_errors import ANTHROPIC, OPENAI, anthropic_error, openai_error
from appliance.protocols.compat_types import AnthropicErrorResponse, OpenAIErrorEvent, OpenAIErrorResponse

__all__ = ["ANTHROPIC", "OPENAI", "CompatError", "compat_response", "response"]

#: Seconds: the clients of OpenAI and Anthropic ignore a longer Retry-After, and would retry at once.
_LONGEST_RETRY: Final = 60


class CompatError(NamedTuple):
    """The fields of error responses of OpenAI's and Anthropic's APIs."""

    status: int  # of HTTP
    message: str
    parameter: str | None = None  # name of the wrong field of the request
    code: str | None = None  # such as model_not_found

    @classmethod
    def of(cls, problem: ApplianceError) -> CompatError:
        """Return the error for ``problem``. These APIs respond to a wrong field with 400, not 422."""
        match problem:
            case InvalidInput():
                first = problem.problems[0]
                text = "; ".join(
                    f"{each.field}: {each.description}" if each.field else each.description
                    for each in problem.problems
                )
                return cls(400, text, first.field or None)
            case ModelNotFound():
                return cls(404, problem.detail, "model", "model_not_found")
            case NotFound():
                return cls(404, problem.detail, None, "not_found")
            case Unauthenticated():
                return cls(401, problem.detail, None, "invalid_api_key")
            case BudgetSpent():
                return cls(402, problem.detail, None, "insufficient_quota")
            case Throttled():
                return cls(429, problem.detail, None, "rate_limit_exceeded")
        return cls(400 if problem.status == 422 else problem.status, problem.detail)

    @classmethod
    def of_record(cls, record: Prediction, otherwise: int = 500) -> CompatError:
        """Return the error of a prediction that did not succeed.

        ``otherwise`` is the HTTP status if the prediction had started and the model gave no error response.
        """
        if record.status is not Status.FAILED:
            return cls(400, f"The prediction {record.id} was canceled", None, "canceled")
        error = record.output.get("error") if isinstance(record.output, dict) else None
        if isinstance(error, dict):  # the error response of the model
            return cls(error["code"], error["message"], error.get("param"))
        text = record.error or "the prediction failed"
        began = record.started_at is not None and not text.startswith(INTERRUPTED)
        return cls(otherwise if began else 503, text)

    def openai(self) -> OpenAIErrorResponse:
        return openai_error(self.status, self.message, self.parameter, self.code)

    def anthropic(self) -> AnthropicErrorResponse:
        return anthropic_error(self.status, self.message)

    def event(self, number: int) -> OpenAIErrorEvent:
        """Return the error as event ``number``, from 0, of a stream of OpenAI's Responses API."""
        return OpenAIErrorEvent(
            type="error",
            sequence_number=number,
            code=self.code or "server_error",
            message=self.message,
            param=self.parameter,
        )


def compat_response(error: CompatError, path: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the error response to a request at ``path``, a route of OpenAI's or Anthropic's API."""
    openai = path.startswith(f"{OPENAI}/")
    body = msgspec.json.encode(error.openai() if openai else error.anthropic())
    # The clients of both APIs would repeat the request, and the model would do the work twice.
    no_retry = {"x-should-retry": "false"} if error.status >= 500 else {}
    return Response(body, error.status, {**no_retry, **(headers or {})}, "application/json")


def response(problem: ApplianceError, path: str, *, post: bool) -> Response:
    """Return the error response to a request at ``path``.

    After a POST, a response with a status of 500 or more tells clients not to repeat the request.
    """
    headers: dict[str, str] = {}
    if isinstance(problem, Throttled | BudgetSpent | BucketUnavailable | StoreUnavailable):
        headers["Retry-After"] = str(problem.retry_after)
        if problem.retry_after > _LONGEST_RETRY:
            headers["x-should-retry"] = "false"
    if isinstance(problem, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith((f"{OPENAI}/", f"{ANTHROPIC}/")):
        return compat_response(CompatError.of(problem), path, headers)
    if post and problem.status >= 500:
        headers["x-should-retry"] = "false"
    return Response(msgspec.json.encode(problem.body()), problem.status, headers, "application/problem+json")
