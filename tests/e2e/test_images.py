"""The default text-to-image model: what it draws, measured, and how clients ask for it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from replicate.client import Client

from scripts.tiny_image_model import measure, shapes
from scripts.tiny_image_model.seen import Seen, seen
from tests.e2e.clients import node
from tests.e2e.test_conformance_predictions import create, ended, get
from tests.support.appliance_process import ROOT, Appliance, wait_for

pytestmark = pytest.mark.e2e

MODEL = "appliance/tiny-shapes"
PROGRESS = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)/(\d+)")  # what official clients look for


def fetch_image(client: httpx.Client, url: str) -> Image.Image:
    reply = client.get(url)
    assert reply.status_code == 200
    return Image.open(io.BytesIO(reply.content))


def drawn(api: httpx.Client, **input: Any) -> list[Image.Image]:
    record = ended(api, create(api, MODEL, **input))
    assert record["status"] == "succeeded", record
    assert record["metrics"]["image_count"] == len(record["output"])
    return [fetch_image(api, url) for url in record["output"]]


def shown(image: Image.Image) -> Seen:
    found = seen(image)
    assert found is not None
    return found


def test_a_red_circle_is_red_and_round(official: Client, client: httpx.Client) -> None:
    (url,) = official.run("stability-ai/sdxl", input={"prompt": "a red circle", "seed": 1})
    found = shown(fetch_image(client, str(url)))
    assert (found.colour, found.shape, found.background) == ("red", "circle", "white")
    assert found.likeness > 0.85


def test_images_show_the_colour_and_the_shape_of_their_prompt(api: httpx.Client) -> None:
    """At least a share of the images of each kind of prompt. The model's card has the shares of many more."""
    pairs = json.loads((ROOT / "appliance" / "assets" / "tiny-shapes" / "held_out.json").read_text())
    assert {(pair["colour"], pair["shape"]) for pair in pairs} == shapes.HELD_OUT
    kinds = {
        "held-out pairs": (0.9, measure.held_out()[::4]),
        "stars": (0.9, measure.stars()[::2]),
        "long prompts": (0.85, measure.long_prompts("small")[::4] + measure.long_prompts("large")[::4]),
    }
    records = {
        kind: [create(api, MODEL, prompt=each.prompt, seed=100 + n) for n, each in enumerate(prompts)]
        for kind, (_, prompts) in kinds.items()
    }  # all at once, so that they share batches
    for kind, (share, prompts) in kinds.items():
        wrong = []
        for prompt, created in zip(prompts, records[kind], strict=True):
            record = ended(api, created)
            assert record["status"] == "succeeded", record
            found = seen(fetch_image(api, *record["output"]))
            if found is None or (found.colour, found.shape) != (prompt.colour, prompt.shape):
                wrong.append((prompt.prompt, found and (found.colour, found.shape)))
        print(f"{len(prompts) - len(wrong)} of {len(prompts)} {kind} are right; wrong: {wrong}")
        assert len(prompts) - len(wrong) >= share * len(prompts), wrong


def test_places_sizes_and_backgrounds(api: httpx.Client) -> None:
    (left,) = drawn(api, prompt="a small blue square on the left", seed=3)
    (right,) = drawn(api, prompt="a small blue square on the right", seed=3)
    assert shown(left).x < -0.2 < 0.2 < shown(right).x
    for prompt, *expected in (
        ("a large yellow square on a black background", "yellow", "square", "black"),
        ("a large green cross on a gray background", "green", "cross", "gray"),
        ("a yellow ring on a pink background", "yellow", "ring", "pink"),
    ):
        (image,) = drawn(api, prompt=prompt, seed=3)
        found = shown(image)
        assert [found.colour, found.shape, found.background] == expected


def test_l4_the_same_seed_is_the_same_file(api: httpx.Client) -> None:
    asked = {"prompt": "a green ring", "seed": 11, "output_format": "png"}
    first, again = (ended(api, create(api, MODEL, **asked)) for _ in range(2))
    assert "Using seed: 11" in first["logs"]
    assert api.get(first["output"][0]).content == api.get(again["output"][0]).content


def test_l6_l7_sizes_and_numbers_as_the_vercel_sdk_asks(appliance: Appliance) -> None:
    told = node(
        appliance,
        f"""
        import {{ createReplicate }} from "@ai-sdk/replicate";
        import {{ generateImage }} from "ai";
        const provider = createReplicate({{ apiToken: auth, baseURL: baseUrl }});
        const drawn = async (rest) => (await generateImage({{
          model: provider.image("{MODEL}"), prompt: "an orange diamond", maxRetries: 0, seed: 5, ...rest,
          providerOptions: {{ replicate: {{ output_format: "png", num_inference_steps: 20 }} }},
        }})).images.map(({{ base64 }}) => base64);
        console.log(JSON.stringify({{
          several: await drawn({{ n: 2 }}), first: await drawn({{}}),
          wide: await drawn({{ aspectRatio: "16:9" }}), size: await drawn({{ size: "96x64" }}),
        }}));
        """,
    )
    images = {
        name: [Image.open(io.BytesIO(base64.b64decode(each))) for each in files]
        for name, files in told.items()
    }
    # It asks for each by itself, with the same seed.
    assert [image.size for image in images["several"]] == [(128, 128)] * 2
    assert {(shown(image).colour, shown(image).shape) for image in images["several"]} == {
        ("orange", "diamond")
    }
    for image in images["several"]:  # they may share a batch, which changes how numbers are rounded
        difference = np.asarray(image, np.int16) - np.asarray(images["first"][0], np.int16)
        assert abs(difference).max() <= 2
    assert images["wide"][0].size == (168, 96)
    assert images["size"][0].size == (96, 64)


def test_l6_several_are_of_seeds_that_follow_each_other(api: httpx.Client) -> None:
    asked = {"prompt": "a green square", "output_format": "png"}
    several = drawn(api, **asked, seed=5, num_outputs=3)
    alone = [image for seed in (5, 6, 7) for image in drawn(api, **asked, seed=seed)]
    assert len({image.tobytes() for image in several}) == 3
    for together, one in zip(several, alone, strict=True):
        pairs = zip(together.tobytes(), one.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 2


def test_l7_formats_and_names(api: httpx.Client) -> None:
    for suffix, kind in (("webp", "image/webp"), ("jpg", "image/jpeg"), ("png", "image/png")):
        record = ended(
            api, create(api, MODEL, prompt="a red circle", output_format=suffix, num_outputs=2, go_fast=True)
        )
        assert [url.rpartition("/")[2] for url in record["output"]] == [f"out-0.{suffix}", f"out-1.{suffix}"]
        assert {api.get(url).headers["content-type"] for url in record["output"]} == {kind}


def test_l8_what_a_mask_shows_white_is_repainted(api: httpx.Client, tmp_path: Path) -> None:
    scene = shapes.Scene("square", "blue", "white", 0.5, 0.0, 0.0, ())
    values = (shapes.draw([scene], 128)[0].permute(1, 2, 0) + 1) * 127.5
    Image.fromarray(values.byte().numpy()).save(tmp_path / "given.png")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))  # the left half
    mask.save(tmp_path / "mask.png")
    image, white = (upload(api, tmp_path / name) for name in ("given.png", "mask.png"))
    asked = {"prompt": "a red square", "image": image, "seed": 2, "output_format": "png"}
    (painted,) = drawn(api, **asked, mask=white, prompt_strength=1.0)
    right = painted.convert("RGB").getpixel((80, 64))
    left = painted.convert("RGB").getpixel((48, 64))
    assert isinstance(right, tuple)
    assert isinstance(left, tuple)
    assert right[2] > 150 > right[0], right  # still blue
    assert left[0] > left[2], left  # no longer
    (kept,) = drawn(api, **asked, prompt_strength=0.04)
    assert (shown(kept).colour, shown(kept).shape) == ("blue", "square")
    (changed,) = drawn(api, **asked, prompt_strength=1.0)
    assert (shown(changed).colour, shown(changed).shape) == ("red", "square")


def upload(api: httpx.Client, file: Path) -> str:
    reply = api.post("/v1/files", files={"content": (file.name, file.read_bytes(), "image/png")})
    url: str = reply.json()["urls"]["get"]
    return url


def test_p36_progress_and_a_cancel_within_a_step(api: httpx.Client) -> None:
    record = create(api, MODEL, prompt="a black cross", num_inference_steps=500, num_outputs=4)
    wait_for(lambda: "%|" in get(api, record)["logs"], "progress")
    canceled = api.post(record["urls"]["cancel"]).json()
    assert canceled["status"] == "canceled"
    lines = re.split(r"[\r\n]+", canceled["logs"])
    steps = [match for line in lines if (match := PROGRESS.match(line))]
    assert steps
    assert {match[3] for match in steps} == {"500"}
    assert int(steps[-1][2]) < 500
    after = ended(api, create(api, MODEL, prompt="a red circle"))
    assert after["status"] == "succeeded"


def test_what_is_no_image_is_refused_and_the_model_goes_on(api: httpx.Client) -> None:
    record = ended(api, create(api, MODEL, prompt="a red circle", image="data:image/png;base64,AAAA"))
    assert record["status"] == "failed"
    assert record["error"].startswith("input.image: this is not an image; send one of PNG,")
    wrong = api.post("/v1/predictions", json={"version": MODEL, "input": {"num_outputs": 9}})
    assert {row["field"] for row in wrong.json()["invalid_fields"]} == {"input", "input.num_outputs"}
    long = ended(api, create(api, MODEL, prompt="a red circle " + "and so on " * 60))
    assert long["status"] == "succeeded"
    assert "truncated" in long["logs"]
