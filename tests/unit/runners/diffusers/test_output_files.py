"""Generated audio, as pipelines and their vocoders describe it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners.diffusers import output_files


def pipe(**parts: Any) -> SimpleNamespace:
    return SimpleNamespace(**{name: SimpleNamespace(config=config) for name, config in parts.items()})


@pytest.mark.parametrize(
    "parts",
    [
        {"vocoder": SimpleNamespace(sampling_rate=16_000)},  # as in transformers
        {"vae": SimpleNamespace(), "unet": SimpleNamespace(sample_rate=16_000)},
    ],
    ids=["vocoder", "unet"],
)
def test_the_sampling_rate_is_that_of_a_component(parts: dict[str, Any]) -> None:
    result = SimpleNamespace(audios=[np.zeros(8_000)])
    sound = output_files.audio_of(result, pipe(**parts))
    assert (sound.rate, sound.samples.shape, sound.seconds) == (16_000, (1, 8_000), 0.5)


def test_a_pipeline_without_a_sampling_rate_is_refused() -> None:
    result = SimpleNamespace(audios=[np.zeros(8)])
    with pytest.raises(PredictionFailed, match="no sampling rate"):
        output_files.audio_of(result, pipe(vae=SimpleNamespace()))
