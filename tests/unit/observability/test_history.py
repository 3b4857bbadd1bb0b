"""The history of the last hour: what is kept, merged and forgotten."""

from __future__ import annotations

import pytest

from appliance.observability.history import INTERVAL, SAMPLES, SPAN, History, LoadDone, Sample

BEGIN = 1_000_000.0


def filled(count: int, **values: object) -> History:
    history = History()
    for number in range(count):
        history.add(Sample(at=BEGIN + INTERVAL * number, **values))  # type: ignore[arg-type]
    return history


def test_an_hour_of_samples_and_loads_is_kept() -> None:
    history = filled(1)
    history.add_load(LoadDone(BEGIN, "a/b", 1.0))
    for number in range(1, SAMPLES + 10):
        history.add(Sample(at=BEGIN + INTERVAL * number))
    found = history.samples()
    assert len(found) == SAMPLES
    assert found[-1].at - found[0].at == SPAN - INTERVAL
    assert history.loads() == []


def test_samples_from_before_a_pause_of_an_hour_are_forgotten() -> None:
    history = filled(3)
    history.add(Sample(at=BEGIN + SPAN + INTERVAL))
    assert [each.at - BEGIN for each in history.samples()] == [2 * INTERVAL, SPAN + INTERVAL]


def test_merged_samples_keep_peaks_sums_and_means() -> None:
    history = History()
    first = Sample(
        at=1.0,
        reserved={"gpu": {"a/b": 5}},
        queued={"a/b": 3},
        utilisation={"gpu": 0.25},
        power={"gpu": 100.0},
        temperature={"gpu": 70.0},
        used={"gpu": 3},
        tokens={"a/b": 10.0},
        available=7,
    )
    second = Sample(
        at=2.0,
        reserved={"gpu": {"a/b": 4, "a/c": 1}},
        utilisation={"gpu": 0.75},
        power={"gpu": 300.0},
        temperature={"gpu": 60.0},
        used={"gpu": 2},
        tokens={"a/b": 1.0},
        available=9,
    )
    history.add(first)
    history.add(second)
    (found,) = history.samples(1)
    assert found == Sample(
        at=2.0,
        reserved={"gpu": {"a/b": 5, "a/c": 1}},
        queued={"a/b": 3},
        utilisation={"gpu": 0.5},
        power={"gpu": 200.0},
        temperature={"gpu": 70.0},
        used={"gpu": 3},
        tokens={"a/b": 11.0},
        available=7,
        seconds=2 * INTERVAL,
    )
    assert [first.tokens, second.tokens] == [{"a/b": 10.0}, {"a/b": 1.0}]  # merging changes no sample


@pytest.mark.parametrize("count", [0, 1, 7, 100, 719, 720])
@pytest.mark.parametrize("points", [1, 2, 120, 720])
def test_there_are_at_most_as_many_points_as_wanted(count: int, points: int) -> None:
    found = filled(count).samples(points)
    assert len(found) <= points
    assert [each.at for each in found[-1:]] == [BEGIN + INTERVAL * (count - 1)][:count]


def test_tokens_are_spread_over_the_samples_of_the_run() -> None:
    history = filled(4)  # at 0, 5, 10 and 15 seconds
    history.add_tokens("a/b", 100, BEGIN + 5.0, BEGIN + 15.0)
    assert [each.tokens.get("a/b") for each in history.samples()] == [None, None, 50.0, 50.0]
    history.add_tokens("a/b", 30, BEGIN + 12.5, BEGIN + 20.0)  # 5 s of it since the last sample
    assert history.samples()[-1].tokens["a/b"] == pytest.approx(80.0)


def test_no_token_is_lost_in_a_run_that_took_no_time() -> None:
    history = filled(2)
    history.add_tokens("a/b", 3, BEGIN + 7.0, BEGIN + 7.0)
    assert history.samples()[-1].tokens["a/b"] == pytest.approx(3.0)
    History().add_tokens("a/b", 3, 1.0, 2.0)  # there is no sample yet


def test_a_merged_sample_stands_for_the_time_of_all_its_parts() -> None:
    kept = History()
    for number in range(12):
        kept.add(Sample(at=number * INTERVAL, tokens={"a/b": 10 * INTERVAL}))
    for points in (2, 3, 5, 12):
        merged = kept.samples(points)
        assert {each.tokens["a/b"] / each.seconds for each in merged} == {10.0}, points
