"""LoRA training of a tiny language model with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.runners.lora_training.examples import Example
from appliance.runners.lora_training.runner import ADAPTER, LoraTrainer
from tests.support import tiny_models
from tests.support.runner_calls import Ran, job, load_spec, run

pytestmark = pytest.mark.integration

OPTIONS = {
    "max_adapter_rank": 16,
    "chat_template": None,
    "system_prompt": "",
    "trust_remote_code": False,
}
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }} {{ message.content }} . {% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
EXAMPLES = [{"prompt": "the cat", "completion": "sat on the mat"}, {"text": "a dog ran"}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_models.language_model(folder)
    return folder


@pytest.fixture
async def trainer(weights: Path) -> LoraTrainer:
    made = LoraTrainer(load_spec("lora", weights, **OPTIONS))
    await made.setup()
    return made


def written(folder: Path, *lines: dict[str, Any]) -> Path:
    file = folder / "train.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


async def trained(trainer: LoraTrainer, folder: Path, *lines: dict[str, Any], **given: Any) -> Ran:
    folder.mkdir(exist_ok=True)
    interface = LoraTrainer.interface(OPTIONS)
    return await run(trainer, job(interface, folder, train_data=written(folder, *lines), **given))


def tensors(trainer: LoraTrainer) -> dict[str, Any]:
    return {name: value.clone() for name, value in trainer._model.state_dict().items()}


async def test_training_lowers_the_loss_and_writes_an_adapter(trainer: LoraTrainer, tmp_path: Path) -> None:
    from safetensors import safe_open

    before = tensors(trainer)
    ran = await trained(trainer, tmp_path, *EXAMPLES, max_train_steps=20, learning_rate=0.05, lora_rank=4)
    assert ran.output == tmp_path / ADAPTER
    assert sorted(file.name for file in ran.output.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((ran.output / "adapter_config.json").read_bytes())
    assert (config["base_model_name_or_path"], config["r"]) == ("test/lora", 4)
    with safe_open(ran.output / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert ran.metrics["train_steps"] == 20
    assert ran.metrics["train_loss_last"] < ran.metrics["train_loss_first"]
    assert "Read 2 examples" in ran.logs
    assert "step 20/20" in ran.logs
    after = tensors(trainer)
    assert after.keys() == before.keys(), "the adapter is removed from the base model"
    assert all(bool((after[name] == before[name]).all()) for name in before)


async def test_the_same_seed_and_data_give_the_same_adapter(trainer: LoraTrainer, tmp_path: Path) -> None:
    async def adapter(name: str, **given: Any) -> bytes:
        ran = await trained(trainer, tmp_path / name, *EXAMPLES, num_train_epochs=2, **given)
        return Path(ran.output / "adapter_model.safetensors").read_bytes()

    first = await adapter("first")
    assert await adapter("again") == first
    assert await adapter("other", seed=7) != first


async def test_a_canceled_training_leaves_the_base_model_as_it_was(
    trainer: LoraTrainer, tmp_path: Path
) -> None:
    before = tensors(trainer)
    data = written(tmp_path, *EXAMPLES)
    events = trainer.run(job(LoraTrainer.interface(OPTIONS), tmp_path, train_data=data, max_train_steps=9))
    async for event in events:
        if "step 1/9" in getattr(event, "text", ""):
            break
    await events.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert tensors(trainer).keys() == before.keys()
    assert not (tmp_path / ADAPTER).exists()
    assert (await trained(trainer, tmp_path, *EXAMPLES)).metrics["train_steps"] == 1


async def test_a_line_with_nothing_to_learn_is_refused(trainer: LoraTrainer, tmp_path: Path) -> None:
    long = {"prompt": "the cat sat on the mat . " * 3, "completion": "good"}
    with pytest.raises(PredictionFailed, match="line 3 has nothing to learn in its first 8 tokens"):
        await trained(trainer, tmp_path, *EXAMPLES, long, max_length=8)


def learnt(trainer: LoraTrainer, example: Example, template: str | None) -> tuple[str, str]:
    """The whole text of an example, and the part that the model learns."""
    encoded = trainer._encode(example, template, 64)
    labels = [label for label in encoded.labels if label >= 0]
    return tuple(trainer._tokenizer.decode(ids) for ids in (encoded.tokens, labels))


async def test_only_the_replies_of_the_assistant_are_learnt(trainer: LoraTrainer) -> None:
    conversation = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "ran"},
    ]
    chat = Example(1, conversation, "")
    assert learnt(trainer, chat, TEMPLATE)[1] == "sat . ran ."
    assert learnt(trainer, chat, None)[1] == "sat ran [SEP]"
    assert learnt(trainer, Example(1, [], "the cat sat"), None) == (
        "[CLS] the cat sat [SEP]",
        "the cat sat [SEP]",
    )


async def test_a_loss_that_is_not_finite_fails_the_training(trainer: LoraTrainer, tmp_path: Path) -> None:
    import torch

    with torch.no_grad():
        trainer._model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(PredictionFailed, match="try a lower learning_rate"):
        await trained(trainer, tmp_path, *EXAMPLES)


async def test_weights_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadFailed, match="model test/lora cannot be loaded for training"):
        await LoraTrainer(load_spec("lora", tmp_path, **OPTIONS)).setup()
