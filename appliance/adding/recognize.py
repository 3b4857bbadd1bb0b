"""Choose the kind of a model, and its options, from the files of its source."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec

from appliance.adding.listing import Listing
from appliance.domain.errors import WeightsError

#: Ends of architectures in config.json -> task of the kind `transformers`.
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
    "MarianMTModel": "translation",
    "M2M100ForConditionalGeneration": "translation",
    "PegasusForConditionalGeneration": "summarization",
    "BartForConditionalGeneration": "summarization",
    "BlipForConditionalGeneration": "image-captioning",
    "VisionEncoderDecoderModel": "image-captioning",
}
#: Encoders and decoders of VisionEncoderDecoderModel that read text (TrOCR, Donut), by ``model_type``.
_READERS: Final = {"trocr", "donut-swin"}
_LOOKED_FOR: Final = (
    "cog.yaml (a Cog project), model_index.json (a diffusers pipeline), a file .gguf, modules.json (a "
    "sentence-transformers model), model.bin with config.json (Whisper in CTranslate2's format), files .onnx "
    "with .onnx.json (Piper voices), files .onnx with det and rec in their names (text in images), "
    "silero_vad.onnx (voice activity), and config.json with a known architecture"
)


class Recognized(msgspec.Struct, frozen=True):
    """What a source is."""

    kind: str
    about: str  # what was found, for people
    options: dict[str, Any] = {}
    file: str | None = None  # the only file to use


def recognize(listing: Listing, file: str | None = None) -> Recognized:
    """Return the kind and options for a source. ``file`` chooses among several GGUF files or voices.

    Raises:
        WeightsError: the files are of no kind that the appliance runs; the message says what was looked for.
    """
    names = set(listing.sizes)
    if file is not None and file not in names:
        raise WeightsError(f"{listing.title} has no file {file}: correct --file")
    if file is None and "adapter_config.json" in names:
        base = listing.json("adapter_config.json").get("base_model_name_or_path", "an unknown model")
        raise WeightsError(
            f"{listing.title} is a LoRA adapter for {base} and cannot be served alone: name it in the key "
            "adapters of its base model in models.yaml, or add a repository with merged weights"
        )
    if file is None and "cog.yaml" in names:
        return Recognized("cog", "a Cog project (cog.yaml)")
    if file is None and "model_index.json" in names:
        pipeline = str(listing.json("model_index.json").get("_class_name", "unknown"))
        _need_safetensors(listing)
        return Recognized("diffusers", f"a diffusers pipeline, {pipeline}")
    if file is None and "modules.json" in names:
        _need_safetensors(listing)
        return Recognized("embeddings", "a sentence-transformers model (modules.json)")
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
        "the kind, write the entry in models.yaml by hand"
    )


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


def _onnx(listing: Listing, file: str | None) -> Recognized | None:
    """Recognise models in ONNX files that need no description of their inputs and outputs."""
    if voices := _voices(listing, file):
        return Recognized("piper", f"Piper: {' '.join(voices)}", file=file)
    if file is not None:
        return None
    files = [PurePosixPath(name) for name in listing.sizes if name.endswith(".onnx")]
    if [each.name for each in files] == ["silero_vad.onnx"]:
        return Recognized("vad", "Silero VAD, which detects voice activity")
    if all(sum(role in each.stem for each in files) == 1 for role in ("det", "rec")):
        return Recognized("ocr", "PP-OCR, which reads text in images")
    return None


def _transformers(listing: Listing) -> Recognized:
    config = listing.json("config.json")
    architectures = [str(each) for each in config.get("architectures") or []]
    if not architectures:
        raise WeightsError(
            f"{listing.title}: the key architectures of config.json is missing or empty: if you know the "
            "kind, write the entry in models.yaml by hand"
        )
    name = architectures[0]
    _need_safetensors(listing)
    if task := _task(name, config):
        return Recognized("transformers", f"{name}, for {task}", {"task": task})
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return Recognized("vllm", f"a language model, {name}")
    if name.endswith("ForConditionalGeneration") and "vision_config" in config:
        return Recognized("vllm", f"a vision-language model, {name}")
    raise WeightsError(
        f"{listing.title} has the architecture {name}, which the appliance does not recognise: looked for "
        f"{', '.join(sorted({*_TASKS, 'ForCausalLM', 'ForSequenceClassification'}))}; if you know the kind "
        "that runs it, write the entry in models.yaml by hand"
    )


def _task(architecture: str, config: dict[str, Any]) -> str | None:
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
    return next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)


def _need_safetensors(listing: Listing) -> None:
    if not any(name.endswith(".safetensors") for name in listing.sizes):
        raise WeightsError(
            f"{listing.title} has no safetensors files, and the appliance loads no pickled weights: choose "
            "a revision or another repository with safetensors"
        )
