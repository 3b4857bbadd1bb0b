"""Recognises errors of used-up GPU memory. The libraries that raise them need not be installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

#: What torch and vLLM say; an engine core of vLLM is another process, so only the text comes back from it.
_WORDS: Final = (
    "CUDA out of memory",
    "No available memory for the cache blocks",
    "is less than desired GPU memory utilization",
)


def out_of_memory(error: BaseException) -> str | None:
    """Return the out-of-memory message of the error or of its causes; None if it is another error."""
    said = None
    for each in _chain(error):
        text = " ".join(str(each).split())
        if _of_torch(each) or any(words in text for words in _WORDS):
            said = text.partition(". ")[0] or type(each).__name__  # the first cause says it best
    return said


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _of_torch(error: BaseException) -> bool:
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).__mro__
    )
