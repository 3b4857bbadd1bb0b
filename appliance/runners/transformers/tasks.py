"""The tasks of kind `transformers`: inputs, output and loading function of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from appliance.domain.input_schema import LIST_TOO
from appliance.domain.interface import FILE_LINES
from appliance.runners import audio
from appliance.runners.interfaces import FILE
from appliance.runners.schemas import boolean, choice, integer, number, string
from appliance.runners.transformers import image_outputs, image_text, music, pipelines, seq2seq, speech
from appliance.runners.transformers.loading import BatchCompute, Compute, LoadRequest
from appliance.runners.transformers.options import CSM

Schema = dict[str, Any]


class Task(NamedTuple):
    """One task: the arguments of ``interface_of``, and ``load``, which loads a model for the task.

    ``inputs_of_type`` has further inputs of some models, by the ``model_type`` of their config.json.
    """

    inputs: Mapping[str, Schema]
    output: Schema
    load: Callable[[LoadRequest], Compute | BatchCompute]
    required: tuple[str, ...]
    aliases: Mapping[str, str] = MappingProxyType({})
    inputs_of_type: Mapping[str, Mapping[str, Schema]] = MappingProxyType({})


_NUMBER: Final[Schema] = {"type": "number"}
_INTEGER: Final[Schema] = {"type": "integer"}
_STRING: Final[Schema] = {"type": "string"}


def _list_of(**properties: Schema) -> Schema:
    return {"type": "array", "items": {"type": "object", "properties": properties}}


def _text(description: str) -> Schema:
    return string(description, minLength=1)


def _count(description: str, default: int | None = None) -> Schema:
    return integer(description, default=default, ge=1, le=1000)


_IMAGE: Final[Schema] = {**FILE, "description": "Input image"}
_GENERATION: Final[dict[str, Schema]] = {
    "max_new_tokens": integer("Maximum length of the output, in tokens", default=256, ge=1, le=4096),
    "num_beams": integer(
        "Beam width: candidate outputs that are kept while decoding. Default: the model's", ge=1, le=16
    ),
}
_PREFIX: Final = string('Text to put before the input, such as "translate English to German: " for T5 models')
_LABELS: Final = _list_of(label=_STRING, score=_NUMBER)
_BOX: Final[Schema] = {
    "type": "object",
    "properties": dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), _INTEGER),
}
_SEED: Final = integer(
    "Equal seeds give equal outputs on the same machine. Default and -1: random", ge=-1, le=2**53 - 1
)
#: Inputs of models that clone the voice of a recording.
_VOICE: Final[dict[str, Schema]] = {
    "reference_audio": {
        **FILE,
        "description": "Audio or video file with the voice to clone, "
        f"{speech.SHORTEST_REFERENCE} to {speech.LONGEST_REFERENCE} seconds long; requires reference_text. "
        "Default: a random voice",
    },
    "reference_text": string("The words that are spoken in reference_audio"),
    "max_duration": integer(
        "Maximum length of the output in seconds", default=60, ge=1, le=speech.LONGEST_OUTPUT
    ),
    "temperature": number(
        "Sampling temperature; higher values give more varied speech", default=0.9, ge=0.01, le=2
    ),
    "seed": _SEED,
}
_TOP_K: Final = _count("Maximum number of labels to return, the most likely first", default=5)

TASKS: Final[dict[str, Task]] = {
    "automatic-speech-recognition": Task(
        inputs={
            "audio": {**FILE, "description": "Audio or video file to transcribe"},
            "task": choice(
                "translate: transcribe in English, if the model can",
                ["transcribe", "translate"],
                default="transcribe",
            ),
            "language": string(
                "Spoken language: a code or its English name; None: detect it", default="None"
            ),
            "timestamp": choice(
                "Unit of the timestamps; CTC models support only word", ["chunk", "word"], default="chunk"
            ),
        },
        output={
            "type": "object",
            "properties": {
                "text": _STRING,
                "chunks": _list_of(text=_STRING, timestamp={"type": "array", "items": _NUMBER}),
            },
        },
        load=pipelines.speech_recognition,
        required=("audio",),
        aliases={"audio_file": "audio", "file": "audio"},
    ),
    "text-to-speech": Task(
        inputs={
            "text": _text("Text to speak"),
            "output_format": choice("Format of the audio file", audio.FORMATS, default="wav"),
        },
        output=dict(FILE),
        load=speech.text_to_speech,
        required=("text",),
        aliases={"prompt": "text"},
        inputs_of_type={CSM: _VOICE},
    ),
    "text-to-audio": Task(
        inputs={
            "prompt": _text("Description of the music or the sound"),
            "input_audio": {
                **FILE,
                "description": "Audio or video file that the output begins with; not for MusicGen Melody",
            },
            "duration": integer(
                "Length of the output in seconds, including input_audio",
                default=8,
                ge=1,
                le=music.MAX_SECONDS,
            ),
            "top_k": integer(
                "Sample each token from this many of the most likely; 0: from all", default=250, ge=0, le=2048
            ),
            "top_p": number(
                "Sample each token from the likeliest whose probabilities add up to this; 0: use top_k",
                default=0,
                ge=0,
                le=1,
            ),
            "temperature": number(
                "Sampling temperature; higher values give more varied output", default=1, ge=0.01, le=5
            ),
            "classifier_free_guidance": number(
                "How closely the output follows the prompt", default=3, ge=1, le=20
            ),
            "seed": _SEED,
            "output_format": choice("Format of the audio file", audio.WITH_HEADER, default="wav"),
        },
        output=dict(FILE),
        load=music.text_to_audio,
        required=("prompt",),
        aliases={"text": "prompt", "guidance_scale": "classifier_free_guidance"},
    ),
    "reranking": Task(
        inputs={
            "query": _text("Query to compare the documents with"),
            "documents": string(
                "Texts to rank, as a JSON list of strings; a text too long for the model is truncated"
            )
            | {LIST_TOO: True},
            "top_k": _count("Maximum number of documents to return, the best first. Default: all"),
            "max_tokens": integer(
                "Maximum number of tokens of a document; longer ones are truncated. Default: what the model "
                "accepts",
                ge=1,
            ),
        },
        output=_list_of(index=_INTEGER, score=_NUMBER, document=_STRING),
        load=pipelines.reranking,
        required=("query", "documents"),
        aliases={"texts": "documents", "top_n": "top_k"},
    ),
    "image-classification": Task(
        inputs={"image": _IMAGE, "top_k": _TOP_K},
        output=_LABELS,
        load=pipelines.image_classification,
        required=("image",),
        aliases={"input": "image"},
    ),
    "image-captioning": Task(
        inputs={"image": _IMAGE, "prompt": string("Start of the caption, or a question"), **_GENERATION},
        output=dict(_STRING),
        load=seq2seq.image_captioning,
        required=("image",),
        aliases={"question": "prompt", "text": "prompt"},
    ),
    "object-detection": Task(
        inputs={
            "image": _IMAGE,
            "threshold": number("Minimum score of the objects to return", default=0.5, ge=0, le=1),
        },
        output=_list_of(
            label=_STRING,
            score=_NUMBER,
            box=_BOX,
        ),
        load=pipelines.object_detection,
        required=("image",),
        aliases={"input": "image", "confidence": "threshold"},
    ),
    "ocr": Task(
        inputs={
            "image": _IMAGE,
            "prompt": string("Instruction to a chat model. Default: read all the text in this image"),
            **_GENERATION,
        },
        output=dict(_STRING),
        load=seq2seq.ocr,
        required=("image",),
    ),
    "visual-question-answering": Task(
        inputs={"image": _IMAGE, "question": _text("Question about the image"), **_GENERATION},
        output=dict(_STRING),
        load=seq2seq.visual_question_answering,
        required=("image", "question"),
        aliases={"prompt": "question", "text": "question", "query": "question"},
    ),
    "image-text-embeddings": Task(
        inputs={
            "inputs": string(
                "Texts and URLs of images (http:// or https://), one a line or as a list. A text too long "
                "for the model is truncated",
                minLength=1,
            )
            | {LIST_TOO: True, FILE_LINES: True},
            "normalize_embeddings": boolean(
                "Scale vectors to length 1, so that their dot product is their cosine", default=False
            ),
        },
        output=_list_of(input=_STRING, embedding={"type": "array", "items": _NUMBER}),
        load=image_text.image_text_embeddings,
        required=("inputs",),
        aliases={"text": "inputs", "texts": "inputs"},
    ),
    "zero-shot-image-classification": Task(
        inputs={
            "image": _IMAGE,
            "labels": _text("Labels to choose from, separated by commas or | or as a list")
            | {LIST_TOO: True},
            "hypothesis_template": string(
                "Text for the comparison; {} is replaced by each label",
                default="This is a photo of {}.",
                pattern=r"\{\}",
            ),
        },
        output=_LABELS,
        load=image_text.zero_shot_image_classification,
        required=("image", "labels"),
        aliases={"candidate_labels": "labels", "text": "labels", "input": "image"},
    ),
    "zero-shot-object-detection": Task(
        inputs={
            "image": _IMAGE,
            "query": _text("Objects to find, separated by commas or as a list") | {LIST_TOO: True},
            "box_threshold": number("Minimum confidence of the objects to return", default=0.25, ge=0, le=1),
            "text_threshold": number(
                "Minimum match of a word for it to be part of an object's label; only for Grounding DINO",
                default=0.25,
                ge=0,
                le=1,
            ),
            "show_visualisation": boolean("Return the image with the boxes drawn on it", default=True),
        },
        output={
            "type": "object",
            "properties": {
                "detections": _list_of(
                    bbox={"type": "array", "items": _INTEGER}, label=_STRING, confidence=_NUMBER
                ),
                "result_image": dict(FILE),
            },
        },
        load=image_text.zero_shot_object_detection,
        required=("image", "query"),
        aliases={
            "prompt": "query",
            "labels": "query",
            "candidate_labels": "query",
            "threshold": "box_threshold",
        },
    ),
    "image-segmentation": Task(
        inputs={
            "image": _IMAGE,
            "threshold": number(
                "Minimum score of the segments to return. Default: 0.5 for models that find objects, 0 for "
                "models that label each pixel",
                ge=0,
                le=1,
            ),
        },
        output=_list_of(label=_STRING, score=_NUMBER, box=_BOX, mask=dict(FILE)),
        load=image_outputs.image_segmentation,
        required=("image",),
        aliases={"input": "image", "input_image": "image"},
    ),
    "background-removal": Task(
        inputs={
            "image": _IMAGE,
            "labels": string(
                "Labels of the model to keep, separated by commas or as a list. Default: all but the "
                "background"
            )
            | {LIST_TOO: True},
            "threshold": number(
                "Share of the foreground in a pixel from which the pixel is kept whole; others are removed. "
                "0: soft edges",
                default=0,
                ge=0,
                le=1,
            ),
            "reverse": boolean("Remove the foreground instead of the background", default=False),
            "background_type": choice(
                "rgba: transparent background; map: only the mask, white is kept; or a colour",
                ["rgba", "map", *image_outputs.COLOURS],
                default="rgba",
            ),
        },
        output=dict(FILE),
        load=image_outputs.background_removal,
        required=("image",),
        aliases={"input_image": "image"},
    ),
    "depth-estimation": Task(
        inputs={"image": _IMAGE},
        output={
            "type": "object",
            "properties": {
                "grey_depth": dict(FILE),
                "depth_16_bits": dict(FILE),
                "minimum": _NUMBER,
                "maximum": _NUMBER,
            },
        },
        load=image_outputs.depth_estimation,
        required=("image",),
        aliases={"input_image": "image"},
    ),
    "super-resolution": Task(
        inputs={
            "image": _IMAGE,
            "scale": number(
                "Factor of width and height. The image is enlarged by the model's own factor, and then "
                "resized. Default: the model's own factor",
                ge=0.1,
                le=10,
            ),
        },
        output=dict(FILE),
        load=image_outputs.super_resolution,
        required=("image",),
        aliases={"img": "image", "input_image": "image", "upscale": "scale"},
    ),
    "translation": Task(
        inputs={
            "text": _text("Text to translate"),
            "source_language": string(
                "Language of the text as the model names it; not for models for two languages"
            ),
            "target_language": string("Language to translate into, as above"),
            "prefix": _PREFIX,
            **_GENERATION,
        },
        output=dict(_STRING),
        load=seq2seq.translation,
        required=("text",),
        aliases={"input_text": "text", "src_lang": "source_language", "tgt_lang": "target_language"},
    ),
    "summarization": Task(
        inputs={"text": _text("Text to summarise"), "prefix": _PREFIX, **_GENERATION},
        output=dict(_STRING),
        load=seq2seq.summarization,
        required=("text",),
        aliases={"input_text": "text", "prompt": "text"},
    ),
    "text-classification": Task(
        inputs={"text": _text("Text to classify"), "top_k": _TOP_K},
        output=_LABELS,
        load=pipelines.text_classification,
        required=("text",),
    ),
    "zero-shot-classification": Task(
        inputs={
            "text": _text("Text to classify"),
            "labels": _text("Labels to choose from, separated by commas or as a list") | {LIST_TOO: True},
            "multi_label": boolean(
                "Whether several labels can apply; scores are then independent", default=False
            ),
            "hypothesis_template": string(
                "Sentence for the comparison; {} is replaced by each label",
                default="This example is {}.",
                pattern=r"\{\}",
            ),
        },
        output=_LABELS,
        load=pipelines.zero_shot_classification,
        required=("text", "labels"),
        aliases={"candidate_labels": "labels"},
    ),
    "token-classification": Task(
        inputs={
            "text": _text("Text to find entities in"),
            "aggregation": choice(
                "How tokens are combined into entities",
                ["none", "simple", "first", "average", "max"],
                default="simple",
            ),
        },
        output=_list_of(entity=_STRING, score=_NUMBER, word=_STRING, start=_INTEGER, end=_INTEGER),
        load=pipelines.token_classification,
        required=("text",),
    ),
    "fill-mask": Task(
        inputs={
            "text": _text("Text with [MASK] or <mask> in one place"),
            "top_k": _count("Maximum number of candidates to return, the most likely first", default=5),
        },
        output=_list_of(token=_STRING, score=_NUMBER, text=_STRING),
        load=pipelines.fill_mask,
        required=("text",),
    ),
}
