"""Which waiting models are loaded now, and which models are evicted for them."""

from __future__ import annotations

from appliance.scheduler import Capacity, Demand, Load, Scheduler, Sleep, SleepFootprint, SleepLevel, Unload

GIB = 1024**3


def test_a_waiting_model_that_is_evicted_for_a_more_urgent_one_is_loaded_after_its_unload() -> None:
    """``small`` sleeps on the device that ``large`` has waited for, and gets a prediction at that moment."""
    small = Demand(
        model="small",
        memory=6 * GIB,
        concurrency=1,
        sleep_footprint=SleepFootprint(GIB // 2, 6 * GIB),
        idle_unload_after=60.0,
    )
    devices = [Capacity("gpu0", 10 * GIB), Capacity("gpu1", 6 * GIB)]
    memory = Capacity("ram", 20 * GIB, is_main_memory=True)
    subject = Scheduler([*devices, memory], [Demand(model="large", memory=10 * GIB, concurrency=1), small])
    subject.request_load("small")
    assert subject.decide(0.0) == [Load("small", ("gpu0",), 6 * GIB, may_sleep=True)]
    subject.loaded("small", 1.0, [SleepLevel.KEPT])
    assert [type(each) for each in subject.decide(32.0)] == [Sleep]
    subject.asleep("small", 33.0)
    subject.device_used("gpu0", 9 * GIB, 34.0)  # by another program
    subject.queued("first", "large", 34.0)
    assert subject.decide(34.0) == []
    subject.device_used("gpu0", GIB // 2, 60.0)
    subject.queued("second", "small", 60.0)
    (unload,) = subject.decide(60.0)
    assert isinstance(unload, Unload)
    assert unload.model == "small"
    subject.unloaded("small", 61.0)
    loads = subject.decide(61.0)
    assert {(each.model, each.devices) for each in loads if isinstance(each, Load)} == {
        ("large", ("gpu0",)),
        ("small", ("gpu1",)),
    }
