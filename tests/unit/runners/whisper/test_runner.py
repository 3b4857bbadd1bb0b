"""The pure part of the recogniser; tests/integration/test_speech.py lets a real one listen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from appliance.domain import input_schema
from appliance.domain.errors import InvalidInput, PredictionFailed
from appliance.runners.whisper.runner import WhisperRunner, _parts, _settings

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
def test_attempts_get_warmer_up_to_one(first: float, step: float, attempts: list[float]) -> None:
    made = settings(temperature=first, temperature_increment_on_fallback=step)
    assert made["temperature"] == pytest.approx(attempts)


def test_attempts_are_not_endless() -> None:
    assert len(settings(temperature_increment_on_fallback=0.0001)["temperature"]) == 20


def test_tokens_that_are_never_said() -> None:
    assert settings()["suppress_tokens"] == [-1]
    assert settings(suppress_tokens="1, 2,3")["suppress_tokens"] == [1, 2, 3]
    assert settings(suppress_tokens="")["suppress_tokens"] == []
    with pytest.raises(PredictionFailed, match=r"input\.suppress_tokens"):
        settings(suppress_tokens="one")
    for wrong in ("50000", "-2"):
        with pytest.raises(PredictionFailed, match=r"input\.suppress_tokens: .* from 0 to 49999, or -1"):
            settings(suppress_tokens=wrong)


def test_long_sounds_are_cut_where_it_is_quiet() -> None:
    second = 16_000
    sound = np.random.default_rng(0).uniform(-1, 1, 700 * second).astype(np.float32)
    for quiet in (280, 560):
        sound[quiet * second : (quiet + 1) * second] *= 0.01
    parts = list(_parts(sound))
    assert [begin for begin, _ in parts[1:]] == pytest.approx(
        [280.5 * second, 560.5 * second], abs=second / 2
    )
    assert [begin for begin, _ in parts] == [0, *np.cumsum([part.size for _, part in parts])[:-1]]
    assert (np.concatenate([part for _, part in parts]) == sound).all()
    ((begin, whole),) = _parts(sound[: 300 * second])
    assert (begin, whole.size) == (0, 300 * second)


def test_names_that_other_models_have_for_inputs() -> None:
    given = input_schema.validate(INTERFACE, {"audio_file": "data:,x", "prompt": "Zephyrine"})
    assert (given["audio"], given["initial_prompt"]) == ("data:,x", "Zephyrine")
    assert input_schema.validate(INTERFACE, {"file": "data:,x"})["audio"] == "data:,x"
    with pytest.raises(InvalidInput, match="transcription must be one of the following"):
        input_schema.validate(INTERFACE, {"audio": "data:,x", "transcription": "html"})
