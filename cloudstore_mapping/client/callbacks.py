"""Callback client of the original documentation: each call runs on a thread, and returns a future of its reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from msgspec import UNSET

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.address import (
    DEFAULT_SERVER,
    check_api_key,
    check_server,
    default_interval,
    resolve_server,
)
from cloudstore_mapping.client.files import listed
from cloudstore_mapping.client.media import MediaData, open_media
from cloudstore_mapping.client.options import check_options
from cloudstore_mapping.client.retry import RequestSender, pacer_of
from cloudstore_mapping.client.transport import DEFAULT_TIMEOUT, HTTPTransport
from cloudstore_mapping.errors import ProtocolError
from cloudstore_mapping.masking import hide, mask
from cloudstore_mapping.wire import Operation, Reply, Request, Upload

if TYPE_CHECKING:
    from cloudstore_mapping.client.transport import Response, Session

ReplyDictionary: TypeAlias = dict[str, Any]
Callback: TypeAlias = Callable[[ReplyDictionary], object]


class CloudStore:
    """
    A CloudStore account; each method returns at once, and passes its reply to a callback.

    A reply is a dictionary:

    - ``error``: None, or the error's name.
    - ``message``: a sentence; after a load the value, after a list the names joined by commas.
    - ``data``: after a load the value, after a list the names, after an upload ``name``, ``folder``, ``id``,
      ``mimetype`` and ``size``.
    - ``response``: the `requests.Response`, or None.
    - ``exception``: only if ``error`` is ``Error sending data`` or ``Error parsing data``.

    Parameters
    ----------
    key
        The account's API key.
    server
        The service's address. The environment's ``CLOUDSTORE_SERVER`` replaces the default address, and no other.
    password, media_password
        Default passwords of data files and of media files, unless a call gives its own.
    min_interval
        Seconds between two requests of all instances with this server; None: 3.0 for the vendor's, otherwise 0.
    timeout
        Seconds to wait for a connection, and for each part of a reply; or a single number for both.
    retries
        Number of further attempts of a request after a failure on the way.
    insecure
        Allow plain http to another machine.
    session
        A `requests.Session` to use, with its proxies, hooks and adapters; it stays open.

    Notes
    -----
    Each call returns a `concurrent.futures.Future` of the reply, completed before the callback runs. Calls run in
    parallel, each on a thread of its own; the interpreter waits for them before it exits. `CloudStore.lock` is held
    while any callback runs. An exception in a callback goes to `threading.excepthook`.
    """

    lock: ClassVar[Any] = threading.RLock()

    def __init__(
        self,
        key: str,
        server: str | None = DEFAULT_SERVER,
        *,
        password: str | None = None,
        media_password: str | None = None,
        min_interval: float | None = None,
        timeout: float | tuple[float, float] = DEFAULT_TIMEOUT,
        retries: int = 3,
        insecure: bool = False,
        session: Session | None = None,
    ) -> None:
        # Masked first: a traceback with local variables would show the secrets.
        key, password, media_password = map(mask, (key, password, media_password))
        if type(server) is str:
            server = hide(server)
        given = {
            "password": password,
            "media_password": media_password,
            "min_interval": min_interval,
            "timeout": timeout,
            "retries": retries,
            "insecure": insecure,
            "session": session,
        }
        check_options(given)
        self._key = check_api_key(key)
        self._server = check_server(resolve_server(server), insecure=insecure)
        self._password = password
        self._media_password = media_password
        self._client = RequestSender(
            HTTPTransport(self._server, timeout=timeout, session=session),
            self._key,
            retries=retries,
            min_interval=default_interval(self._server) if min_interval is None else min_interval,
            pacer=pacer_of(self._server),
        )
        self._guard = threading.Lock()
        self._calls: set[threading.Thread] = set()
        self._closed = False

    def __repr__(self) -> str:
        server = vars(self).get("_server")  # absent in a traceback of `__init__`
        return "<CloudStore, not opened>" if server is None else f"<CloudStore at {server}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """
        Wait for running calls, and calls made by their callbacks; then close the connections.

        In a callback it does not wait: the last running call closes the connections. Elsewhere do not hold `lock` while
        calling it, because the callbacks need the lock.
        """
        while not isinstance(threading.current_thread(), _Call) and (calls := self._running()):
            for call in calls:
                call.join()
        with self._guard:
            self._closed = True
        self._close_if_last()

    def save(
        self, key: str, value: object, callback: Callback | None = None, password: str | None = None
    ) -> Future[ReplyDictionary]:
        """Store a JSON value under `key`, replacing the old value."""
        return self._data(key, callback, password, value=value)

    def load(self, key: str, callback: Callback | None = None, password: str | None = None) -> Future[ReplyDictionary]:
        """Load the value under `key`."""
        return self._data(key, callback, password)

    def merge(
        self, key: str, value: object, callback: Callback | None = None, password: str | None = None
    ) -> Future[ReplyDictionary]:
        """Merge a JSON value into the value under `key`, recursively, at the service; new parts are added."""
        return self._data(key, callback, password, options="merge", value=value)

    def list(
        self,
        filter: str = "",  # noqa: A002 - the documentation's name
        callback: Callback | None = None,
        password: str | None = None,
    ) -> Future[ReplyDictionary]:
        """List the keys containing the text `filter`, all keys if it is empty; case-sensitive."""
        return self._data(filter, callback, password, options="list")

    def delete(
        self, key: str, callback: Callback | None = None, password: str | None = None
    ) -> Future[ReplyDictionary]:
        """Delete the value under `key`; the error for an absent key is ``NoFile``."""
        return self._data(key, callback, password, options="delete")

    def upload(
        self,
        data: MediaData,
        filename: str,
        type: str | None = None,  # noqa: A002 - the documentation's name
        callback: Callback | None = None,
        password: str | None = None,
    ) -> Future[ReplyDictionary]:
        """
        Store a media file, replacing a file of the same name.

        `data` is bytes; an open file, sent in pieces (a file opened only for reading may be closed at once); or text:
        stored as UTF-8 if `type` is ``"text"`` or ``"text/…"``, otherwise decoded as base64, bare or in a ``data:``
        URL. By default the type is guessed from the filename.
        """
        password = hide(password)
        name = _text(filename, "filename")
        content_type = None if type is None else _text(type, "type")
        presented = self._media_password if password is None else hide(_text(password, "password"))

        def make() -> tuple[Request | Upload, IO[bytes] | None]:
            content, full_type, opened = open_media(data, name, content_type)
            upload = Upload(api_key=self._key, name=name, content_type=full_type, data=content, password=presented)
            return upload, opened

        return self._start(make, callback)

    def _data(
        self,
        name: str,
        callback: Callback | None,
        password: str | None,
        *,
        options: Literal["merge", "delete", "list"] | None = None,
        value: object = UNSET,
    ) -> Future[ReplyDictionary]:
        password = hide(password)
        name = _text(name, "key")
        presented = self._password if password is None else hide(_text(password, "password"))

        def make() -> tuple[Request | Upload, IO[bytes] | None]:
            encoded = UNSET if value is UNSET else codec.encode(value)
            return Request(api_key=self._key, name=name, options=options, value=encoded, password=presented), None

        return self._start(make, callback)

    def _start(
        self, make: Callable[[], tuple[Request | Upload, IO[bytes] | None]], callback: Callback | None
    ) -> Future[ReplyDictionary]:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of the reply, not {type(callback).__name__}.")
        if self._closed:
            raise ValueError("This CloudStore is closed; make another one.")
        work: Callable[[], ReplyDictionary]
        try:
            request, opened = make()
        except (TypeError, ValueError, OSError) as error:
            work = partial(_failed, "Error sending data", error)
        else:
            work = partial(self._reply, request, opened, self._client.reserve())
        future: Future[ReplyDictionary] = Future()
        future.set_running_or_notify_cancel()
        call = _Call(target=self._run, args=(work, future, callback), daemon=False)
        with self._guard:  # so that the thread can't remove itself before it was added
            call.start()
            self._calls.add(call)
        return future

    def _run(
        self, work: Callable[[], ReplyDictionary], future: Future[ReplyDictionary], callback: Callback | None
    ) -> None:
        try:
            try:
                reply = work()
            except BaseException as error:
                future.set_exception(error)
                raise
            future.set_result(reply)
            if callback is not None:
                _call_back(callback, reply)
        finally:
            self._ended()

    def _reply(self, request: Request | Upload, opened: IO[bytes] | None, start: float) -> ReplyDictionary:
        try:
            with nullcontext() if opened is None else opened:
                reply = self._client.exchange(request, start=start)
        except Exception as error:  # noqa: BLE001 - an error of the user's file, hook or adapter is the reply, too
            has_reply = isinstance(error, ProtocolError) and error.status is not None
            return _failed("Error parsing data" if has_reply else "Error sending data", error)
        try:
            return _dictionary(request, reply)
        except (ProtocolError, ValueError) as error:
            return _failed("Error parsing data", error, reply.response)

    def _running(self) -> Sequence[threading.Thread]:
        with self._guard:
            return tuple(self._calls)

    def _ended(self) -> None:
        with self._guard:
            self._calls.discard(threading.current_thread())
        self._close_if_last()

    def _close_if_last(self) -> None:
        if self._closed and not self._running():
            self._client.close()


class _Call(threading.Thread):
    """Thread of a call; the class tells `close` if it is called by a callback."""


def _text(text: str, argument: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a str, not {type(text).__name__}.")
    return str.__str__(text)  # the content of a StrEnum


def _call_back(callback: Callback, reply: ReplyDictionary) -> None:
    CloudStore.lock.acquire()
    try:
        callback(reply)
    finally:
        # The callback may have acquired or released the lock any number of times: release it completely.
        with suppress(RuntimeError):
            while True:
                CloudStore.lock.release()


def _dictionary(request: Request | Upload, reply: Reply) -> ReplyDictionary:
    operation = request.operation if isinstance(request, Request) else None
    if reply.error is None and operation is Operation.LOAD:
        message, data = codec.decode(reply.message), codec.decode(reply.content)
        return {"error": None, "message": message, "data": data, "response": reply.response}
    answer = {"error": reply.error, "message": reply.sentence, "response": reply.response}
    if reply.error is None and operation is Operation.LIST:
        answer["data"] = listed(reply)
    if reply.error is None and operation is None and reply.data is not UNSET:
        answer["data"] = codec.decode(reply.data)
    return answer


def _failed(name: str, error: Exception, response: Response | None = None) -> ReplyDictionary:
    if response is None:
        response = getattr(error, "response", None)
    return {"error": name, "message": str(error) or type(error).__name__, "response": response, "exception": error}
