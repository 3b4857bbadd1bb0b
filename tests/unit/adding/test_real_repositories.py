"""Files as well-known repositories have them: each weight counts once, and is downloaded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appliance import weights
from appliance.adding import hub, propose
from appliance.adding.listing import Listing
from appliance.domain.errors import WeightsError

MB = 10**6


class Repository(NamedTuple):
    """Sizes in MB of the weights, and the JSON files that are read."""

    sizes: dict[str, int]
    json: dict[str, dict[str, Any]]


def pipeline(name: str, *parts: str, **more: Any) -> dict[str, Any]:
    components = {part: ["diffusers", "Any"] for part in parts}
    return {"_class_name": name, "_diffusers_version": "0.19.0", **components, **more}


SDXL = Repository(
    {
        "01.png": 2,
        "sd_xl_base_1.0.safetensors": 6940,
        "sd_xl_base_1.0_0.9vae.safetensors": 6940,
        "sd_xl_offset_example-lora_1.0.safetensors": 50,
        "text_encoder/flax_model.msgpack": 492,
        "text_encoder/model.fp16.safetensors": 246,
        "text_encoder/model.onnx": 493,
        "text_encoder/model.safetensors": 492,
        "text_encoder/openvino_model.bin": 492,
        "text_encoder_2/model.fp16.safetensors": 1390,
        "text_encoder_2/model.onnx_data": 2780,
        "text_encoder_2/model.safetensors": 2780,
        "unet/diffusion_flax_model.msgpack": 10300,
        "unet/diffusion_pytorch_model.fp16.safetensors": 5140,
        "unet/diffusion_pytorch_model.safetensors": 10300,
        "unet/model.onnx_data": 10300,
        "vae/diffusion_pytorch_model.fp16.safetensors": 167,
        "vae/diffusion_pytorch_model.safetensors": 335,
        "vae_1_0/diffusion_pytorch_model.fp16.safetensors": 167,
        "vae_1_0/diffusion_pytorch_model.safetensors": 335,
        "vae_decoder/model.onnx": 198,
    },
    {
        "model_index.json": pipeline(
            "StableDiffusionXLPipeline",
            "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae",
            force_zeros_for_empty_prompt=True,
        )
    },
)  # fmt: skip
FLUX = Repository(
    {
        "ae.safetensors": 335,
        "flux1-schnell.safetensors": 23800,
        "text_encoder/model.safetensors": 246,
        "text_encoder_2/model-00001-of-00002.safetensors": 4990,
        "text_encoder_2/model-00002-of-00002.safetensors": 4530,
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors": 9980,
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors": 9950,
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors": 3870,
        "vae/diffusion_pytorch_model.safetensors": 168,
    },
    {
        "model_index.json": pipeline(
            "FluxPipeline", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "transformer", "vae"
        )
    },
)
SD15 = Repository(
    {
        "v1-5-pruned-emaonly.ckpt": 4270,
        "v1-5-pruned-emaonly.safetensors": 4270,
        "v1-5-pruned.ckpt": 7700,
        "v1-5-pruned.safetensors": 7700,
        "safety_checker/model.fp16.safetensors": 608,
        "safety_checker/model.safetensors": 1220,
        "safety_checker/pytorch_model.bin": 1220,
        "safety_checker/pytorch_model.fp16.bin": 608,
        "text_encoder/model.fp16.safetensors": 246,
        "text_encoder/model.safetensors": 492,
        "text_encoder/pytorch_model.bin": 492,
        "unet/diffusion_pytorch_model.bin": 3440,
        "unet/diffusion_pytorch_model.fp16.safetensors": 1720,
        "unet/diffusion_pytorch_model.non_ema.safetensors": 3440,
        "unet/diffusion_pytorch_model.safetensors": 3440,
        "vae/diffusion_pytorch_model.fp16.safetensors": 167,
        "vae/diffusion_pytorch_model.safetensors": 335,
    },
    {
        "model_index.json": pipeline(
            "StableDiffusionPipeline",
            "feature_extractor", "safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
            image_encoder=[None, None],
        )
    },
)  # fmt: skip
WHISPER = Repository(
    {
        "flax_model.msgpack": 6170,
        "model.fp32-00001-of-00002.safetensors": 4990,
        "model.fp32-00002-of-00002.safetensors": 1180,
        "model.safetensors": 3090,
        "pytorch_model.bin": 3090,
        "pytorch_model.fp32-00001-of-00002.bin": 4990,
        "pytorch_model.fp32-00002-of-00002.bin": 1180,
    },
    {"config.json": {"architectures": ["WhisperForConditionalGeneration"], "torch_dtype": "float16"}},
)
LLAMA = Repository(
    {
        "model-00001-of-00002.safetensors": 4980,
        "model-00002-of-00002.safetensors": 1440,
        "original/consolidated.00.pth": 6430,
        "original/model.safetensors": 6430,
        "original/tokenizer.model": 2,
    },
    {"config.json": {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}},
)
MISTRAL = Repository(
    {
        "consolidated.safetensors": 14500,
        "model-00001-of-00003.safetensors": 4950,
        "model-00002-of-00003.safetensors": 5000,
        "model-00003-of-00003.safetensors": 4550,
    },
    {"config.json": {"architectures": ["MistralForCausalLM"], "torch_dtype": "bfloat16"}},
)
CSM = Repository(
    {
        "ckpt.pt": 6220,
        "model.safetensors": 6210,
        "transformers-00001-of-00002.safetensors": 4940,
        "transformers-00002-of-00002.safetensors": 2190,
    },
    {"config.json": {"architectures": ["CsmForConditionalGeneration"], "torch_dtype": "float32"}},
)
MINILM = Repository(
    {
        "model.safetensors": 91,
        "onnx/model.onnx": 90,
        "onnx/model_O4.onnx": 45,
        "openvino/openvino_model.bin": 90,
        "pytorch_model.bin": 91,
        "rust_model.ot": 91,
        "tf_model.h5": 91,
    },
    {
        "modules.json": {},
        "config.json": {"architectures": ["BertModel"], "torch_dtype": "float32"},
    },
)
GGUF = Repository(
    {
        f"Llama-3.2-3B-Instruct-{name}.gguf": size
        for name, size in {"IQ3_M": 1600, "Q3_K_L": 1815, "Q4_K_M": 2019, "Q8_0": 3421, "f16": 6433}.items()
    },
    {},
)


def listed(repository: Repository) -> Listing:
    content = {name: json.dumps(each).encode() for name, each in repository.json.items()}
    sizes = {name: size * MB for name, size in repository.sizes.items()}
    sizes |= {name: len(each) for name, each in content.items()}
    return Listing("the repository", sizes, content.__getitem__, "0" * 40)


def use(monkeypatch: pytest.MonkeyPatch, listing: Listing) -> None:
    monkeypatch.setattr(hub, "list_repository", lambda *_: listing)


@pytest.mark.parametrize(
    ("repository", "kind", "options", "size"),
    [
        pytest.param(SDXL, "diffusers", {"variant": "fp16"}, 246 + 1390 + 5140 + 167, id="sdxl"),
        pytest.param(FLUX, "diffusers", None, 246 + 4990 + 4530 + 9980 + 9950 + 3870 + 168, id="flux"),
        pytest.param(SD15, "diffusers", {"variant": "fp16"}, 608 + 246 + 1720 + 167, id="sd-1.5"),
        pytest.param(WHISPER, "transformers", {"task": "automatic-speech-recognition"}, 3090, id="whisper"),
        pytest.param(LLAMA, "vllm", None, 4980 + 1440, id="llama"),
        pytest.param(MISTRAL, "vllm", None, 4950 + 5000 + 4550, id="mistral"),
        pytest.param(CSM, "transformers", {"task": "text-to-speech"}, 4940 + 2190, id="csm"),
        pytest.param(MINILM, "embeddings", None, 91, id="minilm"),
    ],
)
def test_each_weight_counts_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    repository: Repository,
    kind: str,
    options: dict[str, Any] | None,
    size: int,
) -> None:
    use(monkeypatch, listed(repository))
    proposal = propose("hub:org/model", tmp_path)
    assert (proposal.entry["kind"], proposal.entry.get("options")) == (kind, options)
    assert (proposal.download, proposal.stored) == (size * MB, size * MB)
    folder = tmp_path / "model"  # all files, with 1 byte for each MB
    for name, megabytes in repository.sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(megabytes))
    for name, content in repository.json.items():
        (folder / name).write_text(json.dumps(content))
    counted = weights.weight_size_of(folder, proposal.config().weight_variant)
    assert counted.stored == size


def test_image_models_fit_on_the_gpus_that_they_run_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for repository, gib in ((SDXL, 16), (SD15, 8), (FLUX, 40)):
        use(monkeypatch, listed(repository))
        needed = propose("hub:org/model", tmp_path).needed("cuda")
        assert needed is not None
        assert needed < gib * 1024**3


def test_weights_in_32_bits_need_no_more_than_that_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, listed(MINILM))
    proposal = propose("hub:org/model", tmp_path)
    assert proposal.weights.in_32_bits == 91 * MB


def test_one_of_many_quantizations_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, listed(GGUF))
    with pytest.raises(WeightsError, match=r"several GGUF files: name one with --file: .*-IQ3_M.gguf, "):
        propose("hub:org/model", tmp_path)
    proposal = propose("hub:org/model", tmp_path, file="Llama-3.2-3B-Instruct-Q4_K_M.gguf")
    assert proposal.download == 2019 * MB
    assert proposal.stored == 4 * 2019 * MB  # converted to 16 bits


def test_a_variant_without_plain_files_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only = {"unet/a.fp16.safetensors": 5, "vae/b.fp16.safetensors": 1}
    use(monkeypatch, listed(Repository(only, {"model_index.json": pipeline("X", "unet", "vae")})))
    proposal = propose("hub:org/model", tmp_path)
    assert (proposal.entry["options"], proposal.download) == ({"variant": "fp16"}, 6 * MB)


def test_a_repository_without_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only = {"flux1-schnell.safetensors": 5}
    use(monkeypatch, listed(Repository(only, {"model_index.json": pipeline("X", "unet")})))
    with pytest.raises(WeightsError, match=r"has no weights that the kind diffusers loads, .*\*\.safetens"):
        propose("hub:org/model", tmp_path)
