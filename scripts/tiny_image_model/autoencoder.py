"""The autoencoder: encodes each block of 8 x 8 pixels as 4 numbers. Trained on images of 64 x 64 pixels."""

from __future__ import annotations

import random
from typing import Final

import torch
from diffusers import AutoencoderKL
from rich.progress import Progress
from torch import Tensor

from scripts.tiny_image_model import shapes

_IMAGE_SIZE: Final = 64  # pixels a side
_BATCH: Final = 32
_STRAY: Final = 1e-8  # weight of the divergence from a normal distribution, of all 256 numbers

_DRAWN: Final = 4.0  # how much more the pixels of the shape count


def train(steps: int, chance: random.Random, progress: Progress) -> AutoencoderKL:
    """Train and return an autoencoder, without its ``scaling_factor``."""
    coder = AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # more would normalise single channels, and colours with them
        sample_size=_IMAGE_SIZE,
    )
    optimizer = torch.optim.AdamW(coder.parameters(), lr=1.5e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.5e-3, total_steps=steps, pct_start=0.08
    )
    task = progress.add_task("autoencoder", total=steps, loss="")
    for step in range(steps):
        images = shapes.draw([shapes.scene(chance) for _ in range(_BATCH)], _IMAGE_SIZE)
        posterior = coder.encode(images).latent_dist
        again = coder.decode(posterior.sample()).sample
        error = (again - images).abs() + (again - images).square()
        # A shape is a small part of its image, and its colour the whole point.
        drawn = (images - images[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.05
        off = (error * (1 + _DRAWN * drawn)).mean()
        loss = off + _STRAY * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            progress.update(task, completed=step, loss=f"off by {off.item():.4f}")
            print(f"autoencoder {step} {off.item():.4f} {posterior.kl().mean().item():.1f}", flush=True)
    progress.update(task, completed=steps)
    return coder.eval()


def encode(coder: AutoencoderKL, scenes: list[shapes.Scene], size: int) -> Tensor:
    """Codes of images of ``size`` pixels a side, not scaled: (number, 4, size / 8, size / 8)."""
    with torch.inference_mode():
        codes = [
            coder.encode(shapes.draw(scenes[start : start + 64], size)).latent_dist.mean
            for start in range(0, len(scenes), 64)
        ]
    return torch.cat(codes)
