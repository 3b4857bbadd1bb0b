"""LangChain, LlamaIndex, LiteLLM and the Vercel AI SDK, which scripts/install-clients fetches.

Each is started once and prints what all of its tests look at.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.clients import LANGUAGE_MODEL, framework, node
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e

QUESTION = 'question = "What is the capital of France?"\n'


@pytest.fixture(scope="module")
def langchain(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = framework(
        appliance,
        QUESTION
        + """
import replicate
from langchain_community.llms import Replicate
chain = Replicate(model=model, model_kwargs={"temperature": 0, "max_tokens": 40})
told = {"invoke": chain.invoke(question), "stream": list(chain.stream(question))}
version = replicate.models.get("test/stream").latest_version.id
told["newest"] = Replicate(model="test/stream").invoke("said back")
told["version"] = Replicate(model=f"test/stream:{version}").invoke("said back")
told["batch"] = Replicate(model="test/stream").batch(["one ", "two ", "three "])
slowly = Replicate(model="test/stream", model_kwargs={"chunk_delay": 0.5})
long = "for LangChain: one two three" + " and so on" * 100
told["stop"] = list(slowly.stream(long, stop=["three"]))
try:
    Replicate(model="appliance/echo", model_kwargs={"fail": "it broke"}).invoke("x")
except RuntimeError as error:
    told["failure"] = str(error)
print(json.dumps(told))
""",
    )
    return told


@pytest.fixture(scope="module")
def llama_index(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = framework(
        appliance,
        QUESTION
        + """
from llama_index.core.llms import ChatMessage
from llama_index.llms.replicate import Replicate
llama = Replicate(model=model, temperature=0.01)
asked = [ChatMessage(role="user", content="Is Paris or London the capital of France?")]
told = {"complete": llama.complete(question).text, "chat": llama.chat(asked).message.content}
told["stream_complete"] = [part.delta for part in llama.stream_complete(question)]
told["stream_chat"] = [part.delta for part in llama.stream_chat(asked)]
Replicate(model=model, context_window=5).complete("For LlamaIndex, count to one hundred.")
print(json.dumps(told))
""",
    )
    return told


@pytest.fixture(scope="module")
def litellm(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = framework(
        appliance,
        QUESTION
        + """
import asyncio
import litellm
litellm.disable_hf_tokenizer_download = True  # it counts tokens itself
import litellm.llms.replicate.chat.transformation as transformation
original = transformation.ReplicateConfig.get_complete_url
def ours(*arguments, **keywords):  # it takes api_base and REPLICATE_API_BASE, and then heeds neither
    return original(*arguments, **keywords).replace("https://api.replicate.com", url)
transformation.ReplicateConfig.get_complete_url = ours

def asking(text=question, name=model, **options):
    messages = [{"role": "user", "content": text}]
    return {"model": f"replicate/{name}", "messages": messages, "temperature": 0, "max_tokens": 30} | options

def text_of(answer):
    return answer.choices[0].message.content

def pieces_of(parts):
    return [part.choices[0].delta.content for part in parts if part.choices[0].delta.content]

async def both():
    answer, parts = await asyncio.gather(
        litellm.acompletion(**asking()), litellm.acompletion(**asking(stream=True))
    )
    return [text_of(answer), "".join(pieces_of([part async for part in parts]))]

told = {"completion": text_of(litellm.completion(**asking()))}
told["stream"] = "".join(pieces_of(litellm.completion(**asking(stream=True))))
told["asynchronous"] = asyncio.run(both())
slowly = {"delay": 1.2, "chunk_delay": 1.5}  # what LiteLLM does not know becomes inputs
parts = litellm.completion(**asking(name="test/stream", stream=True), text="a b c d ", **slowly)
told["slow"] = pieces_of(parts)
litellm.completion(**asking("For LiteLLM, count to one hundred.", max_tokens=5))
told["stop"] = text_of(litellm.completion(**asking(stop=["Paris", "London"])))
told["errors"] = {}
for case, options in {
    "token": {"api_key": "wrong"}, "input": {"top_k": "many"}, "model": {"name": "no/model"},
    "failure": {"name": "appliance/echo", "fail": "it broke"},
}.items():
    try:
        litellm.completion(**asking(**options))
    except Exception as error:
        told["errors"][case] = [type(error).__name__, str(error)]
print(json.dumps(told))
""",
    )
    return told


@pytest.fixture(scope="module")
def vercel(appliance: Appliance) -> dict[str, Any]:
    told: dict[str, Any] = node(
        appliance,
        """
        import { createReplicate } from "@ai-sdk/replicate";
        import { experimental_generateVideo as generateVideo, generateImage } from "ai";
        const provider = createReplicate({ apiToken: auth, baseURL: baseUrl });
        const png = Buffer.concat([
          Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]), Buffer.alloc(100_000, "png"),
        ]);
        const file = `data:image/png;base64,${png.toString("base64")}`;
        const image = (name, options, rest) => generateImage({
          model: provider.image(name), prompt: "a cat", maxRetries: 0, ...rest,
          providerOptions: { replicate: { file, ...options } },
        });
        const video = (options) => generateVideo({
          model: provider.video("appliance/echo"), prompt: "a cat", maxRetries: 0,
          providerOptions: { replicate: { pollIntervalMs: 200, ...options } },
        });
        const messageOf = (asked) => asked.then(() => null, (error) => error.message);
        const same = ({ images }) => images.map(({ base64 }) => base64 === png.toString("base64"));

        const rest = { n: 2, size: "1024x1024", aspectRatio: "16:9", seed: 7 };
        const generated = await image("test/files", { guidance_scale: 3 }, rest);
        const newest = (await replicate.models.get("test", "files")).latest_version.id;
        const long = await image(`test/files:${newest}`, { maxWaitTimeInSeconds: 300 });
        const edited = await image("test/files", {}, { prompt: { text: "a dog", images: [png] } });
        const text = `data:video/mp4;base64,${Buffer.from("moving").toString("base64")}`;
        const film = await video({ text, delay: 2.5, maxWaitTimeInSeconds: 1 });
        const stranger = createReplicate({ apiToken: "wrong", baseURL: baseUrl });
        console.log(JSON.stringify({
          generated: same(generated),
          types: generated.images.map(({ mediaType }) => mediaType),
          warnings: generated.warnings,
          version: same(long),
          edited: same(edited),
          applied: [generated, long].map(({ responses }) => responses[0].headers["preference-applied"]),
          film: Buffer.from(film.video.base64, "base64").toString(),
          input: await messageOf(image("test/files", { repeat: 0 })),
          token: await messageOf(generateImage({
            model: stranger.image("test/files"), prompt: "x", maxRetries: 0,
          })),
          failure: await messageOf(video({ fail: "it broke" })),
        }));
        """,
    )
    return told


def test_p22_langchain_answers(langchain: dict[str, Any]) -> None:
    assert "Paris" in langchain["invoke"]


def test_p22_langchain_streams(langchain: dict[str, Any]) -> None:
    assert "Paris" in "".join(langchain["stream"])
    assert len(langchain["stream"]) > 1


def test_p22_a_stop_word_of_langchain_cancels(langchain: dict[str, Any], client: httpx.Client) -> None:
    assert langchain["stop"] == ["for ", "LangChain: ", "one ", "two "]
    assert made(client, "text", "for LangChain: ")["status"] == "canceled"


def test_c1_langchain_finds_the_prompt(langchain: dict[str, Any]) -> None:
    assert langchain["newest"] == "said back"
    assert langchain["version"] == "said back"


def test_langchain_asks_several_at_once(langchain: dict[str, Any]) -> None:
    assert langchain["batch"] == ["one ", "two ", "three "]


def test_langchain_tells_why_it_failed(langchain: dict[str, Any]) -> None:
    assert langchain["failure"] == "it broke"


@pytest.mark.parametrize("way", ["complete", "stream_complete", "chat", "stream_chat"])
def test_p23_l2_llama_index_answers(llama_index: dict[str, Any], way: str) -> None:
    assert "Paris" in "".join(llama_index[way])
    assert len(llama_index[way]) > 1


def test_l2_the_length_of_llama_index_is_held(llama_index: dict[str, Any], client: httpx.Client) -> None:
    record = made(client, "prompt", "For LlamaIndex, ")
    assert (record["input"]["max_length"], record["input"]["temperature"]) == (5, 0.75)
    assert record["metrics"]["output_token_count"] == 5


def test_a5_litellm_answers(litellm: dict[str, Any]) -> None:
    assert "Paris" in litellm["completion"]


def test_p19_litellm_streams(litellm: dict[str, Any]) -> None:
    assert "Paris" in litellm["stream"]
    assert "".join(litellm["slow"]) == "a b c d "
    assert len(litellm["slow"]) > 1


def test_litellm_answers_and_streams_asynchronously(litellm: dict[str, Any]) -> None:
    assert all("Paris" in text for text in litellm["asynchronous"])


def test_l1_p9_the_names_of_litellm(litellm: dict[str, Any], client: httpx.Client) -> None:
    record = made(client, "prompt", "For LiteLLM, ")
    assert record["input"]["max_new_tokens"] == 5
    assert record["metrics"]["output_token_count"] == 5
    assert "capital" in litellm["stop"]
    assert "Paris" not in litellm["stop"]


def test_litellm_tells_errors_apart(litellm: dict[str, Any]) -> None:
    kinds = {case: kind for case, (kind, _) in litellm["errors"].items()}
    assert kinds == {
        "token": "AuthenticationError",
        "input": "UnprocessableEntityError",
        "model": "APIError",
        "failure": "UnprocessableEntityError",
    }
    texts = {case: text for case, (_, text) in litellm["errors"].items()}
    assert "input.top_k" in texts["input"]
    assert "it broke" in texts["failure"]


def test_p9_p27_f22_the_vercel_sdk_makes_images(vercel: dict[str, Any]) -> None:
    assert vercel["generated"] == [True, True]
    assert vercel["types"] == ["image/png", "image/png"]
    assert vercel["warnings"] == []
    assert vercel["version"] == [True]


def test_p9_the_vercel_sdk_hands_an_image_over(vercel: dict[str, Any]) -> None:
    assert vercel["edited"] == [True]


def test_p15_the_vercel_sdk_waits_a_minute_at_most(vercel: dict[str, Any]) -> None:
    assert vercel["applied"] == ["wait", "wait=60"]


def test_p28_the_vercel_sdk_polls_for_a_video(vercel: dict[str, Any]) -> None:
    assert vercel["film"] == "moving"


def test_a11_the_vercel_sdk_tells_what_was_wrong(vercel: dict[str, Any]) -> None:
    assert "- input.repeat: Must be greater than or equal to 1" in vercel["input"]
    assert vercel["token"] == "You did not pass a valid authentication token"
    assert vercel["failure"] == "Video generation failed: it broke"


def made(client: httpx.Client, name: str, beginning: str) -> dict[str, Any]:
    """The newest prediction whose input begins so."""
    found = client.get("/v1/predictions").json()["results"]
    record: dict[str, Any] = next(
        record for record in found if str(record["input"].get(name, "")).startswith(beginning)
    )
    assert record["model"] in (LANGUAGE_MODEL, "test/stream")
    return record
