"""Serve the manual at /manual/, without sign-in. ``scripts/install`` builds the manual from docs/."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from pathlib import Path
from typing import Final

from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.ui import layout, session
from appliance.ui.responses import with_headers

FOLDER: Final = Path(__file__).parents[1] / "assets" / "manual"
PATH: Final = "/manual"
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

_log = logging.getLogger(__name__)


class Manual:
    """ASGI application that serves the built manual; ``available`` is false if the manual was not built."""

    def __init__(self, folder: Path) -> None:
        """Read the pages in ``folder``, to allow exactly the inline scripts that the pages contain."""
        self.folder = folder
        self.available = (folder / "index.html").is_file()
        if not self.available:
            _log.warning("the manual is missing in %s: /manual/ is not served: run scripts/install", folder)
            return
        self._files: ASGIApp = GZipMiddleware(StaticFiles(directory=folder, html=True), compresslevel=4)
        self._headers = layout.security_headers({}) | {
            "content-security-policy": f"default-src 'self'; script-src 'self' {_script_hashes(folder)}; "
            "style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'self'; "
            "form-action 'self'; frame-ancestors 'none'",
            "cache-control": "no-cache",  # browsers ask whether a file has changed
        }

    def has(self, path: str) -> bool:
        return self.available and (path == PATH or path.startswith(f"{PATH}/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with a file of the manual.

        Raises:
            HTTPException: the file does not exist, or the method is neither GET nor HEAD.
        """
        # The redirect to the path with a slash at its end must have the prefix of a reverse proxy.
        prefix = session.prefix(Request(scope))
        inner = {**scope, "root_path": prefix + PATH, "path": prefix + scope["path"]}
        await self._files(inner, receive, with_headers(send, self._headers))


def _script_hashes(folder: Path) -> str:
    scripts = {
        script for page in folder.rglob("*.html") for script in _INLINE_SCRIPT.findall(page.read_bytes())
    }
    digests = sorted(base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
