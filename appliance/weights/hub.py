"""Downloads from the Hugging Face hub with huggingface_hub, which resumes and verifies downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx

from appliance.config import HubSource
from appliance.domain.errors import WeightsError

_LICENSES: Final = ("LICENSE*", "NOTICE*")
#: Files besides weights: configs, tokenizers, custom model code and licences.
_PATTERNS: Final = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", *_LICENSES)
#: Folders with the same weights in other formats.
_IGNORED: Final = ("original/*", "onnx/*", "openvino/*")


def snapshot(source: HubSource, folder: Path, weights: tuple[str, ...]) -> None:
    """Download a repository at its revision into ``folder``, except files that are there already.

    ``weights`` are patterns of the repository's weight files. The environment variables HF_TOKEN, HF_ENDPOINT
    and HF_HUB_OFFLINE apply. Written for huggingface_hub 2.4. Not tested with a hub, only
    with a replacement of the library.

    Raises:
        WeightsError: the download failed, or the repository has no such weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hub_errors = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)
    wanted = (source.file,) if source.file else weights
    others = (f"{source.file}.json", *_LICENSES) if source.file else _PATTERNS
    try:
        snapshot_download(
            source.hub,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=[*wanted, *others],
            ignore_patterns=None if source.file else list(_IGNORED),
        )
    # ImportError: a SOCKS proxy in the environment needs another library.
    except (*hub_errors, httpx.HTTPError, OSError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        message = f"{source.hub} at {source.revision} cannot be fetched from the hub: {reason}"
        raise WeightsError(message) from error
    if not any(any(folder.rglob(name)) for name in wanted):
        names = " or ".join(wanted)
        raise WeightsError(
            f"{source.hub} at {source.revision} has no file {names}: correct hub, revision or file"
        )
