"""The web UI, a process of its own that calls the HTTP API with the token of the signed-in user.

``server`` dispatches requests by path, ``session`` signs users in, and ``layout`` has what all pages share.
"""

from appliance.ui import gradio_import

gradio_import.install()  # before any module of this package imports Gradio
