"""Kind `cog`: Cog projects, run unmodified by the runtime of Cog."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(
    name="cog",
    model="appliance.runners.cog.options:CogModel",
    runner="appliance.runners.cog.choice:PredictionRunner",
    trainer="cog-train",
)
TRAINER: Final = Kind(name="cog-train", runner="appliance.runners.cog.choice:TrainingRunner")
