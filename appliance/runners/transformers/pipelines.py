"""Tasks of kind `transformers` for which the library has pipelines, and reranking, for which it has none.

Each public function loads a model for the task and returns the function that computes one prediction, or
several together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio
from appliance.runners.transformers.image_batches import (
    PreparedImage,
    compute_images,
    on_cpu,
    prepare_image,
)
from appliance.runners.transformers.loading import (
    BatchCompute,
    Compute,
    LoadRequest,
    PreparedInput,
    TaskInput,
    TaskResult,
    batch_size,
    check_fits,
    labels_of,
    load_image_processor,
    load_model,
    load_processor,
    make_pipeline,
    model_type,
    on_device,
    outcome,
    padded,
    stopping_criteria,
)
from appliance.runners.transformers_library import max_input_tokens

_MAX_SECONDS: Final = 3600.0  # of input audio
_CHUNK: Final = 30.0  # seconds of audio that CTC models compute at a time


# -- audio


def speech_recognition(loading: LoadRequest) -> Compute:
    """Transcribe audio with a CTC model, or with a model that generates text, such as Whisper."""
    from transformers import AutoFeatureExtractor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

    generates = model_type(loading) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    model = load_model(loading, "AutoModelForSpeechSeq2Seq" if generates else "AutoModelForCTC")
    extractor = load_processor(AutoFeatureExtractor, loading)
    pipe = make_pipeline(
        loading,
        "automatic-speech-recognition",
        model,
        tokenizer=load_processor(AutoTokenizer, loading),
        feature_extractor=extractor,
    )
    languages = getattr(model.generation_config, "lang_to_id", None) if generates else None

    def compute(request: TaskInput) -> TaskResult:
        rate = int(extractor.sampling_rate)
        samples = audio.read(Path(request.input["audio"]), rate, "audio", longest=_MAX_SECONDS)
        word = request.input["timestamp"] == "word"
        settings: dict[str, Any] = {"chunk_length_s": _CHUNK}
        language = _language(request.input, languages)
        if generates:
            settings = {
                "generate_kwargs": {**language, "stopping_criteria": stopping_criteria(request.cancelled)}
            }
        if pipe.type == "seq2seq_whisper":
            settings["return_timestamps"] = "word" if word else True
        elif pipe.type == "ctc" and word:
            settings["return_timestamps"] = "word"
        found = pipe(samples, **settings)
        chunks = [
            {
                "text": chunk["text"],
                "timestamp": [None if at is None else float(at) for at in chunk["timestamp"]],
            }
            for chunk in found.get("chunks", ())
        ]
        output = {"text": found["text"], "chunks": chunks}
        return TaskResult(output, {"audio_duration": round(samples.size / rate, 3)})

    return compute


def _language(input: Mapping[str, Any], languages: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments ``language`` and ``task`` for the ``generate`` method of Whisper.

    ``languages`` are the model's language tokens, such as ``<|en|>``; empty if it has only one language.

    Raises:
        PredictionFailed: the model does not know the language, or has no choice of languages or tasks.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = input["language"].strip().lower()
    named = name not in {"", "none", "auto"}
    if not languages:
        if named:
            raise PredictionFailed("input.language: this model knows only one language; leave this input out")
        if input["task"] != "transcribe":
            raise PredictionFailed("input.task: this model cannot translate; leave this input out")
        return {}
    code = TO_LANGUAGE_CODE.get(name, name)
    if named and f"<|{code}|>" not in languages:
        known = ", ".join(token.strip("<|>") for token in languages)
        raise PredictionFailed(f"input.language: this model does not know {name!r}; choose one of {known}")
    return {"task": input["task"], **({"language": code} if named else {})}


# -- images


def image_classification(loading: LoadRequest) -> BatchCompute:
    pipe = _image_pipeline(loading, "image-classification", "AutoModelForImageClassification")

    def postprocess(request: TaskInput, outputs: Any, _: PreparedImage) -> TaskResult:
        return TaskResult(_labels(pipe.postprocess(on_cpu(outputs), top_k=request.input["top_k"])))

    return BatchCompute(
        lambda items: compute_images(loading, pipe.model, items, postprocess),
        partial(prepare_image, pipe.preprocess),
    )


def object_detection(loading: LoadRequest) -> BatchCompute:
    """Find the objects in an image; their boxes are in pixels."""
    import torch

    pipe = _image_pipeline(loading, "object-detection", "AutoModelForObjectDetection")

    def postprocess(request: TaskInput, outputs: Any, image: PreparedImage) -> TaskResult:
        outputs = on_cpu(outputs)
        width, height = image.size
        outputs["target_size"] = torch.IntTensor([[height, width]])
        found = pipe.postprocess(outputs, threshold=request.input["threshold"])
        boxes = [
            {"label": each["label"], "score": float(each["score"]), "box": dict(each["box"])}
            for each in found
        ]
        return TaskResult(sorted(boxes, key=lambda box: -box["score"]))

    return BatchCompute(
        lambda items: compute_images(loading, pipe.model, items, postprocess),
        partial(prepare_image, partial(pipe.image_processor, return_tensors="pt")),
    )


def _image_pipeline(loading: LoadRequest, task: str, auto_class: str) -> Any:
    processor = load_image_processor(loading)
    return make_pipeline(loading, task, load_model(loading, auto_class), image_processor=processor)


# -- text to scores and labels


def reranking(loading: LoadRequest) -> BatchCompute:
    """Score from 0 to 1 how well each document answers a query, with a cross-encoder."""
    from transformers import AutoTokenizer

    model = load_model(loading, "AutoModelForSequenceClassification")
    tokenizer = load_processor(AutoTokenizer, loading)
    if model.config.num_labels > 2:
        raise LoadFailed(
            f"a model for reranking has one or two labels, but this model has {model.config.num_labels}; "
            "correct its source"
        )
    reranker = _Reranker(model, tokenizer, loading.max_batch)

    def prepare(request: TaskInput) -> PreparedInput:
        return PreparedInput(request, value=_documents(request.input["documents"]))

    return BatchCompute(reranker.ranked, prepare)


class _Reranker:
    """Scores pairs of a query and a document; a batch may have pairs of several predictions."""

    def __init__(self, model: Any, tokenizer: Any, most: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._size = most if tokenizer.pad_token is not None else 1
        self._limit = max_input_tokens(model, tokenizer)

    def ranked(self, items: list[PreparedInput]) -> list[TaskResult | Exception]:
        encoded = [outcome(self._encoded, item) for item in items]
        pairs = [
            (number, pair)
            for number, each in enumerate(encoded)
            if not isinstance(each, Exception)
            for pair in each
        ]
        scores: list[list[float]] = [[] for _ in items]
        for at in range(0, len(pairs), self._size):
            batch = [
                pair for pair in pairs[at : at + self._size] if not items[pair[0]].request.cancelled.is_set()
            ]
            found = self._scores([pair for _, pair in batch]) if batch else ()
            for (number, _), score in zip(batch, found, strict=True):
                scores[number].append(score)
        return [
            each
            if isinstance(each, Exception)
            else _ranked(item, scores[number], sum(len(pair["input_ids"]) for pair in each))
            for number, (item, each) in enumerate(zip(items, encoded, strict=True))
        ]

    def _encoded(self, item: PreparedInput) -> list[dict[str, Any]]:
        """Return the tokens of the query with each document."""
        query, tokenizer = item.request.input["query"], self._tokenizer
        asked = len(tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"])
        used = asked + tokenizer.num_special_tokens_to_add(pair=True)
        if self._limit is not None and used >= self._limit:
            raise PredictionFailed(
                f"input.query: the query has {asked} tokens, but this model accepts {self._limit} for the "
                "query and a document together; shorten it"
            )
        wanted = item.request.input.get("max_tokens")
        longest = min((most for most in (self._limit, wanted and used + wanted) if most), default=None)
        found = tokenizer(
            [query] * len(item.value),
            item.value,
            truncation=longest is not None and "only_second",
            max_length=longest,
            verbose=False,
        )
        return [{name: found[name][at] for name in found} for at in range(len(item.value))]

    def _scores(self, pairs: list[dict[str, Any]]) -> list[float]:
        import torch

        inputs = padded(self._tokenizer, pairs)
        with torch.inference_mode():
            logits = self._model(**on_device(self._model, inputs)).logits.float()
        column = logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(1)[:, 1]
        scores: list[float] = column.tolist()
        return scores


def _ranked(item: PreparedInput, scores: list[float], tokens: int) -> TaskResult:
    order = sorted(range(len(scores)), key=lambda number: -scores[number])[: item.request.input.get("top_k")]
    return TaskResult(
        [{"index": number, "score": scores[number], "document": item.value[number]} for number in order],
        {"input_token_count": tokens},
    )


def _documents(given: str | list[str]) -> list[str]:
    """Return the documents; callers may send them as a JSON list in a string.

    Raises:
        PredictionFailed: the value is not a list of strings, or the list is empty.
    """
    documents: Any = given
    if isinstance(given, str):
        try:
            documents = json.loads(given)
        except (ValueError, RecursionError):
            documents = None
    if isinstance(documents, list) and documents and all(isinstance(each, str) for each in documents):
        return documents
    raise PredictionFailed('input.documents: this must be a JSON list of strings, such as ["one", "two"]')


def text_classification(loading: LoadRequest) -> BatchCompute:
    pipe = _text_pipeline(loading, "text-classification", "AutoModelForSequenceClassification")

    def compute(items: list[PreparedInput]) -> list[TaskResult | Exception]:
        found = _of_texts(loading, pipe, items, top_k=None)
        return [
            each if isinstance(each, Exception) else TaskResult(_labels(each[: item.request.input["top_k"]]))
            for item, each in zip(items, found, strict=True)
        ]

    return BatchCompute(compute)


def zero_shot_classification(loading: LoadRequest) -> BatchCompute:
    """Score the caller's labels for a text, with a model trained on natural language inference."""
    pipe = _text_pipeline(loading, "zero-shot-classification", "AutoModelForSequenceClassification")
    if pipe.entailment_id < 0:
        raise LoadFailed(
            'the model has no label "entailment", which zero-shot classification needs; correct its source'
        )

    def prepare(request: TaskInput) -> PreparedInput:
        labels = tuple(labels_of(request.input["labels"], "labels"))
        return PreparedInput(
            request, (labels, request.input["multi_label"], request.input["hypothesis_template"])
        )

    def compute(items: list[PreparedInput]) -> list[TaskResult | Exception]:
        labels, several, template = cast("tuple[tuple[str, ...], bool, str]", items[0].key)
        settings = {"multi_label": several, "hypothesis_template": template}
        found = _of_texts(loading, pipe, items, candidate_labels=list(labels), **settings)
        return [each if isinstance(each, Exception) else TaskResult(_ordered(each)) for each in found]

    return BatchCompute(compute, prepare)


def _ordered(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    pairs = zip(found["labels"], found["scores"], strict=True)
    return _labels([{"label": label, "score": score} for label, score in pairs])


def token_classification(loading: LoadRequest) -> BatchCompute:
    """Find entities in a text, such as names; ``start`` and ``end`` are positions of characters."""
    pipe = _text_pipeline(loading, "token-classification", "AutoModelForTokenClassification")

    def prepare(request: TaskInput) -> PreparedInput:
        return PreparedInput(request, request.input["aggregation"])

    def compute(items: list[PreparedInput]) -> list[TaskResult | Exception]:
        found = _of_texts(loading, pipe, items, aggregation_strategy=items[0].key)
        return [each if isinstance(each, Exception) else TaskResult(_entities(each)) for each in found]

    return BatchCompute(compute, prepare)


def _entities(found: Any) -> list[dict[str, Any]]:
    return [
        {
            "entity": each["entity_group"] if "entity_group" in each else each["entity"],
            "score": float(each["score"]),
            "word": each["word"],
            "start": int(each["start"]),
            "end": int(each["end"]),
        }
        for each in found
    ]


def fill_mask(loading: LoadRequest) -> BatchCompute:
    pipe = _text_pipeline(loading, "fill-mask", "AutoModelForMaskedLM")
    mask = pipe.tokenizer.mask_token

    def with_mask(text: str) -> str:
        text = text.replace("[MASK]", mask).replace("<mask>", mask)
        if text.count(mask) != 1:
            raise PredictionFailed("input.text: the text must have [MASK] or <mask> exactly once")
        return text

    def prepare(request: TaskInput) -> PreparedInput:
        text = with_mask(request.input["text"])
        return PreparedInput(request._replace(input={**request.input, "text": text}), request.input["top_k"])

    def compute(items: list[PreparedInput]) -> list[TaskResult | Exception]:
        found = _of_texts(loading, pipe, items, top_k=items[0].key)
        return [each if isinstance(each, Exception) else TaskResult(_words(each)) for each in found]

    return BatchCompute(compute, prepare)


def _words(found: Any) -> list[dict[str, Any]]:
    return [
        {"token": each["token_str"], "score": float(each["score"]), "text": each["sequence"]}
        for each in found
    ]


def _of_texts(loading: LoadRequest, pipe: Any, items: list[PreparedInput], **settings: Any) -> list[Any]:
    """Return the result of the pipeline for the text of each item; the error of a text that is too long."""
    texts = [item.request.input["text"] for item in items]
    found: list[Any] = [outcome(partial(check_fits, pipe.model, pipe.tokenizer), text) for text in texts]
    lengths = {number: each for number, each in enumerate(found) if isinstance(each, int)}
    if lengths:
        size = batch_size(loading, pipe.tokenizer, lengths.values())
        # a generator, because the result for a list with one text is not always a list
        results = list(pipe((texts[number] for number in lengths), batch_size=size, **settings))
        for number, result in zip(lengths, results, strict=True):
            found[number] = result
    return found


def _text_pipeline(loading: LoadRequest, task: str, auto_class: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = load_processor(AutoTokenizer, loading)
    return make_pipeline(loading, task, load_model(loading, auto_class), tokenizer=tokenizer)


def _labels(found: Any) -> list[dict[str, Any]]:
    return [{"label": each["label"], "score": float(each["score"])} for each in found]
