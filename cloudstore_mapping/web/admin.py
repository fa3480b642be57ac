"""The dashboard on its paths: who is let in to which page, and what is done with forms that are its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
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
from cloudstore_mapping.web.admin_actions import SAID, Actions, Done, RetryError
from cloudstore_mapping.web.admin_http import (
    MAX_FORM_BYTES,
    Cookies,
    ForbiddenError,
    Form,
    address_of,
    check_origin,
    check_token,
    guarded,
    read_form,
)
from cloudstore_mapping.web.admin_pages import STATIC, Pages, Visit, static
from cloudstore_mapping.web.admin_place import Place
from cloudstore_mapping.web.admin_uploads import AdminUpload
from cloudstore_mapping.web.downloads import content_disposition
from cloudstore_mapping.web.http import BoundedWorkers
from cloudstore_mapping.wire import Request as WireRequest

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.web.http import Application
    from cloudstore_mapping.web.uploads import SpoolSpace

_log: Final = logging.getLogger("cloudstore_mapping.web")

#: Sign-ins and changes that are worked on at once, and of each those that wait; the other threads are for all else.
SIGN_INS_AT_ONCE: Final = 2
CHANGES_AT_ONCE: Final = 2
WAITING: Final = 32

_Endpoint = Callable[[Request], Awaitable[Response]]

#: What was done, for the next page to say it: a name of `SAID` and a number, which anybody may know.
_SAID_COOKIE: Final = "said"
_CONTENT_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Errors that travel in a 200 on the wire, and what a browser is told of them.
_STATUS: Final[Mapping[str, int]] = {
    "Locked": HTTPStatus.FORBIDDEN,
    "Disabled": HTTPStatus.FORBIDDEN,
    "NoFile": HTTPStatus.NOT_FOUND,
    "Changed": HTTPStatus.CONFLICT,
}


def make_admin(service: Service, base: str, space: SpoolSpace) -> Application:
    """Return the ASGI application for all paths that begin with `base` and ``/admin``."""
    return guarded(_Admin(service, base, space).application)


class _Admin:
    def __init__(self, service: Service, base: str, space: SpoolSpace) -> None:
        self._service = service
        self._pages = Pages(service, base)
        self._home = f"{base}/admin.html"
        self._cookies = Cookies(base)
        actions = Actions(service, self._pages)
        self._changes = BoundedWorkers(CHANGES_AT_ONCE, WAITING)
        post = ["POST"]
        self.application = Starlette(
            routes=[
                Route(self._home, self._shown(self._show)),
                Route(f"{base}/admin", self._to_home),
                Route(f"{base}/admin/", self._to_home),
                Route(f"{base}/admin/static/{{name}}", _static),
                Route(f"{base}/admin/data/value", self._shown(self._value)),
                Route(f"{base}/admin/media/preview", self._shown(self._preview)),
                Route(
                    f"{base}/admin/sign-in",
                    self._taken(BoundedWorkers(SIGN_INS_AT_ONCE, WAITING), self._sign_in),
                    methods=post,
                ),
                Route(f"{base}/admin/sign-out", self._acted(self._sign_out), methods=post),
                Route(
                    f"{base}/admin/media/upload",
                    AdminUpload(service, f"{self._home}?panel=media", self._cookies, space),
                    methods=post,
                ),
                *(
                    Route(f"{base}/admin/{path}", self._acted(partial(self._act, action)), methods=post)
                    for path, action in actions.all.items()
                ),
            ],
            exception_handlers={
                404: partial(self._refused, "There is nothing here."),
                405: partial(self._refused, "This can't be done here."),
            },
        )

    async def _to_home(self, request: Request) -> Response:  # noqa: ARG002 - whatever it was
        return RedirectResponse(self._home, 303)

    async def _refused(self, sentence: str, request: Request, error: Exception) -> Response:  # noqa: ARG002 - as Starlette has it
        status = getattr(error, "status_code", HTTPStatus.NOT_FOUND)
        return self._pages.error(sentence, status)

    def _shown(self, show: Callable[[Request, Visit | None], Response]) -> _Endpoint:
        """Return the endpoint of a page, which is made on a thread."""

        def work(request: Request) -> Response:
            return show(request, self._visit(request, request.url.query))

        async def endpoint(request: Request) -> Response:
            return await asyncio.to_thread(self._answered, work, request)

        return endpoint

    def _taken(self, turns: BoundedWorkers, take: Callable[[Request, Form], Response]) -> _Endpoint:
        """Return the endpoint of a form, which is read first, and then acted upon on a thread, when it is its turn."""
        settings = self._service.settings

        async def endpoint(request: Request) -> Response:
            try:
                check_origin(request)
                limit = settings.max_body_bytes if request.url.path.endswith("/data/save") else MAX_FORM_BYTES
                form = await read_form(request, min(limit, settings.max_body_bytes), settings.body_timeout)
            except (ForbiddenError, CloudStoreError) as error:
                return self._failed(error, "close")
            try:
                return await turns.run(lambda: self._answered(lambda request: take(request, form), request))
            except UnavailableError as error:
                return self._failed(error)

        return endpoint

    def _acted(self, act: Callable[[Request, Visit, Form], Response]) -> _Endpoint:
        """Return the endpoint of a form that only a session's own page can have."""

        def take(request: Request, form: Form) -> Response:
            visit = self._visit(request, form.text("place"))
            if visit is None:
                return RedirectResponse(self._home, 303)
            check_token(visit.token, form.text("token"))
            return act(request, visit, form)

        return self._taken(self._changes, take)

    def _answered(self, work: Callable[[Request], Response], request: Request) -> Response:
        try:
            return work(request)
        except (ForbiddenError, CloudStoreError) as error:
            return self._failed(error)
        except Exception:  # noqa: BLE001 - it is logged, and the owner gets a sentence instead
            _log.exception("A request to %s failed.", request.url.path)
            return self._pages.error("The service failed; its owner finds the reason in its log.", 500)

    def _failed(self, error: ForbiddenError | CloudStoreError, connection: str | None = None) -> Response:
        if isinstance(error, ForbiddenError):
            response = self._pages.error(str(error), HTTPStatus.FORBIDDEN)
        else:
            response = _with_retry(self._pages.error(error.message, _status_of(error)), error)
        if connection is not None:  # the rest of its body isn't read
            response.headers["Connection"] = connection
        return response

    def _visit(self, request: Request, query: str) -> Visit | None:
        token = self._cookies.token(request)
        signed_in = self._service.owners.session(token) if token else None
        return None if signed_in is None else Visit(signed_in, token, Place.parse(query), address_of(request))

    def _show(self, request: Request, visit: Visit | None) -> Response:
        if visit is None:
            return self._pages.sign_in()
        cookie = self._cookies.name(request, _SAID_COOKIE)
        name, _, times = request.cookies.get(cookie, "").partition(".")
        said = SAID[name].format(times[:9]) if name in SAID else ""
        response = self._pages.show(visit, said=said)
        if name:
            response.delete_cookie(cookie, path="/")
        return response

    def _value(self, request: Request, visit: Visit | None) -> Response:
        """Return a file's value as a download, however large it is."""
        name = request.query_params.get("name", "")
        if visit is None or visit.signed_in.must_change:
            return RedirectResponse(self._home, 303)
        reply = self._service.submit(WireRequest(name=name, brief=True), owner=visit.account).result()
        if reply.error is not None:
            return self._pages.error(reply.sentence, _STATUS.get(reply.error, reply.status))
        headers = {"Content-Disposition": content_disposition(f"{name}.json", shown=False).decode()}
        return Response(bytes(reply.content), headers=headers, media_type="application/json")

    def _preview(self, request: Request, visit: Visit | None) -> Response:
        """Return a picture to its owner, which counts as no access."""
        if visit is None or visit.signed_in.must_change:
            return RedirectResponse(self._home, 303)
        file = self._service.panels.media_file(visit.account, request.query_params.get("id", ""))
        mimetype = None if file is None else self._pages.picture_type(file.media)
        if file is None or mimetype is None:
            return self._pages.error("There is no picture here.", HTTPStatus.NOT_FOUND)
        headers = {"Content-Length": str(file.media.size)}
        return StreamingResponse(
            _streamed(self._service.media.chunks(file.media, account=visit.account)), 200, headers, mimetype
        )

    def _sign_in(self, request: Request, form: Form) -> Response:
        name = form.text("user")
        try:
            token = self._service.owners.sign_in(
                name, form.text("password"), address_of(request), instead_of=self._cookies.token(request)
            )
        except (LockedError, DisabledError, TooOftenError, ProtocolError) as error:
            return _with_retry(self._pages.sign_in(name=name, alert=error.message, status=_status_of(error)), error)
        response = RedirectResponse(self._home, 303)
        self._cookies.keep_token(request, response, token)
        return response

    def _sign_out(self, request: Request, visit: Visit, form: Form) -> Response:  # noqa: ARG002 - the form says nothing
        self._service.owners.sign_out(visit.signed_in, origin=visit.address)
        response = RedirectResponse(self._home, 303)
        self._cookies.forget_token(request, response)
        return response

    def _act(
        self, action: Callable[[Visit, Form], Done | Response], request: Request, visit: Visit, form: Form
    ) -> Response:
        if visit.signed_in.must_change and not request.url.path.endswith("/password"):
            return RedirectResponse(self._home, 303)
        try:
            done = action(visit, form)
        except RetryError as retry:
            return _with_retry(
                self._pages.show(visit, alert=retry.error.message, status=_status_of(retry.error), draft=retry.draft),
                retry.error,
            )
        except CloudStoreError as error:
            return _with_retry(self._pages.show(visit, alert=error.message, status=_status_of(error)), error)
        if isinstance(done, Response):
            return done
        response = RedirectResponse(self._pages.address(done.place), 303)
        cookie = self._cookies.name(request, _SAID_COOKIE)
        response.set_cookie(cookie, f"{done.said}.{done.times}", max_age=60, path="/", httponly=True, samesite="lax")
        return response


async def _streamed(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return Response("There is nothing here.", HTTPStatus.NOT_FOUND, media_type="text/plain")
    content, hash_ = static(name)
    lasts = request.query_params.get("v") == hash_
    headers = {"Cache-Control": "public, max-age=31536000, immutable" if lasts else "no-cache"}
    return Response(content, headers=headers, media_type=_CONTENT_TYPES[name.rpartition(".")[2]])


def _status_of(error: CloudStoreError) -> int:
    name = error.error or ""
    if name in _STATUS:
        return _STATUS[name]
    status = REPLY_ERRORS[name][0] if name in REPLY_ERRORS else HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.UNPROCESSABLE_ENTITY if status == HTTPStatus.OK else status


def _with_retry(response: Response, error: CloudStoreError) -> Response:
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        response.headers["Retry-After"] = str(int(wait) + 1)
    return response
