"""Starts the gateway. The driver imports this module, which imports the gateway only when it is called.

So the driver's process neither spends time nor about 15 MiB on modules that only the gateway uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.gateway.app import Gateway
    from appliance.gateway.settings import GatewaySettings


async def start_gateway(settings: GatewaySettings) -> Gateway:
    """Create and start the gateway on the running loop; return once it answers requests."""
    from appliance.gateway import app

    return await app.start_gateway(settings)
