"""Computes the images of several predictions together, for tasks of kind `transformers`.

Images share a batch if the image processor turns them into tensors of the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.runners import images
from appliance.runners.transformers.loading import (
    LoadRequest,
    PreparedInput,
    TaskInput,
    TaskResult,
    on_device,
    outcome,
)

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: Most pixels of a batch of images: working memory is proportional to them.
_BATCH_PIXELS: Final = 4 * 1024 * 1024


class PreparedImage(NamedTuple):
    """The image of one prediction, as tensors for the model."""

    tensors: Mapping[str, torch.Tensor]
    size: tuple[int, int]  # width and height of the input image, in pixels
    scaled: tuple[int, int]  # of the image from which the tensors are made


class EncodedInput(NamedTuple):
    """The input of one prediction, as tensors for the model."""

    request: TaskInput
    tensors: Mapping[str, torch.Tensor]
    value: Any = None  # task-specific data about the input


#: Turns the outputs of the model for one image, and that image, into the result of its prediction.
Postprocess = Callable[[TaskInput, Any, PreparedImage], TaskResult]


def prepare_image(
    process: Callable[[Image], Mapping[str, torch.Tensor]],
    request: TaskInput,
    *,
    scale: Callable[[Image], Image] = lambda image: image,
) -> PreparedInput:
    """Read the input ``image``, scale it, and make tensors of it with ``process``.

    Raises:
        PredictionFailed: the file is no image.
    """
    image = images.read(Path(request.input["image"]), "image")
    scaled = scale(image)
    value = PreparedImage(process(scaled), image.size, scaled.size)
    return PreparedInput(request, shapes(value.tensors), value)


def shapes(tensors: Mapping[str, torch.Tensor]) -> Hashable:
    """Return the names and shapes of tensors. Tensors with equal shapes can be computed together."""
    return tuple((name, tuple(each.shape)) for name, each in tensors.items())


def collate(batch: list[EncodedInput]) -> dict[str, torch.Tensor]:
    """Return the tensors of several predictions, which have the same shapes, as one batch."""
    import torch

    if len(batch) == 1:
        return dict(batch[0].tensors)
    return {name: torch.cat([each.tensors[name] for each in batch]) for name in batch[0].tensors}


def compute_images(
    loading: LoadRequest, model: Any, items: list[PreparedInput], postprocess: Postprocess
) -> list[TaskResult | Exception]:
    """Compute the images of ``items``, which ``prepare_image`` has prepared."""
    import torch

    def compute(batch: list[EncodedInput]) -> list[TaskResult | Exception]:
        with torch.inference_mode():
            outputs = model(**on_device(model, collate(batch)))
        return [
            outcome(partial(postprocess, each.request, outputs_of_row(outputs, row)), each.value)
            for row, each in enumerate(batch)
        ]

    encoded = [EncodedInput(item.request, item.value.tensors, item.value) for item in items]
    return _compute(loading, encoded, compute)


def compute_encoded(
    loading: LoadRequest,
    items: list[PreparedInput],
    encode: Callable[[TaskInput], EncodedInput],
    compute: Callable[[list[EncodedInput]], Sequence[TaskResult | Exception]],
) -> list[TaskResult | Exception]:
    """Encode the inputs of ``items``, and compute those whose tensors have equal shapes together.

    ``encode`` may use a tokenizer. ``compute`` returns a result for each of its items, in their order.
    """
    return _compute(loading, [outcome(encode, item.request) for item in items], compute)


def _compute(
    loading: LoadRequest,
    items: Sequence[EncodedInput | Exception],
    compute: Callable[[list[EncodedInput]], Sequence[TaskResult | Exception]],
) -> list[TaskResult | Exception]:
    """Return the result of each item. A cancelled item is not computed, and its result is empty."""
    found: list[TaskResult | Exception] = [
        each if isinstance(each, Exception) else TaskResult(None) for each in items
    ]
    groups: dict[Hashable, dict[int, EncodedInput]] = {}
    for number, each in enumerate(items):
        if isinstance(each, EncodedInput):
            groups.setdefault(shapes(each.tensors), {})[number] = each
    for group in groups.values():
        # The image is the largest tensor, with three values per pixel.
        values_of_one = max(each.numel() for each in next(iter(group.values())).tensors.values())
        size = max(1, min(loading.max_batch, 3 * _BATCH_PIXELS // values_of_one))
        numbers = list(group)
        for at in range(0, len(numbers), size):
            batch = {
                number: group[number]
                for number in numbers[at : at + size]
                if not group[number].request.cancelled.is_set()
            }
            results = compute(list(batch.values())) if batch else ()
            for number, result in zip(batch, results, strict=True):
                found[number] = result
    return found


def outputs_of_row(outputs: Any, row: int) -> Any:
    """Return the outputs for one image of a batch, as an object of the same type."""
    import torch

    return type(outputs)(
        **{name: value[row : row + 1] for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    )


def on_cpu(outputs: Any) -> Any:
    """Return the outputs of a model in main memory; floats in 32 bits."""
    return type(outputs)(
        **{
            name: (value.float() if value.is_floating_point() else value).cpu()
            for name, value in outputs.items()
        }
    )
