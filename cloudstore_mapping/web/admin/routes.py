"""Dashboard routes: authenticate the session, check forms against CSRF, add security headers, render error pages."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    CloudStoreError,
    DisabledError,
    LockedError,
    ProtocolError,
    TooOftenError,
    UnavailableError,
)
from cloudstore_mapping.web.admin.actions import MESSAGES, Actions, RedisplayForm, Result
from cloudstore_mapping.web.admin.forms import (
    MAX_FORM_BYTES,
    CSRFError,
    Form,
    check_csrf_origin,
    check_csrf_token,
    parse_form,
    read_form,
)
from cloudstore_mapping.web.admin.pages import STATIC, Pages, ViewState, Visit, integrity, static
from cloudstore_mapping.web.admin.sessions import DashboardCookies
from cloudstore_mapping.web.admin.uploads import DashboardUpload
from cloudstore_mapping.web.downloads import content_disposition
from cloudstore_mapping.web.http import FAILED, BoundedWorkers, Message, Receive, Scope, Send, network, outcome
from cloudstore_mapping.wire import Reply, message_for_clients
from cloudstore_mapping.wire import Request as WireRequest

if TYPE_CHECKING:
    from cloudstore_mapping.service.quotas import ReplyRoom
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.sessions import SignedInOwner
    from cloudstore_mapping.web.http import Application
    from cloudstore_mapping.web.uploads import SpoolSpace

_log: Final = logging.getLogger("cloudstore_mapping.web")

#: Threads for pages, sign-ins and changes, each of their own, those of one owner, and the requests that wait for each.
PAGES_AT_ONCE: Final = 4
SIGN_INS_AT_ONCE: Final = 3
CHANGES_AT_ONCE: Final = 8
OF_ONE: Final = 2
WAITING: Final = 256
#: Bytes of a value that are sent at once.
PIECE: Final = 2**18

_Endpoint = Callable[[Request], Awaitable[Response]]

#: Cookie with the name of a message in `MESSAGES` and a number, for the next page; it holds no secret.
_MESSAGE_COOKIE: Final = "message"
_MESSAGE_SECONDS: Final = 60
_CONTENT_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# HTTP statuses of errors with status 200 on the wire.
_STATUS: Final[Mapping[str, int]] = {
    "Locked": HTTPStatus.FORBIDDEN,
    "Disabled": HTTPStatus.FORBIDDEN,
    "NoFile": HTTPStatus.NOT_FOUND,
    "Changed": HTTPStatus.CONFLICT,
}
# Content-Security-Policy around `script-src`. Style sheets come from this host: no uploaded file is served as text/css.
_POLICY: Final = (
    "default-src 'none'; script-src {}; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
# Hosts that a policy's source can name: no IPv6 address.
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,255}(:[0-9]{1,5})?")
_SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "none",
}


def make_admin(service: Service, base: str, space: SpoolSpace) -> Application:
    """Return the ASGI application for all paths beginning with `base` and ``/admin``."""
    scripts = [static(name)[0] for name in STATIC if name.endswith(".js")]
    return with_security_headers(_Dashboard(service, base, space).application, f"{base}/admin/static/", scripts)


def with_security_headers(application: Application, static_path: str, scripts: Iterable[bytes]) -> Application:
    """
    Return the application with security headers on all responses and without CORS headers.

    Its pages run only scripts below `static_path`, and only these `scripts` if the policy can't name the host.
    """
    hashes = " ".join(f"'{integrity(script)}'" for script in scripts)

    async def secured(scope: Scope, receive: Receive, send: Send) -> None:
        policy = _POLICY.format(f"{_script_source(scope, static_path)}{hashes}")

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message["headers"])}
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY_HEADERS)
                headers["Content-Security-Policy"] = policy
                headers.setdefault("Cache-Control", "no-store")
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
            await send(message)

        await application(scope, receive, send_secured)

    return secured


def _script_source(scope: Scope, path: str) -> str:
    """Return the policy's source for a path at the requested host, followed by a space; "" if it can't be named."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    return f"{host}{path} " if _HOST.fullmatch(host) else ""


class _Dashboard:
    def __init__(self, service: Service, base: str, space: SpoolSpace) -> None:
        self._service = service
        self._pages = Pages(service, base)
        self._home = f"{base}/admin.html"
        self._cookies = DashboardCookies(base)
        self._reads = BoundedWorkers(PAGES_AT_ONCE, WAITING, "cloudstore-pages", of_one=OF_ONE)
        self._changes = BoundedWorkers(CHANGES_AT_ONCE, WAITING, "cloudstore-changes", of_one=OF_ONE)
        self._sign_ins = BoundedWorkers(SIGN_INS_AT_ONCE, WAITING, "cloudstore-sign-ins", of_one=OF_ONE)
        post = ["POST"]
        self.application = Starlette(
            routes=[
                Route(self._home, self._page(self._show)),
                Route(f"{base}/admin", self._redirect_home),
                Route(f"{base}/admin/", self._redirect_home),
                Route(f"{base}/admin/static/{{name}}", _static),
                Route(f"{base}/admin/data/value", self._download_value),
                Route(f"{base}/admin/media/preview", self._page(self._preview)),
                Route(f"{base}/admin/sign-in", self._post_sign_in, methods=post),
                Route(f"{base}/admin/sign-out", self._form(self._sign_out), methods=post),
                Route(
                    f"{base}/admin/media/upload",
                    DashboardUpload(service, f"{self._home}?panel=media", self._cookies, space),
                    methods=post,
                ),
                *(
                    Route(f"{base}/admin/{path}", self._form(partial(self._act, action)), methods=post)
                    for path, action in Actions(service, self._pages).by_path.items()
                ),
            ],
            exception_handlers={
                404: partial(self._http_error, "There is nothing here."),
                405: partial(self._http_error, "This method isn't allowed here."),
            },
        )

    async def _redirect_home(self, request: Request) -> Response:  # noqa: ARG002 - Starlette passes it
        return RedirectResponse(self._home, 303)

    async def _http_error(self, sentence: str, request: Request, error: Exception) -> Response:  # noqa: ARG002 - Starlette passes it
        status = getattr(error, "status_code", HTTPStatus.NOT_FOUND)
        return self._pages.error(sentence, status)

    def _page(self, show: Callable[[Request, Visit | None], Response]) -> _Endpoint:
        """Return the endpoint of a page; a thread renders it."""

        def work(signed_in: SignedInOwner | None, request: Request) -> Response:
            return show(request, self._visit(signed_in, request))

        async def endpoint(request: Request) -> Response:
            try:
                signed_in = await self._signed_in(request)
                owner = network(request.scope) if signed_in is None else signed_in.account.id
                return await self._reads.run(partial(self._run, partial(work, signed_in), request), owner)
            except CloudStoreError as error:
                return self._error_page(error)

        return endpoint

    def _form(self, act: Callable[[Request, Visit, Form], Response]) -> _Endpoint:
        """Return the endpoint of a form for signed-in owners; a thread handles it when a slot is free."""
        settings = self._service.settings

        def work(body: bytes, request: Request) -> Response:
            signed_in = self._session(request)  # again, as it may have ended while the body came in
            if signed_in is None:
                return RedirectResponse(self._home, 303)
            form = parse_form(body)
            token = self._cookies.session_token(request)
            check_csrf_token(token, form.text("token"))
            return act(request, Visit(signed_in, token, ViewState.parse(form.text("view")), _address(request)), form)

        async def endpoint(request: Request) -> Response:
            try:
                check_csrf_origin(request)
                # Authenticated before the body is read: a stranger can't fill the memory with bodies.
                if (signed_in := await self._signed_in(request)) is None:
                    return RedirectResponse(self._home, 303, {"Connection": "close"})
                limit = settings.max_body_bytes if request.url.path.endswith("/data/save") else MAX_FORM_BYTES
                body = await read_form(request, settings, limit)
            except (CSRFError, CloudStoreError) as error:
                return self._error_page(error, close=True)
            return await self._run_in_turn(self._changes, partial(work, body), request, signed_in.account.id)

        return endpoint

    async def _post_sign_in(self, request: Request) -> Response:
        settings = self._service.settings
        try:
            check_csrf_origin(request)
            body = await read_form(request, settings)
        except (CSRFError, CloudStoreError) as error:
            return self._error_page(error, close=True)
        return await self._run_in_turn(self._sign_ins, partial(self._sign_in, body), request, network(request.scope))

    async def _run_in_turn(
        self, turns: BoundedWorkers, work: Callable[[Request], Response], request: Request, owner: Hashable
    ) -> Response:
        try:
            return await turns.run(lambda: self._run(work, request), owner)
        except UnavailableError as error:
            return self._error_page(error)

    def _run(self, work: Callable[[Request], Response], request: Request) -> Response:
        """Return the response of `work`, or an error page; called on a thread."""
        try:
            return work(request)
        except (CSRFError, CloudStoreError) as error:
            return self._error_page(error)
        except Exception:  # noqa: BLE001 - logged, and the owner gets an error page
            _log.exception("A request to %s failed.", request.url.path)
            return self._pages.error(FAILED.sentence, FAILED.status)

    def _error_page(self, error: CSRFError | CloudStoreError, *, close: bool = False) -> Response:
        """Return a page with the error; `close` ends the connection, for a body left unread."""
        if isinstance(error, CSRFError):
            response = self._pages.error(str(error), HTTPStatus.FORBIDDEN)
        else:
            response = _with_retry_after(self._pages.error(message_for_clients(error), _status_of(error)), error)
        if close:
            response.headers["Connection"] = "close"
        return response

    def _session(self, request: Request) -> SignedInOwner | None:
        token = self._cookies.session_token(request)
        return self._service.owners.session(token) if token else None

    async def _signed_in(self, request: Request) -> SignedInOwner | None:
        """Return whose session the request's cookie is, None for nobody's; `CloudStoreError` if it can't be read."""
        if not self._cookies.session_token(request):
            return None
        return await self._reads.run(partial(self._session, request), network(request.scope))

    def _visit(self, signed_in: SignedInOwner | None, request: Request) -> Visit | None:
        if signed_in is None:
            return None
        view = ViewState.parse(request.url.query)
        return Visit(signed_in, self._cookies.session_token(request), view, _address(request))

    def _show(self, request: Request, visit: Visit | None) -> Response:
        if visit is None:
            return self._pages.sign_in()
        cookie = self._cookies.name(request, _MESSAGE_COOKIE)
        name, _, count = request.cookies.get(cookie, "").partition(".")
        response = self._pages.show(visit, message=MESSAGES[name].format(count[:9]) if name in MESSAGES else "")
        if name:
            response.delete_cookie(cookie, path="/")
        return response

    async def _download_value(self, request: Request) -> Response:
        """Return a file's value of any size as a download."""
        name = request.query_params.get("name", "")
        try:
            signed_in = await self._signed_in(request)
        except CloudStoreError as error:
            return self._error_page(error)
        if signed_in is None or signed_in.must_change:
            return RedirectResponse(self._home, 303)
        room = self._service.reply_memory.room()
        try:
            answer = self._service.dispatcher.submit(
                WireRequest(name=name, brief=True), _address(request), signed_in.account, room=room
            )
            reply = answer if isinstance(answer, Reply) else await outcome(answer)
            if reply.error is not None:
                response = self._pages.error(reply.sentence, _STATUS.get(reply.error, reply.status))
            else:
                value = memoryview(reply.content)
                headers = {
                    "Content-Disposition": content_disposition(f"{name}.json", shown=False).decode(),
                    "Content-Length": str(len(value)),
                }
                response = _Held(room, value, headers)
        except BaseException:
            room.release()
            raise
        if reply.error is not None:
            room.release()
        return response

    def _preview(self, request: Request, visit: Visit | None) -> Response:
        """Return an image to its owner, without counting an access."""
        if visit is None or visit.signed_in.must_change:
            return RedirectResponse(self._home, 303)
        file = self._service.panels.media_file(visit.account, request.query_params.get("id", ""))
        mimetype = None if file is None else self._pages.image_type(file.media)
        if file is None or mimetype is None:
            return self._pages.error("There is no image here.", HTTPStatus.NOT_FOUND)
        headers = {"Content-Length": str(file.media.size)}
        media = self._service.media
        pieces = media.while_enabled(visit.account, media.chunks(file.media))
        return StreamingResponse(_stream(self._reads, pieces, visit.account.id), 200, headers, mimetype)

    def _sign_in(self, body: bytes, request: Request) -> Response:
        form = parse_form(body)
        name = form.text("user")
        try:
            token = self._service.owners.sign_in(
                name, form.text("password"), _address(request), instead_of=self._cookies.session_token(request)
            )
        except (LockedError, DisabledError, TooOftenError, ProtocolError) as error:
            page = self._pages.sign_in(name=name, alert=error.message, status=_status_of(error))
            return _with_retry_after(page, error)
        response = RedirectResponse(self._home, 303)
        self._cookies.set_session(request, response, token)
        return response

    def _sign_out(self, request: Request, visit: Visit, form: Form) -> Response:  # noqa: ARG002 - the form has no fields
        self._service.owners.sign_out(visit.signed_in, origin=visit.address)
        response = RedirectResponse(self._home, 303)
        self._cookies.delete_session(request, response)
        return response

    def _act(
        self, action: Callable[[Visit, Form], Result | Response], request: Request, visit: Visit, form: Form
    ) -> Response:
        if visit.signed_in.must_change and not request.url.path.endswith("/password"):
            return RedirectResponse(self._home, 303)
        try:
            result = action(visit, form)
        except CloudStoreError as error:
            page = self._pages.show(visit, alert=message_for_clients(error), status=_status_of(error))
            return _with_retry_after(page, error)
        if isinstance(result, Response):
            return result
        if isinstance(result, RedisplayForm):
            refusal = result.error
            page = self._pages.show(visit, alert=refusal.message, status=_status_of(refusal), draft=result.draft)
            return _with_retry_after(page, refusal)
        response = RedirectResponse(self._pages.address(result.view), 303)
        response.set_cookie(
            self._cookies.name(request, _MESSAGE_COOKIE),
            f"{result.message}.{result.count}",
            max_age=_MESSAGE_SECONDS,
            path="/",
            httponly=True,
            samesite="lax",
        )
        return response


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host


async def _stream(threads: BoundedWorkers, pieces: Iterator[bytes], owner: Hashable) -> AsyncIterator[bytes]:
    while piece := await threads.run(partial(next, pieces, b""), owner):
        yield piece


class _Held(StreamingResponse):
    """A value that is sent in pieces, each once the client took the one before; its memory is released at the end."""

    def __init__(self, room: ReplyRoom, value: memoryview, headers: Mapping[str, str]) -> None:
        pieces = (bytes(value[begin : begin + PIECE]) for begin in range(0, len(value), PIECE))
        super().__init__(_each(pieces), headers=headers, media_type="application/json")
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._room.release()


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return Response("There is nothing here.", HTTPStatus.NOT_FOUND, media_type="text/plain")
    content, hash_ = static(name)
    is_current = request.query_params.get("v") == hash_
    headers = {"Cache-Control": "public, max-age=31536000, immutable" if is_current else "no-cache"}
    return Response(content, headers=headers, media_type=_CONTENT_TYPES[name.rpartition(".")[2]])


def _status_of(error: CloudStoreError) -> int:
    name = error.error or ""
    if name in _STATUS:
        return _STATUS[name]
    status = REPLY_ERRORS[name][0] if name in REPLY_ERRORS else HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.UNPROCESSABLE_ENTITY if status == HTTPStatus.OK else status


def _with_retry_after(response: Response, error: CloudStoreError) -> Response:
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        response.headers["Retry-After"] = str(int(wait) + 1)
    return response
