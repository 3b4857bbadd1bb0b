"""The inputs of LoRA trainings."""

from __future__ import annotations

import pytest

from appliance.runners.lora_training.runner import LoraTrainer, TrainingSettings


def test_the_rank_is_limited_by_the_option_of_the_base_model() -> None:
    properties = LoraTrainer.interface({"max_adapter_rank": 16}).input["properties"]
    assert properties["lora_rank"]["maximum"] == 16
    assert properties["train_data"]["format"] == "uri"


@pytest.mark.parametrize(
    ("given", "examples", "steps"),
    [
        ({}, 9, 3),
        ({"num_train_epochs": 2}, 9, 6),
        ({"gradient_accumulation_steps": 2}, 9, 2),
        ({"max_train_steps": 5, "num_train_epochs": 2}, 9, 5),
    ],
)
def test_the_number_of_steps(given: dict[str, int], examples: int, steps: int) -> None:
    assert TrainingSettings(train_data="", **given).steps(examples) == steps
