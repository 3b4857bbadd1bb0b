"""Tiny models for tasks with images. Those that learn something in seconds say so; the others are random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.support.tiny_models import SIZE, SMALL, SPECIAL, WORDS, learn, repeatable, tokenizer

COLOURS: Final = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}
READ: Final = ("cat", "dog", "sun", "moon")


@repeatable
def image_text_embeddings(folder: Path) -> None:
    """CLIP, which learns the words for three colours."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    words = tokenizer(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    text = {
        **SMALL, "vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 16, "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    sight = {**SMALL, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=sight, projection_dim=16))
    texts = words(
        [f"this is a {colour}" for colour in COLOURS], padding=True, return_tensors="pt",
        return_token_type_ids=False,
    )  # fmt: skip

    def loss() -> Any:
        pixels = torch.tensor(list(COLOURS.values()))[:, :, None, None].expand(-1, -1, 32, 32)
        noise = torch.rand(3, 3, 32, 32) * 0.4 - 0.2
        inputs = {**texts, "pixel_values": (pixels + noise) * 2 - 1}
        return model(**inputs, return_loss=True).loss

    learn(model, loss, 2e-3)
    model.save_pretrained(folder)


@repeatable
def siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer(folder)
    SiglipImageProcessorPil(size=SIZE).save_pretrained(folder)
    text = {**SMALL, "vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 16}
    SiglipModel(
        SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    ).save_pretrained(folder)


@repeatable
def zero_shot_object_detection(folder: Path) -> None:
    """OWL-ViT."""
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil, OwlViTProcessor

    words = tokenizer(folder, model_max_length=16)
    text = {
        **SMALL, "vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 16, "bos_token_id": 2,
        "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    sight = {**SMALL, "image_size": 32, "patch_size": 8}
    config = OwlViTConfig(text_config=text, vision_config=sight, projection_dim=16)
    OwlViTForObjectDetection(config).save_pretrained(folder)
    OwlViTProcessor(OwlViTImageProcessorPil(size=SIZE, crop_size=SIZE), words).save_pretrained(folder)


@repeatable
def grounding_dino(folder: Path) -> None:
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = tokenizer(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=4,
            out_features=["stage2", "stage3"],
        ),
        text_config=BertConfig(vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, **SMALL),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5, num_feature_levels=2, max_text_len=32,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    GroundingDinoProcessor(processor, words).save_pretrained(folder)


@repeatable
def image_segmentation(folder: Path) -> None:
    """SegFormer, which learns where a bright square is in a dark image."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[16, 16], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 1], mlp_ratios=[2, 2], decoder_hidden_size=16,
        hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0,
        id2label={0: "background", 1: "square"}, label2id={"background": 0, "square": 1},
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)

    def loss() -> Any:
        bright = torch.zeros(8, 64, 64, dtype=torch.long)
        for at in range(8):
            top, left, side = (int(torch.randint(low, high, ())) for low, high in ((0, 40), (0, 40), (8, 24)))
            bright[at, top : top + side, left : left + side] = 1
        pixels = bright[:, None].float().expand(-1, 3, -1, -1) * 2 - 1
        return model(pixel_values=pixels + torch.randn_like(pixels) * 0.1, labels=bright).loss

    learn(model, loss, 5e-3, below=0.06)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 64}, '
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )


@repeatable
def detr(folder: Path) -> None:
    """DETR, which finds objects and their masks."""
    from transformers import DetrConfig, DetrForSegmentation, DetrImageProcessorPil, ResNetConfig

    config = DetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1] * 4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=8, decoder_attention_heads=8,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=4,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    DetrForSegmentation(config).save_pretrained(folder)
    DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)


@repeatable
def depth_estimation(folder: Path) -> None:
    """Depth Anything."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessorPil,
    )

    backbone = Dinov2Config(
        image_size=56, patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False, **{**SMALL, "num_hidden_layers": 4},
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)


@repeatable
def super_resolution(folder: Path) -> None:
    """Swin2SR, which learns to double plain images and gradients."""
    import torch
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessorPil

    config = Swin2SRConfig(
        image_size=32, embed_dim=16, depths=[1], num_heads=[2], window_size=4, upscale=2,
        upsampler="pixelshuffledirect", mlp_ratio=2.0,
    )  # fmt: skip
    model = Swin2SRForImageSuperResolution(config)

    def loss() -> Any:
        corners = torch.rand(8, 3, 2, 2)
        large = torch.nn.functional.interpolate(corners, (32, 32), mode="bilinear", align_corners=True)
        small = torch.nn.functional.avg_pool2d(large, 2)
        return (model(pixel_values=small).reconstruction - large).abs().mean()

    learn(model, loss, 3e-3)
    model.save_pretrained(folder)
    Swin2SRImageProcessorPil().save_pretrained(folder)


def written(word: str, left: int = 2, top: int = 2) -> Any:
    """Return an image of a word in black on white."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (32, 16), "white")
    ImageDraw.Draw(image).text((left, top), word, fill="black")
    return image


@repeatable
def ocr(folder: Path) -> None:
    """TrOCR's processor with a ViT and a GPT-2, which learn to read four words."""
    import numpy as np
    import torch
    from transformers import (
        GPT2Config,
        TrOCRProcessor,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessorPil,
    )

    words = tokenizer(folder)
    encoder = ViTConfig(image_size=[16, 32], patch_size=4, **{**SMALL, "hidden_size": 32})
    decoder = GPT2Config(
        vocab_size=len(SPECIAL + WORDS), n_embd=32, n_layer=1, n_head=2, n_positions=16, bos_token_id=2,
        eos_token_id=3, is_decoder=True, add_cross_attention=True, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    model = VisionEncoderDecoderModel(config=config)
    model.generation_config.decoder_start_token_id = 2
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 3
    labels = torch.tensor([[words.convert_tokens_to_ids(word), 3] for word in READ])
    chance = np.random.default_rng(0)

    def loss() -> Any:
        shown = [np.asarray(written(word, *chance.integers(0, 4, 2)), np.float32) for word in READ]
        pixels = torch.tensor(np.stack(shown)).permute(0, 3, 1, 2) / 127.5 - 1
        return model(pixel_values=pixels, labels=labels).loss

    learn(model, loss, 2e-3, below=0.002)  # until words are read at all places where they were shown
    model.save_pretrained(folder)
    TrOCRProcessor(ViTImageProcessorPil(size={"height": 16, "width": 32}), words).save_pretrained(folder)


@repeatable
def visual_question_answering(folder: Path) -> None:
    """BLIP, which generates answers."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessorPil, BlipProcessor

    text = {
        **SMALL, "vocab_size": len(SPECIAL + WORDS), "encoder_hidden_size": 16, "projection_dim": 16,
        "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
        "pad_token_id": 0, "initializer_range": 0.5,
    }  # fmt: skip
    sight = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16, "initializer_range": 0.5}
    config = BlipConfig(text_config=text, vision_config=sight, image_text_hidden_size=16, projection_dim=16)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer(folder)).save_pretrained(folder)


@repeatable
def vilt(folder: Path) -> None:
    """ViLT, which chooses one of its answers."""
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil, ViltProcessor

    config = ViltConfig(
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, image_size=32, patch_size=8,
        id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1}, **SMALL,
    )  # fmt: skip
    ViltForQuestionAnswering(config).save_pretrained(folder)
    ViltProcessor(
        ViltImageProcessorPil(size={"shortest_edge": 32}, size_divisor=8), tokenizer(folder)
    ).save_pretrained(folder)


@repeatable
def vision_language(folder: Path) -> None:
    """Idefics3, a chat model that accepts images."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        Idefics3VisionConfig,
        LlamaConfig,
    )

    words = tokenizer(folder, model_max_length=512)
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    words.add_special_tokens({"additional_special_tokens": marks})
    size = {**SMALL, "hidden_size": 64}
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(image_size=32, patch_size=8, **size).to_dict(),
        text_config=LlamaConfig(
            vocab_size=len(words), max_position_embeddings=512, bos_token_id=2, eos_token_id=3,
            pad_token_id=0, **size,
        ).to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }} {% else %}"
        "{% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
        "{% endfor %}"
    )
    Idefics3Processor(
        Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        ),
        words,
        image_seq_len=4,
        chat_template=template,
    ).save_pretrained(folder)


#: Task -> function that writes a model for it into a folder.
MAKERS: Final[dict[str, Callable[[Path], None]]] = {
    "ocr": ocr,
    "visual-question-answering": visual_question_answering,
    "image-text-embeddings": image_text_embeddings,
    "zero-shot-image-classification": image_text_embeddings,
    "zero-shot-object-detection": zero_shot_object_detection,
    "image-segmentation": image_segmentation,
    "background-removal": image_segmentation,
    "depth-estimation": depth_estimation,
    "super-resolution": super_resolution,
}
