"""Diffusers pipelines with random weights: classes and folders of large models, whose outputs are noise.

What they show is that files are loaded, inputs reach the pipeline, sizes, formats, cancellation; never what a
model has learnt.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    AutoencoderOobleck,
    ControlNetModel,
    CosineDPMSolverMultistepScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

_WIDTH = 32


def stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion's classes; made for 32 x 32 pixels."""
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=_autoencoder(latent_channels=4),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=_WIDTH,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(set_alpha_to_one=False, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """SDXL's classes; made for 32 x 32 pixels."""
    torch.manual_seed(0)
    StableDiffusionXLPipeline(
        vae=_autoencoder(latent_channels=4),
        text_encoder=_clip(),
        text_encoder_2=_projecting_clip(),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=2 * _WIDTH,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=1,
            projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
        ),
        scheduler=DDIMScheduler(set_alpha_to_one=False, steps_offset=1, clip_sample=False),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_3(folder: Path) -> Path:
    """Stable Diffusion 3's classes; made for 32 x 32 pixels."""
    torch.manual_seed(0)
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(latent_channels=16, shift_factor=0.0),
        text_encoder=_projecting_clip(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_projecting_clip(),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(2 * _WIDTH),
        tokenizer_3=_t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * _WIDTH,
            caption_projection_dim=_WIDTH,
            pooled_projection_dim=2 * _WIDTH,
        ),
    ).save_pretrained(folder)
    return folder


def checked(folder: Path) -> Path:
    """Stable Diffusion's classes with a safety checker that holds back every image."""
    parts = StableDiffusionPipeline.from_pretrained(stable_diffusion(folder / "plain"), dtype=torch.float32)
    tiny = {
        "hidden_size": _WIDTH,
        "intermediate_size": _WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**tiny, "image_size": 32, "patch_size": 16}, projection_dim=_WIDTH)
    )
    checker.concept_embeds_weights.data.fill_(-2.0)  # every image is as near as that to every concept
    StableDiffusionPipeline(
        **{
            **parts.components,
            "safety_checker": checker,
            "feature_extractor": CLIPImageProcessorPil(size=32, crop_size=32),
        },
    ).save_pretrained(folder)
    return folder


def controlled(folder: Path) -> Path:
    """Stable Diffusion's classes with a ControlNet, whose image controls what is made."""
    parts = StableDiffusionPipeline.from_pretrained(stable_diffusion(folder / "plain"), dtype=torch.float32)
    control = ControlNetModel.from_unet(parts.unet, conditioning_embedding_out_channels=(16, 32))
    for parameter in control.parameters():  # a new one has no say
        torch.nn.init.normal_(parameter, std=0.3)
    StableDiffusionControlNetPipeline(
        **parts.components, controlnet=control, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


def controlnet(folder: Path, base: Path, seed: int) -> Path:
    """A ControlNet for the Stable Diffusion or SDXL in ``base``."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=torch.float32)
    return _strong(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32)), folder)


def flux_controlnet(folder: Path, base: Path, seed: int) -> Path:
    """A ControlNet for the FLUX in ``base``."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel.from_pretrained(base, subfolder="transformer")
    control = FluxControlNetModel.from_transformer(
        transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    return _strong(control, folder)


def _strong(control: Any, folder: Path) -> Path:
    """Save a ControlNet with random weights; a new one has no effect."""
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    control.save_pretrained(folder)
    return folder


def ip_adapter(folder: Path, base: Path) -> tuple[Path, Path]:
    """An IP-Adapter for the Stable Diffusion or SDXL in ``base``: its weights file, and its image encoder."""
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=torch.float32)
    width = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * width, _WIDTH),
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for at, name in enumerate(cross):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            weight = torch.randn_like(getattr(attention, f"to_{part}").weight)
            tensors[f"ip_adapter.{2 * at + 1}.to_{part}_ip.weight"] = weight
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "ip-adapter.safetensors")
    vision = CLIPVisionConfig(
        hidden_size=_WIDTH, intermediate_size=_WIDTH, projection_dim=_WIDTH, num_hidden_layers=1,
        num_attention_heads=2, image_size=32, patch_size=16,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    return folder / "ip-adapter.safetensors", folder / "image_encoder"


def flux(folder: Path) -> Path:
    """FLUX's classes; made for 1024 x 1024 pixels, as the large ones are."""
    torch.manual_seed(0)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_autoencoder(latent_channels=1, channels=(8, 8, 8, 8), shift_factor=0.0),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            pooled_projection_dim=_WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
    ).save_pretrained(folder)
    return folder


def flux_2_klein(folder: Path) -> Path:
    """FLUX.2 klein's classes, which edit and combine several images."""
    torch.manual_seed(0)
    text = Qwen3Config(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=28, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
        ),
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=_qwen_tokenizer(),
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=True,
    ).save_pretrained(folder)
    return folder


def ltx_video(folder: Path, pipeline: Any = LTXPipeline) -> Path:
    """LTX-Video's classes."""
    torch.manual_seed(0)
    pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False, False, False, False, False),
            upsample_residual=(False, False, False, False),
            upsample_factor=(1, 1, 1, 1),
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=_WIDTH,
            num_layers=1,
            caption_channels=_WIDTH,
        ),
    ).save_pretrained(folder)
    return folder


def stable_audio(folder: Path) -> Path:
    """Stable Audio's classes, with two channels of 4000 samples/s; made for at most 2.048 seconds."""
    torch.manual_seed(0)
    StableAudioPipeline(
        scheduler=CosineDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction"),
        vae=AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[4, 8],
            decoder_channels=3,
            decoder_input_channels=3,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4000,
        ),
        text_encoder=_t5(),
        tokenizer=_t5_tokenizer(model_max_length=32),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=_WIDTH, conditioning_dim=_WIDTH, min_value=0, max_value=32
        ),
        transformer=StableAudioDiTModel(
            sample_size=256,
            in_channels=3,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=4,
            num_key_value_attention_heads=4,
            out_channels=3,
            cross_attention_dim=_WIDTH,
            time_proj_dim=8,
            global_states_input_dim=2 * _WIDTH,
            cross_attention_input_dim=_WIDTH,
        ),
    ).save_pretrained(folder)
    return folder


def ltx_video_with_conditions(folder: Path) -> Path:
    """The classes of LTX-Video from version 0.9.5, which set any frame of the video to an image."""
    return ltx_video(folder, LTXConditionPipeline)


def wan_image_to_video(folder: Path) -> Path:
    """The classes of Wan 2.2, which start from an image, and end with another one."""
    torch.manual_seed(0)
    channels = 16
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=2 * channels + 4,
        out_channels=channels, text_dim=_WIDTH, freq_dim=32, ffn_dim=_WIDTH, num_layers=1,
        cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    for weight in (transformer.patch_embedding.weight, *vae.encoder.parameters()):
        torch.nn.init.normal_(weight, std=0.5)  # otherwise images have hardly any effect
    WanImageToVideoPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=120, d_model=_WIDTH, d_kv=8, d_ff=_WIDTH, num_layers=1, num_heads=2)
        ),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def ltx_2(folder: Path) -> Path:
    """LTX-2's classes, which generate a video with sound of 16000 samples per second."""
    torch.manual_seed(0)
    layers = 2
    text = {
        "vocab_size": 120, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2, resolution=32,
        latent_channels=2, causality_axis="height", sample_rate=16000, mel_hop_length=160, mel_bins=8,
    )  # fmt: skip
    attention = {
        f"{kind}_connector_{key}": value
        for kind in ("video", "audio")
        for key, value in {
            "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 1,
            "num_learnable_registers": None,
        }.items()
    }  # fmt: skip
    LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLLTX2Video(
            latent_channels=4, block_out_channels=(8,), down_block_types=("LTX2VideoDownBlock3D",),
            decoder_block_out_channels=(8,), layers_per_block=(1,),
            decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
            downsample_type=("spatial",), upsample_residual=(False,),
            upsample_factor=(1,), patch_size=1, patch_size_t=1, decoder_causal=False,
        ),
        audio_vae=audio_vae,
        text_encoder=Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)),
        tokenizer=_gemma_tokenizer(),
        connectors=LTX2TextConnectors(
            caption_channels=32, text_proj_in_factor=layers + 1, connector_rope_base_seq_len=32,
            rope_double_precision=False, rope_type="split", **attention,
        ),
        transformer=LTX2VideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
            cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
            audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=2, caption_channels=32,
            rope_double_precision=False, rope_type="split",
        ),
        vocoder=LTX2Vocoder(
            in_channels=2 * 8, hidden_channels=32, upsample_kernel_sizes=[32, 20], upsample_factors=[16, 10],
            resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=16000,
        ),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _gemma_tokenizer() -> GemmaTokenizer:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *string.ascii_lowercase, *string.digits]
    return GemmaTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, merges=[])


def _autoencoder(**more: Any) -> AutoencoderKL:
    channels = more.pop("channels", (8, 16))
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=8,
        **more,
    )


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=600,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        projection_dim=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _clip() -> CLIPTextModel:
    return CLIPTextModel(_clip_config())


def _projecting_clip() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config())


def _clip_tokenizer() -> CLIPTokenizer:
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, merges=[], model_max_length=32)


def _qwen_tokenizer() -> Qwen2Tokenizer:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    pieces = [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab={piece: at for at, piece in enumerate(pieces)},
        merges=[],
        model_max_length=512,
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    )


def _t5(width: int = _WIDTH) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=120, d_model=width, d_kv=8, d_ff=_WIDTH, num_layers=1, num_heads=2)
    )


def _t5_tokenizer(**more: int) -> T5Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, *string.digits, *string.punctuation]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, **more)
