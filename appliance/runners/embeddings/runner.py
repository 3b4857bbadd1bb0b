"""Embeddings: texts to vectors, with transformers; the texts of many predictions are computed together.

Inputs are those of the embedding models on Replicate. On a CPU this has run; on
a GPU it has not yet.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.input_schema import LIST_TOO
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import torch_offload
from appliance.runners.base import LoadSpec
from appliance.runners.model_loading import most_tokens

if TYPE_CHECKING:
    import torch

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "texts": {
        "type": "string",
        "description": "Texts to embed, as a JSON list of strings; a single text may stand for itself",
        LIST_TOO: True,
    },
    "batch_size": {
        "type": "integer",
        "default": 32,
        "minimum": 1,
        "maximum": 4096,
        "description": "Most texts of this prediction that are computed together",
    },
    "normalize_embeddings": {
        "type": "boolean",
        "default": True,
        "description": "Whether vectors have the length 1, so that their product is their cosine",
    },
}
_OUTPUT: Final = {
    "type": "array",
    "title": "Output",
    "items": {"type": "array", "items": {"type": "number"}},
}


_GPU: Final = "cuda:0"  # the first that its host sees


class _Request(NamedTuple):
    """Texts that wait to be computed."""

    tokens: list[list[int]]
    vectors: asyncio.Future[list[Any]]  # one a text, as long as the model made it


class EmbeddingsRunner:
    """Runs an embedding model; ``options.py`` has its options."""

    kind: ClassVar[str] = "embeddings"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._waiting: deque[_Request] = deque()
        self._computing: asyncio.Task[None] | None = None
        self._model: Any
        self._tokenizer: Any
        self._pool: Any
        self._longest: int | None = None  # texts are truncated to so many tokens; None: never

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of an embedding model."""
        properties = {
            name: {**schema, "title": name.replace("_", " ").title(), "x-order": order}
            for order, (name, schema) in enumerate(_INPUTS.items())
        }
        return Interface(
            input={"type": "object", "title": "Input", "properties": properties, "required": ["texts"]},
            output=_OUTPUT,
            aliases={"text": "texts", "text_batch": "texts", "inputs": "texts"},
        )

    async def setup(self) -> None:
        """Load the model."""
        if self._spec.weights is None or not Path(self._spec.weights).is_dir():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        try:
            await asyncio.to_thread(self._load, Path(self._spec.weights))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise LoadFailed(f"{self._spec.model} cannot be loaded as an embedding model: {error}") from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        texts = parse(job.input["texts"])
        tokens = await asyncio.to_thread(self._tokens, texts)
        yield Metric("input_token_count", sum(map(len, tokens)))
        size = job.input["batch_size"]
        vectors: list[Any] = []
        for at in range(0, len(tokens), size):
            vectors += await self._computed(tokens[at : at + size])
        if job.input["normalize_embeddings"]:
            vectors = [vector / max(float(vector.norm()), 1e-12) for vector in vectors]
        yield Output([[vector.tolist() for vector in vectors]], append=False)

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that this model supports; empty where sleeping would free nothing."""
        return torch_offload.levels(self._spec)

    async def sleep(self, level: int) -> int:
        """Move the weights to main memory and free the device."""
        return await asyncio.to_thread(torch_offload.fall_asleep, [self._model])

    async def wake(self) -> None:
        """Move the weights back to the device."""
        await asyncio.to_thread(torch_offload.wake, [self._model], _GPU)

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    async def _computed(self, tokens: list[list[int]]) -> list[Any]:
        """The vectors of these texts, computed together with whatever else waits."""
        asked = _Request(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._computing is None or self._computing.done():
            self._computing = asyncio.get_running_loop().create_task(self._compute_all())
        return await asked.vectors

    async def _compute_all(self) -> None:
        """Compute what waits, as many texts at a time as the options say, until nothing does."""
        while self._waiting:
            taken = [self._waiting.popleft()]
            count = len(taken[0].tokens)
            while self._waiting and count + len(self._waiting[0].tokens) <= self._spec.options["max_batch"]:
                taken.append(self._waiting.popleft())
                count += len(taken[-1].tokens)
            await self._compute(taken)

    async def _compute(self, asked: list[_Request]) -> None:
        """Embed the texts of several predictions; if that fails, one prediction at a time."""
        try:
            vectors = await asyncio.to_thread(self._forward, [each for one in asked for each in one.tokens])
        except Exception as error:  # noqa: BLE001  # after any error the predictions must end
            if len(asked) > 1:
                for one in asked:
                    await self._compute([one])
            elif not asked[0].vectors.done():
                failed = PredictionFailed(f"the texts cannot be embedded: {error}")
                failed.__cause__ = error
                asked[0].vectors.set_exception(failed)
            return
        for one in asked:
            mine, vectors = vectors[: len(one.tokens)], vectors[len(one.tokens) :]
            if not one.vectors.done():  # done: it was canceled meanwhile
                one.vectors.set_result(mine)

    def _load(self, weights: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(self._spec.threads)
        on_cpu = self._spec.device == "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
        model = AutoModel.from_pretrained(
            weights,
            local_files_only=True,
            dtype=torch.float32 if on_cpu else torch.float16,
            trust_remote_code=self._spec.options["trust_remote_code"],
        )
        self._model = model.to("cpu" if on_cpu else _GPU).eval()
        self._pool = _first if _pools_first(weights) else _mean
        self._longest = longest(weights, most_tokens(model, self._tokenizer))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, truncation=self._longest is not None, max_length=self._longest)
        tokens: list[list[int]] = encoded["input_ids"]
        return tokens

    def _forward(self, tokens: list[list[int]]) -> list[Any]:
        """One vector a text; texts of like length are computed together, so that little is padding."""
        import torch

        order = sorted(range(len(tokens)), key=lambda number: len(tokens[number]))
        found: list[Any] = [None] * len(tokens)
        size = self._spec.options["max_batch"]
        padding = self._tokenizer.pad_token_id or 0  # any token will do, because padding is masked
        with torch.inference_mode():
            for at in range(0, len(order), size):
                chosen = order[at : at + size]
                width = max(len(tokens[number]) for number in chosen)
                ids = [tokens[number] + [padding] * (width - len(tokens[number])) for number in chosen]
                mask = [[1] * len(tokens[n]) + [0] * (width - len(tokens[n])) for n in chosen]
                device = self._model.device
                attention = torch.tensor(mask, device=device)
                states = self._model(input_ids=torch.tensor(ids, device=device), attention_mask=attention)
                pooled = self._pool(states.last_hidden_state, attention).float().cpu()
                for number, vector in zip(chosen, pooled, strict=True):
                    found[number] = vector
        return found


def parse(given: str | list[str]) -> list[str]:
    """The texts in an input.

    Raises:
        PredictionFailed: it is a JSON list of something else, or has none.
    """
    texts: Any = given
    if isinstance(given, str):
        try:
            texts = json.loads(given)
        except (ValueError, RecursionError):
            texts = [given]
        if not isinstance(texts, list):
            texts = [given]  # a number, say, which is a text like any other
    if not texts or not all(isinstance(text, str) for text in texts):
        raise PredictionFailed('texts must be a JSON list of strings, such as ["one", "two"]')
    return list(texts)


def longest(weights: Path, most: int | None) -> int | None:
    """Return the number of tokens to truncate texts to: sentence-transformers' setting, at most ``most``."""
    file = weights / "sentence_bert_config.json"
    told = json.loads(file.read_bytes()).get("max_seq_length") if file.exists() else None
    return min((int(limit) for limit in (told, most) if limit), default=None)


def _pools_first(weights: Path) -> bool:
    file = weights / "1_Pooling" / "config.json"
    return file.exists() and bool(json.loads(file.read_bytes()).get("pooling_mode_cls_token"))


def _first(states: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return states[:, 0]


def _mean(states: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    weights = attention.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
