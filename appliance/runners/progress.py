"""Progress bars in tqdm's format, which Replicate's clients look for in logs."""

from __future__ import annotations


def bar(done: int, total: int) -> str:
    """Return a line such as `` 50%|#####     | 3/6``, without a line end; ``total`` is at least 1."""
    share = min(1.0, done / total)
    return f"{100 * share:3.0f}%|{'#' * int(10 * share):<10}| {done}/{total}"
