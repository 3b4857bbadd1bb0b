"""Facts about a model in a cluster, which pages show."""

from __future__ import annotations

from typing import Final

from appliance.protocols.admin_types import ModelStatus
from appliance.ui.languages import gettext as _
from appliance.ui.languages import translatable

_REASONS: Final = {
    "Cog project": translatable("Cog project"),
    "environment of its own": translatable("environment of its own"),
}


def cluster_facts(model: ModelStatus) -> list[str]:
    """Return short sentences about the model; none on a single machine."""
    facts = []
    if model.copying_to is not None:
        facts.append(_("copying weights to {node}").format(node=model.copying_to))
    if model.head_only is not None:
        reason = _(_REASONS.get(model.head_only, model.head_only))
        facts.append(_("runs on the head of the cluster only: {reason}").format(reason=reason))
    if model.fits_nowhere is not None:
        facts.append(_("fits on no node that is ready"))
    return facts
