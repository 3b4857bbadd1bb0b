"""Checks the option ``engine`` of models.yaml: arguments of vLLM's engine that have no key of their own.

``engine_arguments.json`` describes the arguments of vLLM's ``AsyncEngineArgs``, because importing vLLM takes
seconds. ``scripts/engine-arguments`` writes the file, and a test compares it with the installed vLLM.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = Path(__file__).with_suffix(".json")
_SHOWN: Final = 100  # characters of a wrong value in a message
_CHOICES: Final = 24  # choices in a message; of more, the nearest ones are shown
_HELP: Final = 200  # characters of vLLM's help text in a message

#: Type in the table -> Python types of values in YAML, and the words of a message. A boolean is no number.
_TYPES: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "boolean": ((bool,), "true or false"),
    "integer": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "text": ((str,), "text"),
    "list": ((list,), "a list"),
    "mapping": ((dict,), "a mapping of keys to values"),
    "null": ((type(None),), "null"),
}

_ADAPTERS: Final = "the keys `adapters`, `options.max_adapters` and `options.max_adapter_rank` of the model"
_DEVICES: Final = "the key `gpu` of the model, which sets the number of devices"
_MACHINES: Final = "the keys `machines` and `options.across_machines` of the model"
_ONE_GROUP: Final = "the appliance sets how each engine uses its group of devices and machines: {remove}"
_WEIGHTS: Final = "the key `source` of the model: vLLM loads that folder and downloads nothing"
#: Argument -> the key to use instead, or a sentence with ``{remove}`` if there is none.
REFUSED: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("model", "model_weights", "tokenizer", "hf_config_path", "revision", "code_revision", "hf_token"),
        _WEIGHTS,
    ),
    **dict.fromkeys(("tokenizer_revision", "download_dir"), _WEIGHTS),
    "served_model_name": "the keys `name` and `aliases` of the model",
    "gpu_memory_utilization": "the key `memory` or `gpu` of the model",
    "kv_cache_memory_bytes": "the key `options.kv_cache` of the model",
    "num_gpu_blocks_override": "the key `options.kv_cache` of the model",
    **dict.fromkeys(("tensor_parallel_size", "device_ids"), _DEVICES),
    **{
        name: f"the key `options.{name}` of the model"
        for name in (
            *("dtype", "enforce_eager", "max_model_len", "max_num_seqs", "quantization"),
            *("reasoning_parser", "trust_remote_code"),
        )
    },
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "default_mm_loras"), _ADAPTERS),
    "enable_sleep_mode": "the key `sleep` of the model",
    **dict.fromkeys(
        (
            *("data_parallel_address", "data_parallel_backend", "data_parallel_external_lb"),
            *("data_parallel_hybrid_lb", "data_parallel_multi_port_external_lb", "data_parallel_rank"),
            *("data_parallel_rpc_port", "data_parallel_size", "data_parallel_size_local"),
            *("data_parallel_start_rank", "distributed_executor_backend", "master_addr", "master_port"),
            *("node_rank", "prefill_context_parallel_size", "enable_elastic_ep", "ray_workers_use_nsight"),
        ),
        _ONE_GROUP,
    ),
    **dict.fromkeys(("nnodes", "pipeline_parallel_size"), _MACHINES),
    **dict.fromkeys(
        ("runner", "convert", "pooler_config"),
        "the kind `embeddings`, for models that compute embeddings",
    ),
    **dict.fromkeys(
        ("skip_tokenizer_init", "tokens_only"),
        "the appliance needs texts, not only tokens: {remove}",
    ),
    **dict.fromkeys(
        ("allowed_local_media_path", "allowed_media_domains"),
        "only the gateway fetches URLs, by the rules in the section `egress`: {remove}",
    ),
    **dict.fromkeys(
        ("generation_config", "override_generation_config"),
        "the options with the defaults of predictions, such as `options.temperature`",
    ),
    "seed": "the input `seed` of a prediction",
    **dict.fromkeys(
        ("disable_log_stats", "aggregate_engine_logging", "enable_log_requests"),
        "the section `logging`, and the metrics of the appliance",
    ),
    "shutdown_timeout": "the key `drain_timeout` of the section `server`",
}


def problems(engine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each wrong argument in the option ``engine``, and the error message about it."""
    for name, value in engine.items():
        message = _problem(name, value)
        if message is not None:
            yield name, message


def accepts(name: str) -> bool:
    """Return whether the option ``engine`` can set this argument."""
    return name in _table()["arguments"] and name not in REFUSED


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = msgspec.json.decode(FILE.read_bytes())
    return table


def _problem(name: str, value: Any) -> str | None:
    arguments = _table()["arguments"]
    if name not in arguments:
        near = _nearest(name.lstrip("-").replace("-", "_"), arguments)
        hint = f"; did you mean {near[0]}?" if near else ": remove it"
        return f"vLLM {_table()['vllm']} has no engine argument of this name{hint}"
    if name in REFUSED:
        instead = REFUSED[name]
        if "{remove}" in instead:
            return instead.format(remove="remove the argument")
        return f"the appliance sets this argument of vLLM itself: use {instead}"
    argument = arguments[name]
    wrong = _wrong_value(argument, value)
    if wrong is None:
        return None
    help = argument["help"]
    if len(help) > _HELP:
        help = f"{help[:_HELP].rsplit(' ', 1)[0]} ..."
    return f"{wrong}. vLLM's help: {help}" if help else wrong


def _wrong_value(argument: dict[str, Any], value: Any) -> str | None:
    """Return why ``value`` does not fit the argument; None if it does."""
    types, choices, keys = argument["types"], argument.get("choices"), argument.get("keys")
    shown = repr(value) if len(repr(value)) <= _SHOWN else f"{repr(value)[:_SHOWN]}..."
    if choices is not None and not any(each == value and type(each) is type(value) for each in choices):
        if any(type(value) in _TYPES[name][0] for name in types):
            return None
        if len(choices) <= _CHOICES:
            return f"{shown} should be one of {', '.join(map(str, choices))}"
        near = _nearest(str(value), choices, 3) or choices[:_CHOICES]
        return f"{shown} is none of the {len(choices)} choices, such as {', '.join(map(str, near))}"
    if choices is None and types and not any(type(value) in _TYPES[name][0] for name in types):
        return f"{shown} should be {' or '.join(_TYPES[name][1] for name in types)}"
    if keys is not None and isinstance(value, dict):
        for key in value:
            if key not in keys:
                near = _nearest(str(key), keys)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(keys)}"
                return f"there is no key {key!r} in this argument; {hint}"
    return None


def _nearest(word: str, known: Iterable[Any], count: int = 1) -> list[str]:
    """Return the closest of the ``known`` words; upper and lower case are equal."""
    by_lower = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=count, cutoff=0.5)
    return [by_lower[each] for each in near]
