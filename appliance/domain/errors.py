"""Every exception the appliance raises on purpose.

    ApplianceError                 anything below; carries an HTTP status and a title
    |-- ConfigError                models.yaml cannot be used as it stands
    |-- RequestError               the caller's request cannot be carried out
    |   |-- MalformedBody          400  the body is not JSON, or not a JSON object
    |   |-- MalformedQuery         400  a query parameter is missing
    |   |-- BadRequest             400  what is asked for is not possible as things stand
    |   |-- Unauthenticated        401  no token, or not one of ours
    |   |-- PermissionDenied       403  the token may not do this
    |   |-- NotFound               404  no such resource, or not the caller's
    |   |   |-- DestinationNotFound     the same, of a training's destination
    |   |   `-- ModelNotFound           the same, of a model named in a request of another API
    |   |-- MethodNotAllowed       405  the route exists, the method does not
    |   |-- BodyTooLarge           413  the body is over the configured limit
    |   |-- FileTooLarge           413  the uploaded file is over the configured limit
    |   |-- NoRoom                 413  all uploads together would be over the configured limit
    |   |-- InvalidInput           422  one or more fields are wrong; names each
    |   |-- InvalidVersion         422  the version does not exist
    |   |-- AddressRefused         422  the address may not be reached on a caller's behalf
    |   `-- Throttled              429  a queue or rate limit is reached; says when to retry
    |-- ShuttingDown               503  the appliance is draining and takes no new work
    |-- StoreError                 the database refused; the request can be retried
    |   |-- DiskFull          507  nothing can be written until there is space again
    |   |-- StatusConflict         a guarded status update found another status
    |   `-- Unstorable             a value that no database could take; trying again is useless
    |-- WeightsError               weights are missing, damaged or unreachable
    |-- LoadFailed                 an engine host could not make its model ready
    |   `-- NeverFits              the model needs more memory than any device has
    |-- SleepFailed                an engine host could not let its model sleep, or wake
    |-- HostLost                   an engine host or its replica died under a prediction
    |   `-- OutOfMemory            the host took more memory than it had, or the device has
    |-- RayLost                    a process of Ray that nothing runs without has ended
    `-- PredictionFailed           the model refused or failed one prediction; others go on

Foreign exceptions become one of these at the edge that met them, ``from exc``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple


class ApplianceError(Exception):
    """Base of the tree. ``str(error)`` is the sentence shown to people."""

    status: ClassVar[int] = 500
    title: ClassVar[str | None] = "Internal server error"

    @property
    def detail(self) -> str:
        """The human sentence of this error; never empty."""
        return str(self) or (self.__doc__ or type(self).__name__).partition("\n")[0]

    def body(self) -> dict[str, Any]:
        """The contract's JSON error body (replicate-api section 1.3)."""
        title = {"title": self.title} if self.title is not None else {}
        return {**title, "detail": self.detail, "status": self.status}


class ConfigError(ApplianceError):
    """models.yaml cannot be used as it stands."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        model: str | None = None,
        key: str | None = None,
    ) -> None:
        """``message`` says what is wrong and what to do; the rest says where."""
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
    """The caller's request cannot be carried out."""

    status = 400
    title: ClassVar[str | None] = None


class MalformedBody(RequestError):
    """The request body is not a JSON object."""

    title = "Malformed request"


class MalformedQuery(RequestError):
    """A query parameter is missing."""


class BadRequest(RequestError):
    """What is asked for is not possible as things stand; the text says why."""

    title = "Bad request"


class Unauthenticated(RequestError):
    """No token, or not one of ours."""

    status = 401
    title = "Unauthenticated"

    def __init__(self, *, token_given: bool) -> None:
        """``token_given`` picks between the contract's two exact sentences."""
        super().__init__(
            "You did not pass a valid authentication token"
            if token_given
            else "You did not pass an authentication token"
        )


class PermissionDenied(RequestError):
    """The token may not do this."""

    status = 403
    title = "Permission denied"


class NotFound(RequestError):
    """No such resource, or not the caller's."""

    status = 404

    def __init__(self, message: str = "The requested resource could not be found.") -> None:
        """The default message is the contract's exact generic sentence."""
        super().__init__(message)


class DestinationNotFound(NotFound):
    """A training's destination does not exist."""

    def __init__(self) -> None:
        """The message is the contract's exact sentence."""
        super().__init__("The specified training destination does not exist")


class ModelNotFound(NotFound):
    """The model that a request of OpenAI's or Anthropic's API names does not exist."""

    def __init__(self, name: str) -> None:
        """``name`` is as the caller gave it."""
        super().__init__(f"The model `{name}` does not exist, or has no version yet.")


class MethodNotAllowed(RequestError):
    """The route exists but does not take this method."""

    status = 405
    title = "Method not allowed"


class BodyTooLarge(RequestError):
    """The request body is over the configured limit."""

    status = 413
    title = "Request too large"


class FileTooLarge(RequestError):
    """The uploaded file is over the configured limit."""

    status = 413

    def __init__(self, limit: int) -> None:
        """``limit`` is in bytes; the wording is the contract's."""
        size = f"{limit // 10**6}MB" if limit % 10**6 == 0 else f"{limit:,} bytes"
        super().__init__(f"Files must be less than {size} in size")


class NoRoom(RequestError):
    """All uploads together would be over the configured limit."""

    status = 413
    title = "No room for the file"


class FieldProblem(NamedTuple):
    """One row of ``invalid_fields`` (replicate-api section 1.4)."""

    type: str
    field: str
    description: str


class InvalidInput(RequestError):
    """One or more fields are wrong; each is named."""

    status = 422
    title = "Input validation failed"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        """``problems`` must hold at least one row; their order is kept."""
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
        """The common shape plus ``invalid_fields``."""
        return {
            **super().body(),
            "invalid_fields": [problem._asdict() for problem in self.problems],
        }


class InvalidVersion(RequestError):
    """The version named in the request does not exist."""

    status = 422
    title = "Invalid version or not permitted"

    def __init__(self) -> None:
        """The message is the contract's exact sentence."""
        super().__init__(
            "The specified version does not exist (or perhaps you don't have permission to use it?)"
        )


class AddressRefused(RequestError):
    """An address may not be reached on a caller's behalf."""

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
        """The common shape plus ``retry_after`` in seconds."""
        return {**super().body(), "retry_after": self.retry_after}


class ShuttingDown(ApplianceError):
    """The appliance is shutting down and takes no new work; try again shortly."""

    status = 503
    title = "Service unavailable"


class StoreError(ApplianceError):
    """The database refused an operation."""

    status = 500


class DiskFull(StoreError):
    """A write failed because the disk of the data folder, or a quota on it, is full."""

    status = 507
    title = "Insufficient storage"

    @property
    def detail(self) -> str:
        """One sentence for callers. ``str`` of the error also names the file, for the log."""
        return "The disk of the appliance is full: free some space on it, then try again"

    @staticmethod
    def caused(error: BaseException) -> bool:
        """Whether ``error`` was caused by a full disk or a full quota."""
        return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


class StatusConflict(StoreError):
    """A guarded status update found the prediction in another status."""


class Unstorable(StoreError):
    """A value cannot be stored: text that is not Unicode, an integer over 64 bits, nesting too deep."""


class WeightsError(ApplianceError):
    """Weights are missing, damaged or unreachable."""

    status = 503
    title = "Weights unavailable"


class LoadFailed(ApplianceError):
    """An engine host could not make its model ready."""

    status = 503
    title = "Model failed to load"


class ModelTooLarge(LoadFailed):
    """The model needs more memory than any device of this machine has."""


class SleepFailed(ApplianceError):
    """An engine host could not let its model fall asleep, or wake; it is of no use any more."""

    status = 503
    title = "Model failed to sleep"


class WorkerLost(ApplianceError):
    """An engine host or its replica died under a prediction."""

    status = 503
    title = "Prediction interrupted"


class OutOfMemory(WorkerLost):
    """An engine host took more memory than it had, or than its device has, and was ended."""

    title = "Out of memory"

    def __init__(self, message: str, took: int | None) -> None:
        """``took`` is in bytes on one device; None where it is not known."""
        self.took = took
        super().__init__(message)


class RayLost(ApplianceError):
    """An essential process of Ray has ended."""

    status = 503
    title = "Ray ended"


class PredictionFailed(ApplianceError):
    """The model refused or failed this one prediction."""

    status = 500
    title = "Prediction failed"
