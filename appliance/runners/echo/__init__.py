"""Kind `echo`: repeats its input, and fails on demand; for tests and for measuring overhead."""

from __future__ import annotations

from typing import Final

from appliance.runners.base import Kind

KIND: Final = Kind(runner="appliance.runners.echo.runner:EchoRunner")
