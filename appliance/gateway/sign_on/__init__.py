"""How people sign in to the UI, and the sessions that they get."""

from appliance.gateway.sign_on.provider import discover
from appliance.gateway.sign_on.sign_on import Answer, Client, SignOn

__all__ = ["Answer", "Client", "SignOn", "discover"]
