"""Finds the ONNX file, the voices and the vocabulary of a Kokoro model in its folder of weights."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

#: First letter of a voice's name -> espeak-ng's name of its language. Japanese (j) and Mandarin (z) are left
#: out, because espeak-ng does not produce the phonemes that these voices were trained on.
LANGUAGES: Final = {
    "a": "en-us",
    "b": "en",  # British English
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "p": "pt-br",
}
#: Files that can have the vocabulary: tokenizer.json of the ONNX export, config.json of hexgrad/Kokoro-82M.
VOCABULARIES: Final = ("tokenizer.json", "config.json")
_DEFAULT_VOICE: Final = "af_bella"  # as in jaaari/kokoro-82m on Replicate
_ARRAY: Final = ".npy"


class VoiceFile(NamedTuple):
    """A file with the style vectors of one voice, or an archive (.npz) with those of many."""

    path: Path
    member: str | None  # the voice's name in the archive; None: the file has one voice, as raw float32


class _Vocabulary(msgspec.Struct, frozen=True):
    vocab: dict[str, int] = {}


class _VocabularyFile(msgspec.Struct):
    """The keys of tokenizer.json (`model`) and of config.json (`vocab`) that have the vocabulary."""

    vocab: dict[str, int] = {}
    model: _Vocabulary = _Vocabulary()


def model_file(folder: Path) -> Path:
    """Return the ONNX file of the model. If there are several, it is the one named model.onnx.

    Raises:
        ValueError: there is none, or it is not clear which one it is.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name the folder with the .onnx file and the voices")
    found = sorted(folder.rglob("*.onnx"))
    if not found:
        raise ValueError(f"{folder} has no .onnx file; correct its source")
    named = found if len(found) == 1 else [file for file in found if file.name == "model.onnx"]
    if len(named) != 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise ValueError(f"{folder} has several .onnx files ({names}); keep one, or rename one to model.onnx")
    return named[0]


def voice_files(folder: Path) -> dict[str, VoiceFile]:
    """Return the voices by name, in alphabetical order, without those of languages that are not supported.

    Raises:
        OSError: a file cannot be read.
    """
    voices = {name: voice for name, voice in _voices(folder) if name[:1] in LANGUAGES}
    return dict(sorted(voices.items()))


def voice_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the voices; empty before the weights are downloaded."""
    return tuple(voice_files(folder))


def default_voice(names: tuple[str, ...]) -> str:
    return _DEFAULT_VOICE if _DEFAULT_VOICE in names else names[0]


def vocabulary(folder: Path) -> dict[str, int]:
    """Return the token of each phoneme.

    Raises:
        OSError: a file cannot be read.
        ValueError: no file of ``VOCABULARIES`` has a vocabulary, or one is damaged.
    """
    for file in (folder / name for name in VOCABULARIES):
        if not file.is_file():
            continue
        try:
            content = msgspec.json.decode(file.read_bytes(), type=_VocabularyFile)
        except msgspec.DecodeError as error:
            raise ValueError(f"{file} has no readable vocabulary: {error}; download it again") from error
        if found := content.vocab or content.model.vocab:
            return found
    raise ValueError(
        f"{folder} has no vocabulary; add tokenizer.json of onnx-community/Kokoro-82M-v1.0-ONNX or "
        "config.json of hexgrad/Kokoro-82M"
    )


def _voices(folder: Path) -> Iterator[tuple[str, VoiceFile]]:
    for path in (*folder.glob("voices/*.bin"), *folder.glob("voices*.bin")):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if name.endswith(_ARRAY)]
            for name in (member.removesuffix(_ARRAY) for member in members):
                yield name, VoiceFile(path, name)
        else:
            yield path.stem, VoiceFile(path, None)
