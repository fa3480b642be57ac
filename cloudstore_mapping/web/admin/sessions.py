"""Session cookie of the dashboard: read the session token of a browser, set it and delete it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_PORT: Final = re.compile(r":([0-9]{1,5})\Z")


@dataclass(frozen=True)
class DashboardCookies:
    """
    Cookies of the dashboard under the path `base`.

    A browser sends the cookies of a host to all its ports. Each cookie's name therefore contains the port and the path,
    so two services on one host keep their own sessions. The port is taken from the Host header: behind a proxy, all
    nodes of a service then use the same names.
    """

    base: str

    def name(self, request: Request, cookie: str) -> str:
        """Return the full name of a cookie, such as ``cloudstore-session-8787+cloudstore``."""
        port = _PORT.search(request.headers.get("host", ""))
        return f"cloudstore-{cookie}{'' if port is None else f'-{port[1]}'}{self.base.replace('/', '+')}"

    def session_token(self, request: Request) -> str:
        """Return the session token sent by the browser, or an empty text."""
        name = self.name(request, "session")
        plain = "" if request.url.scheme == "https" else request.cookies.get(name, "")
        return request.cookies.get(_secure(name)) or plain

    def set_session(self, request: Request, response: Response, token: str) -> None:
        """Set the session cookie; the browser drops it when it is closed."""
        name, is_secure = self._session(request)
        response.set_cookie(name, token, path="/", secure=is_secure, httponly=True, samesite="lax")

    def delete_session(self, request: Request, response: Response) -> None:
        """Delete the session cookie."""
        name, is_secure = self._session(request)
        response.delete_cookie(name, path="/", secure=is_secure, httponly=True, samesite="lax")

    def _session(self, request: Request) -> tuple[str, bool]:
        name, is_secure = self.name(request, "session"), _is_https(request)
        return (_secure(name) if is_secure else name), is_secure


def _secure(name: str) -> str:
    # Browsers accept a cookie with this prefix only over https and only from the host itself.
    return f"__Host-{name}"


def _is_https(request: Request) -> bool:
    # A proxy may terminate TLS. The Origin header of each posted form still has the browser's scheme.
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
