"""Training of LoRA adapters for language models."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(name="lora", runner="appliance.runners.lora_training.runner:LoraTrainer")
