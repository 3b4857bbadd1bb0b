"""Embeddings of tiny models, whose weights are random: what they make of texts longer than they can take."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.runners.embeddings.runner import EmbeddingsRunner
from appliance.runners.transformers.runner import TransformersRunner
from tests.support import tiny_models
from tests.support.runner_calls import job, load_spec, run

pytestmark = pytest.mark.integration

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def made(folder: Path, kind: str, suffix: str, **more: Any) -> None:
    """A model of an architecture that takes 32 tokens, with a tokenizer that knows no limit."""
    import transformers

    tiny_models.tokenizer(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"model_max_length": 10**30}))
    words = len(tiny_models.SPECIAL + tiny_models.WORDS)
    config = getattr(transformers, f"{kind}Config")(vocab_size=words, **(SIZE | more))
    getattr(transformers, kind + suffix)(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Bert", {"max_position_embeddings": 32}),
        ("Roberta", {"max_position_embeddings": 34, "pad_token_id": 1}),
        ("XLMRoberta", {"max_position_embeddings": 34, "pad_token_id": 1}),
        ("MPNet", {"max_position_embeddings": 34, "pad_token_id": 1}),
    ],
)
async def test_a_text_over_the_limit_is_cut_and_harms_no_other(
    tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    made(tmp_path, kind, "Model", **more)
    runner = EmbeddingsRunner(load_spec("embeddings", tmp_path, max_batch=32, trust_remote_code=False))
    await runner.setup()
    interface = runner.interface({})

    async def vectors(*texts: str) -> Any:
        return (await run(runner, job(interface, tmp_path, texts=list(texts)))).output

    long, whole, short = "cat " * 100, "cat " * 30, "the dog"  # and two tokens around each
    together = await asyncio.gather(vectors(short), vectors(long), vectors(whole), vectors(long, short))
    assert together[1] == [pytest.approx(together[2][0], abs=1e-5)]
    assert together[3] == [pytest.approx(together[1][0], abs=1e-5), pytest.approx(together[0][0], abs=1e-5)]


async def test_a_classifier_like_roberta_says_how_much_it_takes(tmp_path: Path) -> None:
    made(tmp_path, "Roberta", "ForSequenceClassification", max_position_embeddings=34, pad_token_id=1)
    options = {"task": "text-classification", "dtype": "auto", "max_batch": 8, "trust_remote_code": False}
    runner = TransformersRunner(load_spec("transformers", tmp_path, **options))
    await runner.setup()
    interface = runner.interface(options)
    with pytest.raises(PredictionFailed, match=r"input\.text: the text has 33 tokens, .* at most 32"):
        await run(runner, job(interface, tmp_path, text="cat " * 31))
    assert len((await run(runner, job(interface, tmp_path, text="cat " * 30))).output) == 2
