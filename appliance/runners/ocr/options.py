"""Options of models that read text in images, in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options

_PROCESS: Final = 3 * GIB // 2  # main memory of a worker process besides the weights


class OcrOptions(Options):
    """Options of a model that reads text in images."""

    ON_CPU = True
    UNVERSIONED = frozenset({"max_batch"})
    OOM_HINT = "lower its options max_side and max_batch"

    max_side: int = Field(
        default=2048,
        ge=64,
        le=8192,
        description="Longest side of an image in which text is searched, in pixels; larger images are scaled "
        "down for the search, and read at their own size.",
    )
    max_batch: int = Field(
        default=8, ge=1, le=256, description="Maximum number of lines of text that are read together."
    )
    dictionary: str | None = Field(
        default=None,
        min_length=1,
        description="Text file in the weights with a character on each line. Default: the characters in the "
        "ONNX file that reads lines.",
    )

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return 2 * weights.stored + _PROCESS


class OcrModel(ModelConfig):
    """A model that reads text in images: PP-OCR in ONNX files."""

    WEIGHT_FILES = ("*.onnx",)

    kind: Literal["ocr"] = Field(description="Text in images: PP-OCR.")
    source: WeightsSource = Field(
        description="Source of the weights: a folder with ONNX files whose names contain det, rec and "
        "optionally cls, to find lines of text, to read them, and to turn them upright."
    )
    options: OcrOptions = subsection(OcrOptions(), "Options of this kind.")
