"""The example pipeline, unmodified: three models, one prediction."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from scripts.tiny_image_model.seen import seen
from tests.e2e.test_conformance_predictions import create, ended
from tests.support.appliance_process import Appliance, fetch
from tests.support.runner_calls import word_error_rate

pytestmark = [pytest.mark.e2e, pytest.mark.models("cog")]

MODELS = ["appliance/smollm2-135m-instruct", "appliance/tiny-shapes", "appliance/piper-joe"]


def test_a_story_is_written_drawn_and_read_aloud(api: httpx.Client, appliance: Appliance) -> None:
    whole = ended(api, create(api, "example/storyteller", subject="a red circle"))
    assert whole["status"] == "succeeded", whole
    story = whole["output"]
    assert len(story["text"].split()) >= 3
    image = seen(Image.open(io.BytesIO(fetch(story["image"]).content)))
    assert image is not None
    assert (image.colour, image.shape) == ("red", "circle")
    heard = ended(api, create(api, "appliance/whisper-tiny-en", audio=story["speech"]))
    assert word_error_rate(story["text"], heard["output"]["transcription"]) < 0.2

    parts = [api.get(f"/v1/predictions/{id}").json() for id in whole["parts"]]
    assert [part["model"] for part in parts] == MODELS
    assert {part["parent"] for part in parts} == {whole["id"]}
    assert story["text"] == "".join(parts[0]["output"]).strip()
    log = (appliance.home / "logs" / "appliance.log").read_text()
    assert all(f"{id} (child of {whole['id']})" in log for id in whole["parts"])
