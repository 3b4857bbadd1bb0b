"""Every exception the appliance raises on purpose.

    ApplianceError                   base class; carries an HTTP status and a title
    |-- ConfigError                  models.yaml has a mistake
    |-- RequestError                 the request of a client cannot be carried out
    |   |-- MalformedBody       400  the body is not a JSON object
    |   |-- MalformedQuery      400  a query parameter is missing
    |   |-- BadRequest          400  the request is not possible at the moment
    |   |-- Unauthenticated     401  no token, or an unknown one
    |   |-- PermissionDenied    403  the token does not permit the request
    |   |-- NotFound            404  no such resource, or it belongs to another owner
    |   |   |-- DestinationNotFound     the destination of a training does not exist
    |   |   `-- ModelNotFound           the model named in a request to another API does not exist
    |   |-- MethodNotAllowed    405  the route exists, but not with this method
    |   |-- BodyTooLarge        413  the body exceeds the configured limit
    |   |-- FileTooLarge        413  the uploaded file exceeds the configured limit
    |   |-- FileQuotaExceeded   413  all uploaded files together would exceed `files.quota`
    |   |-- InvalidInput        422  fields of the input are wrong; names each
    |   |-- InvalidVersion      422  the version does not exist
    |   |-- UrlRefused          422  the appliance must not fetch this URL for a client
    |   `-- Throttled           429  a queue or rate limit is reached; says when to retry
    |-- ShuttingDown            503  the appliance is shutting down and accepts no new work
    |-- StoreError                   the database failed; the request can be retried
    |   |-- DiskFull            507  nothing can be written until the disk has free space
    |   |-- StatusConflict           a prediction was not in the status that an update expected
    |   `-- UnstorableValue          a value that the database cannot hold; retrying does not help
    |-- WeightsError                 weights are missing, damaged or cannot be downloaded
    |-- LoadFailed                   a worker process could not load its model
    |   `-- ModelTooLarge            the model needs more memory than the devices could ever give
    |-- SleepFailed                  a worker process could not put its model to sleep or wake it
    |-- WorkerLost                   a worker process or its replica died during a prediction
    |   `-- OutOfMemory              the worker process took more memory than it may, or than exists
    |-- RayLost                      an essential process of Ray has ended
    `-- PredictionFailed             one prediction failed; others are not affected

An exception of a library is translated into one of these where it is first caught (``raise ... from exc``).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple


class ApplianceError(Exception):
    """Base class. ``str(error)`` is the message shown to people."""

    status: ClassVar[int] = 500
    title: ClassVar[str | None] = "Internal server error"

    @property
    def detail(self) -> str:
        """The message for people; never empty."""
        return str(self) or (self.__doc__ or type(self).__name__).partition("\n")[0]

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the error response, in the shape of Replicate's API."""
        title = {"title": self.title} if self.title is not None else {}
        return {**title, "detail": self.detail, "status": self.status}


class ConfigError(ApplianceError):
    """models.yaml has a mistake."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        model: str | None = None,
        key: str | None = None,
    ) -> None:
        """``message`` says what is wrong and what to do; the other arguments say where."""
        self.message = message
        self.file = file
        self.line = line
        self.model = model
        self.key = key
        place = ":".join(str(part) for part in (file, line) if part is not None)
        subject = ", ".join(
            part for part in (f"model {model}" if model else "", f"key {key}" if key else "") if part
        )
        super().__init__(": ".join(part for part in (place, subject, message) if part))


class RequestError(ApplianceError):
    """The request of a client cannot be carried out."""

    status = 400
    title: ClassVar[str | None] = None


class MalformedBody(RequestError):
    """The request body is not a JSON object."""

    title = "Malformed request"


class MalformedQuery(RequestError):
    """A query parameter is missing."""


class BadRequest(RequestError):
    """The request is not possible at the moment; the message says why."""

    title = "Bad request"


class Unauthenticated(RequestError):
    """The request has no token, or an unknown one."""

    status = 401
    title = "Unauthenticated"

    def __init__(self, *, token_given: bool) -> None:
        """``token_given`` picks between the two messages of Replicate's API."""
        super().__init__(
            "You did not pass a valid authentication token"
            if token_given
            else "You did not pass an authentication token"
        )


class PermissionDenied(RequestError):
    """The token does not permit this request."""

    status = 403
    title = "Permission denied"


class NotFound(RequestError):
    """The resource does not exist, or belongs to another owner."""

    status = 404

    def __init__(self, message: str = "The requested resource could not be found.") -> None:
        """The default message is that of Replicate's API."""
        super().__init__(message)


class DestinationNotFound(NotFound):
    """A training's destination does not exist."""

    def __init__(self) -> None:
        """Use the message of Replicate's API."""
        super().__init__("The specified training destination does not exist")


class ModelNotFound(NotFound):
    """The model that a request of OpenAI's or Anthropic's API names does not exist."""

    def __init__(self, name: str) -> None:
        """``name`` is the model's name as the client gave it."""
        super().__init__(f"The model `{name}` does not exist, or has no version yet.")


class MethodNotAllowed(RequestError):
    """The route exists, but not with this method."""

    status = 405
    title = "Method not allowed"


class BodyTooLarge(RequestError):
    """The request body exceeds the configured limit."""

    status = 413
    title = "Request too large"


class FileTooLarge(RequestError):
    """The uploaded file exceeds the configured limit."""

    status = 413

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes; the message is that of Replicate's API."""
        size = f"{limit // 10**6}MB" if limit % 10**6 == 0 else f"{limit:,} bytes"
        super().__init__(f"Files must be less than {size} in size")


class FileQuotaExceeded(RequestError):
    """All uploaded files together would exceed ``files.quota``."""

    status = 413
    title = "No room for the file"


class FieldProblem(NamedTuple):
    """One row of ``invalid_fields`` in the body of ``InvalidInput``."""

    type: str
    field: str
    description: str


class InvalidInput(RequestError):
    """One or more fields of the input are wrong; the message names each."""

    status = 422
    title = "Input validation failed"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        """``problems`` has at least one row; their order is kept."""
        self.problems = tuple(problems)
        super().__init__(
            "".join(
                f"- {problem.field}: {problem.description}\n"
                if problem.field
                else f"- {problem.description}\n"
                for problem in self.problems
            )
        )

    def body(self) -> dict[str, Any]:
        """Return the common body with ``invalid_fields`` added."""
        return {
            **super().body(),
            "invalid_fields": [problem._asdict() for problem in self.problems],
        }


class InvalidVersion(RequestError):
    """The version named in the request does not exist."""

    status = 422
    title = "Invalid version or not permitted"

    def __init__(self) -> None:
        """Use the message of Replicate's API."""
        super().__init__(
            "The specified version does not exist (or perhaps you don't have permission to use it?)"
        )


class UrlRefused(RequestError):
    """The appliance must not fetch this URL on behalf of a client."""

    status = 422
    title = "Address not permitted"


class Throttled(RequestError):
    """A queue or rate limit is reached."""

    status = 429

    def __init__(self, message: str, *, retry_after: int) -> None:
        """``retry_after`` is in whole seconds, at least 1."""
        self.retry_after = max(1, retry_after)
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """Return the common body with ``retry_after``, in seconds, added."""
        return {**super().body(), "retry_after": self.retry_after}


class ShuttingDown(ApplianceError):
    """The appliance is shutting down and accepts no new work; try again shortly."""

    status = 503
    title = "Service unavailable"


class StoreError(ApplianceError):
    """A database operation failed."""

    status = 500


class DiskFull(StoreError):
    """A write failed because the disk of the data folder, or the quota on it, is full."""

    status = 507
    title = "Insufficient storage"

    @property
    def detail(self) -> str:
        """The message for clients. ``str(error)`` also names the file, for the log."""
        return "The disk of the appliance is full: free some space on it, then try again"

    @staticmethod
    def caused(error: BaseException) -> bool:
        """Return whether ``error`` was caused by a full disk or quota."""
        return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


class StatusConflict(StoreError):
    """A prediction was not in the status that an update expected."""


class UnstorableValue(StoreError):
    """A value cannot be stored: text that is not Unicode, an integer over 64 bits, nesting too deep."""


class WeightsError(ApplianceError):
    """Weights are missing, damaged or cannot be downloaded."""

    status = 503
    title = "Weights unavailable"


class LoadFailed(ApplianceError):
    """A worker process could not load its model."""

    status = 503
    title = "Model failed to load"


class ModelTooLarge(LoadFailed):
    """The model needs more memory than the devices of this machine could ever give it."""


class SleepFailed(ApplianceError):
    """A worker process could not put its model to sleep or wake it, and has to be stopped."""

    status = 503
    title = "Model failed to sleep"


class WorkerLost(ApplianceError):
    """A worker process or its replica died during a prediction."""

    status = 503
    title = "Prediction interrupted"


class OutOfMemory(WorkerLost):
    """A worker process was ended because it took more memory than it may, or than its device has."""

    title = "Out of memory"

    def __init__(self, message: str, took: int | None) -> None:
        """``took`` is in bytes on one device; None if it is not known."""
        self.took = took
        super().__init__(message)


class RayLost(ApplianceError):
    """An essential process of Ray has ended."""

    status = 503
    title = "Ray ended"


class PredictionFailed(ApplianceError):
    """One prediction failed; others on the model are not affected."""

    status = 500
    title = "Prediction failed"
