"""Conversion of a GGUF file to a transformers folder: ``python -m appliance.weights.gguf FILE FOLDER``.

This is a program of its own, because callers must not import torch, and because the memory for dequantizing
returns to the system when the process ends. It prints each step on a line. The exit code is 0 only if FOLDER
is complete.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1  # of <sys/prctl.h>


def convert(file: Path, folder: Path) -> Iterator[str]:
    """Convert ``file`` to bfloat16 safetensors in ``folder``, with the tokenizer and the chat template.

    Yields the name of each step before the step begins. The caller sets HF_HUB_OFFLINE to prevent downloads.
    """
    yield "loading PyTorch"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    parent, name = str(file.parent), file.name
    yield "reading the tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
    yield "dequantizing"
    loaded = AutoModelForCausalLM.from_pretrained(
        parent,
        gguf_file=name,
        dtype=torch.bfloat16,
        # Otherwise the weights stay quantized if matmul kernels for GGUF are installed.
        quantization_config=GgufConfig(dequantize=True),
    )
    yield "writing safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    _plain(loaded).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(loaded: Any) -> Any:
    """Return the same weights in a model that is not marked as quantized.

    transformers does not save a model from GGUF as a plain one: it keeps the quantization_config of the file
    although the weights are dequantized.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM  # transformers does not type this class method
        model = auto.from_config(config, dtype=torch.bfloat16)
    # `assign` uses the tensors without copying them, so there is no second model in memory.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL.

    Otherwise this process would write on into the folder that the next download uses.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    _end_with_parent()
    file, folder = map(Path, arguments)
    for step in convert(file, folder):
        print(step, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
