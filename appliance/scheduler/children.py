"""Which waiting or running predictions are parts of others, that wait for them."""

from __future__ import annotations

from collections.abc import Iterator


class Children:
    """The unfinished parts of every prediction that has any."""

    def __init__(self) -> None:
        self._whole: dict[str, str] = {}
        self.unfinished: dict[str, set[str]] = {}  # by the prediction that they are parts of

    def __contains__(self, id: str) -> bool:
        return id in self._whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __bool__(self) -> bool:
        return bool(self._whole)

    def relate(self, id: str, whole: str | None) -> None:
        """``id`` is a part of ``whole``, if that is not None."""
        if whole is not None:
            self._whole[id] = whole
            self.unfinished.setdefault(whole, set()).add(id)

    def over(self, id: str) -> None:
        """``id`` is over, or begins anew: nobody waits for it, and it waits for nobody."""
        whole = self._whole.pop(id, None)
        if whole is not None:
            self.unfinished[whole].discard(id)
            if not self.unfinished[whole]:
                del self.unfinished[whole]
        for part in self.unfinished.pop(id, ()):
            del self._whole[part]
