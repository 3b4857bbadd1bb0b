"""A real worker process with the real SmolLM2 of the shipped models.yaml, forked from a zygote."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import psutil
import pytest
import pytest_asyncio
from PIL import Image

from appliance import config, weights
from appliance.domain.errors import LoadFailed
from appliance.domain.prediction import Done
from appliance.machine.processes import is_running
from appliance.runners.base import LoadSpec
from appliance.runners.operations import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES
from appliance.runners.vllm import engine
from appliance.runners.vllm.options import VllmOptions
from appliance.runners.vllm.parsers import ReasoningParser, ToolParser
from appliance.worker.replica import Replica
from tests.support.appliance_process import ROOT, WEIGHTS, until
from tests.support.worker_processes import Caller, Zygote, spec, until_gone

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

LONGEST = 512  # tokens; short, so that a prompt that is too long is quickly made
CAPITAL = {"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The folder of weights; fetched once for all test runs."""
    model = next(model for model in config.load(ROOT / "models.yaml").models if model.kind == "vllm")
    return weights.pull(WEIGHTS, model)


def load_spec(folder: Path, cache: Path, **options: Any) -> LoadSpec:
    """What to load: SmolLM2 with a small cache."""
    options = {"tool_parser": "hermes", **options}
    filled = VllmOptions(max_model_len=LONGEST, kv_cache=64 << 20, max_num_seqs=4, **options)
    return msgspec.structs.replace(
        spec(cache, "vllm", concurrency=4),
        options=filled.model_dump(),
        weights=str(folder),
        memory=1 << 30,
        threads=1,  # more would spin while they wait for a CPU that other tests use
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(
    vllm_zygote: Zygote, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Caller]:
    """One loaded model for all tests that leave it running."""
    replica = Replica("runner-0", str(vllm_zygote.socket), str(vllm_zygote.run_dir))
    report = await replica.load(load_spec(smollm2, tmp_path_factory.mktemp("cache")))
    assert report.forked
    yield Caller(replica)
    await replica.unload()


async def text(caller: Caller, id: str, **input: Any) -> str:
    """The output of a prediction that succeeds."""
    done = await caller.run(id, **input)
    assert done == Done("succeeded"), caller.logs(id)
    return "".join(caller.output(id))


async def test_it_knows_the_capital_of_france(caller: Caller) -> None:
    answer = await text(caller, "capital", **CAPITAL)
    assert "Paris" in answer
    assert len(caller.output("capital")) > 1, "the answer comes in pieces"


async def test_what_was_measured(caller: Caller) -> None:
    await text(caller, "measured", **{**CAPITAL, "max_tokens": 3})
    metrics = caller.metrics("measured")
    assert metrics["output_token_count"] == 3
    assert 20 < metrics["input_token_count"] < 60
    assert 0 < metrics["time_to_first_token"] < metrics["predict_time"]
    assert metrics["tokens_per_second"] >= 3 / metrics["predict_time"]
    kinds = {name: type(value) for name, value in metrics.items()}
    assert kinds["input_token_count"] is kinds["output_token_count"] is int
    assert kinds["time_to_first_token"] is kinds["tokens_per_second"] is float
    assert "Generated 3 tokens" in caller.logs("measured")


async def test_the_engine_measures_itself(caller: Caller) -> None:
    long = "Count to ten. " * 8  # more than one block of the prefix cache, which has 128 tokens on a CPU
    done = sum(caller.metrics(id)["output_token_count"] for id in caller.order)
    await until(lambda: caller.engine.running == 0 and caller.engine.generation_tokens == done)
    before = copy.deepcopy(caller.engine)
    for id in ("engine 1", "engine 2"):
        await text(caller, id, **{**CAPITAL, "prompt": long * 4, "max_tokens": 9, "min_tokens": 9})
    prompts = sum(caller.metrics(id)["input_token_count"] for id in ("engine 1", "engine 2"))
    await until(lambda: caller.engine.generation_tokens == before.generation_tokens + 18)
    after = caller.engine
    assert after.prompt_tokens - before.prompt_tokens == prompts
    assert after.prefix_cache_queries - before.prefix_cache_queries == prompts
    assert 0 < after.prefix_cache_hits - before.prefix_cache_hits < prompts / 2
    first, between = after.time_to_first_token, after.inter_token_latency
    assert sum(first.counts) - sum(before.time_to_first_token.counts) == 2
    assert sum(between.counts) - sum(before.inter_token_latency.counts) == 16
    assert first.sum > before.time_to_first_token.sum
    assert after.running == after.waiting == after.kv_cache_usage == 0


async def test_the_batch_of_the_engine_is_empty_after_a_cancel(caller: Caller) -> None:
    for number in range(5):  # one more than the batch has places
        await caller.start(f"busy {number}", prompt="Tell me a story.", min_tokens=400, max_tokens=400)
    await until(lambda: caller.engine.running == 4)
    assert 0 < caller.engine.kv_cache_usage <= 1
    for number in range(5):
        await caller.cancel(f"busy {number}")
    await until(lambda: caller.engine.running == 0)
    assert caller.engine.kv_cache_usage == 0


@pytest.mark.parametrize("stop", ["nothing like this, Paris", ["of France", "zzz"]])
async def test_a_stop_sequence_ends_the_answer_and_is_not_part_of_it(
    caller: Caller, stop: str | list[str]
) -> None:
    id = f"stop {stop}"
    answer = await text(caller, id, **CAPITAL, stop_sequences=stop)
    assert answer == ("The capital of France is" if isinstance(stop, str) else "The capital ")


async def test_the_same_seed_gives_the_same_text(caller: Caller) -> None:
    story = {"prompt": "Tell me a story.", "temperature": 1.5, "top_k": 0, "top_p": 1, "max_tokens": 16}
    first = await text(caller, "seed 1", **story, seed=7)
    again = await text(caller, "seed 2", **story, seed=7)
    other = await text(caller, "seed 3", **story, seed=-8)
    assert first == again != other


async def test_without_a_seed_the_text_differs(caller: Caller) -> None:
    story = {"prompt": "Tell me a story.", "temperature": 2, "top_k": 0, "top_p": 1, "max_tokens": 16}
    assert await text(caller, "free 1", **story) != await text(caller, "free 2", **story)


async def test_the_least_and_the_most_tokens(caller: Caller) -> None:
    await text(caller, "least", **{**CAPITAL, "min_tokens": 20, "max_tokens": 20})
    assert caller.metrics("least")["output_token_count"] == 20
    long = "word " * (LONGEST * 3 // 4)
    await text(caller, "most", prompt=long, temperature=0, min_tokens=10_000, max_tokens=10_000)
    metrics = caller.metrics("most")
    assert metrics["input_token_count"] + metrics["output_token_count"] == LONGEST
    assert "max_tokens is lowered from 10000 to" in caller.logs("most")


async def test_the_templates(caller: Caller) -> None:
    await text(caller, "raw", prompt="one two three", prompt_template="", max_tokens=1)
    assert caller.metrics("raw")["input_token_count"] == 3
    await text(
        caller, "own", prompt="three", system_prompt="one", prompt_template="{system_prompt} two {prompt}",
        max_tokens=1,
    )  # fmt: skip
    assert caller.metrics("own")["input_token_count"] == 3
    await text(caller, "no system", prompt="Hi", system_prompt="", max_tokens=1)
    await text(caller, "system", prompt="Hi", system_prompt="one two three", max_tokens=1)
    assert (
        caller.metrics("system")["input_token_count"] - caller.metrics("no system")["input_token_count"]
    ) != 0


@pytest.mark.parametrize(
    ("input", "error"),
    [
        ({"prompt": "word " * 30_000}, r"E1002 PromptTooLong: .* at most 511,"),
        ({"prompt": "Hi", "prompt_template": "only text"}, "E1003 BadPromptTemplate: "),
        ({"prompt": "Hi", "prompt_template": "{prompt} {other}"}, "E1004 PromptTemplateError: "),
        ({"prompt": "", "prompt_template": ""}, "the prompt is empty"),
        ({"prompt": "Hi", "min_tokens": 9, "max_tokens": 8}, r"min_tokens \(9\) is over max_tokens \(8\)"),
    ],
)
async def test_what_cannot_be_answered_says_why(caller: Caller, input: dict[str, Any], error: str) -> None:
    id = f"refused {error}"
    done = await caller.run(id, **input)
    assert done.status == "failed"
    assert done.error is not None
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(done.error)
    assert "Traceback" not in caller.logs(id)


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
#: operation -> a request about the capital of France
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": QUESTION, "max_completion_tokens": 24},
    COMPLETIONS: {"prompt": "The capital of France is", "max_tokens": 8},
    RESPONSES: {"input": "What is the capital of France?", "max_output_tokens": 24},
    MESSAGES: {"messages": QUESTION, "max_tokens": 24},
}
PARIS = {"model": "as/asked", "temperature": 0}


def written(items: list[Any]) -> str:
    """The text in an answer, or in the parts of its stream."""
    found = ""
    for item in items:
        for choice in item.get("choices", []):
            said = choice.get("message") or choice.get("delta") or {}
            found += choice.get("text") or said.get("content") or ""
        if item.get("type") in {"response.output_text.delta", "content_block_delta"}:
            found += item["delta"] if isinstance(item["delta"], str) else item["delta"]["text"]
        for part in [*item.get("content", []), *(p for o in item.get("output", []) for p in o["content"])]:
            found += part["text"]
    return found


@pytest.mark.parametrize("operation", ASKED)
async def test_an_operation_is_answered_at_once_and_streamed_alike(caller: Caller, operation: str) -> None:
    whole, parts = f"whole{operation}", f"parts{operation}"
    assert await caller.run(whole, operation, **PARIS, **ASKED[operation]) == Done("succeeded")
    assert await caller.run(parts, operation, **PARIS, **ASKED[operation], stream=True) == Done("succeeded")
    (answer,) = caller.output(whole)
    assert len(written([answer]).split()) > 2  # which words depends on the kernels of the CPU
    assert written(caller.output(parts)) == written([answer])
    assert len(caller.output(parts)) > 1  # vLLM joins tokens while it waits for the processor
    assert answer["model"] == "as/asked"
    assert whole in answer["id"]
    counted = caller.metrics(whole)
    usage = answer["usage"]
    assert counted["input_token_count"] == usage.get("prompt_tokens", usage.get("input_tokens")) > 4
    assert counted["output_token_count"] == usage.get("completion_tokens", usage.get("output_tokens")) > 4
    streamed = caller.metrics(parts)
    for name in ("input_token_count", "output_token_count"):
        assert streamed[name] == counted[name]
    assert 0 < streamed["time_to_first_token"] < streamed["predict_time"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("operation", "body", "code", "message"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 30_000}]}, 400, "512"),
        (COMPLETIONS, {"prompt": "word " * 30_000}, 400, "512"),
        (RESPONSES, {"input": "word " * 30_000}, 400, "512"),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": "word " * 30_000}], "max_tokens": 5},
            400,
            "512",
        ),
        (CHAT, {"messages": QUESTION, "temperature": "hot"}, 400, "temperature"),
        (CHAT, {"messages": QUESTION, "temperature": -3}, 400, "temperature"),
        (CHAT, {"messages": QUESTION, "temperature": "nan"}, 400, "temperature must be a finite number"),
        (CHAT, {"messages": QUESTION, "logit_bias": {"5": "inf"}}, 400, "logit_bias.5 must be a finite"),
        (CHAT, {}, 400, "messages"),
        (MESSAGES, {"messages": QUESTION}, 400, "max_tokens"),
        (CHAT, {"messages": QUESTION, "logprobs": True, "top_logprobs": 500}, 400, "logprobs"),
        (RESPONSES, {"input": "Hi", "tools": [{"type": "web_search"}]}, 400, "web_search"),
        (
            CHAT,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}],
                    }
                ]
            },
            400,
            "",
        ),
    ],
)
async def test_a_refused_operation_says_why(
    caller: Caller, operation: str, body: dict[str, Any], code: int, message: str, stream: bool
) -> None:
    id = f"refused {operation} {stream} {str(body)[:100]}"
    done = await caller.run(id, operation, model="m", stream=stream, **body)
    assert done.status == "failed"
    (output,) = caller.output(id)
    assert output["error"]["code"] == code
    assert message in output["error"]["message"] == done.error


def held_to(schema: dict[str, Any]) -> dict[str, Any]:
    """A request for an answer that fits a schema."""
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return {"messages": QUESTION, "max_completion_tokens": 40, "temperature": 0, "response_format": shape}


async def test_each_answer_fits_its_grammar_whichever_backend_knows_it(caller: Caller) -> None:
    """Those of one kind come between others, and all at once."""
    word = {"type": "object", "properties": {"name": {"enum": ["a", "b"]}}, "required": ["name"]}
    upper = {"type": "string", "pattern": r"^\p{Lu}$"}
    third = {"type": "integer", "multipleOf": 7, "minimum": 7, "maximum": 700}
    cases: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
        "upper": (held_to(upper), lambda found: len(found) == 1 and found.isupper()),
        "word": (held_to(word), lambda found: found["name"] in {"a", "b"}),
        "third": (held_to(third), lambda found: found % 7 == 0),
        "word again": (held_to(word), lambda found: found["name"] in {"a", "b"}),
    }

    async def asked(name: str) -> None:
        body, fits = cases[name]
        assert await caller.run(f"fits {name}", CHAT, model="m", **body) == Done("succeeded")
        assert fits(json.loads(written(caller.output(f"fits {name}"))))

    for name in cases:
        await asked(name)
    cases |= {f"{name} at once": case for name, case in cases.items()}
    await asyncio.gather(*map(asked, [name for name in cases if name.endswith("at once")]))


async def test_a_grammar_that_calls_itself_first_is_followed(caller: Caller) -> None:
    grammar = {"structured_outputs": {"grammar": 'root ::= root "a" | "b"'}}
    body = {"messages": QUESTION, "max_completion_tokens": 8, "temperature": 0, **grammar}
    assert await caller.run("left", CHAT, model="m", **body) == Done("succeeded")
    answer = written(caller.output("left"))
    assert answer == "b" + "a" * (len(answer) - 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "patternProperties": {"(": {"type": "string"}}}, "Regex parsing error"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "#"}, "no output can match it"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no output can match"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems"),
    ],
)
async def test_a_schema_that_no_answer_can_be_held_to_is_refused(
    caller: Caller, schema: dict[str, Any], reason: str, stream: bool
) -> None:
    id = f"unheld {stream} {schema}"
    done = await caller.run(id, CHAT, model="m", stream=stream, **held_to(schema))
    assert done.status == "failed"
    (output,) = caller.output(id)
    assert output["error"]["code"] == 400
    assert output["error"]["message"].startswith("this schema or grammar cannot be used: ")
    assert reason in output["error"]["message"]


async def test_grey_images_of_16_and_32_bits_keep_their_shades() -> None:
    from vllm.multimodal.media.image import ImageMediaIO

    engine.patch_grey_images()
    for value, form in ((np.uint16(257 * 100), "PNG"), (np.float32(100 / 255), "TIFF")):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 4), value)).save(file, form)
        read = ImageMediaIO().load_bytes(file.getvalue()).media
        assert (read.mode, read.size, read.getpixel((1, 1))) == ("RGB", (4, 8), (100, 100, 100))


async def test_the_parsers_in_the_config_are_those_of_vllm() -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    assert sorted(get_args(ToolParser)) == sorted(ToolParserManager.list_registered())
    assert sorted(get_args(ReasoningParser)) == sorted(ReasoningParserManager.list_registered())


async def test_tokens_are_counted_without_an_answer(caller: Caller) -> None:
    assert await caller.run("counted", COUNT_TOKENS, model="m", messages=QUESTION) == Done("succeeded")
    (answer,) = caller.output("counted")
    assert answer["input_tokens"] == caller.metrics("counted")["input_token_count"] > 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", ASKED)
async def test_a_canceled_operation_ends(caller: Caller, operation: str, stream: bool) -> None:
    id = f"canceled {operation} {stream}"
    limit = {"max_tokens": 400, "max_output_tokens": 400, "max_completion_tokens": 400}
    extra = {name: value for name, value in limit.items() if name in ASKED[operation]}
    body = {**PARIS, **ASKED[operation], **extra, "stream": stream}
    if operation in {CHAT, COMPLETIONS}:
        body["ignore_eos"] = True
    await caller.start(id, operation, **body)
    await asyncio.sleep(0.3)
    await caller.cancel(id)
    done = await caller.done(id)
    if operation in {CHAT, COMPLETIONS}:  # the others may have come to their end
        assert done == Done("canceled")
    assert "Paris" in await text(caller, f"after {id}", **CAPITAL)


async def test_a_cancelled_prediction_frees_its_slot(caller: Caller) -> None:
    endless = {"prompt": "Count.", "temperature": 0, "min_tokens": 10_000, "max_tokens": 10_000}
    for number in range(4):
        await caller.start(f"endless {number}", **endless)
    for number in range(4):
        await caller.begun(f"endless {number}")
        await caller.cancel(f"endless {number}")
    for number in range(4):
        assert await caller.done(f"endless {number}") == Done("canceled")
        assert len("".join(caller.output(f"endless {number}"))) < 2000
    assert "Paris" in await text(caller, "after", **CAPITAL)


async def test_predictions_are_computed_together(caller: Caller) -> None:
    ids = ("batch left", "batch right")
    for id in ids:
        await caller.start(id, prompt="Count.", temperature=0, min_tokens=10_000, max_tokens=10_000)
    await until(lambda: all(id in caller.events and "".join(caller.output(id)) for id in ids))
    assert not set(ids) & set(caller.order), "the first one was over before the second one began"
    for id in ids:
        await caller.cancel(id)
        assert await caller.done(id) == Done("canceled")


async def test_weights_that_cannot_be_used_say_why(
    vllm_zygote: Zygote, smollm2: Path, tmp_path: Path
) -> None:
    async def refusal(folder: Path, **options: Any) -> str:
        replica = Replica("runner-2", str(vllm_zygote.socket), str(vllm_zygote.run_dir))
        with pytest.raises(LoadFailed) as caught:
            await replica.load(load_spec(folder, tmp_path, **options))
        await replica.unload()
        return caught.value.detail.splitlines()[0]

    assert "has no config.json" in await refusal(tmp_path)
    assert "there are no weights at" in await refusal(tmp_path / "none")
    assert "the chat template of test/vllm cannot be used" in await refusal(
        smollm2, chat_template="{{ messages[7].content }}"
    )
    assert "could not locate think" in await refusal(smollm2, reasoning_parser="deepseek_r1")
    assert "tool_parser or reasoning_parser of test/vllm does not fit" in await refusal(
        smollm2, tool_parser="deepseek_v3"
    )
    folder = tmp_path / "weights"
    shutil.copytree(smollm2, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "Cannot find any model weights" in await refusal(folder)
    described = folder / "config.json"
    described.write_text(described.read_text().replace("LlamaForCausalLM", "NoSuchForCausalLM"))
    assert "NoSuchForCausalLM" in await refusal(folder)


async def test_a_killed_engine_core_ends_the_worker_process_and_the_model_loads_again(
    caller: Caller, smollm2: Path, tmp_path: Path
) -> None:
    """The last test, because it kills the worker process that all tests share."""
    await caller.start("a", prompt="Count.", min_tokens=10_000, max_tokens=10_000)
    await caller.begun("a")
    worker = (await caller.replica.stats()).pid
    assert worker is not None
    (core,) = psutil.Process(worker).children()
    os.kill(core.pid, signal.SIGKILL)
    lost = await caller.over()
    assert lost is not None
    assert "vLLM's engine core for" in lost
    assert "has ended unexpectedly" in lost
    assert "a" not in caller.order
    await until_gone(worker)
    assert not is_running(core.pid)
    await caller.replica.load(load_spec(smollm2, tmp_path, tool_parser=None))
    again = Caller(caller.replica)
    assert "Paris" in await text(again, "paris", **CAPITAL)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    asked = {"model": "m", "messages": QUESTION, "tools": [tool], "max_tokens": 5}
    refused = await again.run("a", CHAT, **asked)
    assert "its options in models.yaml have no tool_parser" in str(refused.error)
    assert await again.run("b", CHAT, **asked, tool_choice="none") == Done("succeeded")
