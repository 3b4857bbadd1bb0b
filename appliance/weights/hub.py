"""Downloads from the Hugging Face hub with huggingface_hub, which resumes and verifies downloads."""

from __future__ import annotations

import contextlib
import glob
import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import httpx
import httpx2

from appliance.config import HubSource
from appliance.domain.errors import WeightsError
from appliance.weights import selection
from appliance.weights.http_download import Advance, sha256_of

_LICENSES: Final = ("LICENSE*", "NOTICE*")
#: Files besides weights: configs, tokenizers, custom model code and licences.
_PATTERNS: Final = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", *_LICENSES)
_SHA256: Final = 64  # hex digits


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
    source: HubSource,
    folder: Path,
    weights: tuple[str, ...],
    advance: Advance = lambda _have, _total: None,
    *,
    variant: str | None = None,
    companions: tuple[str, ...] = (),
) -> None:
    """Download a repository at its revision into ``folder``, except files that are there already.

    ``weights`` are patterns of the repository's weight files; ``variant`` is the variant of them to download.
    ``companions`` are patterns of files that are downloaded even if the source names one file.
    The environment variables HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply. ``advance`` gets the progress of
    the bytes.

    Raises:
        WeightsError: the download failed, or the repository has no such weights.
    """
    from huggingface_hub import HfApi, snapshot_download

    with as_weights_errors(source.hub, source.revision):
        tree = HfApi().list_repo_tree(source.hub, revision=source.revision, recursive=True)
        # Folders have no size. Only large files have a SHA-256.
        hashes = {each.path: _sha256(each) for each in tree if getattr(each, "size", None) is not None}
        wanted = _wanted(source, folder, hashes, weights, variant)
        if not wanted:
            names = source.file or " or ".join(weights)
            raise WeightsError(
                f"{source.hub} at {source.revision} has no file {names}: correct hub, revision or file"
            )
        _link_cached(source, folder, wanted)
        snapshot_download(
            source.hub,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=[glob.escape(name) for name in (*wanted, *_others(source, hashes, companions))],
            tqdm_class=_progress_bar(advance),
        )
        _verify(source, folder, hashes)


def _sha256(file: Any) -> str | None:
    lfs = getattr(file, "lfs", None)
    return None if lfs is None else str(lfs.sha256)


def _wanted(
    source: HubSource, folder: Path, names: Iterable[str], weights: tuple[str, ...], variant: str | None
) -> list[str]:
    """Return the weight files of a repository with the files ``names`` that the model loads."""
    if source.file:
        return [source.file] if source.file in names else []
    pipeline = None
    if selection.PIPELINE in names:
        from huggingface_hub import hf_hub_download

        index = hf_hub_download(source.hub, selection.PIPELINE, revision=source.revision, local_dir=folder)
        pipeline = selection.components(json.loads(Path(index).read_bytes()))
    return selection.weight_files(names, weights, variant=variant, pipeline=pipeline)


def _others(source: HubSource, names: Iterable[str], companions: tuple[str, ...]) -> list[str]:
    """Return the files to download besides weights."""
    patterns = (f"{glob.escape(source.file)}.json", *_LICENSES) if source.file else _PATTERNS
    patterns = (*patterns, *companions)
    return [
        name
        for name in names
        if any(fnmatch(name, each) for each in patterns)
        and (source.file or not selection.in_other_format(name))
    ]


def _link_cached(source: HubSource, folder: Path, wanted: list[str]) -> None:
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
    for name in wanted:
        file, target = snapshot / name, folder / name
        if target.exists() or not file.is_file():
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


def _verify(source: HubSource, folder: Path, hashes: Mapping[str, str | None]) -> None:
    """Compare the SHA-256 of large files with those of the hub; huggingface_hub compares only sizes.

    Raises:
        WeightsError: a file differs. It is removed, so that the next attempt downloads it again.
    """
    for name, expected in hashes.items():
        file = folder / name
        if expected is None or not file.is_file():
            continue
        found = sha256_of(file)
        if found != expected:
            file.unlink()
            raise WeightsError(
                f"{name} of {source.hub} at {source.revision} has the SHA-256 {found}, but the hub "
                f"says {expected}: pull again, and check the proxy or mirror if the hash differs again"
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
