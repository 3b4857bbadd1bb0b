"""What an edited models.yaml means for what did not come from it."""

from __future__ import annotations

import msgspec

from appliance.gateway.engine.instances import Instances
from appliance.gateway.engine.reconcile import reconcile
from appliance.scheduler import Capacity, Demand, Scheduler
from tests.support.engine_bench import MIB, catalogue_of, entry


def test_what_was_trained_on_a_pushed_version_stays_as_it_is() -> None:
    """The version is in no models.yaml, so its demand is the one that it has."""
    pushed = entry("test/pushed")
    trained = msgspec.structs.replace(pushed, version="1" * 64, runs_on="test/pushed@1", adapter="weights")
    catalogue = catalogue_of(pushed)
    catalogue.set_entry(trained)
    demands = [Demand(model=name, concurrency=1, memory=MIB) for name in ("test/pushed", "test/pushed@1")]
    scheduler = Scheduler([Capacity("cpu", 10 * MIB)], demands)
    before = dict(catalogue.entries_by_key)
    assert reconcile(scheduler, catalogue, Instances(catalogue, scheduler), [], before) == []
    assert [scheduler.demand(each.model) for each in demands] == demands
