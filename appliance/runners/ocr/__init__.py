"""Kind `ocr`: reads the text in images."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(
    name="ocr",
    model="appliance.runners.ocr.options:OcrModel",
    runner="appliance.runners.ocr.runner:OcrRunner",
    libraries=("onnxruntime", "cv2"),
    packages=("onnxruntime", "opencv-python-headless"),
    preload=("numpy", "PIL.Image"),  # not onnxruntime: its threads do not survive a fork
)
