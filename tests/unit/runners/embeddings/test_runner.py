"""The embeddings runner without a model; tests/e2e runs a real one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.errors import InvalidInput, PredictionFailed
from appliance.runners.embeddings.options import EmbeddingsOptions
from appliance.runners.embeddings.runner import EmbeddingsRunner, max_text_length, parse
from appliance.runners.transformers_library import max_input_tokens
from appliance.worker.process.gpu_oom import out_of_memory
from tests.support.runner_calls import job, load_spec, run


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ('["one", "two"]', ["one", "two"]),
        (["one", "two"], ["one", "two"]),
        ("just a text", ["just a text"]),
        ('"quoted"', ['"quoted"']),
        ("42", ["42"]),
        ("[not json", ["[not json"]),
        ('[""]', [""]),
    ],
)
def test_forms_of_the_texts(given: str | list[str], texts: list[str]) -> None:
    assert parse(given) == texts


def test_token_ids_are_no_texts() -> None:
    assert parse("[[1, 2], [3]]") == [[1, 2], [3]]


@pytest.mark.parametrize(
    "given",
    ["[]", [], "[1, 2]", '[["nested"]]', "[null]", "[[]]", "[[1], []]", "[[1.5]]", "[[true]]", '[[1], "a"]'],
)
def test_lists_that_are_not_of_texts(given: str | list[str]) -> None:
    with pytest.raises(PredictionFailed, match="JSON list of strings"):
        parse(given)


def test_the_maximum_length_of_a_text(tmp_path: Path) -> None:
    assert max_text_length(tmp_path, 512) == 512
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    assert max_text_length(tmp_path, 512) == 256
    assert max_text_length(tmp_path, 128) == 128
    assert max_text_length(tmp_path, None) == 256


def test_a_text_is_not_truncated_without_a_maximum(tmp_path: Path) -> None:
    assert max_text_length(tmp_path, None) is None


class Model:
    """The methods of a torch module that are used."""

    def __init__(self, config: dict[str, Any], **modules: Any) -> None:
        self.config = SimpleNamespace(**config)
        self._modules = modules

    def named_modules(self) -> list[tuple[str, Any]]:
        return [("", self), *((name.replace("__", "."), module) for name, module in self._modules.items())]


@pytest.mark.parametrize(
    ("model", "most"),
    [
        (Model({"max_position_embeddings": 512}), 512),
        (
            Model(
                {"max_position_embeddings": 514},
                embeddings__word_embeddings=SimpleNamespace(padding_idx=1),
                embeddings__position_embeddings=SimpleNamespace(padding_idx=1),
            ),
            512,
        ),
        (Model({"max_position_embeddings": 40}, position_embeddings=SimpleNamespace(padding_idx=None)), 40),
        (Model({"max_position_embeddings": -1, "n_positions": 256}), 256),
        (Model({"max_position_embeddings": 8192}), 1000),
        (Model({}), 1000),
    ],
)
def test_the_maximum_number_of_tokens_of_a_model(model: Any, most: int) -> None:
    assert max_input_tokens(model, SimpleNamespace(model_max_length=1000)) == most
    endless = SimpleNamespace(model_max_length=int(1e30))
    assert max_input_tokens(Model({}), endless) is None


class Forwarding(EmbeddingsRunner):
    """Its model returns the number of tokens of a text, and fails at token 13."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__(load_spec("embeddings", Path("/none"), max_batch=32))
        self.error = error
        self.batches: list[int] = []

    def _tokens(self, texts: list[str] | list[list[int]]) -> list[list[int]]:
        return [[int(word) for word in str(text).split()] for text in texts]

    def _forward(self, tokens: list[list[int]]) -> list[Any]:
        self.batches.append(len(tokens))
        if any(13 in each for each in tokens):
            raise self.error("index out of range in self")
        return [Vector([float(len(each))]) for each in tokens]


class Vector(list[float]):
    """The methods of a torch vector that are used."""

    def tolist(self) -> list[float]:
        return list(self)


@pytest.mark.parametrize("error", [IndexError, RuntimeError, KeyError, MemoryError])
async def test_an_input_that_cannot_be_embedded_fails_alone(tmp_path: Path, error: type[Exception]) -> None:
    runner = Forwarding(error)
    interface = EmbeddingsRunner.interface({})

    async def asked(texts: list[str]) -> Any:
        given = job(interface, tmp_path, texts=texts, normalize_embeddings=False)
        return (await run(runner, given)).output

    texts = [["1"], ["1 2", "3"], ["1 13"], ["1 2 3"]]
    ended: list[Any] = await asyncio.gather(*map(asked, texts), return_exceptions=True)
    assert ended[0] == [[1.0]]  # computed before the others arrived
    assert ended[1] == [[2.0], [1.0]]
    assert isinstance(ended[2], PredictionFailed)
    assert "index out of range" in str(ended[2])
    assert out_of_memory(ended[2]) is None
    assert ended[3] == [[3.0]]
    assert max(runner.batches) > 2, "the texts are computed together first"
    assert await asked(["1 2 3 4"]) == [[4.0]]


async def test_vectors_are_shortened_before_they_are_scaled(tmp_path: Path) -> None:
    class Long(Forwarding):
        def _forward(self, tokens: list[list[int]]) -> list[Any]:
            import torch

            return [torch.tensor([3.0, 4.0, 12.0]) for _ in tokens]

    interface = EmbeddingsRunner.interface({"dimensions": [2]})
    given = job(interface, tmp_path, texts=["1"], dimensions=2)
    assert (await run(Long(RuntimeError), given)).output == [pytest.approx([0.6, 0.8])]
    given = job(interface, tmp_path, texts=["1"], normalize_embeddings=False)
    assert (await run(Long(RuntimeError), given)).output == [[3.0, 4.0, 12.0]]
    with pytest.raises(InvalidInput, match="dimensions must be one of the following: 2"):
        job(interface, tmp_path, texts=["1"], dimensions=3)


def test_an_added_option_keeps_the_version_until_it_is_set() -> None:
    assert "dimensions" not in EmbeddingsOptions().model_dump(mode="json")
    assert EmbeddingsOptions(dimensions=[2]).model_dump(mode="json")["dimensions"] == [2]


async def test_token_ids_are_used_as_they_are(tmp_path: Path) -> None:
    runner = EmbeddingsRunner(load_spec("embeddings", Path("/none"), max_batch=32))
    runner._model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=10))
    runner._longest = 3
    assert runner._tokens([[9, 0, 1, 2], [5]]) == [[9, 0, 1], [5]]
    for wrong in ([[1], [2, 10]], [[-1]]):
        with pytest.raises(PredictionFailed, match=f"token id {wrong[-1][-1]}, but .* are 0 to 9"):
            runner._tokens(wrong)


async def test_a_device_without_memory_is_recognised(tmp_path: Path) -> None:
    class Full(Forwarding):
        def _forward(self, tokens: list[list[int]]) -> list[Any]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    given = job(EmbeddingsRunner.interface({}), tmp_path, texts=["1"])
    with pytest.raises(PredictionFailed) as failed:
        await run(Full(RuntimeError), given)
    assert out_of_memory(failed.value) is not None
