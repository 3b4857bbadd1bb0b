"""How people sign in to the UI, and the sessions that they get."""

from appliance.gateway.sign_on.sign_on import Client, SignOn

__all__ = ["Client", "SignOn"]
