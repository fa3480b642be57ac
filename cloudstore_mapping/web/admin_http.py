"""What all pages of the dashboard share in HTTP: headers, cookies, and proof that a form is the dashboard's own."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request

from cloudstore_mapping.errors import ProtocolError, TooBigError
from cloudstore_mapping.web.http import Application, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from starlette.responses import Response

T = TypeVar("T")

#: Fields that a form may have: a tick for each file of a page, and what else it holds.
MAX_FIELDS: Final = 300
#: The longest form without a value in it: a page of names, each of them escaped twice.
MAX_FORM_BYTES: Final = 2**21

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "none",
}

_PORT: Final = re.compile(r":([0-9]{1,5})\Z")


class ForbiddenError(Exception):
    """A form came from elsewhere than the dashboard's own page; it says to the user what to do."""


def guarded(application: Application) -> Application:
    """Return the application with the security headers on all that it sends, and nothing of it open to other sites."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message["headers"])}
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
            await send(message)

        await application(scope, receive, send_guarded)

    return answer


def address_of(request: Request) -> str:
    """Return who asks."""
    return "" if request.client is None else request.client.host


@dataclass(frozen=True)
class Cookies:
    """
    The cookies of the dashboard under `base`, whose names carry the port and the path of its address.

    A browser sends a host's cookies to each of its ports, so those of two services on one host would replace each
    other. The port is the one in the request's Host, as the browser's address has it, in place of the service's own:
    behind a proxy, all nodes of a service then have the same names.
    """

    base: str

    def name(self, request: Request, cookie: str) -> str:
        """Return the whole name of a cookie, such as ``cloudstore-session-8787+cloudstore``."""
        port = _PORT.search(request.headers.get("host", ""))
        return f"cloudstore-{cookie}{'' if port is None else f'-{port[1]}'}{self.base.replace('/', '+')}"

    def token(self, request: Request) -> str:
        """Return the session's token that the browser sent, empty where it sent none."""
        name = self.name(request, "session")
        plain = "" if request.url.scheme == "https" else request.cookies.get(name, "")
        return request.cookies.get(_secure(name)) or plain

    def keep_token(self, request: Request, response: Response, token: str) -> None:
        """Have the browser keep the session's token, until it is closed."""
        name, is_secure = self._session(request)
        response.set_cookie(name, token, path="/", secure=is_secure, httponly=True, samesite="lax")

    def forget_token(self, request: Request, response: Response) -> None:
        """Have the browser forget the session's token."""
        name, is_secure = self._session(request)
        response.delete_cookie(name, path="/", secure=is_secure, httponly=True, samesite="lax")

    def _session(self, request: Request) -> tuple[str, bool]:
        name, is_secure = self.name(request, "session"), _is_secure(request)
        return (_secure(name) if is_secure else name), is_secure


def _secure(name: str) -> str:
    # Browsers take a cookie of such a name from the very host only, and only over https.
    return f"__Host-{name}"


def _is_secure(request: Request) -> bool:
    # A proxy in front may end the https that the browser speaks; of that the browser tells with every form it posts.
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def form_token(token: str) -> str:
    """Return what each form of a session has to bring, which no other site can know."""
    return hmac.digest(token.encode(), b"cloudstore dashboard form", hashlib.sha256).hex()


def check_origin(request: Request) -> None:
    """Raise `ForbiddenError` unless the browser says that the form was on a page of this same site."""
    site = request.headers.get("sec-fetch-site")
    if site is None:
        origin = urlsplit(request.headers.get("origin", ""))
        if origin.netloc and origin.netloc == request.headers.get("host"):
            return
    elif site == "same-origin":
        return
    raise ForbiddenError("The form was sent from another site, so nothing was done; open the dashboard and try there.")


def check_token(token: str, given: str) -> None:
    """Raise `ForbiddenError` unless the form is one of this session."""
    if not hmac.compare_digest(form_token(token).encode(), given.encode()):
        raise ForbiddenError("The form was made for another session, so nothing was done; load the page and try again.")


@dataclass(frozen=True)
class Form:
    """The fields of a form, none of which has to be there."""

    fields: list[tuple[str, str]] = field(default_factory=list, repr=False)

    def text(self, name: str) -> str:
        """Return what a field says, empty where it isn't there."""
        return next((value for each, value in self.fields if each == name), "")

    def names(self) -> list[str]:
        """Return the files that the form is about: escaped, for a browser would change a line break in a name."""
        return list(dict.fromkeys(unquote(value) for each, value in self.fields if each == "name"))


async def read_form(request: Request, max_bytes: int, seconds: float) -> Form:
    """
    Return the form in the request's body.

    Raises `TooBigError` or `ProtocolError` where it is too long, takes more than so many seconds, or is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ProtocolError("A form of the dashboard is sent as application/x-www-form-urlencoded.", error="BadType")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise TooBigError(f"A form can't take more than {max_bytes:,} bytes.", error="BodyTooBig")
    except TimeoutError:
        sentence = f"The form took longer than {seconds:g} seconds to arrive; send it again."
        raise ProtocolError(sentence, error="BadRequest") from None
    except ClientDisconnect as error:
        raise ProtocolError("The form was cut off; send it again.", error="BadRequest") from error
    try:
        text = body.decode("ascii")
        return Form(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError as error:
        raise ProtocolError("The form can't be read; load the page and try again.", error="BadRequest") from error
