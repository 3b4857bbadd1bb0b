"""Functions that load a model and its processors, and the types of a prediction's input and result.

Weights are read from safetensors only, because other formats can contain code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners.transformers_library import max_input_tokens

if TYPE_CHECKING:
    import torch


Item = TypeVar("Item")
Result = TypeVar("Result")


class LoadRequest(NamedTuple):
    """The model to load, and the settings for it."""

    folder: Path
    device: str  # "cpu" or ``GPU``
    dtype: str  # "auto" or the name of a torch dtype
    max_batch: int
    trust_remote_code: bool
    models: list[Any]  # gets every torch module that is loaded


class TaskInput(NamedTuple):
    """Input of one prediction."""

    input: Mapping[str, Any]  # checked and complete; files are paths
    folder: Path  # for output files; it may not exist yet
    cancelled: threading.Event  # set when the prediction is canceled


class TaskResult(NamedTuple):
    """Result of one prediction. Files in the output are paths."""

    output: Any
    metrics: Mapping[str, Any] = MappingProxyType({})


#: Computes one prediction, in a thread.
Compute = Callable[[TaskInput], TaskResult]


class PreparedInput(NamedTuple):
    """The prepared input of one prediction, with the key of its batch."""

    request: TaskInput
    key: Hashable = None  # predictions in one batch have the same key
    value: Any = None


class BatchCompute(NamedTuple):
    """Computes several predictions together, in a thread."""

    #: Returns a result or an error for each prediction. If it raises, each is computed alone.
    compute: Callable[[list[PreparedInput]], Sequence[TaskResult | Exception]]
    #: Runs in a thread, at the same time as other predictions; so it must not use a tokenizer.
    prepare: Callable[[TaskInput], PreparedInput] = PreparedInput


#: Most tokens of a batch of texts, with padding: working memory is proportional to them.
_BATCH_TOKENS: Final = 8192

#: Weights that only training uses; many repositories lack them.
_FOR_TRAINING: Final = ("masked_spec_embed",)


def model_type(loading: LoadRequest) -> str:
    """Return ``model_type`` of the model's config.json; empty if it has none."""
    config = json.loads((loading.folder / "config.json").read_bytes())
    return str(config.get("model_type", "")) if isinstance(config, dict) else ""


def load_processor(auto_class: Any, loading: LoadRequest, **more: Any) -> Any:
    """Load a tokenizer or processor; ``auto_class`` is a class of transformers such as ``AutoTokenizer``."""
    return auto_class.from_pretrained(
        loading.folder, local_files_only=True, trust_remote_code=loading.trust_remote_code, **more
    )


def load_model(loading: LoadRequest, auto_class: str) -> Any:
    """Load the model; ``auto_class`` is the name of a class of transformers such as ``AutoModelForCTC``.

    Raises:
        LoadFailed: weights are missing, in place of which transformers would use random numbers.
    """
    import transformers

    model, report = getattr(transformers, auto_class).from_pretrained(
        loading.folder,
        local_files_only=True,
        trust_remote_code=loading.trust_remote_code,
        use_safetensors=True,
        dtype=loading.dtype,
        output_loading_info=True,
    )
    missing = sorted(name for name in report["missing_keys"] if not name.endswith(_FOR_TRAINING))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise LoadFailed(
            f"the weights lack {', '.join(missing[:5])}{more}, which this task needs; correct the model's "
            "task or source"
        )
    model = model.to(loading.device).eval()
    loading.models.append(model)
    return model


def load_image_processor(loading: LoadRequest) -> Any:
    """Load an image processor that prepares images with Pillow, because torchvision may not be installed."""
    from transformers import AutoImageProcessor

    if model_type(loading) == "segformer":
        return _segformer_processor(loading)
    return load_processor(AutoImageProcessor, loading, backend="pil")


def _segformer_processor(loading: LoadRequest) -> Any:
    """Return a processor that prepares images as SegFormer's does.

    SegFormer's own processor cannot be imported without torchvision. Both resize, scale and normalize images.
    They differ in the default values and in the preparation of training labels:
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/segformer/image_processing_pil_segformer.py
    """
    from transformers import ViTImageProcessorPil
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    file = loading.folder / "preprocessor_config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    settings = {
        "size": {"height": 512, "width": 512},
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    }
    names = (*settings, "do_resize", "do_rescale", "do_normalize", "resample", "rescale_factor")
    return ViTImageProcessorPil(**settings | {name: config[name] for name in names if name in config})


def make_pipeline(loading: LoadRequest, task: str, model: Any, **parts: Any) -> Any:
    """Return transformers' pipeline for ``task``; ``parts`` are the model's tokenizer and processors."""
    from transformers import pipeline

    return pipeline(
        task, model=model, device=loading.device, trust_remote_code=loading.trust_remote_code, **parts
    )


def on_device(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of ``inputs`` on the model's device; those with floats in the model's dtype."""
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }


def labels_of(value: str | list[str], field: str) -> list[str]:
    """Return the labels in an input: a list, or a text that separates them by commas or vertical bars.

    Raises:
        PredictionFailed: there is no label.
    """
    names = value if isinstance(value, list) else value.split("|" if "|" in value else ",")
    labels = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not labels:
        raise PredictionFailed(f"input.{field}: there is no label; give at least one")
    return labels


def stopping_criteria(*cancelled: threading.Event) -> Any:
    """Return stopping criteria for ``generate`` that stop generating a text once its event is set.

    ``cancelled`` has one event for each text.
    """
    import torch
    from transformers import StoppingCriteriaList

    def stops(tokens: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        beams = tokens.shape[0] // len(cancelled)  # those of a text follow each other
        ended = torch.tensor([event.is_set() for event in cancelled], device=tokens.device)
        return ended.repeat_interleave(beams)

    return StoppingCriteriaList([stops])


def check_fits(model: Any, tokenizer: Any, text: str, field: str = "text") -> int:
    """Return the number of tokens of a text, which the model must accept: its pipeline would truncate it.

    ``field`` is the name of the input, for error messages.

    Raises:
        PredictionFailed: the text is too long.
    """
    limit = max_input_tokens(model, tokenizer)
    count = len(tokenizer(text, verbose=False)["input_ids"])
    if limit is not None and count > limit:
        raise PredictionFailed(
            f"input.{field}: the text has {count} tokens, but this model accepts at most {limit}; shorten it"
        )
    return count


def outcome(compute: Callable[[Item], Result], item: Item) -> Result | PredictionFailed:
    """Return the result for one item of a batch, or the error that ``compute`` raises about it."""
    try:
        return compute(item)
    except PredictionFailed as error:
        return error


def batch_size(loading: LoadRequest, tokenizer: Any, lengths: Iterable[int]) -> int:
    """Return how many texts to compute in one batch; ``lengths`` are in tokens.

    It is 1 if padding, which makes texts equally long, would change the results of the model.
    """
    masked = "attention_mask" in tokenizer.model_input_names
    if tokenizer.pad_token is None or tokenizer.padding_side != "right" or not masked:
        return 1
    return max(1, min(loading.max_batch, _BATCH_TOKENS // max([1, *lengths])))


def padded(tokenizer: Any, encodings: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the tensors of tokenized texts, with padding if the texts differ in length."""
    import torch

    if len({len(each["input_ids"]) for each in encodings}) == 1:
        return {name: torch.tensor([each[name] for each in encodings]) for name in encodings[0]}
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True  # do not advise another way
    return dict(tokenizer.pad(list(encodings), padding=True, return_tensors="pt"))
