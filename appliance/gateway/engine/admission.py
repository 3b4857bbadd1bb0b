"""Whether one more prediction may wait."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.config import LimitsConfig
from appliance.domain.errors import Throttled, Unauthenticated
from appliance.domain.prediction import Prediction
from appliance.gateway.engine.active import ActivePrediction
from appliance.scheduler import Scheduler


class Admission:
    """One per engine."""

    def __init__(
        self, limits: LimitsConfig, scheduler: Scheduler, live: Mapping[str, ActivePrediction]
    ) -> None:
        """``live`` has the predictions that are not finished, by id."""
        self.limits = limits
        self._scheduler = scheduler
        self._live = live

    def check(self, model: str) -> None:
        """Raise ``Throttled`` if as many wait as may, for the model or in all."""
        limits = self.limits
        for depth, limit, subject in (
            (self._scheduler.depth(model), limits.queue_per_model, f"model {model}"),
            (self._scheduler.depth(), limits.queue, "the appliance"),
        ):
            if depth >= limit:
                raise Throttled(
                    f"Request was throttled. {depth} predictions already wait for {subject}.", retry_after=5
                )

    def check_part(self, parent: str) -> Prediction:
        """A whole was accepted, so what it needs is, however many others wait; but it must not run away.

        Returns the whole.

        Raises:
            Unauthenticated: it does not run any more.
            Throttled: it has as many parts that are not finished as may wait for one model.
        """
        whole = self._live.get(parent)
        if whole is None or whole.ending:
            raise Unauthenticated(token_given=True)
        if len(whole.parts) >= self.limits.queue_per_model:
            raise Throttled(
                f"Request was throttled. {len(whole.parts)} parts of prediction {parent} are not finished.",
                retry_after=5,
            )
        return whole.prediction
