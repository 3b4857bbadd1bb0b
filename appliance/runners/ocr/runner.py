"""Reads the text in images with PP-OCR in ONNX files, computed on the CPU even where there is a GPU.

One model finds the lines of text, another tells which lines are upside down, and the third reads them:
https://github.com/PaddlePaddle/PaddleOCR
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures, images
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.ocr.lines import cut_out, find_lines, in_rows
from appliance.runners.onnx_session import described, open_session
from appliance.runners.schemas import number
from appliance.runners.threads import stepwise

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_SHORT_SIDE: Final = 736  # pixels; smaller images are scaled up for the detector
_MULTIPLE: Final = 32  # of the sides of the detector's images
_LONGEST_SIDE: Final = 32_766  # pixels; OpenCV cuts out no pieces of larger images
_THIN: Final = 8  # width divided by height from which space is added above and below an image
_LINE_HEIGHT: Final = 48  # pixels
_DIRECTION_WIDTH: Final = 192  # pixels of a line that tell its direction
_UPSIDE_DOWN: Final = 0.9  # probability from which a line is turned
_LONGEST: Final = 3200  # pixels of a line with the height ``_LINE_HEIGHT``; longer ones are squeezed
#: Part of the name of an ONNX file -> what its model does, and the number of axes of its output
_ROLES: Final = {
    "det": ("finds lines of text", 4),
    "rec": ("reads lines", 3),
    "cls": ("tells which lines are upside down", 2),
}

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "image": {**FILE, "description": "Image with text"},
    "min_score": number("Smallest score of the lines to return", default=0.5, ge=0, le=1),
}
_NUMBERS: Final[dict[str, Any]] = {"type": "array", "items": {"type": "number"}}
_LINE: Final[dict[str, Any]] = {
    "text": {"type": "string"},
    "score": {"type": "number"},
    "box": {
        "type": "array",
        "items": _NUMBERS,
        "description": "Corners in pixels: top left, top right, bottom right, bottom left",
    },
}
_OUTPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "description": "The whole text, one row of the image in each line"},
        "lines": {"type": "array", "items": {"type": "object", "properties": _LINE}},
    },
}


class _Read(NamedTuple):
    """The text of one line."""

    text: str
    score: float


class OcrRunner:
    """Runs models of kind `ocr`; the options are those of ``OcrOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._detector: Any
        self._reader: Any
        self._direction: Any = None  # None: all lines are upright
        self._characters: list[str] = []  # by their number in the reader's output; the first is none

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return interface_of(
            _INPUTS, _OUTPUT, required=("image",), aliases={"input": "image", "file": "image"}
        )

    async def setup(self) -> None:
        folder = failures.existing_weights(self._spec)
        self._detector = await self._opened(folder, "det")
        self._reader = await self._opened(folder, "rec")
        if any("cls" in file.stem for file in folder.rglob("*.onnx")):
            self._direction = await self._opened(folder, "cls")
        self._characters = ["", *self._dictionary(folder), " "]
        classes = self._reader.get_outputs()[0].shape[-1]  # a name if the file does not fix it
        if isinstance(classes, int) and classes != len(self._characters):
            raise LoadFailed(
                f"model {self._spec.model}: the dictionary has {len(self._characters) - 2} characters, "
                f"but the ONNX file that reads lines knows {classes - 2}; correct options.dictionary"
            )

    async def _opened(self, folder: Path, role: str) -> Any:
        purpose, axes = _ROLES[role]
        found = sorted(file for file in folder.rglob("*.onnx") if role in file.stem)
        if len(found) != 1:
            number = f"{len(found)} ONNX files" if found else "no ONNX file"
            raise LoadFailed(
                f"model {self._spec.model}: {folder} has {number} with {role} in the name, but needs "
                f"one, which {purpose}; correct the source"
            )
        session = await asyncio.to_thread(open_session, found[0], self._spec)
        if len(session.get_outputs()[0].shape) != axes:
            raise LoadFailed(
                f"model {self._spec.model}: {found[0]} returns {described(session.get_outputs()[0])}, "
                f"but a model that {purpose} returns a tensor with {axes} axes; correct the source"
            )
        return session

    def _dictionary(self, folder: Path) -> list[str]:
        name = self._spec.options["dictionary"]
        text = self._reader.get_modelmeta().custom_metadata_map.get("character")
        if name is not None:
            try:
                text = (folder / name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise LoadFailed(
                    f"model {self._spec.model}: options.dictionary cannot be read: {error}; correct the name"
                ) from error
        if text is None:
            raise LoadFailed(
                f"model {self._spec.model}: the ONNX file that reads lines has no dictionary in its "
                "metadata; set options.dictionary to a text file in the weights"
            )
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        import numpy as np

        image = await asyncio.to_thread(images.read, Path(job.input["image"]), "image")
        if max(image.size) > _LONGEST_SIDE:
            raise PredictionFailed(
                f"input.image: this image has {image.width} x {image.height} pixels, but sides of more than "
                f"{_LONGEST_SIDE} pixels are not supported; scale it down or cut it into parts"
            )
        pixels = np.asarray(image)[:, :, ::-1]  # the models know blue, green, red
        boxes: list[Array] = []
        read: dict[int, _Read] = {}
        async for part in stepwise(self._steps(pixels, boxes)):
            read |= part
        rows = [[each for each in row if _kept(read[each], job.input["min_score"])] for row in in_rows(boxes)]
        lines = [
            {"text": read[each].text, "score": round(read[each].score, 4), "box": _rounded(boxes[each])}
            for row in rows
            for each in row
        ]
        text = "\n".join(" ".join(read[each].text for each in row) for row in rows if row)
        yield Output([{"text": text, "lines": lines}], append=False)

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _steps(self, pixels: Array, boxes: list[Array]) -> Generator[dict[int, _Read], None, None]:
        """Append the boxes of the lines to ``boxes``, and yield the texts of a few lines at a time."""
        boxes += self._find(pixels)
        yield {}
        pieces = [self._upright(cut_out(pixels, box)) for box in boxes]
        # Lines of similar length share a batch, because shorter ones are padded.
        order = sorted(range(len(pieces)), key=lambda each: pieces[each].shape[1] / pieces[each].shape[0])
        size = self._spec.options["max_batch"]
        for at in range(0, len(order), size):
            chosen = order[at : at + size]
            yield dict(zip(chosen, self._texts([pieces[each] for each in chosen]), strict=True))

    def _find(self, pixels: Array) -> list[Array]:
        """Return the corners of each line of text. Text is searched in a smaller copy of a large image."""
        import cv2
        import numpy as np

        whole = np.array(pixels.shape[1::-1], np.float32)
        shrink = self._spec.options["max_side"] / max(pixels.shape[:2])
        if shrink < 1:
            small = [max(1, round(side * shrink)) for side in pixels.shape[1::-1]]
            pixels = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
        factors = whole / np.array(pixels.shape[1::-1], np.float32)
        space = max(0, round(pixels.shape[1] / _THIN) - pixels.shape[0]) // 2
        colour = tuple(float(each) for each in np.median(pixels.reshape(-1, 3), axis=0))
        framed = cv2.copyMakeBorder(pixels, space, space, 0, 0, cv2.BORDER_CONSTANT, value=colour)
        height, width = framed.shape[:2]
        most = self._spec.options["max_side"]
        scale = min(max(1.0, _SHORT_SIDE / min(height, width)), most / max(height, width))
        size = [max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in (width, height)]
        values = _normalized(cv2.resize(framed, size))[None]
        (probabilities,) = self._detector.run(None, {self._detector.get_inputs()[0].name: values})
        found = find_lines(probabilities[0, 0], width, height)
        moved = ((box - np.array([0, space], np.float32)) * factors for box in found)
        return [np.clip(box, 0, whole - 1) for box in moved]

    def _upright(self, piece: Array) -> Array:
        """Turn a line that is upside down."""
        import numpy as np

        if self._direction is None:
            return piece
        values = _padded([piece], _DIRECTION_WIDTH)
        (scores,) = self._direction.run(None, {self._direction.get_inputs()[0].name: values})
        return np.rot90(piece, 2) if float(scores[0, 1]) > _UPSIDE_DOWN else piece

    def _texts(self, pieces: list[Array]) -> list[_Read]:
        widest = max(piece.shape[1] / piece.shape[0] for piece in pieces)
        width = min(_LONGEST, max(320, round(_LINE_HEIGHT * widest)))
        values = _padded(pieces, width)
        (scores,) = self._reader.run(None, {self._reader.get_inputs()[0].name: values})
        return [decoded(each, self._characters) for each in scores]


def decoded(scores: Array, characters: list[str]) -> _Read:
    """Return the text of one line; ``scores`` has a row for each step, with the scores of the characters.

    The number 0 separates characters: without it, repeated numbers are one character.
    """
    best = scores.argmax(axis=1)
    chosen = [at for at, number in enumerate(best) if number != 0 and (at == 0 or number != best[at - 1])]
    if not chosen:
        return _Read("", 0.0)
    text = "".join(characters[best[at]] for at in chosen)
    return _Read(text, float(scores[chosen, best[chosen]].mean()))


def _normalized(pixels: Array) -> Array:
    """Return pixels as 32-bit floats from -1 to 1, with the axes channels, height, width."""
    import numpy as np

    return np.ascontiguousarray((pixels.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1))


def _padded(pieces: list[Array], width: int) -> Array:
    """Return lines scaled to the height ``_LINE_HEIGHT``, and padded to ``width``."""
    import cv2
    import numpy as np

    values = np.zeros((len(pieces), 3, _LINE_HEIGHT, width), np.float32)
    for at, piece in enumerate(pieces):
        scaled = min(width, max(1, round(_LINE_HEIGHT * piece.shape[1] / piece.shape[0])))
        values[at, :, :, :scaled] = _normalized(
            cv2.resize(np.ascontiguousarray(piece), (scaled, _LINE_HEIGHT))
        )
    return values


def _kept(read: _Read, least: float) -> bool:
    return bool(read.text.strip()) and read.score >= least


def _rounded(corners: Array) -> list[list[int]]:
    return [[round(float(x)), round(float(y))] for x, y in corners]
