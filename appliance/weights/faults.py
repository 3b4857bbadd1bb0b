"""Turns any exception while reading one model's files into an error of that model only."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from appliance.domain.errors import ApplianceError, WeightsError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def faults_of(model: str) -> Iterator[None]:
    """Raise exceptions of the block as a ``WeightsError`` that names ``model``, except ``ApplianceError``.

    Files of models are untrusted, and libraries that parse them raise undocumented exceptions: a deeply
    nested JSON file, for example, raises ``RecursionError``.
    """
    try:
        yield
    except ApplianceError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise WeightsError(f"files of {model} cannot be used: {place}{error.strerror or error}") from error
    except Exception as error:
        _log.debug("files of %s cannot be used", model, exc_info=True)
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise WeightsError(f"files of {model} cannot be used: {reason}") from error
