"""Routes for the OpenAPI document and Swagger UI. They need no token."""

from __future__ import annotations

import functools
import html
import importlib.util
import json
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from appliance.domain.errors import NotFound
from appliance.gateway.api import openapi, requests, responses

#: A package that contains the files of Swagger UI. It is never imported.
_PACKAGE: Final = "fastapi_swagger"
_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
_START: Final = """SwaggerUIBundle({
  url: %s, dom_id: "#swagger", deepLinking: true, tryItOutEnabled: true, validatorUrl: null
});
"""
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API of this appliance</title>
<link rel="stylesheet" href="%(prefix)s/docs/swagger-ui.css">
<link rel="icon" href="%(prefix)s/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger"></div>
<script src="%(prefix)s/docs/swagger-ui-bundle.js"></script>
<script src="%(prefix)s/docs/start.js"></script>
</body>
</html>
"""
_POLICY: Final = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
}


async def get_document(request: Request) -> Response:
    return responses.json(_document(requests.prefix(request)))


async def get_docs(request: Request) -> Response:
    prefix = html.escape(requests.prefix(request))
    return HTMLResponse(_PAGE % {"prefix": prefix}, headers=_POLICY)


async def get_asset(request: Request) -> Response:
    name = request.path_params["asset"]
    if name == "start.js":
        start = _START % json.dumps(f"{requests.prefix(request)}/openapi.json")
        return Response(start, media_type="text/javascript", headers=_POLICY)
    if name not in _ASSETS:
        raise NotFound
    return FileResponse(_FOLDER / name, media_type=_ASSETS[name], headers=_POLICY)


def _folder() -> Path:
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None, f"{_PACKAGE} is in pyproject.toml"
    assert found.submodule_search_locations, f"{_PACKAGE} is a package"
    return Path(found.submodule_search_locations[0]) / "resources"


_document: Final = functools.lru_cache(maxsize=2)(openapi.document)
_FOLDER: Final = _folder()
ROUTES: Final = (
    Route("/openapi.json", get_document, methods=["GET"]),
    Route("/v1/openapi.json", get_document, methods=["GET"]),
    Route("/docs", get_docs, methods=["GET"]),
    Route("/docs/{asset}", get_asset, methods=["GET"]),
)
