"""The web UI: a process of its own that calls the HTTP API like any client, with the token of the user.

``server`` has the paths, ``session`` the sign-in, and ``layout`` the parts that all pages share.
"""
