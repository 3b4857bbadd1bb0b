"""Imported by each of Ray's worker processes before its first work.

So the imports of Serve take place while Ray and Serve start, and without pandas, which Serve imports if it is
installed, but does not need.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # None makes the import fail

import ray.serve  # noqa: E402, F401 - after pandas is hidden
