"""Resemblyzer's voice encoder, which computes speaker embeddings of speech.

The weights are the file ``resemblyzer/pretrained.pt`` of the package Resemblyzer (Apache-2.0). The package
itself is not used, because its last release is of 2023 and needs webrtcvad, which has no wheels:
https://github.com/resemble-ai/Resemblyzer
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import LoadFailed
from appliance.runners import speakers
from appliance.runners.base import LoadSpec
from appliance.runners.speakers import Span, Turn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from appliance.runners.audio import Samples

    Embeddings = npt.NDArray[np.float32]  # (number, 256), each of length 1

RATE: Final = 16_000  # samples/s
_MELS: Final = 40
_UNITS: Final = 256
_LAYERS: Final = 3
_FFT: Final = 400  # samples, 25 ms
_HOP: Final = 160  # samples, 10 ms
_MIN_RMS: Final = 10 ** (-30 / 20)  # -30 dBFS: speech with a lower root mean square is amplified to it
_BATCH: Final = 64  # spans of speech that are computed together
_CHUNK: Final = 120 * RATE  # samples per call of the VAD; a cancellation takes effect between two calls


class VoiceEncoder:
    """The loaded encoder."""

    def __init__(self, file: Path) -> None:
        """Load the weights in ``file``."""
        import torch
        from transformers.audio_utils import mel_filter_bank

        state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        self._lstm = torch.nn.LSTM(_MELS, _UNITS, _LAYERS, batch_first=True)
        self._linear = torch.nn.Linear(_UNITS, _UNITS)
        for name, module in (("lstm", self._lstm), ("linear", self._linear)):
            parts = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
            module.load_state_dict({key.partition(".")[2]: value for key, value in parts.items()})
        self._window = torch.hann_window(_FFT)
        filters = mel_filter_bank(
            _FFT // 2 + 1, _MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney"
        )
        self._filters = torch.from_numpy(filters).float()

    def embeddings(self, spans: Sequence[Samples]) -> Embeddings:
        """Return the embedding of each span of speech. Spans of about 1.6 s give the best embeddings."""
        import numpy as np
        import torch

        found = np.zeros((len(spans), _UNITS), np.float32)
        by_length: dict[int, list[int]] = {}
        for number, span in enumerate(spans):
            by_length.setdefault(span.size, []).append(number)
        for numbers in by_length.values():
            for at in range(0, len(numbers), _BATCH):
                batch = numbers[at : at + _BATCH]
                with torch.inference_mode():
                    found[batch] = self._computed(np.stack([_amplified(spans[each]) for each in batch]))
        return found

    def _computed(self, spans: Any) -> Any:
        """Return the embeddings of spans of the same length."""
        import torch

        spectrum = torch.stft(
            torch.from_numpy(spans), _FFT, _HOP, window=self._window, pad_mode="constant", return_complex=True
        )
        mels = spectrum.abs().square().transpose(1, 2) @ self._filters
        _, (hidden, _) = self._lstm(mels)
        raw = self._linear(hidden[-1]).relu()
        return torch.nn.functional.normalize(raw, dim=1).numpy()


def _amplified(samples: Samples) -> Samples:
    import numpy as np

    level = float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0
    return samples * np.float32(_MIN_RMS / level) if 0 < level < _MIN_RMS else samples


def load(path: Path, spec: LoadSpec) -> VoiceEncoder:
    """Load the voice encoder for a model; ``path`` is the file ``pretrained.pt``, or its folder.

    Raises:
        LoadFailed: the file is not that of Resemblyzer, or the model's environment lacks a library.
    """
    file = path / "pretrained.pt" if path.is_dir() else path
    try:
        import torch

        torch.set_num_threads(spec.threads)
        return VoiceEncoder(file)
    except ImportError as error:
        raise LoadFailed(
            f"model {spec.model}: {error}: add torch and scipy to the requirements of its environment"
        ) from error
    except Exception as error:  # weights can be wrong in any way, so any exception is possible
        raise LoadFailed(
            f"model {spec.model}: {file} cannot be loaded as Resemblyzer's pretrained.pt: "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}; correct the source, or "
            "options.speaker_encoder"
        ) from error


class Progress(NamedTuple):
    """Progress of a computation, in seconds of audio."""

    done: int
    total: int


def find_turns(
    encoder: VoiceEncoder, samples: Samples, count: int | None
) -> Generator[Progress | list[Turn], None, None]:
    """Yield the progress, then the turns of the speakers. The sampling rate of ``samples`` must be ``RATE``.

    ``count`` is the number of speakers; None: estimated from the audio.
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    settings = VadOptions(min_speech_duration_ms=250, min_silence_duration_ms=100, speech_pad_ms=30)
    speech: list[Span] = []
    for begin in range(0, samples.size, _CHUNK):
        for part in get_speech_timestamps(samples[begin : begin + _CHUNK], settings):
            speech.append(Span((begin + part["start"]) / RATE, (begin + part["end"]) / RATE))
        yield Progress(0, max(1, samples.size // RATE))
    windows = speakers.windows(speech)
    spans = [samples[round(each.start * RATE) : round(each.end * RATE)] for each in windows]
    total = max(1, samples.size // RATE)
    embeddings = []
    for at in range(0, len(spans), _BATCH):
        embeddings.append(encoder.embeddings(spans[at : at + _BATCH]))
        last = windows[min(at + _BATCH, len(windows)) - 1]
        yield Progress(min(total, round(last.end)), total)
    yield speakers.turns(speech, windows, _joined(embeddings), count)


def _joined(embeddings: Sequence[Embeddings]) -> Any:
    import numpy as np

    return np.concatenate(embeddings) if embeddings else np.zeros((0, _UNITS), np.float32)
