"""The UI's own scripts and styles, served below a path that contains a digest of all of them.

Browsers may keep the files forever: after an upgrade the path is another one. The files need no sign-in.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.ui.responses import with_headers

FOLDER: Final = Path(__file__).parent / "static"


def _digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(FOLDER.rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(FOLDER)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


#: The path of the files. Owners of models cannot begin with "_", so it is no model's path.
PATH: Final = f"/_ui/static/{_digest()}"


class StaticScriptsAndStyles:
    """ASGI application that serves the files."""

    def __init__(self) -> None:
        self._files: ASGIApp = GZipMiddleware(StaticFiles(directory=FOLDER), compresslevel=4)

    def has(self, path: str) -> bool:
        return path.startswith(f"{PATH}/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with a file.

        Raises:
            HTTPException: the file does not exist, or the method is neither GET nor HEAD.
        """
        headers = {
            "cache-control": "public, max-age=31536000, immutable",
            "x-content-type-options": "nosniff",
        }
        inner = {**scope, "root_path": PATH}
        await self._files(inner, receive, with_headers(send, headers))
