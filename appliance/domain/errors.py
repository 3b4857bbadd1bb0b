"""Every exception that the appliance raises on purpose.

Each class has the HTTP status and the title of its error response. Subclasses of ``RequestError`` report
mistakes that the client can correct. Exceptions of libraries are translated into these classes (``raise ...
from error``).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple


class ApplianceError(Exception):
    """Base class of all errors of the appliance; the log shows ``str(error)``, clients get ``detail``."""

    status: ClassVar[int] = 500
    title: ClassVar[str | None] = "Internal server error"

    @property
    def detail(self) -> str:
        """Error message for clients: that of the exception, or the first line of its class's docstring."""
        return str(self) or (self.__doc__ or type(self).__name__).partition("\n")[0]

    def body(self) -> dict[str, Any]:
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
        """``message`` states the mistake and how to correct it; ``line`` counts from 1."""
        self.message = message
        self.file = file
        self.line = line
        self.model = model
        self.key = key
        self.problems: tuple[ConfigError, ...] = (self,)  # each mistake of the file, if there are several
        place = ":".join(str(each) for each in (file, line) if each is not None)
        named = (f"model {model}" if model else "", f"key {key}" if key else "")
        super().__init__(": ".join(filter(None, (place, ", ".join(filter(None, named)), message))))


class RequestError(ApplianceError):
    """The request of a client cannot be carried out.

    Subclasses use the titles and default messages of Replicate's API where Replicate has the same error.
    """

    status = 400
    title: ClassVar[str | None] = None


class MalformedBody(RequestError):
    """The request body is not a JSON object."""

    title = "Malformed request"


class MalformedQuery(RequestError):
    """A query parameter is missing."""


class BadRequest(RequestError):
    """The request is valid but not possible at the moment; the message gives the reason."""

    title = "Bad request"


class Unauthenticated(RequestError):
    """The request has no token, or an unknown one."""

    status = 401
    title = "Unauthenticated"

    def __init__(self, *, token_given: bool, reason: str | None = None) -> None:
        """``reason`` replaces the message of Replicate's API."""
        super().__init__(
            reason
            if reason is not None
            else "You did not pass a valid authentication token"
            if token_given
            else "You did not pass an authentication token"
        )


class SignInRefused(Unauthenticated):
    """A person may not sign in; the message gives the reason."""

    def __init__(self, reason: str, account: str | None = None) -> None:
        """``account`` is the account that is meant, if there is such an account."""
        super().__init__(token_given=True, reason=reason)
        self.account = account


class PermissionDenied(RequestError):
    """The token does not permit this request."""

    status = 403
    title = "Permission denied"


class ProviderFailed(ApplianceError):
    """The identity provider is unreachable, or its response is unusable; the message gives the reason."""

    status = 502
    title = "Identity provider failed"


class NotFound(RequestError):
    """The resource does not exist, or belongs to another owner."""

    status = 404

    def __init__(self, message: str = "The requested resource could not be found.") -> None:
        super().__init__(message)


class OutputRemoved(NotFound):
    """The output of a prediction was deleted before the response was made."""

    def __init__(self) -> None:
        super().__init__(
            "The output of the prediction was removed before it could be sent: a time in `retention` of "
            "models.yaml is too short, or the output was deleted by a request."
        )


class ContentMissing(NotFound):
    """The content of a stored file is in neither the data folder nor the bucket."""

    def __init__(self) -> None:
        super().__init__(
            "The content of the file is missing in the storage of the appliance: upload or create it again."
        )


class DestinationNotFound(NotFound):
    """The model that a training names as its destination does not exist."""

    def __init__(self) -> None:
        super().__init__("The specified training destination does not exist")


class ModelNotFound(NotFound):
    """The model that a request to the OpenAI or Anthropic API names does not exist."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model `{name}` does not exist, or has no version yet.")


class MethodNotAllowed(RequestError):
    """The route exists, but not with this method."""

    status = 405
    title = "Method not allowed"


class Conflict(RequestError):
    """The current state of the appliance does not permit the request; the message gives the reason."""

    status = 409
    title = "Conflict"


class BodyTooLarge(RequestError):
    """The request body exceeds the configured limit."""

    status = 413
    title = "Request too large"


class FileTooLarge(RequestError):
    """The uploaded file exceeds the configured limit."""

    status = 413

    def __init__(self, limit: int) -> None:
        size = f"{limit // 10**6}MB" if limit % 10**6 == 0 else f"{limit:,} bytes"
        super().__init__(f"Files must be less than {size} in size")


class FileQuotaExceeded(RequestError):
    """All uploaded files together would exceed ``files.quota``."""

    status = 413
    title = "File quota exceeded"


class FieldProblem(NamedTuple):
    """One invalid field of an input, listed as ``invalid_fields`` in the body of the error response."""

    type: str
    field: str
    description: str


class InvalidInput(RequestError):
    """One or more fields of the input are wrong; the message names each of these fields."""

    status = 422
    title = "Input validation failed"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        self.problems = tuple(problems)
        rows = (": ".join(filter(None, (each.field, each.description))) for each in self.problems)
        super().__init__("".join(f"- {row}\n" for row in rows))

    def body(self) -> dict[str, Any]:
        return {**super().body(), "invalid_fields": [problem._asdict() for problem in self.problems]}


class InvalidVersion(RequestError):
    """The version named in the request does not exist."""

    status = 422
    title = "Invalid version or not permitted"

    def __init__(self) -> None:
        super().__init__(
            "The specified version does not exist (or perhaps you don't have permission to use it?)"
        )


class HeadRunsNoModels(RequestError):
    """Trainings and Cog projects run only on the head of a cluster, and this head runs no models."""

    status = 422
    title = "The head runs no models"


class UrlRefused(RequestError):
    """The appliance must not fetch this URL on behalf of a client."""

    status = 422
    title = "URL not permitted"


class Throttled(RequestError):
    """A queue is full or a rate limit is exceeded."""

    status = 429

    def __init__(self, message: str, *, retry_after: int) -> None:
        """``retry_after`` is in whole seconds, at least 1."""
        self.retry_after = max(1, retry_after)
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        return {**super().body(), "retry_after": self.retry_after}


class BudgetSpent(RequestError):
    """The seconds, tokens or cost of a budget are used up until the end of its day or month."""

    status = 402
    title = "Insufficient credit"

    def __init__(self, message: str, *, retry_after: int) -> None:
        """``retry_after`` is in whole seconds, at least 1: the time until the end of the day or month."""
        self.retry_after = max(1, retry_after)
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        return {**super().body(), "retry_after": self.retry_after}


class ShuttingDown(ApplianceError):
    """The appliance is shutting down and accepts no new work; try again shortly."""

    status = 503
    title = "Service unavailable"


class StoreError(ApplianceError):
    """A database operation failed."""

    @property
    def detail(self) -> str:
        """Error message for clients; ``str(error)`` names the file or the server, and its error."""
        return "The database of the appliance reported an error: the log of the gateway has the reason"


class StoreUnavailable(StoreError):
    """The database of the appliance cannot be used at the moment: try again in a few seconds."""

    status = 503
    title = "Database unavailable"
    retry_after = 5  # seconds

    @property
    def detail(self) -> str:
        """Error message for clients; ``str(error)`` names the server and its error."""
        return self.__doc__ or ""

    def body(self) -> dict[str, Any]:
        return {**super().body(), "retry_after": self.retry_after}


class EncryptionError(StoreError):
    """A key of the encrypted database is missing or wrong, or the database is not encrypted yet."""


class DiskFull(StoreError):
    """A write failed because the disk of the data folder, or its disk quota, is full."""

    status = 507
    title = "Insufficient storage"

    @property
    def detail(self) -> str:
        """Error message for clients, without paths; ``str(error)`` names the file."""
        return "The disk of the appliance is full: free some space on it, then try again"

    @staticmethod
    def is_cause_of(error: BaseException) -> bool:
        return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


class BucketUnavailable(ApplianceError):
    """The storage with the content of the file does not answer: try again in a minute."""

    status = 503
    title = "File storage unavailable"
    retry_after = 30  # seconds

    @property
    def detail(self) -> str:
        """Error message for clients; ``str(error)`` names the bucket, its error, and what to do."""
        return self.__doc__ or ""

    def body(self) -> dict[str, Any]:
        return {**super().body(), "retry_after": self.retry_after}


class ObjectNotFound(BucketUnavailable):
    """The server of a bucket answered that an object, or the bucket, does not exist."""


class StatusConflict(StoreError):
    """A prediction was not in the status that an update expected."""


class UnstorableValue(StoreError):
    """A value cannot be stored: text that is not Unicode, an integer over 64 bits, or a value that is too
    long or too deeply nested.
    """

    @property
    def detail(self) -> str:
        """The whole message: it names no file and no server."""
        return str(self)


class WeightsError(ApplianceError):
    """Weights are missing, damaged or cannot be downloaded."""

    status = 503
    title = "Weights unavailable"


class LoadFailed(ApplianceError):
    """A worker process could not load its model."""

    status = 503
    title = "Model failed to load"
    node: str | None = None  # where a part of a model on several machines failed


class ModelTooLarge(LoadFailed):
    """The model needs more memory than the devices of this machine have in total."""


class SleepFailed(ApplianceError):
    """A worker process failed to put its model to sleep or to wake it; the process has to be stopped."""

    status = 503
    title = "Model failed to sleep"


class WorkerLost(ApplianceError):
    """A worker process or its replica died during a prediction."""

    status = 503
    title = "Prediction interrupted"
    node: str | None = None  # where a part of a model on several machines failed


class OutOfMemory(WorkerLost):
    """A worker process was killed because it used more memory than its model may use or its device has."""

    title = "Out of memory"

    def __init__(self, message: str, memory: int | None) -> None:
        """``memory`` is the memory in bytes that the process used on one device; None if unknown."""
        self.memory = memory
        super().__init__(message)


class NodeLost(WorkerLost):
    """A node of the cluster cannot be reached, or is no longer a member of the cluster."""


class RayLost(ApplianceError):
    """An essential process of Ray has ended."""

    status = 503
    title = "Ray ended"


class HeadUnreachable(ApplianceError):
    """The head of the cluster does not answer this node; a later attempt may succeed."""

    status = 503
    title = "Head unreachable"
    retry_after = 5  # seconds

    def body(self) -> dict[str, Any]:
        return {**super().body(), "retry_after": self.retry_after}


class LeaseLost(ApplianceError):
    """This machine is no longer the head of the cluster; the message has the reason."""

    status = 503
    title = "Another machine is the head"


class NodeStopping(ApplianceError):
    """This node is stopping; send requests to another machine."""

    status = 503
    title = "Node stopping"


class ForwardingRefused(ApplianceError):
    """The head refuses requests that nodes forward; the message has the reason."""

    status = 421
    title = "Misdirected request"


class NodeError(ApplianceError):
    """A node of the cluster could not carry out a request; the message has the reason."""

    status = 503
    title = "Node failed"


class TemporaryNodeError(NodeError):
    """A machine could not carry out a request because of an operating system error, such as a full disk."""


class JoinRefused(ApplianceError):
    """This machine cannot join the cluster; the message gives the reason."""


class PredictionFailed(ApplianceError):
    """One prediction failed; other predictions on the model continue."""

    title = "Prediction failed"
