"""Add models to models.yaml: inspect a source, choose kind and options, estimate disk and memory.

Has no CLI or HTTP code, so that the CLI, the API and the UI can use it.
"""

from __future__ import annotations

from appliance.adding.fit import DeviceUse, Fit, find_fit, uses_of_config
from appliance.adding.known_models import CatalogueModel, catalogue, search
from appliance.adding.proposal import Proposal, propose
from appliance.adding.unused import Unused, delete, folder_size, unused
from appliance.adding.updates import Update, find_update

__all__ = [
    "CatalogueModel",
    "DeviceUse",
    "Fit",
    "Proposal",
    "Unused",
    "Update",
    "catalogue",
    "delete",
    "find_fit",
    "find_update",
    "folder_size",
    "propose",
    "search",
    "unused",
    "uses_of_config",
]
