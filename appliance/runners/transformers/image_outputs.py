"""Tasks of kind `transformers` whose outputs are images: masks, cut-outs, depth maps, enlarged images.

Each public function loads a model for the task and returns the function that computes one prediction, or
several together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.domain.errors import PredictionFailed
from appliance.runners import images
from appliance.runners.transformers.image_batches import (
    Postprocess,
    PreparedImage,
    compute_images,
    on_cpu,
    prepare_image,
)
from appliance.runners.transformers.loading import (
    BatchCompute,
    Compute,
    LoadRequest,
    TaskInput,
    TaskResult,
    labels_of,
    load_image_processor,
    load_model,
    make_pipeline,
    model_type,
    on_device,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Array = np.ndarray[Any, np.dtype[Any]]

#: Pixels at which masks are computed; masks of larger images are enlarged. Models see fewer pixels anyway.
_MASK_PIXELS: Final = 1024 * 1024
#: Maximum number of pixels of an enlarged image.
_MAX_ENLARGED: Final = 64 * 1024 * 1024
_MIN_SCORE: Final = 0.5  # of objects, if a prediction sets no threshold
_TILE: Final = 256  # side of the parts of an image that are enlarged at a time, in pixels
_OVERLAP: Final = 16  # pixels around a part that are computed too, so that no seams are visible
#: Values of ``upsampler`` in Swin2SR's config. Models with other values clean images and keep their size.
_UPSAMPLERS: Final = {"pixelshuffle", "pixelshuffle_aux", "pixelshuffledirect", "nearest+conv"}
_BACKGROUND: Final = ("background", "bg", "unlabeled", "unlabelled")
#: Values of the input ``background_type`` -> colour behind the cut-out.
COLOURS: Final = {"white": (255, 255, 255), "black": (0, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class _Segment(NamedTuple):
    label: str
    score: float
    mask: Array  # true where the segment is


# -- segments


class _SemanticModel:
    """A model that gives each pixel one label."""

    def __init__(self, loading: LoadRequest) -> None:
        self.model = load_model(loading, "AutoModelForSemanticSegmentation")
        self._processor = load_image_processor(loading)
        labels = self.model.config.id2label
        self._labels = {int(number): str(label) for number, label in labels.items()}
        self._one_label = len(labels) == 1
        if self._one_label:
            self._labels[max(self._labels) + 1] = "background"

    def process(self, image: Image) -> Any:
        return self._processor(image, return_tensors="pt")

    def segments(self, outputs: Any, size: tuple[int, int], threshold: float | None) -> list[_Segment]:
        """Return the pixels of each label; the score of a label is its mean probability there.

        ``size`` is the width and height of the image, for which the model has computed ``outputs``.
        """
        import numpy as np

        scores = self._scores(outputs, size)
        best = scores.argmax(0)
        masks = {int(number): best == number for number in np.unique(best)}
        found = [
            _Segment(self._labels[number], float(scores[number][mask].mean()), mask)
            for number, mask in masks.items()
        ]
        return [segment for segment in found if segment.score >= (threshold or 0)]

    def foreground(self, outputs: Any, size: tuple[int, int], keep: list[str] | None) -> Array:
        """Return the probability of each pixel to have a label in ``keep``; None: any but the background.

        Raises:
            PredictionFailed: the model does not know a label, or has no label for the background.
        """
        kept = _kept(self._labels, keep)
        shares: Array = self._scores(outputs, size)[kept].sum(0)
        return shares

    def _scores(self, outputs: Any, size: tuple[int, int]) -> Array:
        """Return the probability of each label at each pixel: an array of labels, rows and columns.

        A model with only one label gets the label background for the rest of the image.
        """
        import torch

        width, height = size
        with torch.inference_mode():
            logits = torch.nn.functional.interpolate(
                outputs.logits.float(), size=(height, width), mode="bilinear", align_corners=False
            )
            found = logits.sigmoid()[0] if self._one_label else logits.softmax(1)[0]
            scores = torch.cat((found, 1 - found)) if self._one_label else found
            array: Array = scores.cpu().numpy()
            return array


class _ObjectModel:
    """A model that finds objects and their masks, such as Mask2Former."""

    def __init__(self, loading: LoadRequest, auto_class: str) -> None:
        self.model = load_model(loading, auto_class)
        self._pipe = make_pipeline(
            loading, "image-segmentation", self.model, image_processor=load_image_processor(loading)
        )

    def process(self, image: Image) -> Any:
        tensors = self._pipe.preprocess(image)
        tensors.pop("target_size")
        return tensors

    def segments(self, outputs: Any, size: tuple[int, int], threshold: float | None) -> list[_Segment]:
        """Return the objects in an image of this width and height, with their masks."""
        import numpy as np

        outputs = on_cpu(outputs)
        outputs["target_size"] = [(size[1], size[0])]
        found = self._pipe.postprocess(outputs, threshold=_MIN_SCORE if threshold is None else threshold)
        return [_Segment(each["label"], float(each["score"]), np.asarray(each["mask"]) > 0) for each in found]

    def foreground(self, outputs: Any, size: tuple[int, int], keep: list[str] | None) -> Array:
        """Return 1 for each pixel of an object with a label in ``keep``, and 0 for others; None: any object.

        Raises:
            PredictionFailed: the model does not know a label.
        """
        import numpy as np

        names = dict(enumerate(self.model.config.id2label.values()))
        kept = set(names.values()) if keep is None else {names[number] for number in _kept(names, keep)}
        masks = [segment.mask for segment in self.segments(outputs, size, None) if segment.label in kept]
        empty = np.zeros((size[1], size[0]), np.float32)
        shares: Array = np.maximum.reduce([empty, *(mask.astype(np.float32) for mask in masks)])
        return shares


def _segmentation_model(loading: LoadRequest) -> _SemanticModel | _ObjectModel:
    from transformers.models.auto import modeling_auto

    kind = model_type(loading)
    if kind in modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
        return _SemanticModel(loading)
    if kind in modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES:
        return _ObjectModel(loading, "AutoModelForUniversalSegmentation")
    return _ObjectModel(loading, "AutoModelForInstanceSegmentation")


def image_segmentation(loading: LoadRequest) -> BatchCompute:
    """Find the regions of an image; the mask of each has the size of the image."""
    model = _segmentation_model(loading)

    def postprocess(request: TaskInput, outputs: Any, image: PreparedImage) -> TaskResult:
        request.folder.mkdir(parents=True, exist_ok=True)
        segments = model.segments(outputs, image.scaled, request.input.get("threshold"))
        output: list[dict[str, Any]] = []
        for segment in sorted(segments, key=lambda segment: -segment.score):
            mask = _as_image(segment.mask * 255, image.size)
            box = mask.getbbox()
            if box is None:
                continue
            file = request.folder / f"mask_{len(output)}.png"
            mask.save(file)
            sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            output.append({"label": segment.label, "score": segment.score, "box": sides, "mask": file})
        return TaskResult(output)

    return _segmenting(loading, model, postprocess)


def background_removal(loading: LoadRequest) -> BatchCompute:
    """Cut the foreground out of an image, with a model that segments images."""
    model = _segmentation_model(loading)

    def postprocess(request: TaskInput, outputs: Any, image: PreparedImage) -> TaskResult:
        import numpy as np

        keep = request.input.get("labels")
        shares = model.foreground(outputs, image.scaled, labels_of(keep, "labels") if keep else None)
        if request.input["reverse"]:
            shares = 1 - shares
        if request.input["threshold"] > 0:
            shares = (shares >= request.input["threshold"]).astype(np.float32)
        request.folder.mkdir(parents=True, exist_ok=True)
        file = request.folder / "output.png"
        # The image is read again, because the images of a batch are large.
        whole = images.read(Path(request.input["image"]), "image")
        _composed(whole, _as_image(shares * 255, image.size), request.input["background_type"]).save(file)
        return TaskResult(file)

    return _segmenting(loading, model, postprocess)


def _segmenting(
    loading: LoadRequest, model: _SemanticModel | _ObjectModel, postprocess: Postprocess
) -> BatchCompute:
    return BatchCompute(
        lambda items: compute_images(loading, model.model, items, postprocess),
        partial(prepare_image, model.process, scale=_small),
    )


def _kept(labels: dict[int, str], keep: list[str] | None) -> list[int]:
    """Return the numbers of the labels in ``keep``; None: of all labels but the background's.

    Raises:
        PredictionFailed: the model does not know a label, or has no label for the background.
    """
    known = f"this model knows {', '.join(labels.values())}"
    if keep is None:
        if not any(label.lower() in _BACKGROUND for label in labels.values()):
            raise PredictionFailed(
                f"input.labels: this model has no label for the background; give the labels to keep; {known}"
            )
        return [number for number, label in labels.items() if label.lower() not in _BACKGROUND]
    unknown = [label for label in keep if label not in labels.values()]
    if unknown:
        raise PredictionFailed(f"input.labels: {unknown[0]!r} is not a label of this model; {known}")
    return [number for number, label in labels.items() if label in keep]


def _composed(image: Image, opacity: Image, background: str) -> Image:
    from PIL import Image as Images

    if background == "map":
        return opacity
    if background == "rgba":
        cut = image.copy()
        cut.putalpha(opacity)
        return cut
    return Images.composite(image, Images.new("RGB", image.size, COLOURS[background]), opacity)


def _small(image: Image) -> Image:
    """Return the image scaled down to ``_MASK_PIXELS``, or as it is if it has no more pixels."""
    ratio = math.sqrt(_MASK_PIXELS / (image.width * image.height))
    if ratio >= 1:
        return image
    return image.resize((max(1, int(image.width * ratio)), max(1, int(image.height * ratio))))


def _as_image(values: Array, size: tuple[int, int]) -> Image:
    """Return numbers from 0 to 255 as a grey image of this width and height."""
    import numpy as np
    from PIL import Image as Images

    made = Images.fromarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))
    if made.size == size:
        return made
    binary = set(np.unique(values)) <= {0, 255}
    return made.resize(size, Images.Resampling.NEAREST if binary else Images.Resampling.BILINEAR)


# -- depth


def depth_estimation(loading: LoadRequest) -> BatchCompute:
    """Estimate the depth of each pixel with a model such as Depth Anything, DPT (MiDaS) or ZoeDepth."""
    model = load_model(loading, "AutoModelForDepthEstimation")
    processor = load_image_processor(loading)

    def postprocess(request: TaskInput, outputs: Any, image: PreparedImage) -> TaskResult:
        import numpy as np
        from PIL import Image as Images

        width, height = image.size
        # The second argument is the image's size; its name differs between models.
        (found,) = processor.post_process_depth_estimation(outputs, [(height, width)])
        depth = found["predicted_depth"].float().cpu().numpy()
        low, high = float(depth.min()), float(depth.max())
        shares = (depth - low) / max(high - low, 1e-12)
        request.folder.mkdir(parents=True, exist_ok=True)
        grey, exact = request.folder / "grey_depth.png", request.folder / "depth_16_bits.png"
        Images.fromarray(np.rint(shares * 255).astype(np.uint8)).save(grey)
        Images.fromarray(np.rint(shares * 65535).astype(np.uint16)).save(exact)
        return TaskResult({"grey_depth": grey, "depth_16_bits": exact, "minimum": low, "maximum": high})

    return BatchCompute(
        lambda items: compute_images(loading, model, items, postprocess),
        partial(prepare_image, partial(processor, return_tensors="pt")),
    )


# -- larger images


def super_resolution(loading: LoadRequest) -> Compute:
    """Enlarge or clean an image with Swin2SR, part by part, so that memory does not depend on its size."""
    import torch

    model = load_model(loading, "AutoModelForImageToImage")
    processor = load_image_processor(loading)
    factor = int(model.config.upscale) if model.config.upsampler in _UPSAMPLERS else 1

    def enlarged(part: Image) -> Image:
        import numpy as np
        from PIL import Image as Images

        inputs = processor(part, return_tensors="pt")
        with torch.inference_mode():
            found = model(**on_device(model, inputs)).reconstruction[0].float().cpu().numpy()
        size = (part.width * factor, part.height * factor)
        pixels = found[:, : size[1], : size[0]].transpose(1, 2, 0)  # the rest is padding
        return Images.fromarray(np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8))

    def compute(request: TaskInput) -> TaskResult:
        from PIL import Image as Images

        image = images.read(Path(request.input["image"]), "image")
        scale = request.input.get("scale") or factor
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        for pixels in (size[0] * size[1], image.width * image.height * factor**2):
            if pixels > _MAX_ENLARGED:
                raise PredictionFailed(
                    f"input.image: the enlarged image would have {pixels:,} pixels, over the limit of "
                    f"{_MAX_ENLARGED:,}; scale the image down first"
                )
        whole = Images.new("RGB", (image.width * factor, image.height * factor))
        for inner, outer in _tiles(image.width, image.height):
            if request.cancelled.is_set():
                break
            part = enlarged(image.crop(outer))
            left, top = (inner[0] - outer[0]) * factor, (inner[1] - outer[1]) * factor
            width, height = (inner[2] - inner[0]) * factor, (inner[3] - inner[1]) * factor
            cut = part.crop((left, top, left + width, top + height))
            whole.paste(cut, (inner[0] * factor, inner[1] * factor))
        if whole.size != size:
            whole = whole.resize(size, Images.Resampling.LANCZOS)
        request.folder.mkdir(parents=True, exist_ok=True)
        file = request.folder / "output.png"
        whole.save(file)
        return TaskResult(file)

    return compute


_Box = tuple[int, int, int, int]  # left, top, right, bottom


def _tiles(width: int, height: int) -> Iterator[tuple[_Box, _Box]]:
    """Yield two boxes for each part of an image: the part, and the part with the margin to compute."""
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            right, bottom = min(left + _TILE, width), min(top + _TILE, height)
            outer = (
                max(left - _OVERLAP, 0),
                max(top - _OVERLAP, 0),
                min(right + _OVERLAP, width),
                min(bottom + _OVERLAP, height),
            )
            yield (left, top, right, bottom), outer
