"""The ASGI application of the UI: sign-in, pages, the manual, and the files of Gradio's frontend.

All paths need a session, including Gradio's own, except the sign-in, the manual and the frontend's files.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

from gradio.utils import get_upload_folder
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.config import Config
from appliance.domain.errors import (
    ApplianceError,
    BodyTooLarge,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    PermissionDenied,
    Throttled,
    Unauthenticated,
)
from appliance.protocols.response_types import ModelResponse, VersionResponse
from appliance.ui import api_proxy, languages, layout, session, template_pages
from appliance.ui.client import Api
from appliance.ui.manual import FOLDER as MANUAL_FOLDER
from appliance.ui.manual import Manual
from appliance.ui.page_app import Frontend, PageApp
from appliance.ui.pages import FIRST, PAGES, find, model
from appliance.ui.request_bodies import BodyLimits, RequestBodies
from appliance.ui.session import Session, Sessions
from appliance.ui.static_files import StaticScriptsAndStyles
from appliance.ui.template_pages import TemplatePage

_log = logging.getLogger(__name__)

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BEAT: Final = "/_ui/beat"  # frame.js asks it whether the appliance answers and the session goes on
_LONGEST_NAME: Final = 255  # bytes of one segment of a path, which may become a file name
_MAX_FORM: Final = 64 * 1024  # bytes of the sign-in form
_MODEL: Final = re.compile(
    r"(?P<model>/[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*)(?P<version>/versions/[0-9a-f]{64})?(?=/|\Z)"
)
_MAX_MODEL_PAGES: Final = 64  # built pages of models in memory


#: Shown in the language of the page.
UNKNOWN_TOKEN: Final = Unauthenticated(token_given=True)


class Server:
    """The ASGI application of the UI."""

    def __init__(
        self,
        config: Config,
        api: Api,
        sessions: Sessions,
        pages: Sequence[TemplatePage] = PAGES,
        manual: Path = MANUAL_FOLDER,
    ) -> None:
        """``manual`` is the folder of the built manual. A model's page is built when it is first opened."""
        self._title = config.ui.title
        self._max_upload = config.files.max_upload
        self._bodies = RequestBodies(Path(get_upload_folder()), BodyLimits.of(config))
        self._sessions = sessions
        self._api = api
        self._pages = pages
        self._model_pages: dict[str, PageApp] = {}  # by path; least recently used first
        self._building = asyncio.Lock()
        self._frontend = Frontend()
        self._static = StaticScriptsAndStyles()
        self._manual = Manual(manual)
        covers = {urlsplit(one.cover_image_url) for one in config.models if one.cover_image_url}
        self._images = " ".join(sorted({f"{cover.scheme}://{cover.netloc}" for cover in covers}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if request.headers.get("x-forwarded-proto") == "https":
            scope["scheme"] = "https"
        scope[session.PREFIX] = request.headers.get("x-forwarded-prefix", "")  # the gateway sets both
        languages.use(languages.chosen(request))
        try:
            _check_path(scope["path"])
            await self._respond(request, receive, send)
        except HTTPException as error:  # raised by Starlette's StaticFiles
            refusal = (
                MethodNotAllowed()
                if error.status_code == 405
                else NotFound(languages.gettext("There is no such page."))
            )
            await _refusal(request, refusal)(scope, receive, send)
        except ApplianceError as error:
            if error.status >= 500:
                _log.error("%s %s: %s", request.method, request.url.path, error)
            await _refusal(request, error)(scope, receive, send)

    async def _respond(self, request: Request, receive: Receive, send: Send) -> None:
        scope, path = request.scope, request.url.path
        response = await self._response_without_page(request)
        if response is not None:
            await response(scope, receive, send)
            return
        user = scope[session.SCOPE]
        if api_proxy.has(path):
            await (await api_proxy.forward(request, user))(scope, receive, send)
            return
        page = next((each for each in self._pages if each.has(request)), None)
        if page is None:
            await self._respond_with_model(request, user, receive, send)
            return
        if page.admin and not user.admin:
            raise NotFound(languages.gettext("This page is for tokens with the scope admin."))
        scope[template_pages.FRAME] = self._navigation(request, page.path)
        scope[template_pages.PATHS] = {each.path for each in self._pages}
        scope[find.LISTED] = layout.listed(self._pages, user)
        scope[find.MANUAL] = self._manual.folder
        await (await page.respond(request))(scope, receive, send)

    async def _respond_with_model(
        self, request: Request, user: Session, receive: Receive, send: Send
    ) -> None:
        """Respond with the page of a model, or with a response of Gradio's routes below it.

        Raises:
            NotFound: there is no page at the path.
        """
        scope, path = request.scope, request.url.path
        match = _MODEL.match(path)
        if match is None:
            raise NotFound(languages.gettext("There is no such page."))
        root = match[0]
        opened = path == root
        built = await self._model_page(root, user, opened=opened)
        if opened and request.method in {"GET", "HEAD"}:
            navigation = self._navigation(request, root)
            await (await built.respond(request, root, navigation, self._images))(scope, receive, send)
            return
        prefix = session.prefix(request)
        inner = {**scope, "root_path": prefix + root, "path": prefix + path}
        await self._bodies.forward(built.app, request, user, inner, send)

    def _navigation(self, request: Request, current: str) -> Markup:
        manual = self._manual.available
        return layout.navigation(self._pages, request, current, self._title, manual=manual)

    async def _response_without_page(self, request: Request) -> ASGIApp | None:
        """Return the response if no page is needed; otherwise store the session in the scope."""
        path, from_origin = request.url.path, request.headers.get("origin")
        for files in (self._frontend, self._manual, self._static):
            if files.has(path):
                return files
        if request.method not in _SAFE and from_origin not in {None, session.origin(request)}:
            return JSONResponse({"detail": languages.gettext("Requests from other sites are refused.")}, 403)
        if path == "/signin":
            return await self._sign_in(request)
        if path == "/signout":
            return await self._sign_out(request)
        user = await self._sessions.of(request)
        if path == _BEAT:
            return JSONResponse({"session": user is not None}, headers={"cache-control": "no-store"})
        if user is None:
            return _to_sign_in(request)
        request.scope[session.SCOPE] = user
        return _redirect(request, FIRST.path) if path == "/" else None

    # -- pages of models

    async def _model_page(self, root: str, user: Session, *, opened: bool) -> PageApp:
        """Return the page of a model or version; if ``opened``, build it again when the model has changed.

        Raises:
            NotFound: the model or version does not exist for this user.
        """
        app = self._model_pages.get(root)
        if app is not None and not opened and user.digest in app.opened_by:
            return app
        path, _, version = root.partition("/versions/")
        described = await user.caller.get_as(ModelResponse, f"/v1/models{path}")
        chosen = await user.caller.get_as(VersionResponse, f"/v1/models{root}") if version else None
        data = model.ModelPageData.of(described, chosen)
        async with self._building:
            app = self._model_pages.pop(root, None)
            if app is None or app.data != data:
                if app is not None:
                    await app.close()
                app = await PageApp(model.build(data), self._max_upload, data).start()
            app.opened_by.add(user.digest)
            self._model_pages[root] = app
            for path in list(self._model_pages)[:-_MAX_MODEL_PAGES]:
                await self._model_pages.pop(path).close()
        return app

    # -- sign-in and sign-out

    async def _sign_in(self, request: Request) -> Response:
        refused: ApplianceError | None = None
        then = _local(request, request.query_params.get("next"))
        if request.method == "POST":
            form = await _form(request)
            then = _local(request, form.get("next"))
            answer = RedirectResponse(then, 303)
            try:
                if await self._sessions.sign_in(form.get("token", "").strip(), request, answer):
                    return answer
                refused = UNKNOWN_TOKEN
            except (PermissionDenied, Throttled) as error:
                refused = error
        page = layout.page_without_gradio(
            "sign_in.html",
            200 if refused is None else refused.status,
            request,
            title=languages.gettext("Sign in"),
            heading=self._title,
            unknown=refused is UNKNOWN_TOKEN,
            refusal="" if refused is None else refused.detail,
            next=then,
        )
        if isinstance(refused, Throttled):
            page.headers["retry-after"] = str(refused.retry_after)
        return page

    async def _sign_out(self, request: Request) -> Response:
        if request.method != "POST":
            return _redirect(request, "/")
        answer = _redirect(request, "/signin")
        await self._sessions.sign_out(request, answer)
        return answer

    async def close(self) -> None:
        for built in self._model_pages.values():
            await built.close()
        await self._api.close()


def _check_path(path: str) -> None:
    """Refuse invalid paths.

    Raises:
        NotFound: ``path`` contains ``..``, a NUL character or a segment longer than a file name can be.
    """
    for part in path.split("/"):
        if part == ".." or "\0" in part or len(part.encode(errors="replace")) > _LONGEST_NAME:
            raise NotFound(languages.gettext("There is no such page."))


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of the sign-in form.

    Raises:
        MalformedBody: the body is not a URL-encoded form.
        BodyTooLarge: the body is larger than ``_MAX_FORM``.
    """
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > _MAX_FORM:
                raise BodyTooLarge(f"The form is larger than {_MAX_FORM:,} bytes")
        return dict(parse_qsl(received.decode(), max_num_fields=8))
    except (ClientDisconnect, ValueError) as error:
        raise MalformedBody(
            "The form cannot be read: send it as application/x-www-form-urlencoded"
        ) from error


def _redirect(request: Request, path: str) -> Response:
    return RedirectResponse(session.prefix(request) + path, 303)


def _local(request: Request, path: object) -> str:
    """Return ``path`` if it is a path of this site, else the path of the UI."""
    if not isinstance(path, str) or not re.fullmatch(r"/(?![/\\])[^\x00-\x20\\]*", path):
        return f"{session.prefix(request)}/"
    return path


def _wants_html(request: Request) -> bool:
    return request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", "")


def _to_sign_in(request: Request) -> Response:
    if not _wants_html(request) or "hx-request" in request.headers:
        return JSONResponse({"detail": languages.gettext("Sign in at /signin.")}, 401)
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    next = quote(session.prefix(request) + path, safe="")
    return _redirect(request, "/signin" if path == "/" else f"/signin?next={next}")


def _refusal(request: Request, error: ApplianceError) -> Response:
    if not _wants_html(request) or "hx-request" in request.headers:
        return JSONResponse(error.body(), error.status)  # frame.js shows the detail in the page
    title = (
        languages.gettext("Not found") if isinstance(error, NotFound) else languages.gettext("Not possible")
    )
    return layout.page_without_gradio("error.html", error.status, request, title=title, detail=error.detail)
