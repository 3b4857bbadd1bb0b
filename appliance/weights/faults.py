"""Whatever reading one model's files makes Python raise, as an error of that model: the others are served."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from appliance.errors import ApplianceError, WeightsError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def faults_of(model: str) -> Iterator[None]:
    """Raise what goes wrong inside as a ``WeightsError`` that names ``model``; our own errors pass.

    Files of models come from anywhere, and libraries that parse them raise more than they document: a deeply
    nested JSON file ends in ``RecursionError``, for one.
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
