"""Add models to models.yaml: inspect a source, choose kind and options, estimate disk and memory.

Has no CLI or HTTP code, so that the CLI, the API and the UI can use it.
"""

from __future__ import annotations

from appliance.adding.fit import DeviceUse, Fit, find_fit, uses_of_config
from appliance.adding.hub import HubModel, search_hub
from appliance.adding.known_models import CatalogueModel, catalogue, search
from appliance.adding.pending import Pending
from appliance.adding.plan import AdditionPlan, plan, uses_of_status
from appliance.adding.proposal import Proposal, propose
from appliance.adding.unused import Unused, delete_unused, folder_size, unused
from appliance.adding.updates import Update, find_update

__all__ = [
    "AdditionPlan",
    "CatalogueModel",
    "DeviceUse",
    "Fit",
    "HubModel",
    "Pending",
    "Proposal",
    "Unused",
    "Update",
    "catalogue",
    "delete_unused",
    "find_fit",
    "find_update",
    "folder_size",
    "plan",
    "propose",
    "search",
    "search_hub",
    "unused",
    "uses_of_config",
    "uses_of_status",
]
