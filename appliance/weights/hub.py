"""Downloads from the Hugging Face hub with huggingface_hub, which resumes and verifies downloads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import httpx
import httpx2

from appliance.config import HubSource
from appliance.domain.errors import WeightsError
from appliance.weights.http_download import Advance, sha256_of

_LICENSES: Final = ("LICENSE*", "NOTICE*")
#: Files besides weights: configs, tokenizers, custom model code and licences.
_PATTERNS: Final = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", *_LICENSES)
_SHA256: Final = 64  # hex digits
#: Folders with the same weights in other formats.
_IGNORED: Final = ("original/*", "onnx/*", "openvino/*")


@contextlib.contextmanager
def as_weights_errors(repository: str, revision: str) -> Iterator[None]:
    """Convert exceptions of huggingface_hub into a ``WeightsError`` that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, and set "
            "HF_TOKEN to a token of that account"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        reason = str(error).partition("\n")[0]
        if status in {401, 403}:
            reason = (
                f"the hub answers {status}: the repository does not exist, or is private: correct the name, "
                "or set HF_TOKEN to a token that may read it"
            )
        raise _unfetched(repository, revision, reason) from error
    # ImportError: a SOCKS proxy in the environment needs another library. ValueError: HFValidationError.
    except (httpx.HTTPError, httpx2.HTTPError, OSError, ImportError, ValueError) as error:
        raise _unfetched(repository, revision, str(error).partition("\n")[0]) from error


def _unfetched(repository: str, revision: str, reason: str) -> WeightsError:
    return WeightsError(f"{repository} at {revision} cannot be fetched from the hub: {reason}")


def snapshot(
    source: HubSource, folder: Path, weights: tuple[str, ...], advance: Advance = lambda _have, _total: None
) -> None:
    """Download a repository at its revision into ``folder``, except files that are there already.

    ``weights`` are patterns of the repository's weight files. The environment variables HF_TOKEN, HF_ENDPOINT
    and HF_HUB_OFFLINE apply. ``advance`` gets the progress of the bytes.

    Raises:
        WeightsError: the download failed, or the repository has no such weights.
    """
    from huggingface_hub import snapshot_download

    wanted = (source.file,) if source.file else weights
    others = (f"{source.file}.json", *_LICENSES) if source.file else _PATTERNS
    with as_weights_errors(source.hub, source.revision):
        _link_cached(source, folder, wanted)
        snapshot_download(
            source.hub,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=[*wanted, *others],
            ignore_patterns=None if source.file else list(_IGNORED),
            tqdm_class=_progress_bar(advance),
        )
        _verify(source, folder)
    if not any(any(folder.rglob(name)) for name in wanted):
        names = " or ".join(wanted)
        raise WeightsError(
            f"{source.hub} at {source.revision} has no file {names}: correct hub, revision or file"
        )


def _link_cached(source: HubSource, folder: Path, wanted: tuple[str, ...]) -> None:
    """Link weights that are in the cache of huggingface_hub, so that they need no download and no more disk.

    Files of a cache on another file system cannot be linked.

    Raises:
        WeightsError: a file of the cache is damaged; huggingface_hub would use it without a look.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{source.hub.replace('/', '--')}"
    reference = cache / "refs" / source.revision
    commit = reference.read_text().strip() if reference.is_file() else source.revision
    snapshot = cache / "snapshots" / commit
    for file in snapshot.rglob("*"):
        name = file.relative_to(snapshot).as_posix()
        target = folder / name
        if not any(fnmatch(name, pattern) for pattern in wanted) or target.exists() or not file.is_file():
            continue
        blob = file.resolve()  # large files are named after their SHA-256, others after git's SHA-1
        if len(blob.name) == _SHA256 and sha256_of(blob) != blob.name:
            raise WeightsError(
                f"{name} of {source.hub} is damaged in the cache of huggingface_hub: delete {blob}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(blob)
        except OSError:
            return


def _verify(source: HubSource, folder: Path) -> None:
    """Compare the SHA-256 of large files with those of the hub; huggingface_hub compares only sizes.

    Raises:
        WeightsError: a file differs. It is removed, so that the next attempt downloads it again.
    """
    from huggingface_hub import HfApi

    for entry in HfApi().list_repo_tree(source.hub, revision=source.revision, recursive=True):
        lfs = getattr(entry, "lfs", None)  # only large files have it
        file = folder / entry.path
        if lfs is None or not file.is_file():
            continue
        found = sha256_of(file)
        if found != lfs.sha256:
            file.unlink()
            raise WeightsError(
                f"{entry.path} of {source.hub} at {source.revision} has the SHA-256 {found}, but the hub "
                f"says {lfs.sha256}: pull again, and check the proxy or mirror if the hash differs again"
            )


def _progress_bar(advance: Advance) -> Any:
    """Return a class of progress bars for huggingface_hub that shows nothing, and calls ``advance``."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

    class Bar(tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            # Of the three bars, this one counts the bytes that are on the disk.
            self._counts = str(settings.get("desc", "")).startswith("Reconstructing")
            settings.pop("name", None)
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._counts:
                advance(int(self.n), int(self.total) if self.total else None)
            return None

    return Bar
