"""The nodes of a cluster that have the weights of a model, and those that have other instances of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import NEWEST, ModelState

#: Bytes per second of a copy to a node, before a copy was measured: a network of 10 Gbit/s.
ASSUMED_SPEED: Final = 1_000_000_000.0
#: Bytes of the smallest copy from which the speed of the network is measured.
_MIN_MEASURED_COPY: Final = 64 * 1024**2


class Locality:
    """The nodes of weights and of instances, and the time to copy weights. Empty on a single machine."""

    def __init__(self, models: Mapping[str, ModelState], ledger: Ledger) -> None:
        self._models = models
        self._ledger = ledger
        self._sizes: dict[str, int] = {}  # bytes of weights by model
        self._nodes: dict[str, set[str]] = {}  # by model: the nodes that have all of its weights
        self._other_instances: dict[str, tuple[str, ...]] = {}  # by instance
        self._speed = ASSUMED_SPEED  # bytes per second

    def set_weights(self, model: str, size: int, nodes: Iterable[str]) -> None:
        """Set the bytes of a model's weights, and the nodes that have all of them."""
        self._sizes[model] = size
        self._nodes[model] = set(nodes)

    def weights_copied(self, model: str, node: str, copied: int, seconds: float) -> None:
        """Record that a node has the weights now, after a copy of ``copied`` bytes that took ``seconds``."""
        self._nodes.setdefault(model, set()).add(node)
        if copied >= _MIN_MEASURED_COPY and seconds > 0:
            self._speed += NEWEST * (copied / seconds - self._speed)

    def weights_deleted(self, model: str, node: str) -> None:
        self._nodes.get(model, set()).discard(node)

    def set_instances(self, instances: Sequence[str]) -> None:
        for name in instances:
            self._other_instances[name] = tuple(each for each in instances if each != name)

    def forget(self, model: str) -> None:
        self._sizes.pop(model, None)
        self._nodes.pop(model, None)
        self._other_instances.pop(model, None)

    def remove_node(self, node: str) -> None:
        for nodes in self._nodes.values():
            nodes.discard(node)

    def has_weights(self, model: str, node: str) -> bool:
        return node in self._nodes.get(model, ())

    def nodes_with_weights(self, model: str) -> set[str]:
        return self._nodes.get(model, set())

    def copy_seconds(self, model: str, node: str) -> float:
        """Return the estimated seconds of the copy before a load on the node; 0 if nothing is copied."""
        size = self._sizes.get(model, 0)
        return 0.0 if not size or self.has_weights(model, node) else size / self._speed

    def has_instances(self, model: str) -> bool:
        """Return whether the model has other instances."""
        return bool(self._other_instances.get(model))

    def instances_on(self, model: str, node: str) -> int:
        """Return how many other instances of the model use the node, alone or together with other nodes."""
        found = (self._models.get(name) for name in self._other_instances.get(model, ()))
        return sum(each is not None and self._ledger.is_on(each, node) for each in found)
