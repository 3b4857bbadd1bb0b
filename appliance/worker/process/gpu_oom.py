"""Recognises out-of-memory errors of GPUs without importing the libraries that raise them."""

from __future__ import annotations

from typing import Final

#: Texts in error messages of torch and vLLM. vLLM's engine core runs in another process, so its errors arrive
#: only as text.
_WORDS: Final = (
    "CUDA out of memory",
    "No available memory for the cache blocks",
    "is less than desired GPU memory utilization",
)


def out_of_memory(error: BaseException) -> str | None:
    """Return the message of the out-of-memory error among ``error`` and its causes; None if there is none."""
    message = None
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        if _is_torch_oom(cause) or any(words in text for words in _WORDS):
            message = (
                text.partition(". ")[0] or type(cause).__name__
            )  # the innermost cause is the most precise
        cause = cause.__cause__ or cause.__context__
    return message


def _is_torch_oom(error: BaseException) -> bool:
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(error).__mro__
    )
