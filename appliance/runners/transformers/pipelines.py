"""Tasks of kind `transformers` that are pipelines of the library, and reranking, for which it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners import audio, images
from appliance.runners.model_loading import (
    Compute,
    LoadRequest,
    TaskInput,
    TaskResult,
    fit,
    from_folder,
    model_of,
    model_type,
    most_tokens,
    pipeline_of,
    stopping_criteria,
)

_LONGEST: Final = 3600.0  # seconds of sound
_CHUNK: Final = 30.0  # seconds of sound that models that spell hear at once


# -- sound


def speech_recognition(loading: LoadRequest) -> Compute:
    """Models that spell (CTC) and models that write, such as Whisper."""
    from transformers import AutoFeatureExtractor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES

    writes = model_type(loading) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    model = model_of(loading, "AutoModelForSpeechSeq2Seq" if writes else "AutoModelForCTC")
    extractor = from_folder(AutoFeatureExtractor, loading)
    pipe = pipeline_of(
        loading,
        "automatic-speech-recognition",
        model,
        tokenizer=from_folder(AutoTokenizer, loading),
        feature_extractor=extractor,
    )
    languages = getattr(model.generation_config, "lang_to_id", None) if writes else None

    def compute(asked: TaskInput) -> TaskResult:
        rate = int(extractor.sampling_rate)
        sound = audio.read(Path(asked.input["audio"]), rate, "audio", longest=_LONGEST)
        word = asked.input["timestamp"] == "word"
        settings: dict[str, Any] = {"chunk_length_s": _CHUNK}
        spoken = _spoken(asked.input, languages)
        if writes:
            settings = {
                "generate_kwargs": {**spoken, "stopping_criteria": stopping_criteria(asked.cancelled)}
            }
        if pipe.type == "seq2seq_whisper":
            settings["return_timestamps"] = "word" if word else True
        elif pipe.type == "ctc" and word:
            settings["return_timestamps"] = "word"
        heard = pipe(sound, **settings)
        chunks = [
            {
                "text": part["text"],
                "timestamp": [None if at is None else float(at) for at in part["timestamp"]],
            }
            for part in heard.get("chunks", ())
        ]
        output = {"text": heard["text"], "chunks": chunks}
        return TaskResult(output, {"audio_duration": round(sound.size / rate, 3)})

    return compute


def _spoken(input: Mapping[str, Any], languages: Mapping[str, Any] | None) -> dict[str, Any]:
    """Language and task as Whisper's ``generate`` calls them; ``languages`` are the model's.

    Raises:
        PredictionFailed: the model knows one language only, or not this one.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = input["language"].strip().lower()
    named = name not in {"", "none", "auto"}
    if not languages:
        if named:
            raise PredictionFailed("input.language: this model knows one language only; leave it out")
        if input["task"] != "transcribe":
            raise PredictionFailed("input.task: this model translates nothing")
        return {}
    code = TO_LANGUAGE_CODE.get(name, name)
    if named and f"<|{code}|>" not in languages:
        known = ", ".join(token.strip("<|>") for token in languages)
        raise PredictionFailed(f"input.language: this model does not know {name!r}; it knows {known}")
    return {"task": input["task"], **({"language": code} if named else {})}


def text_to_speech(loading: LoadRequest) -> Compute:
    """Models that make sound themselves, such as VITS; not those that need another one as a vocoder."""
    from transformers import AutoTokenizer

    model = model_of(loading, "AutoModelForTextToWaveform")
    pipe = pipeline_of(loading, "text-to-audio", model, tokenizer=from_folder(AutoTokenizer, loading))

    def compute(asked: TaskInput) -> TaskResult:
        import numpy as np

        more = {"stopping_criteria": stopping_criteria(asked.cancelled)} if model.can_generate() else {}
        made = pipe(asked.input["text"], **({"generate_kwargs": more} if more else {}))
        samples = np.asarray(made["audio"], dtype=np.float32).reshape(-1)
        if not samples.size:
            raise PredictionFailed("input.text: there is nothing in it that can be spoken")
        asked.folder.mkdir(parents=True, exist_ok=True)
        file = asked.folder / f"output.{asked.input['output_format']}"
        audio.write(file, samples, int(made["sampling_rate"]))
        return TaskResult(file, {"audio_duration": round(samples.size / made["sampling_rate"], 3)})

    return compute


# -- images


def image_classification(loading: LoadRequest) -> Compute:
    """Labels of an image."""
    pipe = _sees(loading, "image-classification", "AutoModelForImageClassification")

    def compute(asked: TaskInput) -> TaskResult:
        picture = images.read(Path(asked.input["image"]), "image")
        return TaskResult(_labelled(pipe(picture, top_k=asked.input["top_k"])))

    return compute


def object_detection(loading: LoadRequest) -> Compute:
    """Objects in an image, with boxes in pixels."""
    pipe = _sees(loading, "object-detection", "AutoModelForObjectDetection")

    def compute(asked: TaskInput) -> TaskResult:
        picture = images.read(Path(asked.input["image"]), "image")
        found = pipe(picture, threshold=asked.input["threshold"])
        boxes = [
            {"label": part["label"], "score": float(part["score"]), "box": dict(part["box"])}
            for part in found
        ]
        return TaskResult(sorted(boxes, key=lambda part: -part["score"]))

    return compute


def _sees(loading: LoadRequest, task: str, kind: str) -> Any:
    """A pipeline over images, which are prepared with Pillow: torchvision is not needed."""
    from transformers import AutoImageProcessor

    processor = from_folder(AutoImageProcessor, loading, backend="pil")
    return pipeline_of(loading, task, model_of(loading, kind), image_processor=processor)


# -- text to numbers and labels


def reranking(loading: LoadRequest) -> Compute:
    """Cross-encoders: how well each document answers a query, from 0 to 1."""
    import torch
    from transformers import AutoTokenizer

    model = model_of(loading, "AutoModelForSequenceClassification")
    tokenizer = from_folder(AutoTokenizer, loading)
    if model.config.num_labels > 2:
        raise LoadFailed(f"the model has {model.config.num_labels} labels; one for reranking has one or two")
    size = loading.max_batch if tokenizer.pad_token is not None else 1
    limit = most_tokens(model, tokenizer)

    def compute(asked: TaskInput) -> TaskResult:
        query, documents = asked.input["query"], _listed(asked.input["documents"])
        scores: list[float] = []
        for at in range(0, len(documents), size):
            if asked.cancelled.is_set():
                break
            some = documents[at : at + size]
            inputs = tokenizer(
                [query] * len(some),
                some,
                padding=len(some) > 1,
                truncation="only_second",
                max_length=limit,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                logits = model(**inputs).logits.float()
            found = logits.sigmoid()[:, 0] if logits.shape[1] == 1 else logits.softmax(1)[:, 1]
            scores += found.tolist()
        order = sorted(range(len(scores)), key=lambda number: -scores[number])[: asked.input.get("top_k")]
        return TaskResult(
            [{"index": number, "score": scores[number], "document": documents[number]} for number in order]
        )

    return compute


def _listed(given: str | list[str]) -> list[str]:
    """Documents as callers give them.

    Raises:
        PredictionFailed: it is no list of texts, or an empty one.
    """
    documents: Any = given
    if isinstance(given, str):
        try:
            documents = json.loads(given)
        except (ValueError, RecursionError):
            documents = None
    if not isinstance(documents, list) or not documents or not all(isinstance(one, str) for one in documents):
        raise PredictionFailed('input.documents: this must be a JSON list of strings, such as ["one", "two"]')
    return documents


def text_classification(loading: LoadRequest) -> Compute:
    """Labels of a text."""
    pipe = _reads(loading, "text-classification", "AutoModelForSequenceClassification")

    def compute(asked: TaskInput) -> TaskResult:
        fit(pipe.model, pipe.tokenizer, asked.input["text"])
        return TaskResult(_labelled(pipe(asked.input["text"], top_k=asked.input["top_k"])))

    return compute


def zero_shot_classification(loading: LoadRequest) -> Compute:
    """Scores of the caller's labels for a text, by a model that was trained on natural language inference."""
    pipe = _reads(loading, "zero-shot-classification", "AutoModelForSequenceClassification")
    if pipe.entailment_id < 0:
        raise LoadFailed('the model has no label called "entailment", by which labels are compared')

    def compute(asked: TaskInput) -> TaskResult:
        given = asked.input["labels"]
        parts = given if isinstance(given, list) else given.split(",")
        labels = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
        if not labels:
            raise PredictionFailed("input.labels: there is no label in it")
        fit(pipe.model, pipe.tokenizer, asked.input["text"])
        found = pipe(
            asked.input["text"],
            candidate_labels=labels,
            multi_label=asked.input["multi_label"],
            hypothesis_template=asked.input["hypothesis_template"],
        )
        pairs = zip(found["labels"], found["scores"], strict=True)
        return TaskResult(_labelled([{"label": label, "score": score} for label, score in pairs]))

    return compute


def token_classification(loading: LoadRequest) -> Compute:
    """Names and the like in a text; ``start`` and ``end`` count its characters."""
    pipe = _reads(loading, "token-classification", "AutoModelForTokenClassification")

    def compute(asked: TaskInput) -> TaskResult:
        text = asked.input["text"]
        fit(pipe.model, pipe.tokenizer, text)
        found = pipe(text, aggregation_strategy=asked.input["aggregation"])
        return TaskResult(
            [
                {
                    "entity": part["entity_group"] if "entity_group" in part else part["entity"],
                    "score": float(part["score"]),
                    "word": part["word"],
                    "start": int(part["start"]),
                    "end": int(part["end"]),
                }
                for part in found
            ]
        )

    return compute


def fill_mask(loading: LoadRequest) -> Compute:
    """Candidates for the masked token of a text."""
    pipe = _reads(loading, "fill-mask", "AutoModelForMaskedLM")
    mask = pipe.tokenizer.mask_token

    def compute(asked: TaskInput) -> TaskResult:
        text = asked.input["text"].replace("[MASK]", mask).replace("<mask>", mask)
        if text.count(mask) != 1:
            raise PredictionFailed("input.text: there must be [MASK] or <mask> in it, once")
        fit(pipe.model, pipe.tokenizer, text)
        found = pipe(text, top_k=asked.input["top_k"])
        return TaskResult(
            [
                {"token": part["token_str"], "score": float(part["score"]), "text": part["sequence"]}
                for part in found
            ]
        )

    return compute


def _reads(loading: LoadRequest, task: str, kind: str) -> Any:
    from transformers import AutoTokenizer

    return pipeline_of(loading, task, model_of(loading, kind), tokenizer=from_folder(AutoTokenizer, loading))


def _labelled(found: Any) -> list[dict[str, Any]]:
    return [{"label": part["label"], "score": float(part["score"])} for part in found]
