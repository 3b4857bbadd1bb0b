"""Turn one GGUF file into a transformers folder: ``python -m appliance.weights.gguf FILE FOLDER``.

A process of its own, because torch must never be imported by whoever asks for weights, and because the
memory that dequantising takes goes back to the system when it ends. Each step is a line on stdout; the exit
code is 0 only when FOLDER is whole.
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
    """Write ``file`` as bf16 safetensors with its tokenizer and chat template into ``folder``.

    Yields what it is about to do, in words. The caller sets HF_HUB_OFFLINE, so that nothing is looked up.
    """
    yield "loading PyTorch"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, name = str(file.parent), file.name
    yield "reading the tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    yield "dequantising"
    loaded = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=name,
        dtype=torch.bfloat16,
        # Where matmul kernels for GGUF are installed, the weights would otherwise stay in packed blocks.
        quantization_config=GgufConfig(dequantize=True),
    )
    yield "writing safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    _plain(loaded).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(loaded: Any) -> Any:
    """The same weights in a model that does not say it is quantised.

    transformers will not save a model that was read from GGUF as a plain one: it holds on to the file's
    quantization_config although the weights are ordinary numbers by now.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM  # transformers does not type this class method
        model = auto.from_config(config, dtype=torch.bfloat16)
    # `assign` takes the tensors themselves instead of copying them: no second model in memory.
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL.

    Left alone, it would go on writing into the folder that the next pull uses.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """The command line: two paths."""
    _end_with_parent()
    file, folder = map(Path, arguments)
    for step in convert(file, folder):
        print(step, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
