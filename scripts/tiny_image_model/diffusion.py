"""The diffusion model: a text encoder and a UNet, trained together on the latents of the autoencoder.

They are trained at 64 pixels first, and then at 128, where each image takes about four times as long.
"""

from __future__ import annotations

import json
import random
from typing import Final

import msgspec
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from rich.progress import Progress
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.tiny_image_model import autoencoder, shapes

IMAGE_SIZE: Final = 128  # pixels a side
_TOKENS: Final = 32
_WIDTH: Final = 128
_UNTOLD: Final = 0.1  # share of images trained without a caption, for classifier-free guidance


class Stage(msgspec.Struct, frozen=True):
    """A stage of the training, with images of one size."""

    size: int  # pixels a side
    detail: float  # of the scenes: the probability of a size, a place and a background
    images: int  # in the training set
    steps: int
    batch: int  # images in a step
    learning_rate: float  # the highest
    ema_decay: float


def stages(images: int, steps: int, large_steps: int) -> list[Stage]:
    """Return two: ``steps`` on ``images`` of 64 pixels, then ``large_steps`` on 4/5 as many of 128 pixels."""
    small = Stage(64, 0.5, images, steps, batch=64, learning_rate=1e-3, ema_decay=0.999)
    # More captions name a size, a place and a background: at 64 pixels the autoencoder blurs small shapes.
    large = Stage(
        IMAGE_SIZE, 0.75, images * 4 // 5, large_steps, batch=16, learning_rate=6e-4, ema_decay=0.995
    )
    return [small, large]


def train(
    coder: AutoencoderKL, stages: list[Stage], chance: random.Random, progress: Progress
) -> StableDiffusionPipeline:
    """Train and return the whole pipeline.

    Sets the ``scaling_factor`` of ``coder``, with which codes have variance 1, and its ``sample_size``.
    """
    captions = [caption for _ in range(4000) for caption in shapes.scene(chance).captions]
    tokenizer = _tokenizer(captions)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            projection_dim=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=_WIDTH,
        norm_num_groups=16,
    )
    # Straight to the end of the noise, so that an image's brightness does not depend on it.
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=False,
    )
    for stage in stages:
        scenes = [shapes.scene(chance, stage.detail) for _ in range(stage.images)]
        codes = _encoded(coder, scenes, stage.size, progress)
        coder.register_to_config(scaling_factor=float(1 / codes.std()), sample_size=stage.size)
        codes *= coder.config["scaling_factor"]
        _learn(unet, encoder, tokenizer, scheduler, scenes, codes, stage, chance, progress)
    return StableDiffusionPipeline(
        vae=coder,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _encoded(coder: AutoencoderKL, scenes: list[shapes.Scene], size: int, progress: Progress) -> torch.Tensor:
    task = progress.add_task(f"images of {size} pixels", total=len(scenes), loss="")
    parts = []
    for start in range(0, len(scenes), 512):
        parts.append(autoencoder.encode(coder, scenes[start : start + 512], size))
        progress.update(task, completed=min(start + 512, len(scenes)))
    return torch.cat(parts)


def _tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Byte pairs, as CLIP's: the words of the captions are one token each, all others can be spelt."""
    learnt = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learnt.normalizer = Lowercase()
    learnt.pre_tokenizer = Sequence([WhitespaceSplit(), ByteLevel(add_prefix_space=False, use_regex=False)])
    letters = ByteLevel.alphabet()
    learnt.train_from_iterator(
        captions,
        BpeTrainer(
            vocab_size=1200,
            initial_alphabet=letters,
            end_of_word_suffix="</w>",
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
        ),
    )
    model = json.loads(learnt.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for letter in sorted(letters):
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_TOKENS)


def _learn(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    scenes: list[shapes.Scene],
    codes: torch.Tensor,
    stage: Stage,
    chance: random.Random,
    progress: Progress,
) -> None:
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=stage.learning_rate, total_steps=stage.steps, pct_start=0.05
    )
    smooth = EMAModel(parameters, decay=stage.ema_decay, use_ema_warmup=True, power=0.75)
    task = progress.add_task(f"diffusion at {stage.size} pixels", total=stage.steps, loss="")
    mean = 0.0
    for step in range(stage.steps):
        picked = [chance.randrange(len(scenes)) for _ in range(stage.batch)]
        captions = [
            "" if chance.random() < _UNTOLD else chance.choice(scenes[index].captions) for index in picked
        ]
        tokens = tokenizer(
            captions, padding="max_length", max_length=_TOKENS, truncation=True, return_tensors="pt"
        )
        clean = codes[picked]
        noise = torch.randn_like(clean)
        times = torch.randint(0, scheduler.config["num_train_timesteps"], (stage.batch,))
        guess = unet(
            scheduler.add_noise(clean, noise, times),
            times,
            encoder_hidden_states=encoder(tokens.input_ids).last_hidden_state,
        ).sample
        loss = (guess - scheduler.get_velocity(clean, noise, times)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        smooth.step(parameters)
        mean = 0.98 * mean + 0.02 * loss.item() if step else loss.item()
        if step % 25 == 0:
            progress.update(task, completed=step, loss=f"loss {mean:.4f}")
            print(f"diffusion at {stage.size} pixels {step} {mean:.4f}", flush=True)
    progress.update(task, completed=stage.steps)
    smooth.copy_to(parameters)
