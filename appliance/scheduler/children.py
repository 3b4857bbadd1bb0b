"""Which unfinished predictions are children of which parents.

A model that calls another model creates a child prediction. While the parent prediction waits for its child,
it keeps its slot and the memory of its model.
"""

from __future__ import annotations

from collections.abc import Iterator


class Children:
    """Unfinished child predictions, by parent. Iterating yields the ids of all children."""

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
        if parent is not None:
            self._parent[id] = parent
            self.unfinished.setdefault(parent, set()).add(id)

    def remove(self, id: str) -> None:
        """Forget a prediction that has finished or will run again: its parent and its children."""
        parent = self._parent.pop(id, None)
        if parent is not None:
            self.unfinished[parent].discard(id)
            if not self.unfinished[parent]:
                del self.unfinished[parent]
        for child in self.unfinished.pop(id, ()):
            del self._parent[child]
