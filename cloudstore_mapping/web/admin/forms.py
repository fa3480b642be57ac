"""
CSRF check of dashboard forms, and their fields, read within limits of size and time.

A form must come from a page of the same origin (`check_csrf_origin`) and carry its session's token
(`check_csrf_token`). Starlette streams the body, and `parse_qsl` decodes it on a worker thread. `Request.form()` is not
used: it decodes on the event loop (0.4 s for a value of 5 MiB, measured on two cores), replaces bytes outside UTF-8
with U+FFFD instead of refusing them, and Starlette 0.41 limits neither the number nor the size of urlencoded fields.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from starlette.requests import ClientDisconnect

from cloudstore_mapping.errors import ProtocolError, TooBigError

if TYPE_CHECKING:
    from starlette.requests import Request

    from cloudstore_mapping.service.settings import Settings

#: Maximum number of fields: a name for each ticked file of a page, and some more.
MAX_FIELDS: Final = 300
#: Maximum bytes of a form without a value: a page of names, each escaped twice.
MAX_FORM_BYTES: Final = 2**21


class CSRFError(Exception):
    """A form failed the CSRF check, so nothing was done; the text says how to go on."""


def check_csrf_origin(request: Request) -> None:
    """Raise `CSRFError` unless the browser sent the form from a page of this origin."""
    site = request.headers.get("sec-fetch-site")
    if site is None:
        origin = urlsplit(request.headers.get("origin", ""))
        if origin.netloc and origin.netloc == request.headers.get("host"):
            return
    elif site == "same-origin":
        return
    raise CSRFError("The form was sent from another site, so nothing was done; open the dashboard and try there.")


def csrf_token(session_token: str) -> str:
    """Return the CSRF token for the forms of a session."""
    return hmac.digest(session_token.encode(), b"cloudstore dashboard form", hashlib.sha256).hex()


def check_csrf_token(session_token: str, given: str) -> None:
    """Raise `CSRFError` unless `given` is the CSRF token of the session."""
    if not hmac.compare_digest(csrf_token(session_token).encode(), given.encode()):
        raise CSRFError("The form belongs to another session, so nothing was done; load the page and try again.")


@dataclass(frozen=True)
class Form:
    """Fields of a form; all are optional."""

    fields: list[tuple[str, str]] = field(default_factory=list, repr=False)

    def text(self, name: str) -> str:
        """Return the first value of a field, or an empty text."""
        return next((value for each, value in self.fields if each == name), "")

    def names(self) -> list[str]:
        """Return the selected file names, which pages percent-encode because browsers rewrite line breaks."""
        return list(dict.fromkeys(unquote(value) for each, value in self.fields if each == "name"))


async def read_form(request: Request, settings: Settings, max_bytes: int = MAX_FORM_BYTES) -> bytes:
    """
    Return the body of a form, for `parse_form`.

    Raises `TooBigError` for a body over `max_bytes` or the setting `max_body_bytes`, and `ProtocolError` for another
    content type or a body still incomplete after `body_timeout`.
    """
    seconds = settings.body_timeout
    limit = ""
    if settings.max_body_bytes <= max_bytes:
        max_bytes, limit = settings.max_body_bytes, " (the service's max_body_bytes)"
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ProtocolError("This is no form; send it as application/x-www-form-urlencoded.", error="BadType")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    sentence = f"The form is larger than {max_bytes:,} bytes{limit}; send less."
                    raise TooBigError(sentence, error="BodyTooBig")
    except TimeoutError:
        sentence = f"The form took longer than {seconds:g} seconds (the service's body_timeout); send it again."
        raise ProtocolError(sentence, error="BadRequest") from None
    except ClientDisconnect as error:
        raise ProtocolError("The form was cut off; send it again.", error="BadRequest") from error
    return bytes(body)


def parse_form(body: bytes) -> Form:
    """Return the fields of a urlencoded body; raise `ProtocolError` for invalid text or more than `MAX_FIELDS`."""
    try:
        text = body.decode("ascii")
        return Form(parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError as error:
        raise ProtocolError("The form can't be read; load the page and try again.", error="BadRequest") from error
