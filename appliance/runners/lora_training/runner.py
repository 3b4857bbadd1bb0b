"""The trainer of language models: makes LoRA adapters with peft, from a JSONL file of examples.

The loaded base model does not change: every training adds an adapter and removes it at the end.
Not tested on a GPU.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.lora_training.examples import Example, TextSegment, read, segments
from appliance.runners.progress import bar
from appliance.runners.threads import uninterruptible
from appliance.runners.torch_runner import GPU
from appliance.runners.transformers_library import prepare_libraries

if TYPE_CHECKING:
    import torch

#: Folder of the trained weights, below ``Job.folder``; the output is an archive of it.
ADAPTER: Final = "adapter"
_IGNORED: Final = -100  # label of tokens that the model only reads


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a training."""

    train_data: Annotated[
        str,
        Meta(
            description='JSONL file; every line is {"prompt", "completion"}, {"messages"} or {"text"}',
            extra_json_schema={"format": "uri"},
        ),
    ]
    num_train_epochs: Annotated[
        int, Meta(ge=1, le=1000, description="Number of times that every example is used")
    ] = 1
    max_train_steps: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Number of steps; 0: as many as num_train_epochs needs")
    ] = 0
    learning_rate: Annotated[
        float, Meta(ge=0, le=1, description="Learning rate after the warm-up; it falls to 0 at the end")
    ] = 0.0002
    train_batch_size: Annotated[int, Meta(ge=1, le=256, description="Examples computed together")] = 4
    gradient_accumulation_steps: Annotated[int, Meta(ge=1, le=256, description="Batches in one step")] = 1
    lora_rank: Annotated[int, Meta(ge=1, description="Rank of the adapter")] = 8
    lora_alpha: Annotated[
        int, Meta(ge=1, le=1024, description="Scale of the adapter's effect, relative to its rank")
    ] = 16
    lora_dropout: Annotated[
        float, Meta(ge=0, le=0.9, description="Share of the adapter's inputs dropped in training")
    ] = 0.0
    max_length: Annotated[
        int, Meta(ge=8, le=131_072, description="Maximum tokens of an example; the rest is not used")
    ] = 1024
    warmup_steps: Annotated[
        int, Meta(ge=0, le=100_000, description="Steps in which the learning rate rises")
    ] = 0
    seed: Annotated[
        int, Meta(ge=0, le=2**32 - 1, description="The same seed and data give the same adapter")
    ] = 42

    def steps(self, examples: int) -> int:
        """Return the number of steps of a training with this number of examples."""
        in_epoch = math.ceil(examples / (self.train_batch_size * self.gradient_accumulation_steps))
        return self.max_train_steps or self.num_train_epochs * in_epoch


class EncodedExample(msgspec.Struct, frozen=True):
    """The tokens of an example and their labels: the token itself, or ``_IGNORED``."""

    tokens: list[int]
    labels: list[int]


class LoraTrainer:
    """Trains language models; the options are those of the base model, ``VllmOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._model: Any
        self._tokenizer: Any

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        schema = msgspec.json.schema(TrainingSettings)["$defs"]["TrainingSettings"]
        schema["properties"]["lora_rank"]["maximum"] = options["max_adapter_rank"]
        output = {"type": "object", "properties": {"weights": {**FILE, "title": "Weights"}}}
        return interface_of(schema["properties"], output, required=tuple(schema["required"]))

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        try:
            await asyncio.to_thread(self._load, weights)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise LoadFailed(f"model {self._spec.model} cannot be loaded for training: {error}") from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        settings = msgspec.convert(job.input, TrainingSettings)
        examples = await asyncio.to_thread(self._encoded, settings)
        tokens = sum(len(example.tokens) for example in examples)
        yield Log(f"Read {len(examples)} examples with {tokens} tokens\n")
        steps = settings.steps(len(examples))
        training = Training(settings)
        losses: list[float] = []
        started = time.perf_counter()
        try:
            await uninterruptible(training.begin, self._model, steps)
            yield Log(f"Training {training.parameters:,} parameters for {steps} steps\n")
            for step, batches in zip(range(1, steps + 1), _steps(examples, settings), strict=False):
                losses.append(await uninterruptible(training.step, batches))
                yield Log(f"step {step}/{steps} loss {losses[-1]:.4f}\n{bar(step, steps)}\n")
            folder = Path(job.folder) / ADAPTER
            await uninterruptible(training.save, folder, self._spec.model)
        finally:
            await uninterruptible(training.close)
        yield Metric("train_steps", steps)
        yield Metric("train_loss_first", round(losses[0], 6))
        yield Metric("train_loss_last", round(losses[-1], 6))
        yield Metric("train_token_count", training.tokens)
        yield Log(f"Trained on {training.tokens} tokens in {time.perf_counter() - started:.1f} seconds\n")
        yield Output([folder], append=False)

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _load(self, weights: Path) -> None:
        prepare_libraries(self._spec.threads)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

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
        self._model = model.to("cpu" if on_cpu else GPU)

    def _encoded(self, settings: TrainingSettings) -> list[EncodedExample]:
        """Return the examples of the training data as tokens.

        Raises:
            PredictionFailed: a line is wrong; the message has its number.
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

    def _encode(self, example: Example, template: str | None, longest: int) -> EncodedExample:
        def render(messages: list[dict[str, str]], *, prompt: bool) -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=template, add_generation_prompt=prompt, tokenize=False
                )
            )

        parts = segments(example, render if template is not None else None)
        tokens: list[int] = []
        if not example.messages or template is None:  # a chat template adds the first and last tokens itself
            tokens = self._first_tokens(parts[0].text)
            parts.append(TextSegment(getattr(self._tokenizer, "eos_token", None) or "", learnt=True))
        labels = [_IGNORED] * len(tokens)
        for part in parts:
            ids = self._tokenizer.encode(part.text, add_special_tokens=False)
            tokens += ids
            labels += ids if part.learnt else [_IGNORED] * len(ids)
        return EncodedExample(tokens[:longest], labels[:longest])

    def _first_tokens(self, text: str) -> list[int]:
        """Return the tokens that the tokenizer adds before a text, with which vLLM's prompts begin too."""
        begin = getattr(self._tokenizer, "bos_token", None)
        if not begin or text.startswith(begin):
            return []
        first: list[int] = self._tokenizer.encode("")[:1]
        return first if first == [self._tokenizer.bos_token_id] else []


class Training:
    """One training: the new adapter and its optimizer. Methods block, so callers use threads."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._model: Any = None
        self._learnt: list[Any] = []
        self._optimizer: Any
        self._schedule: Any
        self.parameters = 0
        self.tokens = 0

    def begin(self, model: Any, steps: int) -> None:
        """Add a new adapter to ``model``; ``close`` removes it."""
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

    def step(self, batches: list[list[EncodedExample]]) -> float:
        """Update the adapter once, with the gradients of all ``batches``; return their mean loss.

        Raises:
            PredictionFailed: the loss is not a finite number.
        """
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
            raise PredictionFailed("the loss is no longer a finite number; try a lower learning_rate")
        return total

    def save(self, folder: Path, base: str) -> None:
        """Write the adapter to ``folder``; ``base`` is the base model's name for the adapter's config."""
        folder.mkdir(parents=True, exist_ok=True)
        self._model.peft_config["default"].base_model_name_or_path = base
        # By default peft looks up the base model on the hub, to see whether its vocabulary grew.
        self._model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty template of a model card

    def close(self) -> None:
        """Remove the adapter from the base model."""
        if self._model is not None:
            self._model.unload()

    def _padded(self, batch: list[EncodedExample]) -> dict[str, torch.Tensor]:
        import torch

        width = max(len(example.tokens) for example in batch)
        rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for example in batch:
            missing = width - len(example.tokens)
            rows["input_ids"].append(example.tokens + [0] * missing)
            rows["labels"].append(example.labels + [_IGNORED] * missing)
            rows["attention_mask"].append([1] * len(example.tokens) + [0] * missing)
        return {name: torch.tensor(values, device=self._model.device) for name, values in rows.items()}


def _steps(
    examples: list[EncodedExample], settings: TrainingSettings
) -> Iterator[list[list[EncodedExample]]]:
    """Yield the batches of one step after the other, endlessly. Every epoch has its own random order."""
    order = random.Random(settings.seed)
    size, count = settings.train_batch_size, settings.gradient_accumulation_steps
    while True:
        shuffled = order.sample(examples, len(examples))
        batches = [shuffled[at : at + size] for at in range(0, len(shuffled), size)]
        yield from (batches[at : at + count] for at in range(0, len(batches), count))
