"""Tasks of kind `transformers` with models that compare images with texts, such as CLIP and OWL-ViT.

Each public function loads a model for the task and returns the function that computes one prediction, or
several together.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import images
from appliance.runners.transformers.image_batches import (
    EncodedInput,
    collate,
    compute_encoded,
    outputs_of_row,
    shapes,
)
from appliance.runners.transformers.loading import (
    BatchCompute,
    LoadRequest,
    PreparedInput,
    TaskInput,
    TaskResult,
    labels_of,
    load_image_processor,
    load_model,
    load_processor,
    on_device,
)
from appliance.runners.transformers_library import max_input_tokens

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_LINE: Final = 300  # pixels of an image's side for each pixel of the width of a drawn box


def image_text_embeddings(loading: LoadRequest) -> BatchCompute:
    """Turn texts and images into vectors that can be compared, with a model such as CLIP or SigLIP.

    Raises:
        LoadFailed: the model does not have separate vectors for texts and images.
    """
    model = load_model(loading, "AutoModel")
    if not (hasattr(model, "get_text_features") and hasattr(model, "get_image_features")):
        raise LoadFailed(
            f"the model type {model.config.model_type} has no vectors of texts and images; use a model such "
            "as CLIP or SigLIP"
        )
    texts, pictures = _TextEncoder(loading, model), _ImageEncoder(loading, model)

    def prepare(request: TaskInput) -> PreparedInput:
        if not request.input["inputs"]:
            raise PredictionFailed("input.inputs: there is no text and no URL of an image; give at least one")
        return PreparedInput(request)

    def compute(items: list[PreparedInput]) -> list[TaskResult]:
        vectors: list[list[Any]] = [[None] * len(item.request.input["inputs"]) for item in items]
        lines = [
            (number, at, line)
            for number, item in enumerate(items)
            for at, line in enumerate(item.request.input["inputs"])
        ]
        for encoder, key in ((texts, "text"), (pictures, "file")):
            chosen = [each for each in lines if ("file" in each[2]) == (key == "file")]
            for first in range(0, len(chosen), loading.max_batch):
                batch = [
                    each
                    for each in chosen[first : first + loading.max_batch]
                    if not items[each[0]].request.cancelled.is_set()
                ]
                found = encoder([line[key] for *_, line in batch]) if batch else ()
                for (number, at, _), vector in zip(batch, found, strict=True):
                    vectors[number][at] = vector
        return [_embeddings(item.request, each) for item, each in zip(items, vectors, strict=True)]

    return BatchCompute(compute, prepare)


def _embeddings(request: TaskInput, vectors: list[Any]) -> TaskResult:
    if request.cancelled.is_set():  # vectors may be missing
        return TaskResult([])
    if request.input["normalize_embeddings"]:
        vectors = [vector / max(float(vector.norm()), 1e-12) for vector in vectors]
    pairs = zip(request.input["inputs"], vectors, strict=True)
    return TaskResult([{"input": line["text"], "embedding": vector.tolist()} for line, vector in pairs])


class _TextEncoder:
    """Turns a list of texts into a tensor with one vector for each."""

    def __init__(self, loading: LoadRequest, model: Any) -> None:
        from transformers import AutoTokenizer

        self._model = model
        self._tokenizer = load_processor(AutoTokenizer, loading)
        self._limit = max_input_tokens(model, self._tokenizer)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        import torch

        # SigLIP was trained on texts padded to the maximum length.
        padding = "max_length" if "siglip" in self._model.config.model_type else True
        inputs = self._tokenizer(
            texts,
            padding=padding if self._limit else True,
            truncation=self._limit is not None,
            max_length=self._limit,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        with torch.inference_mode():
            return _vectors(self._model.get_text_features(**on_device(self._model, inputs)))


class _ImageEncoder:
    """Turns a list of image files into a tensor with one vector for each."""

    def __init__(self, loading: LoadRequest, model: Any) -> None:
        self._model = model
        self._processor = load_image_processor(loading)

    def __call__(self, files: list[str]) -> torch.Tensor:
        import torch

        # Images are opened one at a time, because they are large until they are prepared.
        prepared = [self._processor(images.read(Path(file), "inputs"), return_tensors="pt") for file in files]
        inputs = {name: torch.cat([each[name] for each in prepared]) for name in prepared[0]}
        with torch.inference_mode():
            return _vectors(self._model.get_image_features(**on_device(self._model, inputs)))


def _vectors(features: Any) -> torch.Tensor:
    """Return the vectors in the result of ``get_text_features`` or ``get_image_features``."""
    vectors: torch.Tensor = getattr(features, "pooler_output", features)
    return vectors.float().cpu()


def zero_shot_image_classification(loading: LoadRequest) -> BatchCompute:
    """Score the caller's labels for an image, with a model such as CLIP or SigLIP."""
    import torch
    from transformers import AutoTokenizer

    model = load_model(loading, "AutoModelForZeroShotImageClassification")
    tokenizer = load_processor(AutoTokenizer, loading)
    processor = load_image_processor(loading)
    limit = max_input_tokens(model, tokenizer)
    independent = "siglip" in model.config.model_type  # scores of labels do not depend on other labels

    def prepare(request: TaskInput) -> PreparedInput:
        labels = labels_of(request.input["labels"], "labels")
        texts = tuple(request.input["hypothesis_template"].replace("{}", label) for label in labels)
        tensors = processor(images.read(Path(request.input["image"]), "image"), return_tensors="pt")
        return PreparedInput(request, (tuple(labels), texts, shapes(tensors)), tensors)

    def compute(items: list[PreparedInput]) -> list[TaskResult]:
        labels, descriptions, _ = cast("tuple[Any, Any, Any]", items[0].key)
        texts = tokenizer(
            list(descriptions),
            padding="max_length" if independent and limit else True,
            truncation=limit is not None,
            max_length=limit,
            return_tensors="pt",
        )
        prepared = {name: torch.cat([item.value[name] for item in items]) for name in items[0].value}
        with torch.inference_mode():
            logits = model(**on_device(model, {**texts, **prepared})).logits_per_image.float()
        scores = (logits.sigmoid() if independent else logits.softmax(1)).tolist()
        return [
            TaskResult(
                [
                    {"label": label, "score": score}
                    for label, score in sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])
                ]
            )
            for row in scores
        ]

    return BatchCompute(compute, prepare)


def zero_shot_object_detection(loading: LoadRequest) -> BatchCompute:
    """Find the objects in an image that texts describe, with OWL-ViT, OWLv2 or Grounding DINO.

    Raises:
        LoadFailed: the model is of another type.
    """
    import torch
    from transformers import AutoProcessor

    model = load_model(loading, "AutoModelForZeroShotObjectDetection")
    processor = load_processor(AutoProcessor, loading, backend="pil")
    together = "grounding-dino" in model.config.model_type  # reads all descriptions as one text
    if not together and not model.config.model_type.startswith("owl"):
        raise LoadFailed(
            f"zero-shot-object-detection supports OWL-ViT, OWLv2 and Grounding DINO, not the model type "
            f"{model.config.model_type}; choose another model"
        )

    def encode(request: TaskInput) -> EncodedInput:
        names = labels_of(request.input["query"], "query")
        image = images.read(Path(request.input["image"]), "image")
        texts: Any = ". ".join(name.lower() for name in names) + "." if together else [names]
        _check_length(model, processor.tokenizer, [texts] if together else names)
        tensors = processor(images=image, text=texts, return_tensors="pt")
        return EncodedInput(request, tensors, (names, image.size))

    def result(each: EncodedInput, outputs: Any) -> TaskResult:
        request, (names, size) = each.request, each.value
        settings: dict[str, Any] = (
            {"input_ids": each.tensors["input_ids"], "text_threshold": request.input["text_threshold"]}
            if together
            else {"text_labels": [names]}
        )
        (found,) = processor.post_process_grounded_object_detection(
            outputs,
            threshold=request.input["box_threshold"],
            target_sizes=[size[::-1]],
            **settings,
        )
        boxes, scores = found["boxes"].tolist(), found["scores"].tolist()
        labels = found["text_labels"][: len(boxes)]  # without boxes Grounding DINO's has one empty label
        detections = [
            {"bbox": _pixels(box, size), "label": label, "confidence": score}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
        detections.sort(key=lambda detection: -detection["confidence"])
        output: dict[str, Any] = {"detections": detections}
        if request.input["show_visualisation"]:
            request.folder.mkdir(parents=True, exist_ok=True)
            output["result_image"] = request.folder / "result.png"
            # The image is read again, because the images of a batch are large.
            image = images.read(Path(request.input["image"]), "image")
            draw_boxes(image, detections).save(output["result_image"])
        return TaskResult(output)

    def compute(batch: list[EncodedInput]) -> list[TaskResult]:
        with torch.inference_mode():
            outputs = model(**on_device(model, collate(batch)))
        return [result(each, outputs_of_row(outputs, row)) for row, each in enumerate(batch)]

    return BatchCompute(lambda items: compute_encoded(loading, items, encode, compute))


def _check_length(model: Any, tokenizer: Any, texts: list[str]) -> None:
    """Check that the model accepts descriptions of this length.

    Raises:
        PredictionFailed: a text is too long.
    """
    limits = (getattr(model.config, "max_text_len", None), max_input_tokens(model, tokenizer))
    limit = min((limit for limit in limits if limit), default=None)
    for text in texts:
        count = len(tokenizer(text, verbose=False)["input_ids"])
        if limit is not None and count > limit:
            raise PredictionFailed(
                f"input.query: {text[:80]!r} has {count} tokens, but this model accepts at most {limit}; "
                "shorten it"
            )


def _pixels(box: list[float], size: tuple[int, int]) -> list[int]:
    """Return left, top, right and bottom of a box in whole pixels inside the image."""
    sides = size * 2
    return [min(max(round(at), 0), side) for at, side in zip(box, sides, strict=True)]


def draw_boxes(image: Image, detections: list[dict[str, Any]]) -> Image:
    """Return a copy of the image with the boxes and their labels."""
    from PIL import ImageDraw, ImageFont

    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    width = 1 + max(image.size) // _LINE
    font = ImageFont.load_default(10 + 2 * width)
    for detection in reversed(detections):  # the best on top
        left, top, right, bottom = detection["bbox"]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline="red", width=width)
        caption = f"{detection['label']} {detection['confidence']:.2f}"
        end = draw.textbbox((0, 0), caption, font=font)
        at = (
            max(0, min(left + 2 * width, image.width - end[2])),
            max(0, min(top + 2 * width, image.height - end[3])),
        )
        draw.rectangle(draw.textbbox(at, caption, font=font), fill="red")
        draw.text(at, caption, fill="white", font=font)
    return copy
