"""The chunks of the Whisper runner that need no model; tests/integration/test_speech.py runs a real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput, PredictionFailed
from appliance.domain.weight_size import WeightSize
from appliance.runners.whisper import runner
from appliance.runners.whisper.options import WhisperOptions
from appliance.runners.whisper.runner import WhisperRunner, _chunks, _settings

INTERFACE = WhisperRunner.interface({})


def settings(**given: Any) -> dict[str, Any]:
    return _settings(input_schema.validate(INTERFACE, {"audio": "data:,x", **given}), 50_000)


@pytest.mark.parametrize(
    ("first", "step", "attempts"),
    [
        (0, 0.2, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0, [0]),
        (0.9, 0.2, [0.9]),
        (2, 0.5, [2]),
        (0.5, 0.25, [0.5, 0.75, 1.0]),
    ],
)
def test_the_temperature_of_attempts_rises_to_one(first: float, step: float, attempts: list[float]) -> None:
    made = settings(temperature=first, temperature_increment_on_fallback=step)
    assert made["temperature"] == pytest.approx(attempts)


def test_the_number_of_attempts_is_limited() -> None:
    assert len(settings(temperature_increment_on_fallback=0.0001)["temperature"]) == 20


def test_suppressed_tokens() -> None:
    assert settings()["suppress_tokens"] == [-1]
    assert settings(suppress_tokens="1, 2,3")["suppress_tokens"] == [1, 2, 3]
    assert settings(suppress_tokens="")["suppress_tokens"] == []
    with pytest.raises(PredictionFailed, match=r"input\.suppress_tokens"):
        settings(suppress_tokens="one")
    for wrong in ("50000", "-2"):
        with pytest.raises(PredictionFailed, match=r"input\.suppress_tokens: .* from 0 to 49999, or -1"):
            settings(suppress_tokens=wrong)


def test_long_audio_is_cut_where_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    second = 160  # samples: fewer than in real audio, because the real number takes long
    for name in ("_CHUNK", "_CUT_WINDOW", "_QUIET_SPAN"):
        monkeypatch.setattr(runner, name, getattr(runner, name) // 100)
    samples = np.random.default_rng(0).uniform(-1, 1, 700 * second).astype(np.float32)
    for quiet in (280, 560):
        samples[quiet * second : (quiet + 1) * second] *= 0.01
    chunks = list(_chunks(samples))
    assert [begin for begin, _ in chunks[1:]] == pytest.approx(
        [280.5 * second, 560.5 * second], abs=second / 2
    )
    assert [begin for begin, _ in chunks] == [0, *np.cumsum([chunk.size for _, chunk in chunks])[:-1]]
    assert (np.concatenate([chunk for _, chunk in chunks]) == samples).all()
    ((begin, whole),) = _chunks(samples[: 300 * second])
    assert (begin, whole.size) == (0, 300 * second)


def test_input_names_of_other_models() -> None:
    given = input_schema.validate(INTERFACE, {"audio_file": "data:,x", "prompt": "Zephyrine"})
    assert (given["audio"], given["initial_prompt"]) == ("data:,x", "Zephyrine")
    assert input_schema.validate(INTERFACE, {"file": "data:,x"})["audio"] == "data:,x"
    with pytest.raises(InvalidInput, match="transcription must be one of the following"):
        input_schema.validate(INTERFACE, {"audio": "data:,x", "transcription": "html"})


def test_predictions_at_the_same_time_need_memory_for_their_audio() -> None:
    one, four = (WhisperOptions(num_workers=number, max_duration=100) for number in (1, 4))
    assert (one.predictions_at_once, four.predictions_at_once) == (1, 4)
    assert four.footprint(WeightSize(), "cpu") - one.footprint(WeightSize(), "cpu") == 3 * 100 * 128_000
