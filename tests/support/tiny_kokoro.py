"""A tiny model with the inputs and the output of Kokoro, whose sound shows what the model was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tests.support.onnx_files import INT64, Node, Tensor, write_onnx

Floats = npt.NDArray[np.float32]

SYMBOLS: Final = " ;:,.!?abdefhijklmnoprstuvwzæçðŋɐɑɔəɚɛɜɡɪɹɾʁʃʊʌʒθˈˌːʲ\N{COMBINING TILDE}"
VOCABULARY: Final = {"$": 0} | {symbol: number for number, symbol in enumerate(SYMBOLS, 16)}
SAMPLES: Final = 480  # samples of each token at the usual speed
_ROWS, _WIDTH = 510, 256


def styles(loudness: float) -> Floats:
    """Return the style vectors of a voice; the first number of each is the loudness of its sound."""
    rows = np.zeros((_ROWS, 1, _WIDTH), np.float32)
    rows[:, 0, 0] = loudness + np.arange(_ROWS) / 2048
    return rows


VOICES: Final = {"af_alloy": styles(0.2), "af_bella": styles(0.4), "bm_george": styles(0.6)}


def sound(phonemes: str, voice: str) -> Floats:
    """Return the samples that the model makes of one part."""
    style = VOICES[voice][len(phonemes) - 1, 0, 0]
    tokens = [0, *(VOCABULARY[phoneme] for phoneme in phonemes), 0]
    return np.repeat(np.array(tokens, np.float32) / 256 * style, SAMPLES)


def write_model(file: Path, tokens: str = "input_ids") -> Path:
    """Write the ONNX file. Each token is ``SAMPLES`` samples of the value token / 256 times the loudness."""
    return write_onnx(
        file,
        [Tensor(tokens, [1, "length"], INT64), Tensor("style", [1, _WIDTH]), Tensor("speed", [1])],
        [Tensor("waveform", ["samples"])],
        [
            Node("Cast", [tokens], ["numbers"], {"to": 1}),
            Node("Mul", ["numbers", "scale"], ["scaled"]),
            Node("Gather", ["style", "first"], ["loudness"], {"axis": 1}),
            Node("Mul", ["scaled", "loudness"], ["row"]),
            Node("Transpose", ["row"], ["column"], {"perm": [1, 0]}),
            Node("Div", ["usual", "speed"], ["wanted"]),
            Node("Cast", ["wanted"], ["count"], {"to": 7}),
            Node("Concat", ["one", "count"], ["shape"], {"axis": 0}),
            Node("Expand", ["column", "shape"], ["table"]),
            Node("Reshape", ["table", "flat"], ["waveform"]),
        ],
        {
            "scale": np.array([1 / 256], np.float32),
            "first": np.array([0], np.int64),
            "usual": np.array([SAMPLES], np.float32),
            "one": np.array([1], np.int64),
            "flat": np.array([-1], np.int64),
        },
    )


def write_hub_folder(folder: Path) -> Path:
    """Write a model with the files of onnx-community/Kokoro-82M-v1.0-ONNX, and a Japanese voice."""
    write_model(folder / "onnx" / "model.onnx")
    (folder / "voices").mkdir()
    for name, rows in (VOICES | {"jf_alpha": styles(0.1)}).items():
        rows.tofile(folder / "voices" / f"{name}.bin")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "style_text_to_speech_2"}))
    return folder


def write_release_folder(folder: Path) -> Path:
    """Write a model with the files of kokoro-onnx's release, and config.json of hexgrad/Kokoro-82M."""
    write_model(folder / "kokoro-v1.0.onnx", "tokens")
    with (folder / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, allow_pickle=False, **VOICES)
    (folder / "config.json").write_text(json.dumps({"vocab": VOCABULARY}))
    return folder
