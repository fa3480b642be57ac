"""The service's paths over HTTP: a bare ASGI application."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from cloudstore_mapping.errors import ProtocolError, TooBigError, UnavailableError
from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.web.admin import make_admin
from cloudstore_mapping.web.files import make_files
from cloudstore_mapping.web.http import (
    CLOSE,
    END,
    PREFLIGHT,
    Application,
    Deadline,
    DisconnectedError,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    check_method,
    outcome,
)
from cloudstore_mapping.web.openapi import OPENAPI_PATH, make_description
from cloudstore_mapping.web.spool import SpoolSpace
from cloudstore_mapping.web.upload import make_upload
from cloudstore_mapping.wire import (
    BATCH_PATH,
    ID_HEADER,
    ID_PATTERN,
    LOAD_PATH,
    MAX_ID,
    SAVE_PATH,
    UPLOAD_PATH,
    Batch,
    Reply,
    Request,
    decode_request,
    failure,
    success,
)

if TYPE_CHECKING:
    from cloudstore_mapping.service.service import Service

HEALTH_PATH: Final = "/health"

#: Bytes of a body from which on it is decoded in a thread: the loop serves everybody else meanwhile.
LARGE_BODY: Final = 64 * 2**10

_ID: Final = ID_HEADER.lower().encode()
_id_in: Final = re.compile(ID_PATTERN.encode()).fullmatch

_HEALTHY: Final = success("Healthy")
_UNHEALTHY: Final = failure(UnavailableError("The service can store nothing at present; its log says why."))


def make_app(service: Service, *, base_path: str = "/cloudstore") -> Application:
    """
    Return the ASGI application that answers for `service` under `base_path`.

    A slow client costs it a socket, never a thread. It doesn't close the service.
    """
    base = base_path.rstrip("/")
    return _App(service, base, _mounts(service, base))


def _mounts(service: Service, base: str) -> Mapping[str, Application]:
    """Return who answers for the paths that begin like this, other than the wire's own."""
    space = SpoolSpace(service.settings)
    return {
        base + UPLOAD_PATH: make_upload(service, base + UPLOAD_PATH, space),
        base + FILES_PATH: make_files(service, base + FILES_PATH),
        base + OPENAPI_PATH: make_description(base, base + OPENAPI_PATH),
        f"{base}/admin": make_admin(service, base, space),
    }


def posts(base_path: str) -> Mapping[str, str]:
    """Return the paths that requests on data files are posted to, each with what it is on the wire."""
    return {base_path.rstrip("/") + path: path for path in (SAVE_PATH, LOAD_PATH, BATCH_PATH)}


class _App:
    def __init__(self, service: Service, base: str, mounts: Mapping[str, Application]) -> None:
        self._mounts = mounts
        self._service = service
        self._max_body = service.settings.max_body_bytes
        self._max_depth = service.settings.max_depth
        self._deadline = Deadline(service.settings.body_timeout)
        self._posts = posts(base)
        self._health_path = base + HEALTH_PATH
        self._no_path = f"There is nothing here; post to {base + SAVE_PATH} or {base + LOAD_PATH}."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _live(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            await send(PREFLIGHT)
            await send(END)
            return
        path = scope["path"]
        if path not in self._posts:
            for prefix, application in self._mounts.items():
                if path.startswith(prefix):
                    await application(scope, receive, send)
                    return
        await answer(scope, receive, send, self._answer)

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        method = scope["method"]
        path = self._posts.get(scope["path"])
        if path is None:
            if scope["path"] != self._health_path:
                raise RefusedError(ProtocolError(self._no_path, error="NoPath"))
            check_method(method, ("GET", "HEAD"))
            # On a thread, for it waits for the writer.
            return _HEALTHY if await asyncio.to_thread(self._service.healthy) else _UNHEALTHY
        check_method(method, ("POST",))
        headers = dict(scope["headers"])
        check_type(headers)
        if int(headers.get(b"content-length", 0)) > self._max_body:
            raise self._too_big()
        body = await self._read(receive)
        if len(body) <= LARGE_BODY:
            request = decode_request(path, body, max_depth=self._max_depth)
        else:
            decode = partial(decode_request, path, body, max_depth=self._max_depth)
            request = await asyncio.get_running_loop().run_in_executor(None, decode)
        request = identified(request, headers)
        scope["operation"] = request.operation.value
        client = scope["client"]
        reply = self._service.answer(request, address=client[0] if client else "")
        return reply if isinstance(reply, Reply) else await outcome(reply)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        task = self._deadline.begin()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                body += message.get("body", b"")
                if len(body) > self._max_body:
                    raise self._too_big()
                if not message.get("more_body"):
                    return bytes(body)
        except asyncio.CancelledError:
            if not self._deadline.passed(task):
                raise
            sentence = f"The body took longer than {self._deadline.seconds:g} seconds to arrive; send it faster."
            raise RefusedError(ProtocolError(sentence, error="BadRequest"), CLOSE) from None
        finally:
            self._deadline.end(task)

    def _too_big(self) -> RefusedError:
        sentence = f"The body of a request can't be larger than {self._max_body:,} bytes; split the value."
        return RefusedError(TooBigError(sentence, error="BodyTooBig"), CLOSE)


def check_type(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a request whose body is not JSON as it stands."""
    _check_type(headers.get(b"content-type", b""), headers.get(b"content-encoding", b"identity"))


@lru_cache(maxsize=64)
def _check_type(content_type: bytes, content_encoding: bytes) -> None:
    media_type, *parameters = content_type.lower().split(b";")
    charsets = {
        value.strip(b' \t"')
        for name, _, value in (parameter.partition(b"=") for parameter in parameters)
        if name.strip() == b"charset"
    }
    if media_type.strip() != b"application/json" or charsets - {b"utf-8", b"utf8"}:
        sentence = "The body has to be JSON in UTF-8; send it as application/json."
        raise RefusedError(ProtocolError(sentence, error="BadType"))
    if content_encoding.strip().lower() not in {b"identity", b""}:
        sentence = "The body can't be compressed; send it without a Content-Encoding."
        raise RefusedError(ProtocolError(sentence, error="BadType"))


def identified(request: Request | Batch, headers: Mapping[bytes, bytes]) -> Request | Batch:
    """Return a write with the id that its headers give it; one in its body comes before that."""
    header = headers.get(_ID)
    if header is None or request.once is not UNSET or request.path == LOAD_PATH:
        return request
    found = _id_in(header)
    if found is None:
        sentence = f"{ID_HEADER} has to be 1 to {MAX_ID} letters, digits, - and _; draw another one for each write."
        raise ProtocolError(sentence, error="BadRequest")
    return msgspec.structs.replace(request, once=found[1].decode())


async def _live(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        raise NotImplementedError(f"There is no {scope['type']} here, only HTTP.")
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
