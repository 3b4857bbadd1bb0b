"""Kind `echo`: repeats its input, and fails on demand; for tests and for measuring overhead."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(
    name="echo",
    model="appliance.runners.echo.options:EchoModel",
    runner="appliance.runners.echo.runner:EchoRunner",
    example_input="text",
)
