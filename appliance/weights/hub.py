"""Weights of a Hugging Face hub repository, through huggingface_hub, which resumes and verifies by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx

from appliance.config import HubSource
from appliance.domain.errors import WeightsError

#: What runners read besides weights: configs, tokenizers, custom model code, licences; not the same weights
#: once more in other formats.
_PATTERNS: Final = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)
_IGNORED: Final = ("original/*", "onnx/*", "openvino/*")


def snapshot(source: HubSource, folder: Path, weights: tuple[str, ...] = ("*.safetensors",)) -> None:
    """Fetch the repository at its revision into ``folder``; what is there already is not fetched again.

    ``weights`` says what its weight files are called.

    The user's HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count. Written against huggingface_hub 2.4; no hub was
    within reach where this was written, so only the call and the translation of errors are tested.

    Raises:
        WeightsError: the hub, the repository, the revision or the weights in it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*weights, *_PATTERNS]
    if source.file:
        patterns = [source.file, f"{source.file}.json", "LICENSE*", "NOTICE*"]
    try:
        snapshot_download(
            source.hub,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=patterns,
            ignore_patterns=None if source.file else list(_IGNORED),
        )
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        httpx.HTTPError,
        OSError,
        ImportError,  # a SOCKS proxy in the environment needs another library
    ) as error:
        first = str(error).partition("\n")[0]
        raise WeightsError(
            f"{source.hub} at {source.revision} cannot be fetched from the hub: {first}"
        ) from error
    wanted = (source.file,) if source.file else weights
    if not any(any(folder.rglob(name)) for name in wanted):
        raise WeightsError(f"{source.hub} at {source.revision} has no {' or '.join(wanted)}")
