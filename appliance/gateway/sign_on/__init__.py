"""How people sign in to the UI, and the sessions that they get."""

from appliance.gateway.sign_on.provider import discover
from appliance.gateway.sign_on.sign_on import Browser, ProviderCallback, SignOn

__all__ = ["Browser", "ProviderCallback", "SignOn", "discover"]
