"""Entry point of the gateway.

It imports the gateway inside ``start_gateway()``, so that importing this module does not cost the driver's
process about 15 MiB and the import time.
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
