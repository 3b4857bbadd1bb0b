"""What the pages say about models in a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.protocols.admin_types import ModelMemory, ModelStatus
from appliance.ui.cluster_facts import cluster_facts


def model(**facts: Any) -> ModelStatus:
    memory = ModelMemory(
        bytes=1, share=None, origin="declared", estimate=None, peak=None, exceeds=False, out_of_memory=0,
        fits=True, fits_on=(), problem=None,
    )  # fmt: skip
    return ModelStatus(
        name="a/b", kind="echo", state="loading", loading_for=None, load_seconds=None, pinned=False,
        queued=0, running=0, devices=(), instances=1, memory=memory, **facts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({}, []),
        ({"copying_to": "box"}, ["copying weights to box"]),
        ({"fits_nowhere": "2.0 GiB are missing: add a node"}, ["fits on no node that is ready"]),
        ({"head_only": "Cog project"}, ["runs on the head of the cluster only: Cog project"]),
    ],
)
def test_facts_about_a_model_in_a_cluster_are_shown(facts: dict[str, Any], shown: list[str]) -> None:
    assert cluster_facts(model(**facts)) == shown
