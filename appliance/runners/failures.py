"""Error messages that the runners of several kinds share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from appliance.domain.errors import LoadFailed
from appliance.runners.base import LoadSpec

MAX_LENGTH: Final = 600  # characters of a library's error that are shown


def existing_weights(spec: LoadSpec) -> Path:
    """Return the path of the model's weights.

    Raises:
        LoadFailed: the path does not exist.
    """
    if spec.weights is None or not Path(spec.weights).exists():
        raise LoadFailed(
            f"model {spec.model}: there are no weights at {spec.weights}; run: appliance pull {spec.model}"
        )
    return Path(spec.weights)


def summary(text: str, hints: Iterable[tuple[str, str]]) -> str:
    """Shorten ``text``, the error of a library, and append the advice whose phrase it contains.

    ``hints`` are pairs of a phrase and the advice for errors with this phrase.
    """
    if len(text) > MAX_LENGTH:
        text = text[:MAX_LENGTH] + " ..."
    return "; ".join([text.rstrip("."), *(advice for phrase, advice in hints if phrase in text)])
