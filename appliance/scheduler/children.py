"""Parents and children among unfinished predictions.

A model that calls another model makes a child prediction. The parent holds its slot and memory while it
waits.
"""

from __future__ import annotations

from collections.abc import Iterator


class Children:
    """The unfinished children of every prediction that has any. Iterates over the ids of all children."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}  # by child
        self.unfinished: dict[str, set[str]] = {}  # children by parent; no entry is empty

    def __contains__(self, id: str) -> bool:
        return id in self._parent

    def __iter__(self) -> Iterator[str]:
        return iter(self._parent)

    def __bool__(self) -> bool:
        return bool(self._parent)

    def add(self, id: str, parent: str | None) -> None:
        """Record ``id`` as a child of ``parent``; do nothing without a parent."""
        if parent is not None:
            self._parent[id] = parent
            self.unfinished.setdefault(parent, set()).add(id)

    def remove(self, id: str) -> None:
        """Forget a prediction that has finished or starts anew, as a child and as a parent."""
        parent = self._parent.pop(id, None)
        if parent is not None:
            self.unfinished[parent].discard(id)
            if not self.unfinished[parent]:
                del self.unfinished[parent]
        for child in self.unfinished.pop(id, ()):
            del self._parent[child]
