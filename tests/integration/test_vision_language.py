"""A vision-language model with random weights on vLLM: images in both APIs.

Idefics3 is one of the few architectures that vLLM loads without torchvision.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from PIL import Image

from appliance.domain.prediction import Done
from appliance.runners import video_frames
from appliance.runners.operations import CHAT
from appliance.runners.vllm.options import VllmOptions
from appliance.worker.replica import Replica
from tests.support import tiny_vision_models
from tests.support.videos import write_video
from tests.support.worker_processes import Caller, Zygote, spec

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

GREEDY = {"prompt": "is this a cat", "temperature": 0, "max_tokens": 8, "min_tokens": 8, "system_prompt": ""}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(vllm_zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    weights = tmp_path_factory.mktemp("weights")
    tiny_vision_models.vision_language(weights)
    options = VllmOptions(kv_cache=64 << 20, max_num_seqs=4, max_adapters=0, dtype="float32")
    replica = Replica("runner-0", str(vllm_zygote.socket), str(vllm_zygote.run_dir))
    asked = spec(tmp_path_factory.mktemp("cache"), "vllm", concurrency=4)
    await replica.load(
        msgspec.structs.replace(
            asked,
            options=options.completed(weights).model_dump(),
            weights=str(weights),
            memory=1 << 30,
        )
    )
    yield Caller(replica)
    await replica.unload()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (40, 30), (220, 20, 10)).save(folder / "red.png")
    Image.new("RGB", (30, 40), (10, 20, 220)).save(folder / "blue.jpg")
    write_video(folder / "half.mp4", [(220, 20, 10)] * 10 + [(10, 20, 220)] * 10)
    (folder / "text.txt").write_text("no image " * 100)
    return folder


async def test_images_are_part_of_the_prompt(caller: Caller, files: Path) -> None:
    counts = {}
    asked: dict[str, dict[str, Any]] = {
        "none": {},
        "one": {"image": str(files / "red.png")},
        "three": {"image": str(files / "red.png"), "images": [str(files / "blue.jpg")] * 2},
    }
    for name, given in asked.items():
        assert await caller.run(name, **GREEDY, **given) == Done("succeeded"), caller.logs(name)
        assert caller.metrics(name)["output_token_count"] == 8
        counts[name] = caller.metrics(name)["input_token_count"]
        assert "".join(caller.output(name))
    assert counts["one"] - counts["none"] >= 4, "an image is 4 tokens and the marks around them"
    assert counts["three"] - counts["one"] == 2 * (counts["one"] - counts["none"])


async def test_the_same_image_gives_the_same_text_in_both_apis(caller: Caller, files: Path) -> None:
    assert await caller.run("replicate", **GREEDY, image=str(files / "red.png")) == Done("succeeded")
    url = f"data:image/png;base64,{base64.b64encode((files / 'red.png').read_bytes()).decode()}"
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": GREEDY["prompt"]},
    ]
    body = {
        "model": "x",
        "messages": [{"role": "user", "content": parts}],
        **{name: GREEDY[name] for name in ("temperature", "max_tokens", "min_tokens")},
    }
    done = await caller.run("openai", CHAT, **body)
    assert done == Done("succeeded"), caller.logs("openai")
    (response,) = caller.output("openai")
    assert response["choices"][0]["message"]["content"] == "".join(caller.output("replicate"))


async def test_a_video_is_given_as_some_of_its_frames(caller: Caller, files: Path) -> None:
    given = {"video": str(files / "half.mp4"), "video_frames": 2}
    assert await caller.run("video", **GREEDY, **given) == Done("succeeded"), caller.logs("video")
    frames = list(video_frames.read(files / "half.mp4", 2, "video", threading.Event()))
    for number, frame in enumerate(frames):
        frame.save(files / f"{number}.png")
    asked = {"image": str(files / "0.png"), "images": [str(files / "1.png")]}
    assert await caller.run("frames", **GREEDY, **asked) == Done("succeeded")
    assert caller.metrics("video")["input_token_count"] == caller.metrics("frames")["input_token_count"]
    assert "".join(caller.output("video")) == "".join(caller.output("frames"))


async def test_files_that_are_no_images_are_refused(caller: Caller, files: Path) -> None:
    done = await caller.run("text", **GREEDY, image=str(files / "text.txt"))
    assert done.status == "failed"
    assert "input.image: this is not an image" in str(done.error)
    done = await caller.run("video of text", **GREEDY, video=str(files / "text.txt"))
    assert "input.video: this file has no video stream" in str(done.error)
    template = await caller.run("t", **GREEDY, image=str(files / "red.png"), prompt_template="{prompt}")
    assert "input.prompt_template cannot be combined with images" in str(template.error)
