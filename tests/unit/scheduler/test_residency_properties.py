"""What holds of the scheduler whatever is asked of it: random models, devices, arrivals and failures."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.scheduler.backlog import MANY_DEVICES
from tests.support.scheduler_world import LOAD, RUN, SLEEP, UNLOAD, WAKE, World

# The model m/1 sleeps twice, and is both times unloaded before it wakes: falling asleep was in vain.
SLEEPS_IN_VAIN = [
    *((0, float(at)) for at in (0, 0, 0, 0, 10, 10, 17, 18, 29, 46, 108, 108)),
    *((0, at) for at in (16.451763815278312, 24.804482960028334, 70.828927985778, 71.66651192574395)),
    *((0, at) for at in (89.16745469573605, 125.48370394540223, 148.73919127246873)),
    *((1, float(at)) for at in (0, 0, 0, 1, 13, 13, 73, 73, 73, 193, 193)),
    *((2, float(at)) for at in (0, 0, 30, 30, 30, 56, 56, 56, 117, 155, 155, 155)),
    *((3, float(at)) for at in (5, 5, 76, 76, 76, 115, 140)),
]
SIZES = st.lists(st.integers(1, 10), min_size=1, max_size=6)
#: With and without a comparison of all devices.
MANY = st.sampled_from([0, MANY_DEVICES])
ARRIVALS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 60)), max_size=30)


@settings(max_examples=40, deadline=None)
@given(
    sizes=SIZES,
    devices=st.integers(1, 3),
    arrivals=ARRIVALS,
    seed=st.integers(0, 2**32),
    sleeping=st.booleans(),
    main=st.integers(0, 20),
    many_devices=MANY,
)
def test_nothing_is_overbooked_nobody_is_overtaken_and_everything_ends(
    sizes: list[int],
    devices: int,
    arrivals: list[tuple[int, float]],
    seed: int,
    *,
    sleeping: bool,
    main: int,
    many_devices: int,
) -> None:
    world = World(sizes, devices, seed, failing=True, sleeping=sleeping, main=main, many_devices=many_devices)
    for number, (which, at) in enumerate(arrivals):
        world.arrive(at, f"p{number}", world.names[which % len(sizes)])
    world.run(3000)
    assert len(world.ended) == len(arrivals)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=2, max_size=6),
    seed=st.integers(0, 2**32),
    sleeping=st.booleans(),
    main=st.integers(0, 20),
    many_devices=MANY,
)
def test_no_model_waits_for_ever_while_others_are_asked_all_the_time(
    sizes: list[int], seed: int, *, sleeping: bool, main: int, many_devices: int
) -> None:
    """More is asked of every model than it can do, so that each is always busy; then comes one for the last.

    It begins once those before it have had their turns: each of them holds its place for no longer than its
    patience to be waited for, its residency, its quantum, and what then still runs. As many who share a load
    count for something too, a long queue can have a second turn before it, but no third.
    """
    world = World(sizes, 1, seed, sleeping=sleeping, main=main, many_devices=many_devices)
    for second in range(400):
        for name in world.names[:-1]:
            world.arrive(float(second), f"{name}@{second}", name)
    world.arrive(20.0, "last", world.names[-1])
    residency = quantum = SLEEP + LOAD
    turn = 3 * LOAD + residency + quantum + RUN + UNLOAD + LOAD
    world.arrivals.sort()
    while "last" not in world.waits:
        assert world.now < 20.0 + 2 * turn * len(sizes)
        world.step()
        world.advance()


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 10), min_size=2, max_size=5),
    arrivals=st.lists(st.tuples(st.integers(0, 4), st.floats(0, 200)), min_size=20, max_size=60),
    seed=st.integers(0, 2**32),
    sleeping=st.booleans(),
    main=st.integers(0, 20),
    many_devices=MANY,
)
@example(
    sizes=[6, 8, 10, 5, 9],
    arrivals=SLEEPS_IN_VAIN,
    seed=9413086,
    sleeping=True,
    main=10,
    many_devices=MANY_DEVICES,
)
def test_no_model_is_on_its_way_in_or_to_sleep_for_more_than_half_of_the_time(
    sizes: list[int],
    arrivals: list[tuple[int, float]],
    seed: int,
    *,
    sleeping: bool,
    main: int,
    many_devices: int,
) -> None:
    world = World(sizes, 1, seed, sleeping=sleeping, main=main, many_devices=many_devices)
    for number, (which, at) in enumerate(arrivals):
        world.arrive(at, f"p{number}", world.names[which % len(sizes)])
    world.run(3000)
    for name in world.names:  # what it began last need not be paid for yet
        assert world.moving[name] <= world.served[name] + max(LOAD, SLEEP + WAKE) + SLEEP + 1e-6
