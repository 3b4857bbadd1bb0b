"""Converts exceptions about files of a model into errors that name the model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from appliance.domain.errors import ApplianceError, WeightsError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def as_weights_errors(model: str) -> Iterator[None]:
    """Convert exceptions, except ``ApplianceError``, into a ``WeightsError`` that names ``model``.

    This applies to exceptions of all classes, because files of models are untrusted, and parsers raise
    undocumented exceptions: for example, deeply nested JSON raises ``RecursionError``.
    """
    try:
        yield
    except ApplianceError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise WeightsError(
            f"the files of model {model} cannot be used: {place}{error.strerror or error}"
        ) from error
    except Exception as error:
        _log.debug("the files of model %s cannot be used", model, exc_info=True)
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise WeightsError(f"the files of model {model} cannot be used: {reason}") from error
