"""Choose the kind of a model, and its options, from the files of its source."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from appliance.adding import lora
from appliance.adding.listing import Listing
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.runners import model_configs
from appliance.weights import selection

#: Ends of architectures in config.json -> task of the kind `transformers`; the first that matches is used.
_TASKS: Final = {
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "OwlViTForObjectDetection": "zero-shot-object-detection",
    "Owlv2ForObjectDetection": "zero-shot-object-detection",
    "GroundingDinoForObjectDetection": "zero-shot-object-detection",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "DetrForSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "Swin2SRForImageSuperResolution": "super-resolution",
    "BlipForQuestionAnswering": "visual-question-answering",
    "ViltForQuestionAnswering": "visual-question-answering",
    "CLIPModel": "image-text-embeddings",
    "SiglipModel": "image-text-embeddings",
    "Siglip2Model": "image-text-embeddings",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "SpeechT5ForTextToSpeech": "text-to-speech",
    "VitsModel": "text-to-speech",
    "CsmForConditionalGeneration": "text-to-speech",
    "MusicgenForConditionalGeneration": "text-to-audio",
    "MusicgenMelodyForConditionalGeneration": "text-to-audio",
    "MarianMTModel": "translation",
    "M2M100ForConditionalGeneration": "translation",
    "MBartForConditionalGeneration": "translation",
    "FSMTForConditionalGeneration": "translation",
    "PegasusForConditionalGeneration": "summarization",
    "LEDForConditionalGeneration": "summarization",
    "BartForConditionalGeneration": "summarization",
    "BlipForConditionalGeneration": "image-captioning",
    "VisionEncoderDecoderModel": "image-captioning",
}
#: Encoders and decoders of VisionEncoderDecoderModel that read text (TrOCR, Donut), by ``model_type``.
_READERS: Final = {"trocr", "donut-swin"}
#: Tasks that encoder-decoder models for text are served for.
_TEXT_TO_TEXT: Final = ("translation", "summarization")
_SMALLER: Final = 0.75  # a variant is chosen if its files have at most this share of the plain files' size
_LOOKED_FOR: Final = (
    "cog.yaml (a Cog project), model_index.json (a diffusers pipeline), a file .gguf, modules.json (a "
    "sentence-transformers model), model.bin with config.json (Whisper in CTranslate2's format), files .onnx "
    "with .onnx.json (Piper voices), files .onnx with voices/*.bin (Kokoro), files .onnx with det and rec in "
    "their names (text in images), silero_vad.onnx (voice activity), and config.json with a known "
    "architecture"
)


class Recognized(msgspec.Struct, frozen=True):
    """What a source is."""

    kind: str
    about: str  # what was found, for people
    options: dict[str, Any] = {}
    file: str | None = None  # the only file to use


def recognize(
    listing: Listing, file: str | None = None, kind: str | None = None, task: str | None = None
) -> Recognized:
    """Return the kind and options for a source.

    ``file`` chooses among several GGUF files or voices. ``kind`` and ``task``, if given, are used instead of
    those that the files suggest.

    Raises:
        WeightsError: the files are of no kind that the appliance runs; the message says what was looked for.
    """
    names = set(listing.sizes)
    if file is not None and file not in names:
        raise WeightsError(f"{listing.title} has no file {file}: correct --file")
    if kind is not None or task is not None:
        return _as_kind(listing, file, kind or "transformers", task)
    if file is None and (whole := _of_one_file(listing)) is not None:
        return whole
    if found := _gguf(listing, file):
        return Recognized("vllm", f"a language model as GGUF, {found}", file=found)
    if found_onnx := _onnx(listing, file):
        return found_onnx
    if {"model.bin", "config.json"} <= names and any(name.startswith("vocabulary.") for name in names):
        return Recognized("whisper", "Whisper in CTranslate2's format (model.bin)")
    if "config.json" in names:
        return _transformers(listing)
    raise _unrecognised(listing)


def _unrecognised(listing: Listing) -> WeightsError:
    if any(name.endswith(".onnx") for name in listing.sizes):
        return WeightsError(
            f"{listing.title} has an ONNX file of unknown inputs and outputs: describe these in an entry of "
            "kind onnx in models.yaml"
        )
    return WeightsError(
        f"{listing.title} is not recognised: looked for {_LOOKED_FOR}, and found none of them; if you know "
        "the kind, name it with --kind"
    )


def _of_one_file(listing: Listing) -> Recognized | None:
    """Return the source as a model of a kind that one file of a certain name identifies."""
    lora.refuse_adapter(listing)
    if "cog.yaml" in listing.sizes:
        return Recognized("cog", "a Cog project (cog.yaml)")
    if selection.PIPELINE in listing.sizes:
        return _diffusers(listing)
    if "modules.json" in listing.sizes:
        _need_safetensors(listing)
        return Recognized("embeddings", "a sentence-transformers model (modules.json)")
    return None


def _as_kind(listing: Listing, file: str | None, kind: str, task: str | None) -> Recognized:
    """Return the source as a model of a kind that the user names."""
    known = [name for name, each in model_configs().items() if each.model_fields["source"].is_required()]
    if kind not in known:
        raise ApplianceError(
            f"{kind!r} is not a kind with weights: name one of {', '.join(known)} with --kind"
        )
    options: dict[str, Any] = {}
    about = f"the kind {kind}, as given"
    if kind == "cog" and "cog.yaml" not in listing.sizes:
        raise WeightsError(f"{listing.title} is not a Cog project: it has no cog.yaml")
    if kind == "vllm":
        file = file or _gguf(listing, None)
    if kind == "diffusers":
        found = _diffusers(listing)
        options, about = dict(found.options), found.about
    if kind == "transformers":
        architecture, content = _architecture(listing)
        task = task or _task(architecture, content, listing.task)
        about = f"{architecture or 'a model'}, for {task or 'no task'}"
    if task is not None:
        if "task" not in _option_fields(kind):
            raise ApplianceError(f"models of the kind {kind} have no task: leave out --task")
        options["task"] = task
    return Recognized(kind, about, options, file)


def _option_fields(kind: str) -> dict[str, Any]:
    annotation: Any = model_configs()[kind].model_fields["options"].annotation
    return dict(getattr(annotation, "model_fields", {}))


def _diffusers(listing: Listing) -> Recognized:
    index = listing.json(selection.PIPELINE)
    _need_safetensors(listing)
    about = f"a diffusers pipeline, {index.get('_class_name', 'unknown')}"
    variant = _variant(listing, selection.components(index))
    if variant is None:
        return Recognized("diffusers", about)
    return Recognized("diffusers", f"{about}, variant {variant}", {"variant": variant})


def _variant(listing: Listing, pipeline: frozenset[str]) -> str | None:
    """Return the variant of a pipeline that is much smaller than the plain files; None if there is none."""
    patterns = ("*.safetensors",)

    def size(variant: str | None) -> int:
        files = selection.weight_files(listing.sizes, patterns, variant=variant, pipeline=pipeline)
        return sum(listing.sizes[name] for name in files)

    plain = size(None)
    only = {name: size(name) for name in ("fp16", "bf16") if name in selection.variants(listing.sizes)}
    smallest = min(only, key=lambda name: only[name], default=None)
    if smallest is None:
        return None
    has_plain = not _lacks_plain(listing, pipeline)
    return smallest if only[smallest] <= _SMALLER * plain or not has_plain else None


def _lacks_plain(listing: Listing, pipeline: frozenset[str]) -> bool:
    """Return whether a component of the pipeline has weights only as a variant."""
    files = selection.weight_files(listing.sizes, ("*.safetensors",), pipeline=pipeline)
    return bool(selection.variants(files))


def _gguf(listing: Listing, file: str | None) -> str | None:
    if file is not None:
        return file if file.lower().endswith(".gguf") else None
    found = sorted(name for name in listing.sizes if name.lower().endswith(".gguf"))
    if not found or any(fnmatch(name, "*.safetensors") for name in listing.sizes):
        return None
    if len(found) > 1:
        shown = ", ".join(found[:12]) + (" ..." if len(found) > 12 else "")
        raise WeightsError(f"{listing.title} has several GGUF files: name one with --file: {shown}")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", found[0]):
        raise WeightsError(
            f"{listing.title}: {found[0]} is one part of a split GGUF file: merge the parts first"
        )
    return found[0]


def _voices(listing: Listing, file: str | None) -> list[str]:
    voices = [name for name in listing.sizes if name.endswith(".onnx") and f"{name}.json" in listing.sizes]
    if file is not None:
        return [file] if file in voices else []
    folders = {str(PurePosixPath(name).parent) for name in voices}
    if voices and (len(folders) > 1 or folders != {"."}):
        shown = ", ".join(sorted(voices)[:12]) + (" ..." if len(voices) > 12 else "")
        raise WeightsError(f"{listing.title} has voices in subfolders: name one with --file: {shown}")
    return voices


def _kokoro(listing: Listing, file: str | None) -> Recognized | None:
    """Recognise Kokoro by its voices beside an ONNX file; of several files, model.onnx is loaded."""
    if not any(fnmatch(name, each) for name in listing.sizes for each in ("voices/*.bin", "voices*.bin")):
        return None
    names = [name for name in listing.sizes if name.endswith(".onnx") and file in {None, name}]
    return Recognized("kokoro", "Kokoro, text to speech", file=file) if names else None


def _onnx(listing: Listing, file: str | None) -> Recognized | None:
    """Recognise models in ONNX files that need no description of their inputs and outputs."""
    if voices := _voices(listing, file):
        return Recognized("piper", f"Piper: {' '.join(voices)}", file=file)
    if found := _kokoro(listing, file):
        return found
    if file is not None:
        return None
    files = [PurePosixPath(name) for name in listing.sizes if name.endswith(".onnx")]
    if [each.name for each in files] == ["silero_vad.onnx"]:
        return Recognized("vad", "Silero VAD, which detects voice activity")
    if all(sum(role in each.stem for each in files) == 1 for role in ("det", "rec")):
        return Recognized("ocr", "PP-OCR, which reads text in images")
    return None


def _architecture(listing: Listing) -> tuple[str, dict[str, Any]]:
    """Return the architecture and the content of config.json; an empty architecture if it names none."""
    config = listing.json("config.json")
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else "", config


def _transformers(listing: Listing) -> Recognized:
    name, config = _architecture(listing)
    if not name:
        raise WeightsError(
            f"{listing.title}: the key architectures of config.json is missing or empty: if you know the "
            "kind, name it with --kind"
        )
    _need_safetensors(listing)
    if task := _task(name, config, listing.task):
        return Recognized("transformers", f"{name}, for {task}", {"task": task})
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return Recognized("vllm", f"a language model, {name}")
    if name.endswith("ForConditionalGeneration") and "vision_config" in config:
        return Recognized("vllm", f"a vision-language model, {name}")
    if config.get("is_encoder_decoder") is True and name.endswith("ForConditionalGeneration"):
        raise WeightsError(
            f"{listing.title} is an encoder-decoder model for text, {name}, and its files do not say whether "
            f"it is for {' or '.join(_TEXT_TO_TEXT)}: name the task with --task. The kind transformers "
            "serves such models for these tasks only; no kind serves them for chat or free text"
        )
    raise WeightsError(
        f"{listing.title} has the architecture {name}, which the appliance does not recognise: looked for "
        f"{', '.join(sorted({*_TASKS, 'ForCausalLM', 'ForSequenceClassification'}))}; if you know the kind "
        "that runs it, name it with --kind"
    )


def _task(architecture: str, config: dict[str, Any], stated: str | None) -> str | None:
    """Return the task of an architecture; ``stated`` is the task in the description of the repository."""
    if architecture.endswith("ForSequenceClassification"):
        labels = config.get("id2label")
        labels = {str(label).lower() for label in labels.values()} if isinstance(labels, dict) else set()
        if len(labels) == 1 or config.get("num_labels") == 1:
            return "reranking"
        return "zero-shot-classification" if "entailment" in labels else "text-classification"
    if architecture == "VisionEncoderDecoderModel":
        parts = [config.get(key) for key in ("encoder", "decoder")]
        types = {part.get("model_type") for part in parts if isinstance(part, dict)}
        return "ocr" if types & _READERS else "image-captioning"
    found = next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)
    text_to_text = architecture.endswith("ForConditionalGeneration") and config.get("is_encoder_decoder")
    if (found is None and text_to_text is True) or found in _TEXT_TO_TEXT:
        return (stated if stated in _TEXT_TO_TEXT else None) or found or _trained_task(config)
    return found


def _trained_task(config: dict[str, Any]) -> str | None:
    """Return the task for which config.json of an encoder-decoder model has settings, if it is only one."""
    settings = config.get("task_specific_params")
    trained = {str(name).partition("_")[0] for name in settings} if isinstance(settings, dict) else set()
    found = trained & set(_TEXT_TO_TEXT)
    return found.pop() if len(found) == 1 else None


def _need_safetensors(listing: Listing) -> None:
    if not any(name.endswith(".safetensors") for name in listing.sizes):
        raise WeightsError(
            f"{listing.title} has no safetensors files, and the appliance loads no pickled weights: choose "
            "a revision or another repository with safetensors"
        )
