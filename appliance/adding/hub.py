"""Look at repositories of the Hugging Face hub without downloading their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from appliance.adding.listing import Listing
from appliance.weights import hub


class HubModel(msgspec.Struct, frozen=True):
    """A repository that a search of the hub found."""

    repository: str
    task: str | None
    library: str | None
    licence: str | None
    downloads: int  # in the last 30 days
    gated: bool


def search_hub(word: str, limit: int) -> list[HubModel]:
    """Return up to ``limit`` public repositories of models whose names contain ``word``, most used first.

    Raises:
        WeightsError: the hub cannot be reached, or refuses; the message says what to do.
    """
    from huggingface_hub import HfApi

    with hub.as_weights_errors(f"the search for {word!r}", "main"):
        found = list(HfApi().list_models(search=word, sort="downloads", limit=limit, full=True))
    return [
        HubModel(
            each.id,
            each.pipeline_tag,
            each.library_name,
            _licence(each.tags or []),
            each.downloads or 0,
            bool(each.gated),
        )
        for each in found
    ]


def _licence(tags: list[str]) -> str | None:
    return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)


def list_repository(repository: str, revision: str | None = None) -> Listing:
    """List the files of a repository at a revision (default: the newest of the main branch).

    Raises:
        WeightsError: the hub cannot be reached, or refuses; the message says what to do.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with hub.as_weights_errors(repository, revision or "main"):
        found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    commit = found.sha or "main"

    def read(name: str) -> bytes:
        with hub.as_weights_errors(repository, commit):
            return Path(hf_hub_download(repository, name, revision=commit)).read_bytes()

    card = dict(vars(found.card_data)) if found.card_data is not None else {}
    licence = card.get("license_name") or card.get("license")
    return Listing(
        f"{repository} on the hub",
        {file.rfilename: file.size or 0 for file in found.siblings or []},
        read,
        commit,
        str(licence) if licence else None,
        found.pipeline_tag,
        _first(card.get("base_model")),
        tuple(found.tags or ()),
        bool(found.gated),
    )


def _first(value: Any) -> str | None:
    found = value[0] if isinstance(value, list) and value else value
    return found if isinstance(found, str) else None
