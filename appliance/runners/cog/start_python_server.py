"""Script that starts the Python server of a Cog version before 0.17, on the loopback interface only.

The Python of the project's environment runs it, in the folder of the project, so it imports nothing from the
appliance and runs on Python 3.8. Versions before 0.9.9 have no option for the address: they listen on all
interfaces, without any authentication. The arguments are those of ``python -m cog.server.http``.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path.cwd())  # as with "python -m"; otherwise modules beside this file hide those of Python

import uvicorn  # noqa: E402  # in the environment of the project; imported after the path is set

original = uvicorn.Config.__init__


def on_loopback(self: Any, app: Any, *arguments: Any, **options: Any) -> None:
    options["host"] = "127.0.0.1"
    original(self, app, *arguments, **options)


uvicorn.Config.__init__ = on_loopback  # type: ignore[method-assign]  # the address has no other way in
runpy.run_module("cog.server.http", run_name="__main__", alter_sys=True)
