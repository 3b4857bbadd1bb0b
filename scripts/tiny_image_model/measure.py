"""Shares of a model's images that show the colour and the shape of the prompt."""

from __future__ import annotations

import random
from typing import Final

import msgspec
import torch
from diffusers import StableDiffusionPipeline

from scripts.tiny_image_model import shapes
from scripts.tiny_image_model.seen import seen

_BATCH: Final = 8


class LabelledPrompt(msgspec.Struct, frozen=True):
    """A prompt, and the colour and the shape that it names."""

    prompt: str
    colour: str
    shape: str


def held_out() -> list[LabelledPrompt]:
    """A short prompt for each pair of colour and shape that training leaves out; eight of each."""
    return [_short(colour, shape) for colour, shape in sorted(shapes.HELD_OUT) for _ in range(8)]


def stars() -> list[LabelledPrompt]:
    """A short prompt for a star of each colour; four of each."""
    return [_short(colour, "star") for colour in shapes.COLOURS for _ in range(4)]


def long_prompts(size: str) -> list[LabelledPrompt]:
    """Prompts with this size, a place and a background, of pairs that are trained; eight of each shape."""
    chance = random.Random(0)
    prompts = []
    for shape in shapes.SHAPES:
        for _ in range(8):
            colour = chance.choice([colour for colour, shown in shapes.PAIRS if shown == shape])
            place = chance.choice([place for place in shapes.PLACES if place])
            background = chance.choice([each for each in shapes.BACKGROUNDS if each != colour])
            prompt = f"a {size} {colour} {shape} {place} on a {background} background"
            prompts.append(LabelledPrompt(prompt, colour, shape))
    return prompts


def _short(colour: str, shape: str) -> LabelledPrompt:
    return LabelledPrompt(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}", colour, shape)


def accuracy(pipeline: StableDiffusionPipeline, prompts: list[LabelledPrompt]) -> float:
    """The share of images that show both colour and shape. The seed of an image is its prompt's index."""
    right = 0
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        images = pipeline(
            [each.prompt for each in batch],
            num_inference_steps=25,
            guidance_scale=4.0,
            generator=[torch.Generator().manual_seed(start + index) for index in range(len(batch))],
        ).images
        for each, image in zip(batch, images, strict=True):
            found = seen(image)
            right += found is not None and (found.colour, found.shape) == (each.colour, each.shape)
    return right / len(prompts)
