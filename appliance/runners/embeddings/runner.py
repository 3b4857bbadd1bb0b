"""The runner of kind `embeddings`: turns texts into vectors with transformers.

The texts of several predictions are computed together. Inputs are those of the embedding models on Replicate.
Not tested on a GPU.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.input_schema import LIST_TOO
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import interface_of
from appliance.runners.schemas import boolean, integer, string
from appliance.runners.torch_runner import GPU, TorchRunner
from appliance.runners.transformers_library import max_input_tokens

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "texts": string(
        "Texts to embed, as a JSON list of strings, or of lists of token ids; a single text needs no list"
    )
    | {LIST_TOO: True},
    "batch_size": integer("Texts of this prediction that are computed together", default=32, ge=1, le=4096),
    "normalize_embeddings": boolean(
        "Scale vectors to length 1, so that their dot product is their cosine", default=True
    ),
}
_DIMENSIONS: Final = integer("Length to which vectors are shortened; by default they are not")
_OUTPUT: Final = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_ALIASES: Final = dict.fromkeys(("text", "text_batch", "inputs"), "texts")


class _Request(NamedTuple):
    """Tokenized texts of one prediction that wait for the model."""

    tokens: list[list[int]]
    vectors: asyncio.Future[list[Any]]  # one vector for each text, not normalized


class EmbeddingsRunner(TorchRunner):
    """Runs models of kind `embeddings`; the options are those of ``EmbeddingsOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._waiting: deque[_Request] = deque()
        self._computing: asyncio.Task[None] | None = None
        self._model: Any
        self._tokenizer: Any
        self._pools_first_token = False  # else the mean of all tokens' states is the vector
        self._longest: int | None = None  # tokens; longer texts are truncated, unless it is None

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        lengths = options.get("dimensions")
        inputs = _INPUTS if lengths is None else _INPUTS | {"dimensions": _DIMENSIONS | {"enum": lengths}}
        return interface_of(inputs, _OUTPUT, required=("texts",), aliases=_ALIASES)

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        try:
            await asyncio.to_thread(self._load, weights)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise LoadFailed(
                f"model {self._spec.model} cannot be loaded as an embedding model: {error}"
            ) from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        texts = parse(job.input["texts"])
        tokens = await asyncio.to_thread(self._tokens, texts)
        yield Metric("input_token_count", sum(map(len, tokens)))
        size = job.input["batch_size"]
        vectors: list[Any] = []
        for at in range(0, len(tokens), size):
            vectors += await self._computed(tokens[at : at + size])
        length = job.input.get("dimensions")
        if length is not None:
            vectors = [vector[:length] for vector in vectors]
        if job.input["normalize_embeddings"]:
            vectors = [vector / max(float(vector.norm()), 1e-12) for vector in vectors]
        yield Output([[vector.tolist() for vector in vectors]], append=False)

    async def _computed(self, tokens: list[list[int]]) -> list[Any]:
        """Return a vector for each tokenized text. A batch may have texts of several predictions."""
        request = _Request(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._computing is None or self._computing.done():
            self._computing = asyncio.get_running_loop().create_task(self._compute_all())
        return await request.vectors

    async def _compute_all(self) -> None:
        """Compute requests until none waits: together up to ``max_batch`` texts, or one larger request."""
        while self._waiting:
            batch = [self._waiting.popleft()]
            count = len(batch[0].tokens)
            while self._waiting and count + len(self._waiting[0].tokens) <= self._spec.options["max_batch"]:
                batch.append(self._waiting.popleft())
                count += len(batch[-1].tokens)
            await self._compute(batch)

    async def _compute(self, requests: list[_Request]) -> None:
        """Embed the texts of all ``requests`` together; if that fails, of one request at a time."""
        try:
            tokens = [text for request in requests for text in request.tokens]
            vectors = await asyncio.to_thread(self._forward, tokens)
        except Exception as error:  # noqa: BLE001  # after any error the predictions must end
            if len(requests) > 1:
                for request in requests:
                    await self._compute([request])
            elif not requests[0].vectors.done():
                failed = PredictionFailed(f"the texts cannot be embedded: {error}")
                failed.__cause__ = error
                requests[0].vectors.set_exception(failed)
            return
        for request in requests:
            count = len(request.tokens)
            if not request.vectors.done():  # done: the prediction was canceled meanwhile
                request.vectors.set_result(vectors[:count])
            vectors = vectors[count:]

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
        self._model = model.to("cpu" if on_cpu else GPU).eval()
        self._models.append(self._model)
        pooling = weights / "1_Pooling" / "config.json"  # of sentence-transformers
        if pooling.exists():
            self._pools_first_token = bool(json.loads(pooling.read_bytes()).get("pooling_mode_cls_token"))
        self._longest = max_text_length(weights, max_input_tokens(model, self._tokenizer))

    def _tokens(self, texts: list[str] | list[list[int]]) -> list[list[int]]:
        """Return the token ids of each text, cut to the model's maximum. Token ids are used as they are.

        Raises:
            PredictionFailed: the model has no token with an id in ``texts``.
        """
        if isinstance(texts[0], str):
            encoded = self._tokenizer(texts, truncation=self._longest is not None, max_length=self._longest)
            tokens: list[list[int]] = encoded["input_ids"]
            return tokens
        count = self._model.get_input_embeddings().num_embeddings
        for ids in texts:
            unknown = next((id for id in ids if not 0 <= int(id) < count), None)
            if unknown is not None:
                raise PredictionFailed(
                    f"input.texts has the token id {unknown}, but the tokens of {self._spec.model} are 0 to "
                    f"{count - 1}; token ids must come from the model's own tokenizer"
                )
        return [[int(id) for id in ids[: self._longest]] for ids in texts]

    def _forward(self, tokens: list[list[int]]) -> list[Any]:
        """Return one vector for each text. Texts of similar length share a batch to save padding."""
        import torch

        order = sorted(range(len(tokens)), key=lambda number: len(tokens[number]))
        found: list[Any] = [None] * len(tokens)
        size = self._spec.options["max_batch"]
        padding = self._tokenizer.pad_token_id or 0  # any token works, because padding is masked
        with torch.inference_mode():
            for at in range(0, len(order), size):
                chosen = order[at : at + size]
                width = max(len(tokens[number]) for number in chosen)
                ids = [tokens[number] + [padding] * (width - len(tokens[number])) for number in chosen]
                mask = [[1] * len(tokens[n]) + [0] * (width - len(tokens[n])) for n in chosen]
                device = self._model.device
                attention = torch.tensor(mask, device=device)
                output = self._model(input_ids=torch.tensor(ids, device=device), attention_mask=attention)
                states = output.last_hidden_state
                weights = attention.unsqueeze(-1).to(states.dtype)
                mean = (states * weights).sum(1) / weights.sum(1)
                pooled = states[:, 0] if self._pools_first_token else mean
                for number, vector in zip(chosen, pooled.float().cpu(), strict=True):
                    found[number] = vector
        return found


def parse(given: str | list[str]) -> list[str] | list[list[int]]:
    """Return the input ``texts`` as a list. Callers send a list, a JSON list as text, or a single text.

    Only a JSON list as text can have lists of token ids instead of texts.

    Raises:
        PredictionFailed: the list is empty, or has items that are neither all texts nor all token ids.
    """
    texts: Any = given
    if isinstance(given, str):
        try:
            texts = json.loads(given)
        except (ValueError, RecursionError):
            texts = [given]
        if not isinstance(texts, list):
            texts = [given]  # for example a number, which is a text like any other
    if texts and all(isinstance(text, list) and text and all(map(_is_id, text)) for text in texts):
        return list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise PredictionFailed('input.texts must be a JSON list of strings, such as ["one", "two"]')
    return list(texts)


def _is_id(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def max_text_length(weights: Path, most: int | None) -> int | None:
    """Return the number of tokens to truncate texts to; None: texts are not truncated.

    This is ``max_seq_length`` of sentence-transformers in ``weights``, if it is set, but at most ``most``.
    """
    file = weights / "sentence_bert_config.json"
    limit = json.loads(file.read_bytes()).get("max_seq_length") if file.exists() else None
    return min((int(tokens) for tokens in (limit, most) if tokens), default=None)
