"""Thousands of requests made up from the served OpenAPI document; APPLIANCE_FUZZ_REQUESTS asks for more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.openapi_requests import World, cases, check, environment_count

pytestmark = pytest.mark.integration

statuses: Counter[int] = Counter()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("fuzz"))
    yield world
    world.close()


@settings(
    max_examples=environment_count(2000),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(data=st.data())
def test_every_answer_is_one_of_the_contract(world: World, data: st.DataObject) -> None:
    case = data.draw(cases(world))
    reply = world.send(case)
    statuses[reply.status_code] += 1
    check(case, reply)


def test_it_got_past_the_door() -> None:
    if not statuses:
        pytest.skip("nothing was sent")
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}")
    assert statuses.total() >= 2000
    succeeded = sum(count for status, count in statuses.items() if status < 300)
    assert succeeded > statuses.total() / 10
    assert statuses[422] > 0
