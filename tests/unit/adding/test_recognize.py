"""Kinds and options that are chosen from the files of a source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from appliance.adding.listing import Listing
from appliance.adding.recognize import Recognized, recognize
from appliance.domain.errors import ApplianceError, WeightsError


def listing(*names: str, **configs: Any) -> Listing:
    """Files with these names, and JSON files ``config``, ``model_index`` ..."""
    files = {f"{name}.json": json.dumps(value).encode() for name, value in configs.items()}
    sizes = dict.fromkeys(names, 100) | {name: len(data) for name, data in files.items()}
    return Listing("the source", sizes, files.__getitem__)


def config(architecture: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **more}


WEIGHTS = "model.safetensors"


def transformer(architecture: str, *labels: str) -> Listing:
    more = {"id2label": dict(enumerate(labels))} if labels else {}
    return listing(WEIGHTS, config=config(architecture, **more))


def encoder_decoder(architecture: str, stated: str | None = None, settings: Sequence[str] = ()) -> Listing:
    more: dict[str, Any] = {"task_specific_params": {key: {} for key in settings}} if settings else {}
    found = listing(WEIGHTS, config=config(architecture, is_encoder_decoder=True, **more))
    found.task = stated
    return found


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (transformer("LlamaForCausalLM"), "vllm"),
        (transformer("GPT2LMHeadModel"), "vllm"),
        (listing(WEIGHTS, config=config("Qwen2_5_VLForConditionalGeneration", vision_config={})), "vllm"),
        (listing(WEIGHTS, "modules.json", config=config("BertModel")), "embeddings"),
        (listing("unet/x.safetensors", model_index={"_class_name": "FluxPipeline"}), "diffusers"),
        (listing("cog.yaml", "run.py"), "cog"),
        (listing("model.bin", "vocabulary.txt", config={}), "whisper"),
        (listing("joe.onnx", "joe.onnx.json"), "piper"),
        (listing("onnx/model.onnx", "onnx/model_fp16.onnx", "voices/af_bella.bin", config={}), "kokoro"),
        (listing("kokoro-v1.0.onnx", "voices-v1.0.bin"), "kokoro"),
        (listing("a_det.onnx", "b/a_rec_small.onnx", "x_cls.onnx"), "ocr"),
        (listing("onnx/silero_vad.onnx", "README.md"), "vad"),
    ],
)
def test_kind(files: Listing, kind: str) -> None:
    found = recognize(files)
    assert (found.kind, found.options) == (kind, {})


@pytest.mark.parametrize(
    ("files", "task"),
    [
        (transformer("ViTForImageClassification", "cat", "dog"), "image-classification"),
        (transformer("BertForSequenceClassification", "LABEL_0"), "reranking"),
        (transformer("BartForSequenceClassification", "no", "ENTAILMENT"), "zero-shot-classification"),
        (transformer("BertForSequenceClassification", "bad", "good"), "text-classification"),
        (transformer("WhisperForConditionalGeneration"), "automatic-speech-recognition"),
        (transformer("CsmForConditionalGeneration"), "text-to-speech"),
        (transformer("MusicgenMelodyForConditionalGeneration"), "text-to-audio"),
        (transformer("CLIPModel"), "image-text-embeddings"),
        (transformer("YolosForObjectDetection"), "object-detection"),
        (transformer("Owlv2ForObjectDetection"), "zero-shot-object-detection"),
        (transformer("MMGroundingDinoForObjectDetection"), "zero-shot-object-detection"),
        (transformer("SegformerForSemanticSegmentation", "wall", "sky"), "image-segmentation"),
        (transformer("DepthAnythingForDepthEstimation"), "depth-estimation"),
        (transformer("Swin2SRForImageSuperResolution"), "super-resolution"),
        (transformer("BlipForQuestionAnswering"), "visual-question-answering"),
        (transformer("VisionEncoderDecoderModel"), "image-captioning"),
        (
            listing(WEIGHTS, config=config("VisionEncoderDecoderModel", decoder={"model_type": "trocr"})),
            "ocr",
        ),
        (transformer("BartForConditionalGeneration"), "summarization"),
        (transformer("MBartForConditionalGeneration"), "translation"),
        (encoder_decoder("T5ForConditionalGeneration", stated="translation"), "translation"),
        (encoder_decoder("MT5ForConditionalGeneration", stated="summarization"), "summarization"),
        (encoder_decoder("T5ForConditionalGeneration", settings=["summarization"]), "summarization"),
        (encoder_decoder("T5ForConditionalGeneration", settings=["translation_en_to_de"]), "translation"),
    ],
)
def test_task(files: Listing, task: str) -> None:
    found = recognize(files)
    assert (found.kind, found.options) == ("transformers", {"task": task})


def test_one_of_several_gguf_files_is_named() -> None:
    files = listing("a-Q4_K_M.gguf", "a-Q8_0.gguf")
    with pytest.raises(
        WeightsError, match=r"several GGUF files: name one with --file: a-Q4_K_M.gguf, a-Q8_0"
    ):
        recognize(files)
    assert recognize(files, "a-Q8_0.gguf").file == "a-Q8_0.gguf"
    assert recognize(listing("a.gguf")).file == "a.gguf"
    with pytest.raises(WeightsError, match=r"has no file b\.gguf: correct --file"):
        recognize(files, "b.gguf")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (listing("README.md"), r"is not recognised: looked for cog\.yaml .*model_index\.json .*\.gguf"),
        (
            listing("a.safetensors", adapter_config={"base_model_name_or_path": "o/b"}),
            "is a LoRA adapter for o/b and cannot be served alone",
        ),
        (
            listing("pytorch_lora_weights.safetensors"),
            "is a LoRA adapter for a model that its files do not name and cannot be served alone",
        ),
        (
            encoder_decoder("T5ForConditionalGeneration", settings=["summarization", "translation_en_to_de"]),
            (
                r"do not say whether it is for translation or summarization: name the task with --task\. The "
                "kind transformers serves such models for these tasks only; no kind serves them for chat"
            ),
        ),
        (listing("pytorch_model.bin", config=config("LlamaForCausalLM")), "has no safetensors files"),
        (
            listing(WEIGHTS, config=config("MysteryModel")),
            "architecture MysteryModel, which .* not recognise",
        ),
        (listing(WEIGHTS, config={}), r"the key architectures of config\.json is missing"),
        (listing("a-00001-of-00002.gguf"), "is one part of a split GGUF file"),
        (listing("en/a.onnx", "en/a.onnx.json", "de/b.onnx", "de/b.onnx.json"), "voices in subfolders"),
        (listing("a.onnx"), r"has an ONNX file of unknown inputs .* kind onnx in models\.yaml"),
        (listing("a_det.onnx", "a_rec.onnx", "b_rec.onnx"), "has an ONNX file of unknown inputs"),
        (Listing("the source", {"config.json": 2}, lambda _: b"[]"), r"config\.json is not a JSON object"),
        (Listing("the source", {"config.json": 2}, lambda _: b"{"), r"config\.json is not valid JSON"),
    ],
)
def test_what_is_not_recognised_is_refused(files: Listing, message: str) -> None:
    with pytest.raises(WeightsError, match=f"the source.*{message}"):
        recognize(files)


def test_an_adapter_for_images_names_its_base() -> None:
    files = listing("pixel-art.safetensors")
    files.tags, files.base_model = ("diffusers", "lora"), "stabilityai/stable-diffusion-xl-base-1.0"
    with pytest.raises(
        WeightsError, match=r"adapter for stabilityai/stable-diffusion-xl-base-1\.0 .*: add stabilityai/"
    ):
        recognize(files)


def test_a_kind_and_a_task_that_the_user_names_are_used() -> None:
    t5 = encoder_decoder("T5ForConditionalGeneration")
    assert recognize(t5, task="summarization").options == {"task": "summarization"}
    mystery = transformer("MysteryModel")
    assert recognize(mystery, kind="vllm") == Recognized("vllm", "the kind vllm, as given")
    named = recognize(mystery, kind="transformers", task="fill-mask")
    assert (named.kind, named.options) == ("transformers", {"task": "fill-mask"})
    found = recognize(transformer("ViTForImageClassification", "cat"), kind="transformers")
    assert found.options == {"task": "image-classification"}


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("vlm", None, r"'vlm' is not a kind with weights: name one of .*vllm.* with --kind"),
        ("echo", None, r"'echo' is not a kind with weights"),
        ("vllm", "fill-mask", r"models of the kind vllm have no task: leave out --task"),
        ("cog", None, r"is not a Cog project: it has no cog\.yaml"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(kind: str, task: str | None, message: str) -> None:
    with pytest.raises(ApplianceError, match=message):
        recognize(transformer("MysteryModel"), kind=kind, task=task)
