"""Which images share a batch. tests/integration/test_batched_tasks.py compares results with those alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.domain.errors import PredictionFailed
from appliance.runners.transformers import image_batches
from appliance.runners.transformers.image_batches import EncodedInput, compute_encoded
from appliance.runners.transformers.loading import LoadRequest, PreparedInput, TaskInput, TaskResult


def prediction(number: int, side: int) -> PreparedInput:
    given = {"number": number, "side": side}
    return PreparedInput(TaskInput(given, Path(), threading.Event()))


def encode(request: TaskInput) -> EncodedInput:
    side = request.input["side"]
    if side == 0:
        raise PredictionFailed("input.image: this is no image")
    return EncodedInput(
        request, {"pixel_values": torch.zeros(1, 3, side, side), "input_ids": torch.zeros(1, 2)}
    )


def batches(items: Sequence[PreparedInput], most: int) -> tuple[list[list[int]], list[Any]]:
    """Return the numbers of the predictions of each batch, and the outputs or errors of all."""
    seen: list[list[int]] = []

    def compute(batch: list[EncodedInput]) -> list[TaskResult]:
        numbers = [each.request.input["number"] for each in batch]
        assert image_batches.collate(batch)["pixel_values"].shape[0] == len(batch)
        seen.append(numbers)
        return [TaskResult(number) for number in numbers]

    loading = LoadRequest(Path(), "cpu", "float32", most, trust_remote_code=False, models=[])
    found = compute_encoded(loading, list(items), encode, compute)
    return seen, [each.output if isinstance(each, TaskResult) else str(each) for each in found]


def test_images_of_equal_size_share_batches() -> None:
    items = [prediction(number, 8 if number % 3 else 16) for number in range(7)]
    seen, outputs = batches(items, 3)
    assert seen == [[0, 3, 6], [1, 2, 4], [5]]
    assert outputs == list(range(7))


def test_a_batch_of_images_has_a_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_batches, "_BATCH_PIXELS", 130)
    items = [prediction(number, 8) for number in range(3)]
    assert batches(items, 16)[0] == [[0, 1], [2]]
    monkeypatch.setattr(image_batches, "_BATCH_PIXELS", 1)
    assert batches(items, 16)[0] == [[0], [1], [2]]


def test_a_prediction_that_fails_or_is_cancelled_leaves_the_others() -> None:
    items = [prediction(0, 8), prediction(1, 0), prediction(2, 8), prediction(3, 8)]
    items[2].request.cancelled.set()
    assert batches(items, 16) == ([[0, 3]], [0, "input.image: this is no image", None, 3])
    items[0].request.cancelled.set()
    items[3].request.cancelled.set()
    assert batches(items, 16)[0] == []
