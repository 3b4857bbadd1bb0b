"""Image models in an appliance: tiny random weights, called through Replicate's and OpenAI's routes."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.support import random_pipelines
from tests.support.appliance_process import TOKEN, Appliance

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),  # of the libraries
]

EDITOR = "test/editor"
PAINTER = "test/painter"
CONTROLLED = "test/controlled"


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    home, weights = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("weights")
    options = {"num_inference_steps": 2}
    base = random_pipelines.stable_diffusion(weights / "painter")
    control = random_pipelines.controlnet(weights / "control", base, 1)
    models = [
        {
            "name": EDITOR,
            "memory": "1GiB",  # the estimate is for images of the usual size, and would wait for other tests
            "source": {"path": str(random_pipelines.flux_2_klein(weights / "editor"))},
        },
        {"name": PAINTER, "source": {"path": str(base)}},
        {
            "name": CONTROLLED,
            "source": {"path": str(base)},
            "options": options | {"controlnets": {"edges": {"path": str(control)}}},
        },
        {
            "name": "test/broken",
            "source": {"path": str(base)},
            "options": options | {"controlnets": {"edges": {"path": str(weights / "gone")}}},
        },
    ]
    config = home / "models.yaml"
    config.write_text(
        json.dumps({"models": [{"kind": "diffusers", "options": options, **model} for model in models]})
    )
    started = Appliance(home, config)
    with started.running():
        yield started


@pytest.fixture
def gpt(appliance: Appliance) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{appliance.url}/openai/v1",
        api_key=TOKEN,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


def png(*colour: int, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def as_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def prediction(client: httpx.Client, model: str, **input: Any) -> dict[str, Any]:
    reply = client.post(
        f"/v1/models/{model}/predictions", json={"input": input}, headers={"Prefer": "wait=60"}
    )
    record: dict[str, Any] = reply.raise_for_status().json()
    while record["status"] in {"starting", "processing"}:  # a busy machine may take longer
        time.sleep(0.1)
        record = client.get(f"/v1/predictions/{record['id']}").raise_for_status().json()
    return record


RED, BLUE = png(200, 30, 30, size=(96, 64)), png(30, 30, 200)
ASKED: dict[str, Any] = {"prompt": "x", "seed": 1, "output_format": "png"}


def test_a_prediction_combines_images(client: httpx.Client) -> None:
    def made(**input: Any) -> bytes:
        record = prediction(client, EDITOR, **ASKED, **input)
        assert record["status"] == "succeeded", record
        content: bytes = client.get(record["output"][0]).content
        return content

    both = made(image_input=[as_url(RED), as_url(BLUE)])
    assert Image.open(io.BytesIO(both)).size == (96, 64)
    assert both == made(image=as_url(RED), images=[as_url(BLUE)])
    assert both != made(image=as_url(RED))
    wrong = client.post(
        f"/v1/models/{EDITOR}/predictions", json={"input": {**ASKED, "image_input": [as_url(RED), "red"]}}
    )
    assert wrong.status_code == 422
    assert "input.image_input.1: Does not match format 'uri'" in wrong.json()["detail"]


def test_openai_edits_several_images(gpt: OpenAI, client: httpx.Client) -> None:
    def edited(*images: bytes, **more: Any) -> bytes:
        files = [(f"{number}.png", image) for number, image in enumerate(images)]
        found = gpt.images.edit(
            model=EDITOR, image=files, prompt="x", response_format="b64_json",
            extra_body={"seed": "1"}, **more,
        )  # fmt: skip
        assert found.data is not None
        input = client.get(f"/v1/predictions/{found._request_id}").json()["input"]
        assert len(input["image_input"]) == len(images)
        return base64.b64decode(str(found.data[0].b64_json))

    both = edited(RED, BLUE)
    assert Image.open(io.BytesIO(both)).size == (96, 64)
    assert both != edited(BLUE, RED, size="96x64")
    one = gpt.images.edit(model=EDITOR, image=("red.png", RED), prompt="x", response_format="b64_json")
    assert one.data is not None
    with pytest.raises(openai.BadRequestError, match=f"{PAINTER} accepts one image; there are 2 files"):
        gpt.images.edit(model=PAINTER, image=[("a.png", RED), ("b.png", BLUE)], prompt="x")
    with pytest.raises(openai.BadRequestError, match="does not support masks"):
        gpt.images.edit(model=EDITOR, image=("red.png", RED), mask=("mask.png", RED), prompt="x")


def test_a_control_image_steers_the_image(client: httpx.Client) -> None:
    def made(model: str, **input: Any) -> bytes:
        record = prediction(client, model, **ASKED, **input)
        assert record["status"] == "succeeded", record
        content: bytes = client.get(record["output"][0]).content
        return content

    steered = made(CONTROLLED, controlnet_edges_image=as_url(RED))
    assert steered == made(CONTROLLED, control_image=as_url(RED))
    assert made(CONTROLLED) == made(PAINTER) != steered
    missing = client.get("/admin/status").raise_for_status().text
    assert "options.controlnets.edges" in missing
    assert "gone does not exist: correct the source" in missing
