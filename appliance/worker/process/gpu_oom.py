"""Recognise out-of-memory errors of GPUs, whether or not the libraries that raise them are installed."""

from __future__ import annotations

from typing import Final

#: Texts in errors of torch and vLLM. vLLM's engine core is another process, from which only the text comes
#: back.
_WORDS: Final = (
    "CUDA out of memory",
    "No available memory for the cache blocks",
    "is less than desired GPU memory utilization",
)


def out_of_memory(error: BaseException) -> str | None:
    """Return the out-of-memory message of the error or of its causes; None if it is another error."""
    message = None
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        if _is_torch_oom(cause) or any(words in text for words in _WORDS):
            message = text.partition(". ")[0] or type(cause).__name__  # the first cause is the most precise
        cause = cause.__cause__ or cause.__context__
    return message


def _is_torch_oom(error: BaseException) -> bool:
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).__mro__
    )
