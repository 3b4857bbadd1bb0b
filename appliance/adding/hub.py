"""Look at repositories of the Hugging Face hub without downloading their weights."""

from __future__ import annotations

from pathlib import Path

from appliance.adding.listing import Listing
from appliance.weights import hub


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
    )
