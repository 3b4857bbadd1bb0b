"""Tasks of kind `transformers` whose models write: captions, translation, summaries.

transformers 5 has no pipelines for them: these call ``generate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.domain.errors import PredictionFailed
from appliance.runners import images
from appliance.runners.model_loading import (
    Compute,
    LoadRequest,
    TaskInput,
    TaskResult,
    fit,
    from_folder,
    model_of,
    stopping_criteria,
)

if TYPE_CHECKING:
    import torch


def image_captioning(loading: LoadRequest) -> Compute:
    """Models such as BLIP, which take a beginning, ViT-GPT2, which take none, and those to chat with."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.processing_utils import ProcessorMixin

    model = model_of(loading, "AutoModelForImageTextToText")
    processor = from_folder(AutoProcessor, loading)
    whole = isinstance(processor, ProcessorMixin)  # else it is half of one
    tokenizer = processor.tokenizer if whole else from_folder(AutoTokenizer, loading)
    looks = None if whole else from_folder(AutoImageProcessor, loading, backend="pil")
    chats = whole and bool(getattr(processor, "chat_template", None))

    def compute(asked: TaskInput) -> TaskResult:
        picture = images.read(Path(asked.input["image"]), "image")
        prompt = asked.input.get("prompt") or None
        if looks is not None:
            if prompt is not None:
                raise PredictionFailed("input.prompt: this model takes none")
            inputs = looks(images=picture, return_tensors="pt")
        else:
            text = _chat(processor, prompt) if chats else prompt
            inputs = processor(images=picture, text=text, return_tensors="pt")
        answer = _generated(model, inputs, asked)
        begun = inputs["input_ids"].shape[1] if chats else 0
        caption = tokenizer.decode(answer[0][begun:], skip_special_tokens=True).strip()
        return TaskResult(caption, {"output_token_count": int(answer.shape[1] - begun)})

    return compute


def _chat(processor: Any, prompt: str | None) -> str:
    content = [{"type": "image"}, {"type": "text", "text": prompt or "Describe this image."}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text


def translation(loading: LoadRequest) -> Compute:
    """Models of two languages, such as Marian and T5, and of many, such as NLLB, M2M100 and mBART."""
    return _rewriting(loading, "translation")


def summarization(loading: LoadRequest) -> Compute:
    """Models that write, such as BART, Pegasus and T5."""
    return _rewriting(loading, "summarization")


def _rewriting(loading: LoadRequest, task: str) -> Compute:
    from transformers import AutoTokenizer

    model = model_of(loading, "AutoModelForSeq2SeqLM")
    tokenizer = from_folder(AutoTokenizer, loading)
    special = getattr(model.config, "task_specific_params", None) or {}
    usual = special.get(task, {}).get("prefix", "")  # T5 is told what to do so
    native = getattr(tokenizer, "src_lang", None)

    def compute(asked: TaskInput) -> TaskResult:
        prefix = asked.input.get("prefix")
        more = _languages(tokenizer, native, asked.input) if task == "translation" else {}
        text = (usual if prefix is None else prefix) + asked.input["text"]
        fit(model, tokenizer, text)
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        answer = _generated(model, inputs, asked, **more)
        written = tokenizer.decode(answer[0], skip_special_tokens=True).strip()
        counts = {
            "input_token_count": int(inputs["input_ids"].shape[1]),
            "output_token_count": int(answer.shape[1]),
        }
        return TaskResult(written, counts)

    return compute


def _languages(tokenizer: Any, native: str | None, input: Mapping[str, Any]) -> dict[str, Any]:
    """Tell the tokenizer the language of the text; returns what tells the model the other one.

    ``native`` is the language of texts of which none is told; models of two languages have none.

    Raises:
        PredictionFailed: a language is missing, unknown or not to be given.
    """
    source, target = input.get("source_language"), input.get("target_language")
    if native is None:
        if source or target:
            field = "source_language" if source else "target_language"
            raise PredictionFailed(f"input.{field}: this model translates two languages only; leave it out")
        return {}
    if not target:
        raise PredictionFailed("input.target_language: this model knows many languages; one must be given")
    tokens = {}
    for field, language in (("source_language", source or native), ("target_language", target)):
        token = getattr(tokenizer, "lang_code_to_token", {}).get(language, language)
        number = tokenizer.convert_tokens_to_ids(token)
        if number in {None, tokenizer.unk_token_id} or token not in tokenizer.all_special_tokens:
            raise PredictionFailed(f"input.{field}: this model does not know the language {language!r}")
        tokens[field] = number
    tokenizer.src_lang = source or native
    return {"forced_bos_token_id": tokens["target_language"]}


def _generated(model: Any, inputs: Mapping[str, Any], asked: TaskInput, **more: Any) -> torch.Tensor:
    """The tokens that the model writes, until it ends or is not wanted any more."""
    beams = asked.input.get("num_beams")
    moved = {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }
    tokens: torch.Tensor = model.generate(
        **moved,
        **more,
        **({} if beams is None else {"num_beams": beams}),
        max_new_tokens=asked.input["max_new_tokens"],
        stopping_criteria=stopping_criteria(asked.cancelled),
    )
    return tokens.cpu()
