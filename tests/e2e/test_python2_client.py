"""The 2.0 beta of the official Python client, which does not share an environment with 1.0."""

from __future__ import annotations

import pytest

from tests.e2e.clients import beta
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e


def test_use(appliance: Appliance) -> None:
    text = beta(
        appliance,
        """
ask = replicate.use(model)
print(json.dumps(str(ask(prompt="What is the capital of France?", temperature=0))))
""",
    )
    assert "Paris" in text


def test_use_streaming(appliance: Appliance) -> None:
    pieces = beta(
        appliance,
        """
ask = replicate.use(model, streaming=True)
print(json.dumps(list(ask(prompt="Count from one to ten.", temperature=0, max_tokens=60))))
""",
    )
    assert len(pieces) > 1
    assert "two" in "".join(pieces).lower() or "2" in "".join(pieces)


def test_stream(appliance: Appliance) -> None:
    pieces = beta(
        appliance,
        """
asked = {"prompt": "Count from one to ten.", "temperature": 0, "max_tokens": 60}
stream = replicate.stream(model, input=asked)
print(json.dumps([str(piece) for piece in stream]))
""",
    )
    assert len(pieces) > 1
    assert "two" in "".join(pieces).lower() or "2" in "".join(pieces)


def test_run_also_under_a_doubled_v1(appliance: Appliance) -> None:
    """Whoever sets one variable for both clients asks for /v1/v1."""
    output = beta(
        appliance,
        """
print(json.dumps([str(piece) for piece in replicate.run("appliance/echo", input={"text": "twice"})]))
""",
        url=f"{appliance.url}/v1/v1",
    )
    assert "".join(output) == "twice"
