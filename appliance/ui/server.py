"""The ASGI application of the UI: sign-in, pages, and the manual.

All paths need a session, except the sign-in, the manual, and the scripts and styles.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote

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
from appliance.protocols.account_types import SignInMethodsResponse
from appliance.ui import api_proxy, languages, layout, session, template_pages
from appliance.ui.client import Api
from appliance.ui.manual import FOLDER as MANUAL_FOLDER
from appliance.ui.manual import Manual
from appliance.ui.pages import FIRST, PAGES, find
from appliance.ui.session import Sessions
from appliance.ui.static_files import StaticScriptsAndStyles
from appliance.ui.template_pages import TemplatePage

_log = logging.getLogger(__name__)

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BEAT: Final = "/_ui/beat"  # common.js asks it whether the appliance answers and the session goes on
_PROVIDER: Final = "/signin/provider"  # leads to the identity provider
_CALLBACK: Final = "/signin/callback"  # where the identity provider sends the browser back
_LONGEST_NAME: Final = 255  # bytes of one segment of a path, which may become a file name
_MAX_FORM: Final = 64 * 1024  # bytes of the sign-in form


#: Shown in the language of the page.
UNKNOWN_TOKEN: Final = Unauthenticated(token_given=True)


class UiServer:
    """The ASGI application of the UI."""

    def __init__(
        self,
        config: Config,
        api: Api,
        sessions: Sessions,
        pages: Sequence[TemplatePage] = PAGES,
        manual: Path = MANUAL_FOLDER,
    ) -> None:
        """``manual`` is the folder of the built manual."""
        self._title = config.ui.title
        self._sessions = sessions
        self._api = api
        self._pages = pages
        self._static = StaticScriptsAndStyles()
        self._manual = Manual(manual)

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
            raise NotFound(languages.gettext("There is no such page."))
        if page.admin and not user.admin:
            raise NotFound(languages.gettext("This page is for tokens with the scope admin."))
        scope[template_pages.FRAME] = self._navigation(request, page.path)
        scope[template_pages.PATHS] = {each.path for each in self._pages}
        scope[find.LISTED] = layout.listed(self._pages, user)
        scope[find.MANUAL] = self._manual.folder
        await (await page.respond(request))(scope, receive, send)

    def _navigation(self, request: Request, current: str) -> Markup:
        manual = self._manual.available
        return layout.navigation(self._pages, request, current, self._title, manual=manual)

    async def _response_without_page(self, request: Request) -> ASGIApp | None:
        """Return the response if no page is needed; otherwise store the session in the scope."""
        path, from_origin = request.url.path, request.headers.get("origin")
        for files in (self._manual, self._static):
            if files.has(path):
                return files
        if request.method not in _SAFE and from_origin not in {None, session.origin(request)}:
            return JSONResponse({"detail": languages.gettext("Requests from other sites are refused.")}, 403)
        if path == "/signin":
            return await self._sign_in(request)
        if path in {_PROVIDER, _CALLBACK} and request.method == "GET":
            return await self._sign_in_at_provider(request)
        if path == "/signout":
            return await self._sign_out(request)
        user = await self._sessions.of(request)
        if path == _BEAT:
            return JSONResponse({"session": user is not None}, headers={"cache-control": "no-store"})
        if user is None:
            return _to_sign_in(request)
        request.scope[session.SCOPE] = user
        return _redirect(request, FIRST.path) if path == "/" else None

    # -- sign-in and sign-out

    async def _sign_in(self, request: Request) -> Response:
        if request.method != "POST":
            return await self._sign_in_page(request, _local(request, request.query_params.get("next")))
        form = await _form(request)
        then, username = _local(request, form.get("next")), form.get("username", "")
        answer = RedirectResponse(then, 303)
        refused: ApplianceError = UNKNOWN_TOKEN
        try:
            if username:
                password = form.get("password", "")
                await self._sessions.sign_in_with_password(username, password, request, answer)
                return answer
            if await self._sessions.sign_in(form.get("token", "").strip(), request, answer):
                return answer
        except (PermissionDenied, Throttled, Unauthenticated) as error:
            refused = error
        return await self._sign_in_page(request, then, refused, username)

    async def _sign_in_page(
        self,
        request: Request,
        then: str,
        refused: ApplianceError | None = None,
        username: str = "",
        sign_out_url: str | None = None,
    ) -> Response:
        """Return the page with the forms to sign in.

        ``username`` is the one that a refused person entered. ``sign_out_url`` is the URL at which somebody
        who has signed out can also sign out of the identity provider.
        """
        page = layout.page_without_navigation(
            "sign_in.html",
            200 if refused is None else refused.status,
            request,
            title=languages.gettext("Sign in"),
            heading=self._title,
            methods=await self._methods(request),
            username=username,
            unknown=refused is UNKNOWN_TOKEN,
            refusal="" if refused is None else refused.detail,
            wrong_password=bool(username) and isinstance(refused, Unauthenticated),
            next=then,
            query=quote(then, safe=""),
            sign_out_url=sign_out_url,
        )
        if isinstance(refused, Throttled):
            page.headers["retry-after"] = str(refused.retry_after)
        return page

    async def _methods(self, request: Request) -> SignInMethodsResponse:
        try:
            return await self._sessions.methods(request)
        except ApplianceError as error:
            _log.error("the sign-in page offers only tokens: %s", error)
            return SignInMethodsResponse(passwords=False)

    async def _sign_in_at_provider(self, request: Request) -> Response:
        """Begin or finish a sign-in at the identity provider."""
        then = _local(request, request.query_params.get("next"))
        finish = request.url.path == _CALLBACK
        try:
            if not finish:
                return await self._sessions.begin_at_provider(then, request)
            response = await self._sessions.finish_at_provider(request)
        except ApplianceError as error:
            if error.status >= 500:
                _log.error("a sign-in at the identity provider failed: %s", error)
            response = await self._sign_in_page(request, _local(request, None), error)
        self._sessions.forget_sign_in(request, response)
        return response

    async def _sign_out(self, request: Request) -> Response:
        if request.method != "POST":
            return _redirect(request, "/")
        answer = _redirect(request, "/signin")
        url = await self._sessions.sign_out(request, answer)
        if url is None:
            return answer
        page = await self._sign_in_page(request, _local(request, None), sign_out_url=url)
        for cookie in answer.headers.getlist("set-cookie"):
            page.headers.append("set-cookie", cookie)
        return page

    async def close(self) -> None:
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
        return JSONResponse(error.body(), error.status)  # common.js shows the detail in the page
    title = (
        languages.gettext("Not found") if isinstance(error, NotFound) else languages.gettext("Not possible")
    )
    return layout.page_without_navigation(
        "error.html", error.status, request, title=title, detail=error.detail
    )
