"""The command line of scripts/train-tiny-image-model."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Final

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.tiny_image_model import autoencoder, diffusion, measure, shapes

_HOME: Final = Path(__file__).parents[2] / "appliance" / "assets" / "tiny-shapes"
_CARD: Final = Path(__file__).parent / "card.md"


def main() -> int:
    """Train and save the model, draw samples, measure it, and return the exit code."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if not arguments.measure:
        _train(arguments)
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.output, dtype=torch.float32)  # as on a CPU
    _sheet(pipeline, arguments.sheet)
    print(f"The model is in {arguments.output}; samples of its images are in {arguments.sheet}")
    print("Images that show the colour and the shape of their prompt:")
    for name, prompts in (
        ("held-out pairs", measure.held_out()),
        ("stars", measure.stars()),
        ("small shapes of long prompts", measure.long_prompts("small")),
        ("large shapes of long prompts", measure.long_prompts("large")),
    ):
        print(f"  {name}: {measure.accuracy(pipeline, prompts):.0%} of {len(prompts)}", flush=True)
    return 0


def _train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    chance = random.Random(arguments.seed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        coder = autoencoder.train(arguments.autoencoder_steps, chance, progress)
        stages = diffusion.stages(arguments.images, arguments.steps, arguments.large_steps)
        pipeline = diffusion.train(coder, stages, chance, progress)
    _save(pipeline, arguments.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/train-tiny-image-model",
        description="Trains the small text-to-image model that the appliance ships, on generated images of "
        "shapes. Takes two to three hours on two CPU cores. Training never shows two colours of each shape.",
    )
    parser.add_argument("--output", type=Path, default=_HOME, help="folder to save to (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="only draw samples and measure the model")
    parser.add_argument(
        "--sheet",
        type=Path,
        default=Path("tiny-shapes.png"),
        help="image with samples (default: %(default)s)",
    )
    parser.add_argument(
        "--autoencoder-steps", type=int, default=1200, help="steps of 32 images of 64 pixels (%(default)s)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=20_000,
        help="training images of 64 pixels, and 4/5 as many of 128 (%(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=3800, help="steps of 64 images of 64 pixels (%(default)s)"
    )
    parser.add_argument(
        "--large-steps", type=int, default=5000, help="steps of 16 images of 128 pixels (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    return parser.parse_args()


def _save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    (folder / "README.md").write_text(_CARD.read_text())
    pairs = [{"colour": colour, "shape": shape} for colour, shape in sorted(shapes.HELD_OUT)]
    (folder / "held_out.json").write_text(json.dumps(pairs, indent=2) + "\n")


def _sheet(pipeline: StableDiffusionPipeline, file: Path) -> None:
    """Every colour with every shape; the pairs that were held out have a dark corner."""
    side = diffusion.IMAGE_SIZE
    sheet = Image.new("RGB", (side * len(shapes.COLOURS), side * len(shapes.SHAPES)))
    for row, shape in enumerate(shapes.SHAPES):
        prompts = [f"a {colour} {shape}" for colour in shapes.COLOURS]
        generator = torch.Generator().manual_seed(row)
        images = pipeline(prompts, num_inference_steps=25, guidance_scale=4.0, generator=generator).images
        for column, (colour, image) in enumerate(zip(shapes.COLOURS, images, strict=True)):
            if (colour, shape) in shapes.HELD_OUT:
                image.paste((0, 0, 0), (0, 0, 6, 6))
            sheet.paste(image, (column * side, row * side))
    sheet.save(file)


if __name__ == "__main__":
    sys.exit(main())
