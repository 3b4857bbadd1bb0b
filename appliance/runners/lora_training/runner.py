"""Training: LoRA adapters for language models, with peft, on a JSONL file of examples.

The base model stays as it is; each run begins with a fresh adapter on it and takes that off again. On a CPU
this has run; on a GPU it has not yet.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.base import LoadSpec
from appliance.runners.lora_training.examples import Example, TextSegment, read, segments

if TYPE_CHECKING:
    import torch

#: The folder below ``Job.folder`` that the weights are left in; the output is an archive of it.
ADAPTER: Final = "adapter"
_IGNORED: Final = -100  # the label of tokens that are read but not learnt
_BAR: Final = 20  # characters of a progress bar

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "train_data": {
        "type": "string",
        "format": "uri",
        "description": 'JSONL file with an object a line: {"prompt", "completion"}, {"messages"} or {"text"}',
    },
    "num_train_epochs": {
        "type": "integer",
        "default": 1,
        "minimum": 1,
        "maximum": 1000,
        "description": "How often every example is seen",
    },
    "max_train_steps": {
        "type": "integer",
        "default": 0,
        "minimum": 0,
        "maximum": 1_000_000,
        "description": "End after so many steps; 0 goes by num_train_epochs",
    },
    "learning_rate": {
        "type": "number",
        "default": 0.0002,
        "minimum": 0,
        "maximum": 1,
        "description": "Learning rate after the warm-up; it falls to 0 at the end",
    },
    "train_batch_size": {
        "type": "integer",
        "default": 4,
        "minimum": 1,
        "maximum": 256,
        "description": "Examples computed together",
    },
    "gradient_accumulation_steps": {
        "type": "integer",
        "default": 1,
        "minimum": 1,
        "maximum": 256,
        "description": "Batches that make one step",
    },
    "lora_rank": {"type": "integer", "default": 8, "minimum": 1, "description": "Rank of the adapter"},
    "lora_alpha": {
        "type": "integer",
        "default": 16,
        "minimum": 1,
        "maximum": 1024,
        "description": "Weight of the adapter, over its rank",
    },
    "lora_dropout": {
        "type": "number",
        "default": 0.0,
        "minimum": 0,
        "maximum": 0.9,
        "description": "Share of the adapter's inputs that are dropped while training",
    },
    "max_length": {
        "type": "integer",
        "default": 1024,
        "minimum": 8,
        "maximum": 131_072,
        "description": "Tokens of an example that are used",
    },
    "warmup_steps": {
        "type": "integer",
        "default": 0,
        "minimum": 0,
        "maximum": 100_000,
        "description": "Steps in which the learning rate grows",
    },
    "seed": {
        "type": "integer",
        "default": 42,
        "minimum": 0,
        "maximum": 2**32 - 1,
        "description": "The same seed and data give the same adapter",
    },
}


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a training, by the names of its inputs."""

    train_data: str
    num_train_epochs: int
    max_train_steps: int
    learning_rate: float
    train_batch_size: int
    gradient_accumulation_steps: int
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    max_length: int
    warmup_steps: int
    seed: int

    def steps(self, examples: int) -> int:
        """How many steps the training takes."""
        an_epoch = math.ceil(examples / (self.train_batch_size * self.gradient_accumulation_steps))
        return self.max_train_steps or self.num_train_epochs * an_epoch


class Encoded(msgspec.Struct, frozen=True):
    """An example as the model reads it."""

    tokens: list[int]
    labels: list[int]


class LoraTrainer:
    """Options: those of the language model that is trained."""

    kind: ClassVar[str] = "lora"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._model: Any
        self._tokenizer: Any

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a training."""
        properties = {
            name: {**schema, "title": name.replace("_", " ").title(), "x-order": order}
            for order, (name, schema) in enumerate(_INPUTS.items())
        }
        properties["lora_rank"]["maximum"] = options["max_adapter_rank"]
        file = {"type": "string", "format": "uri", "title": "Weights"}
        return Interface(
            input={"type": "object", "title": "Input", "properties": properties, "required": ["train_data"]},
            output={"type": "object", "title": "Output", "properties": {"weights": file}},
        )

    async def setup(self) -> None:
        """Load the model."""
        if self._spec.weights is None or not Path(self._spec.weights).is_dir():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        try:
            await asyncio.to_thread(self._load, self._spec.weights)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise LoadFailed(f"{self._spec.model} cannot be loaded for training: {error}") from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        settings = msgspec.convert(job.input, TrainingSettings)
        examples = await asyncio.to_thread(self._encoded, settings)
        tokens = sum(len(example.tokens) for example in examples)
        yield Log(f"Read {len(examples)} examples with {tokens} tokens\n")
        steps = settings.steps(len(examples))
        training = Training(settings)
        losses: list[float] = []
        started = time.perf_counter()
        try:
            await _uninterrupted(training.begin, self._model, steps)
            yield Log(f"Training {training.parameters:,} parameters for {steps} steps\n")
            for step, batches in zip(range(1, steps + 1), _steps(examples, settings), strict=False):
                losses.append(await _uninterrupted(training.step, batches))
                yield Log(f"step {step}/{steps} loss {losses[-1]:.4f}\n{_bar(step, steps)}\n")
            folder = Path(job.folder) / ADAPTER
            await _uninterrupted(training.save, folder, self._spec.model)
        finally:
            await _uninterrupted(training.close)
        yield Metric("train_steps", steps)
        yield Metric("train_loss_first", round(losses[0], 6))
        yield Metric("train_loss_last", round(losses[-1], 6))
        yield Metric("train_token_count", training.tokens)
        yield Log(f"Trained on {training.tokens} tokens in {time.perf_counter() - started:.1f} seconds\n")
        yield Output([folder], append=False)

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    def _load(self, weights: str) -> None:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
        import huggingface_hub.constants
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        huggingface_hub.constants.HF_HUB_OFFLINE = True  # the zygote may have imported it long ago
        torch.set_num_threads(self._spec.threads)
        on_cpu = self._spec.device == "cpu"
        trusted = self._spec.options["trust_remote_code"]
        self._tokenizer = AutoTokenizer.from_pretrained(
            weights, local_files_only=True, trust_remote_code=trusted
        )
        model = AutoModelForCausalLM.from_pretrained(
            weights,
            local_files_only=True,
            dtype=torch.float32 if on_cpu else torch.bfloat16,
            trust_remote_code=trusted,
        )
        # The host sees only its own devices, so a GPU is the first one here.
        self._model = model.to("cpu" if on_cpu else "cuda:0")

    def _encoded(self, settings: TrainingSettings) -> list[Encoded]:
        """The training data as tokens.

        Raises:
            PredictionFailed: names the line that cannot be used.
        """
        found = []
        template = self._spec.options["chat_template"] or getattr(self._tokenizer, "chat_template", None)
        for example in read(Path(settings.train_data), self._spec.options["system_prompt"]):
            encoded = self._encode(example, template, settings.max_length)
            if all(label == _IGNORED for label in encoded.labels):
                raise PredictionFailed(
                    f"train_data: line {example.line} has nothing to learn in its first "
                    f"{settings.max_length} tokens; shorten its prompt, or raise max_length"
                )
            found.append(encoded)
        return found

    def _encode(self, example: Example, template: str | None, longest: int) -> Encoded:
        def rendered(messages: list[dict[str, str]], *, answer: bool) -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=template, add_generation_prompt=answer, tokenize=False
                )
            )

        parts = segments(example, rendered if template is not None else None)
        tokens: list[int] = []
        if not example.messages or template is None:  # else the template writes both ends
            tokens = self._beginning(parts[0].text)
            parts.append(TextSegment(getattr(self._tokenizer, "eos_token", None) or "", learnt=True))
        labels = [_IGNORED] * len(tokens)
        for part in parts:
            ids = self._tokenizer.encode(part.text, add_special_tokens=False)
            tokens += ids
            labels += ids if part.learnt else [_IGNORED] * len(ids)
        return Encoded(tokens[:longest], labels[:longest])

    def _beginning(self, text: str) -> list[int]:
        """Return the tokens that the tokenizer adds before a text, as it does for vLLM."""
        begin = getattr(self._tokenizer, "bos_token", None)
        if not begin or text.startswith(begin):
            return []
        first: list[int] = self._tokenizer.encode("")[:1]
        return first if first == [self._tokenizer.bos_token_id] else []


class Training:
    """One run: a fresh adapter on the base model, and its optimizer. Not for the event loop: it computes."""

    def __init__(self, settings: TrainingSettings) -> None:
        """Nothing is computed before ``begin``."""
        self._settings = settings
        self._model: Any = None
        self._learnt: list[Any] = []
        self._optimizer: Any
        self._schedule: Any
        self.parameters = 0
        self.tokens = 0

    def begin(self, model: Any, steps: int) -> None:
        """Put the adapter on ``model``, which carries it until ``close``."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import get_linear_schedule_with_warmup

        settings = self._settings
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self._model = get_peft_model(model, config)
        self._model.train()
        self._learnt = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self.parameters = sum(parameter.numel() for parameter in self._learnt)
        self._optimizer = torch.optim.AdamW(self._learnt, lr=settings.learning_rate, weight_decay=0.0)
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, settings.warmup_steps, steps + 1)

    def step(self, batches: list[list[Encoded]]) -> float:
        """One step over ``batches``; gives the mean loss."""
        import torch

        total = 0.0
        for batch in batches:
            tensors = self._padded(batch)
            loss = self._model(**tensors).loss
            (loss / len(batches)).backward()
            total += loss.item() / len(batches)
            self.tokens += int(tensors["attention_mask"].sum())
        torch.nn.utils.clip_grad_norm_(self._learnt, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        if not math.isfinite(total):
            raise PredictionFailed("the loss is not a number any more; try a lower learning_rate")
        return total

    def save(self, folder: Path, base: str) -> None:
        """Write the adapter; ``base`` is what it says it is for."""
        folder.mkdir(parents=True, exist_ok=True)
        self._model.peft_config["default"].base_model_name_or_path = base
        # Left to itself it looks for the base model on the hub, to see whether its vocabulary grew.
        self._model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form for people to fill in

    def close(self) -> None:
        """Take the adapter off."""
        if self._model is not None:
            self._model.unload()

    def _padded(self, batch: list[Encoded]) -> dict[str, torch.Tensor]:
        import torch

        width = max(len(example.tokens) for example in batch)
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for example in batch:
            missing = width - len(example.tokens)
            rows["input_ids"].append(example.tokens + [0] * missing)
            rows["labels"].append(example.labels + [_IGNORED] * missing)
            rows["attention_mask"].append([1] * len(example.tokens) + [0] * missing)
        return {name: torch.tensor(values, device=self._model.device) for name, values in rows.items()}


def _steps(examples: list[Encoded], settings: TrainingSettings) -> Iterator[list[list[Encoded]]]:
    """The batches of every step, without end; each epoch in an order of its own."""
    order = random.Random(settings.seed)
    size, each = settings.train_batch_size, settings.gradient_accumulation_steps
    while True:
        shuffled = order.sample(examples, len(examples))
        batches = [shuffled[at : at + size] for at in range(0, len(shuffled), size)]
        yield from (batches[at : at + each] for at in range(0, len(batches), each))


async def _uninterrupted(function: Any, *arguments: Any) -> Any:
    """Call ``function`` in a thread; a cancellation waits until it has returned."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _bar(step: int, steps: int) -> str:
    """Progress as tqdm draws it, which clients read."""
    share = step / steps
    return f"{100 * share:3.0f}%|{'#' * int(_BAR * share):<{_BAR}}| {step}/{steps}"
