"""Tasks of kind `transformers` whose models generate text: captions, translation, summaries.

These tasks call ``generate`` directly, because transformers 5 has no pipelines for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import images
from appliance.runners.transformers.image_batches import EncodedInput, collate, compute_encoded
from appliance.runners.transformers.loading import (
    BatchCompute,
    LoadRequest,
    PreparedInput,
    TaskInput,
    TaskResult,
    batch_size,
    check_fits,
    load_model,
    load_processor,
    model_type,
    on_device,
    outcome,
    padded,
    stopping_criteria,
)

if TYPE_CHECKING:
    import torch


def image_captioning(loading: LoadRequest) -> BatchCompute:
    """Describe an image with a model that completes a prompt, such as BLIP, takes none or is a chat model."""
    return _image_to_text(loading, "Describe this image.")


def ocr(loading: LoadRequest) -> BatchCompute:
    """Read the text in an image with a model that takes no prompt, such as TrOCR, or with a chat model."""
    return _image_to_text(loading, "Read all the text in this image.")


def _image_to_text(loading: LoadRequest, question: str) -> BatchCompute:
    """Return the function that computes texts about images.

    ``question`` is the prompt for chat models if the prediction has none.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.processing_utils import ProcessorMixin

    model = load_model(loading, "AutoModelForImageTextToText")
    processor = load_processor(AutoProcessor, loading)
    combined = isinstance(processor, ProcessorMixin)  # else it is only a tokenizer or an image processor
    tokenizer = processor.tokenizer if combined else load_processor(AutoTokenizer, loading)
    image_processor = None if combined else load_processor(AutoImageProcessor, loading, backend="pil")
    chats = combined and bool(getattr(processor, "chat_template", None))
    completes = combined and model_type(loading) != "vision-encoder-decoder"  # starts with the prompt

    def encode(request: TaskInput) -> EncodedInput:
        image = images.read(Path(request.input["image"]), "image")
        prompt = request.input.get("prompt") or None
        if not chats and not completes:
            if prompt is not None:
                raise PredictionFailed("input.prompt: this model takes no prompt; leave this input out")
            return EncodedInput(request, (image_processor or processor)(images=image, return_tensors="pt"))
        text = _chat_prompt(processor, prompt or question) if chats else prompt
        return EncodedInput(request, processor(images=image, text=text, return_tensors="pt"))

    def compute(batch: list[EncodedInput]) -> list[TaskResult]:
        start = batch[0].tensors["input_ids"].shape[1] if chats else 0
        return _texts(model, tokenizer, batch, start)

    return BatchCompute(lambda items: compute_encoded(loading, items, encode, compute), _prepare)


def _prepare(request: TaskInput) -> PreparedInput:
    """Prepare a prediction for batching.

    Predictions share a batch if ``max_new_tokens`` and ``num_beams`` are equal.
    """
    return PreparedInput(request, (request.input["max_new_tokens"], request.input.get("num_beams")))


def _texts(model: Any, tokenizer: Any, batch: list[EncodedInput], start: int = 0) -> list[TaskResult]:
    """Return the text that the model generates for each of ``batch``.

    ``start`` is the number of tokens of the prompt, which the model repeats before a text.
    """
    tokens = _generate(model, collate(batch), [each.request for each in batch])
    found = []
    for row in tokens:
        made = _without_final_padding(row[start:], model, tokenizer)
        text = tokenizer.decode(made, skip_special_tokens=True).strip()
        found.append(TaskResult(text, {"output_token_count": len(made)}))
    return found


def _without_final_padding(tokens: torch.Tensor, model: Any, tokenizer: Any) -> torch.Tensor:
    """Return generated tokens without the padding that makes the texts of a batch equally long."""
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    padding = {*ends, config.pad_token_id, tokenizer.pad_token_id}
    count = len(tokens)
    while count > 1 and int(tokens[count - 1]) in padding:
        count -= 1
    if count < len(tokens) and int(tokens[count]) in ends:
        count += 1  # the end token is a part of the text
    return tokens[:count]


def _chat_prompt(processor: Any, prompt: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text


def visual_question_answering(loading: LoadRequest) -> BatchCompute:
    """Answer a question about an image with BLIP, which generates text, or ViLT, which chooses an answer.

    Raises:
        LoadFailed: the model is of another type.
    """
    import torch
    from transformers import AutoProcessor

    kind = model_type(loading)
    if kind not in {"blip", "vilt"}:
        raise LoadFailed(
            f"visual-question-answering supports the model types blip and vilt, not {kind!r}; use the task "
            "image-captioning, whose input prompt may be a question"
        )
    model = load_model(loading, "AutoModelForVisualQuestionAnswering")
    processor = load_processor(AutoProcessor, loading)

    def encode(request: TaskInput) -> EncodedInput:
        image = images.read(Path(request.input["image"]), "image")
        question = request.input["question"]
        check_fits(model, processor.tokenizer, question, "question")
        return EncodedInput(request, processor(images=image, text=question, return_tensors="pt"))

    def compute(batch: list[EncodedInput]) -> list[TaskResult]:
        if kind == "blip":
            return _texts(model, processor.tokenizer, batch)
        with torch.inference_mode():
            best = model(**on_device(model, collate(batch))).logits.argmax(-1).tolist()
        return [TaskResult(model.config.id2label[each]) for each in best]

    return BatchCompute(lambda items: compute_encoded(loading, items, encode, compute), _prepare)


def translation(loading: LoadRequest) -> BatchCompute:
    """Translate with a model for two languages (Marian, T5), or for many (NLLB, M2M100, mBART)."""
    return _text_to_text(loading, "translation")


def summarization(loading: LoadRequest) -> BatchCompute:
    """Summarise with a model such as BART, Pegasus or T5."""
    return _text_to_text(loading, "summarization")


def _text_to_text(loading: LoadRequest, task: str) -> BatchCompute:
    from transformers import AutoTokenizer

    model = load_model(loading, "AutoModelForSeq2SeqLM")
    tokenizer = load_processor(AutoTokenizer, loading)
    settings = getattr(model.config, "task_specific_params", None) or {}
    default_prefix = settings.get(task, {}).get("prefix", "")  # T5 models learn the task from a prefix
    default_language = getattr(tokenizer, "src_lang", None)

    def encoded(request: TaskInput) -> _Encoded:
        prefix = request.input.get("prefix")
        more = _set_languages(tokenizer, default_language, request.input) if task == "translation" else {}
        text = (default_prefix if prefix is None else prefix) + request.input["text"]
        check_fits(model, tokenizer, text)
        return _Encoded(request, dict(tokenizer(text, return_token_type_ids=False)), more)

    def prepare(request: TaskInput) -> PreparedInput:
        names = ("max_new_tokens", "num_beams", "target_language")
        return PreparedInput(request, tuple(request.input.get(name) for name in names))

    def compute(items: list[PreparedInput]) -> list[TaskResult | Exception]:
        encodings = [outcome(encoded, item.request) for item in items]
        rows = {number: each for number, each in enumerate(encodings) if isinstance(each, _Encoded)}
        found: list[TaskResult | Exception] = [
            each if isinstance(each, Exception) else TaskResult("") for each in encodings
        ]
        size = batch_size(loading, tokenizer, (row.length for row in rows.values()))
        numbers = sorted(rows, key=lambda number: rows[number].length)  # to save padding
        for at in range(0, len(numbers), size):
            batch = [
                number for number in numbers[at : at + size] if not rows[number].request.cancelled.is_set()
            ]
            results = _written(model, tokenizer, [rows[number] for number in batch]) if batch else ()
            for number, result in zip(batch, results, strict=True):
                found[number] = result
        return found

    return BatchCompute(compute, prepare)


class _Encoded(NamedTuple):
    """The tokens of one text."""

    request: TaskInput
    encoding: dict[str, list[int]]
    more: dict[str, Any]  # arguments of ``generate``, equal in a batch

    @property
    def length(self) -> int:
        return len(self.encoding["input_ids"])


def _written(model: Any, tokenizer: Any, rows: list[_Encoded]) -> list[TaskResult]:
    """Return the text that the model generates for each of ``rows``."""
    inputs = padded(tokenizer, [row.encoding for row in rows])
    tokens = _generate(model, inputs, [row.request for row in rows], **rows[0].more)
    found = []
    for row, text in zip(rows, tokens, strict=True):
        text = _without_padding(text, model.generation_config) if len(rows) > 1 else text  # noqa: PLW2901
        counts = {"input_token_count": row.length, "output_token_count": len(text)}
        found.append(TaskResult(tokenizer.decode(text, skip_special_tokens=True).strip(), counts))
    return found


def _without_padding(tokens: torch.Tensor, config: Any) -> torch.Tensor:
    """Return generated tokens up to the first end token; the first token is the start token."""
    import torch

    ends = config.eos_token_id
    known = torch.tensor(ends if isinstance(ends, list) else [-1 if ends is None else ends])
    found = torch.isin(tokens[1:], known).nonzero()
    return tokens[: int(found[0]) + 2] if len(found) else tokens


def _set_languages(tokenizer: Any, default: str | None, input: Mapping[str, Any]) -> dict[str, Any]:
    """Set the tokenizer's source language; return the argument of ``generate`` for the target language.

    ``default`` is the source language if the input has none; None for models for two languages.

    Raises:
        PredictionFailed: a language is missing or unknown, or this model has no choice of languages.
    """
    source, target = input.get("source_language"), input.get("target_language")
    if default is None:
        if source or target:
            field = "source_language" if source else "target_language"
            raise PredictionFailed(f"input.{field}: this model knows only two languages; leave {field} out")
        return {}
    if not target:
        raise PredictionFailed("input.target_language: this model knows many languages; choose one")
    tokens = {}
    for field, language in (("source_language", source or default), ("target_language", target)):
        token = getattr(tokenizer, "lang_code_to_token", {}).get(language, language)
        number = tokenizer.convert_tokens_to_ids(token)
        if number in {None, tokenizer.unk_token_id} or token not in tokenizer.all_special_tokens:
            raise PredictionFailed(f"input.{field}: this model does not know the language {language!r}")
        tokens[field] = number
    tokenizer.src_lang = source or default
    return {"forced_bos_token_id": tokens["target_language"]}


def _generate(
    model: Any, inputs: Mapping[str, Any], requests: Sequence[TaskInput], **more: Any
) -> torch.Tensor:
    """Return the generated tokens of each request; a cancel ends the generation of its text early.

    The requests have the same values of ``num_beams`` and ``max_new_tokens``.
    """
    beams = requests[0].input.get("num_beams")
    tokens: torch.Tensor = model.generate(
        **on_device(model, inputs),
        **more,
        **({} if beams is None else {"num_beams": beams}),
        max_new_tokens=requests[0].input["max_new_tokens"],
        stopping_criteria=stopping_criteria(*(request.cancelled for request in requests)),
    )
    return tokens.cpu()
