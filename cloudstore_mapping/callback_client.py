"""
Callback client of CloudStore's Python documentation: each call runs on a thread, and returns a future of its reply.

This file needs nothing but `requests`. A copy of it named ``CloudStore.py`` in a project's folder is all that
``from CloudStore import CloudStore`` needs.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import codecs
import copy
import inspect
import io
import ipaddress
import json
import math
import mimetypes
import os
import random
import re
import secrets
import stat
import sys
import tempfile
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, Self, TypeAlias, TypeVar, overload
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

if TYPE_CHECKING:
    import requests

__all__ = ["CloudStore"]

T = TypeVar("T")

#: Reply to a call, see `CloudStore`.
ReplyDictionary: TypeAlias = dict[str, Any]
#: Function called with the reply.
Callback: TypeAlias = Callable[[ReplyDictionary], object]
#: Content of an upload: text, bytes, or an open file.
MediaData: TypeAlias = str | bytes | bytearray | memoryview | IO[bytes] | IO[str]

#: Seconds to wait for a connection, and for each part of a reply.
DEFAULT_TIMEOUT: Final = (5.0, 30.0)
#: Seconds between two requests of the vendor's own clients; its account page shows `Max Rate: 3000` (ms).
VENDORS_INTERVAL: Final = 3.0


class _DefaultInterval(float):
    """Default of `CloudStore.maxRate`, for the vendor's servers alone; an equal number of a user holds for all."""

    __slots__ = ()


class BadValueError(ValueError):
    """The value or text can't be sent unchanged: NaN, infinity, a lone surrogate, nested too deeply, no base64."""


class TransportError(ConnectionError):
    """No reply came; `sent` is False if the service certainly never saw the request."""

    def __init__(self, message: str, *, sent: bool, is_retryable: bool = True) -> None:
        super().__init__(message)
        self.sent = sent
        self.is_retryable = is_retryable


class OutcomeUnknownError(TransportError):
    """A write was sent, but no reply tells its outcome: it may have been applied or not."""


# Secrets: text and bytes whose repr is `…`, for tracebacks with local variables and for debuggers.


class SecretText(str):
    """Text with a masked repr; `str` and formatting show the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"

    def __rich_repr__(self) -> Iterator[object]:
        yield from ()  # rich would cut a long text before it calls its repr


class SecretBytes(bytes):
    """Bytes with a masked repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'…'"

    def __rich_repr__(self) -> Iterator[object]:
        yield from ()


@overload
def hide(secret: str) -> SecretText: ...
@overload
def hide(secret: bytes) -> SecretBytes: ...
@overload
def hide(secret: T) -> T: ...
def hide(secret: object) -> object:
    """Return a text or bytes with a masked repr, and any other object unchanged."""
    if isinstance(secret, SecretText | SecretBytes):
        return secret
    if isinstance(secret, str):
        return SecretText(str.__str__(secret))
    return SecretBytes(secret) if isinstance(secret, bytes) else secret


def _masked(secret: object) -> Any:
    """Return a text with a masked repr, None unchanged, and in place of anything else its type."""
    return hide(secret) if secret is None or isinstance(secret, str) else type(secret)


# State of the process: the lock and the pace of each server, common to all copies of this file.

_forking: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


class Pacer:
    """
    Rate limiter: assign start times to requests in the order of the calls.

    Notes
    -----
    Thread safe; no thread waits while holding the lock. `is_real` is True if waits take real time.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self.is_real = sleep is time.sleep
        self._last = float("-inf")
        self.after_fork()
        _forking.add(self)

    def after_fork(self) -> None:
        """Renew the lock in a child process, which continues after the parent's last start time."""
        self.lock = threading.RLock()  # a signal handler may send a request, too

    def reserve(self, interval: float) -> float:
        """Return the time at which a request may start, at least `interval` seconds after the previous start."""
        with self.lock:
            while True:
                before = self._last
                start = max(self._clock(), before + interval)
                if self._last == before:  # else a signal handler has reserved a time meanwhile
                    self._last = start
                    return start

    def release(self, start: float, interval: float) -> None:
        """Give back the start time of a request that will not be sent, unless a later one is reserved already."""
        with self.lock:
            if self._last == start:
                self._last = start - interval

    def delay(self, until: float) -> float:
        """Return the seconds until the clock shows `until`, 0 or less if it does already."""
        return until - self._clock()

    def wait(self, until: float) -> None:
        """Sleep until the clock shows `until`."""
        delay = self.delay(until)
        if delay > 0:
            self._sleep(delay)


_RLock: Final[Any] = type(threading.RLock())


class _Lock(_RLock):  # type: ignore[misc]  # a class, but typed as a function
    """Reentrant lock with the method `locked` of a plain lock, which Python's has since 3.14."""

    def locked(self) -> bool:
        """Return True if any thread holds the lock."""
        if not self.acquire(blocking=False):
            return True
        self.release()
        return _holds(self)


def _holds(lock: Any) -> bool:
    """Return True if this thread holds a reentrant lock."""
    try:
        threading.Condition(lock).notify(0)  # an error unless it does
    except RuntimeError:
        return False
    return True


def _process_state() -> Any:
    """Return the state of the process; the names in it are an interface between versions of this file."""
    state: Any = types.ModuleType("_cloudstore_process")
    state.lock = _Lock()
    state.pacers = {}
    return sys.modules.setdefault(state.__name__, state)


_process: Final = _process_state()


def pacer_of(server: str) -> Pacer:
    """Return the pacer shared by all clients of `server` in this process."""
    pacer: Pacer = _process.pacers.setdefault(server, Pacer())
    return pacer


def _after_fork_in_child() -> None:
    # The lock may belong to a thread of the parent; the first copy of this file to see that makes a new one.
    if _process.lock.acquire(blocking=False):
        _process.lock.release()
    else:
        _process.lock = _Lock()
    CloudStore.lock = _process.lock
    for thing in list(_forking):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# Addresses of services.


class _Replaceable(str):
    """Default address, replaced by the environment's ``CLOUDSTORE_SERVER``; an equal address of a user is kept."""

    __slots__ = ()


#: The vendor's service, as in its newest clients.
DEFAULT_SERVER: Final = _Replaceable("https://droidscript.cloud/cloudstore")

_VENDORS_HOSTS: Final = frozenset({"droidscript.cloud", "enjine.cloud"})
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: Form of an address with an API key, for messages; and without.
ADDRESS_EXAMPLE: Final = "https://API_KEY@host/path"
SERVER_EXAMPLE: Final = "https://host/path"


def check_server(server: str, *, insecure: bool = False) -> str:
    """
    Return `server` in its canonical form: no final slash, the host in lower case, no default port.

    Raises `ValueError` for anything but ``https://host[:port]/path``, and for plain http beyond loopback, unless
    `insecure`.
    """
    return without_frames(partial(_check_server, insecure=insecure), hide(server))


def _check_server(server: str, *, insecure: bool) -> str:
    parts = split_address(server, SERVER_EXAMPLE)
    if "@" in parts.netloc + parts.path:
        raise ValueError("The server's address holds a user name or key; give the API key as its own argument.")
    return canonical_address(parts, insecure=insecure)


def resolve_server(server: str | None) -> str:
    """Return the server to use: the environment's ``CLOUDSTORE_SERVER`` replaces `DEFAULT_SERVER` (None: the same)."""
    if server is None or isinstance(server, _Replaceable):
        return os.environ.get("CLOUDSTORE_SERVER") or str.__str__(DEFAULT_SERVER)
    if not isinstance(server, str):
        raise TypeError(f"The server must be an address, or None for the default, not {type(server).__name__}.")
    return server


def default_interval(server: str) -> float:
    """Return the default seconds between two requests to `server`."""
    return VENDORS_INTERVAL if urlsplit(server).hostname in _VENDORS_HOSTS else 0.0


def is_loopback(host: str) -> bool:
    """Return True if `host`, a name or an IP address without brackets, can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def without_frames(parse: Callable[[str], T], address: str) -> T:
    """Return the result of `parse`; raise its `ValueError` without the frames, as they show the API key."""
    try:
        return parse(address)
    except ValueError as error:
        sentence = str(error)
    raise ValueError(sentence)


def split_address(address: str, example: str = ADDRESS_EXAMPLE) -> SplitResult:
    """
    Return the parts of an ``http(s)`` address; `ValueError` for any other text, or with a query or fragment.

    Messages advise the form `example`.
    """
    if any(character.isspace() or not character.isprintable() for character in address):
        raise ValueError("The address holds white space or a control character; remove it.")
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        # Not chained: Python's messages show the host with the user info.
        raise ValueError(f"The address can't be read; write it as {example}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"The address is not that of a service; write it as {example}.")
    if "?" in address or "#" in address:
        raise ValueError(f"The address has a query or fragment; write it as {example}, a '?' or '#' as %XX.")
    if "@" in parts.path and example == ADDRESS_EXAMPLE:
        raise ValueError(
            f"The address has an '@' in its path; write it as {ADDRESS_EXAMPLE}, a '/' in the API key as %2F."
        )
    return parts


def canonical_address(parts: SplitResult, *, insecure: bool) -> str:
    """Return an address without user info, and in its canonical form, see `check_server`."""
    host = parts.hostname or ""
    if parts.scheme == "http" and not insecure and not is_loopback(host):
        raise ValueError(f"Plain http would send the API key to {host} unencrypted; use https, or say insecure=True.")
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path.rstrip('/')}"


# The client.


class CloudStore:
    """
    A CloudStore account; each method returns at once, and passes its reply to a callback.

    A reply is a dictionary:

    - ``error``: None, or the error's name, see Notes.
    - ``message``: a sentence; after a load the value, after a list the names joined by commas.
    - ``data``: after a load the value, after a list the names, after an upload ``name``, ``folder``, ``id``,
      ``mimetype`` and ``size``.
    - ``response``: the `requests.Response`, or None.
    - ``exception``: only if ``error`` is ``Error sending data`` or ``Error parsing data``, see Notes.

    Parameters
    ----------
    key
        The account's API key.
    server
        The service's address. The environment's ``CLOUDSTORE_SERVER`` replaces the default address, and no other.
    options
        The account's default passwords as in the vendor's JavaScript client, a mapping such as
        ``{"dataPass": "bingo", "mediaPass": "bobbo"}``: sent with every call, beside its own password.
    password, media_password
        Passwords of data files and of media files, unless a call gives its own.
    min_interval
        Seconds between two requests, for `maxRate` of this instance.
    timeout
        Seconds to wait for a connection, and for each part of a reply; or a single number for both.
    retries
        Number of further attempts of a request after a failure on the way.
    insecure
        Allow plain http to another machine.
    session
        A `requests.Session` to use, with its proxies, hooks and adapters; it stays open.

    Attributes
    ----------
    lock
        Held while any callback of this process runs, with the methods of a `threading.Lock`; a callback may acquire it
        again.
    maxRate
        Minimum seconds between two requests of this process to the server. The class's 3.0 holds for the vendor's
        servers, and 0 for others; a number assigned to the class or to an instance, also 3, holds for all.

    Notes
    -----
    Each call returns a `concurrent.futures.Future` of the reply, completed before the callback runs. Calls run in
    parallel, each on a thread of its own; but those of one thread of an instance for the same key are sent in order,
    each after the replies to those before it (a load waits for no other load), and a list is a load of all keys: it
    waits for the writes of its thread before it, and they for the lists before them. The interpreter waits for all
    calls before it exits; a call in a function of `atexit`, or of a daemon thread after the main thread's end, returns
    after its callback. An exception in a callback goes to `threading.excepthook`.

    Wrong arguments raise where they are written: `TypeError` for a key, filename, type or password that is no text, or
    a callback that can't be called; `ValueError` for an option that is not as above, and for a call after `close`.
    Everything else is a reply, with one of these names in ``error``:

    - Of the service: ``NoFile``; ``Locked`` (missing or wrong password), ``BadKey`` (API key). Services of the package
      cloudstore-mapping also send ``TooBig``, ``TooManyFiles``, ``DailyLimit``, ``TooOften``, ``BadName``,
      ``BadValue``, ``BadMerge``, ``Forbidden``, ``Disabled``, ``Unavailable``, ``NoPath`` and others.
    - ``Http error``: another status than 200 without such a name; ``message`` is its reason phrase.
    - ``Error sending data``: nothing was sent, or no reply came. ``exception`` is a `TypeError` or `ValueError` if
      nothing was sent, because JSON can't hold the value, or the upload can't be read; otherwise a `ConnectionError`,
      whose attribute ``sent`` is False if the service certainly never saw the request. It is the class
      `OutcomeUnknownError` of this file if a write may have been done or not. An exception of the session's own hooks
      and adapters is passed on.
    - ``Error parsing data``: the answer is no reply of a service, so a write may have been done or not; or that to a
      load or list can't be read, or is larger than 256 MiB. ``exception`` is a `ValueError`.
    """

    lock: ClassVar[Any] = _process.lock
    maxRate: float = _DefaultInterval(VENDORS_INTERVAL)  # noqa: N815 - the vendor's name

    def __init__(
        self,
        key: str,
        server: str | None = DEFAULT_SERVER,
        options: Mapping[str, str | None] | None = None,
        *,
        password: str | None = None,
        media_password: str | None = None,
        min_interval: float | None = None,
        timeout: float | tuple[float, float] = DEFAULT_TIMEOUT,
        retries: int = 3,
        insecure: bool = False,
        session: requests.Session | None = None,
    ) -> None:
        # Masked first: a traceback with local variables would show the secrets.
        key, password, media_password = map(_masked, (key, password, media_password))
        defaults = options = _masked_options(options)
        if type(server) is str:
            server = hide(server)
        _check_options(password, media_password, defaults)
        _check_option("min_interval", _is_interval(min_interval), min_interval)
        _check_option("timeout", _is_timeout(timeout), timeout)
        _check_option("retries", type(retries) is int and retries >= 0, retries)
        _check_option("insecure", isinstance(insecure, bool), insecure)
        _check_option("session", session is None or callable(getattr(session, "post", None)), session)
        self._key: SecretText = _check_api_key(key)
        self._server = check_server(resolve_server(server), insecure=insecure)
        self._password = password
        self._media_password = media_password
        self._data_default = defaults.get("dataPass")
        self._media_default = defaults.get("mediaPass")
        if min_interval is not None:
            self.maxRate = min_interval
        self._pacer = pacer_of(self._server)
        self._sender = _Sender(self._server, timeout, retries, session)
        self._calls: set[_Call] = set()
        self._in_order: dict[_File, dict[_Call, bool]] = {}
        self._closed = False
        self.after_fork()
        _forking.add(self)

    def after_fork(self) -> None:
        """Leave calls, connections and locks to the parent process; called in a child process."""
        self._guard = threading.RLock()  # a signal handler may call, too
        self._calls.clear()
        self._in_order.clear()
        self._sender.after_fork()

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
        while not isinstance(threading.current_thread(), _Call) and (calls := self._started()):
            for call in calls:
                call.join()
        with self._guard:
            self._closed = True
        self._close_if_last()

    def save(
        self, key: str, value: object, callback: Callback | None = None, password: str | None = None
    ) -> Future[ReplyDictionary]:
        """Store a JSON value under `key`, replacing the old value."""
        return self._data("save", key, callback, hide(password), value)

    def load(self, key: str, callback: Callback | None = None, password: str | None = None) -> Future[ReplyDictionary]:
        """Load the value under `key`."""
        return self._data("load", key, callback, hide(password))

    def merge(
        self, key: str, value: object, callback: Callback | None = None, password: str | None = None
    ) -> Future[ReplyDictionary]:
        """
        Merge a JSON value into the value under `key`, at the service.

        Objects are merged name by name, arrays position by position, recursively, and an object into an array by index;
        new parts are added. Any other part replaces the old one: ``[1]`` merged into ``{"a": 1}`` is ``[1]``.
        """
        return self._data("merge", key, callback, hide(password), value)

    def list(
        self,
        filter: str = "",  # noqa: A002 - the documentation's name
        callback: Callback | None = None,
        password: str | None = None,
    ) -> Future[ReplyDictionary]:
        """
        List the keys containing the text `filter`, all keys if it is empty; case-sensitive.

        It waits for the writes that its thread began before.
        """
        return self._data("list", filter, callback, hide(password))

    def delete(
        self, key: str, callback: Callback | None = None, password: str | None = None
    ) -> Future[ReplyDictionary]:
        """Delete the value under `key`; the error for an absent key is ``NoFile``."""
        return self._data("delete", key, callback, hide(password))

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

        `data` is bytes, text, or an open file, of which all is stored that its next `read` would return. Whatever it
        is, it may be closed or changed at once. A `BytesIO`, and a binary file on disk opened only for reading, stay at
        their position (not on Windows) and are sent in pieces; a file on disk must not become shorter before the reply.
        Any other object is read to its end before the method returns, a pipe until it is closed. By default the type is
        guessed from the filename.

        Of a text file on disk the bytes are stored, and text that its `read` returns in its encoding where their
        position is unknown: after `next` or in a loop, or of a pipe of which a part is read.

        The file's link is ``{server}/files/{folder}/{id}.{extension}``, with `folder` and `id` of the reply's ``data``
        and the extension of the filename in lower case: public to all who know it.

        Text is stored as UTF-8, unless it declares that it is base64:

        - It is a ``data:`` URL, and `type` is neither ``"text"`` nor ``"text/…"``.
        - The type is that of an image, sound, video, font, PDF or archive. Then the text must be complete, padded
          base64, and the decoded bytes must begin as such files do (for ``"image/…"`` as an image of any kind). Other
          text is refused.
        """
        password = hide(password)
        name = _text(filename, "filename")
        content_type = None if type is None else _text(type, "type")
        presented = self._media_password if password is None else hide(_text(password, "password"))

        def make() -> _Message:
            content, full_type, own = open_media(data, name, content_type, at_once=True)
            try:
                fields = {"key": self._key, "password": presented or hide("")}
                if self._media_default is not None:
                    fields["mediaPass"] = self._media_default
                form = MultipartForm(fields, name, full_type, content)
            except BaseException:
                if own is not None:
                    own.close()
                raise
            return _Message("upload", name, "/upload-2", form, form.content_type, own)

        return self._start(make, ("upload", name), callback)

    def _data(
        self, operation: str, name: str, callback: Callback | None, password: SecretText | None, *value: object
    ) -> Future[ReplyDictionary]:
        name = _text(name, "key")
        presented = self._password if password is None else hide(_text(password, "password"))

        def make() -> _Message:
            asked = {"key": self._key, "file": name, "options": _OPTIONS.get(operation), "id": "_data"}
            if value:
                asked["value"] = _plain(value[0])
            asked["password"] = presented
            if self._data_default is not None:
                asked["dataPass"] = self._data_default
            path = "/store/load" if operation in _READS else "/store/save"
            return _Message(operation, name, path, hide(_encoded(asked)), "application/json; charset=UTF-8")

        return self._start(make, ("data", None if operation == "list" else name), callback)

    def _start(
        self, make: Callable[[], _Message], file: tuple[str, str | None], callback: Callback | None
    ) -> Future[ReplyDictionary]:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of the reply, not {type(callback).__name__}.")
        if self._closed:
            raise ValueError("This CloudStore is closed; make another one.")
        future: Future[ReplyDictionary] = Future()
        future.set_running_or_notify_cancel()
        try:
            message = make()
        except (TypeError, ValueError, OSError, RecursionError) as error:
            reply = _failed("Error sending data", error)
            self._launch(_Call(self, lambda _: reply, future, callback))
            return future
        interval = self._interval()
        start = self._pacer.reserve(interval)
        call = _Call(self, partial(self._reply, message, start), future, callback)
        try:
            self._launch(call, (threading.get_ident(), *file), message.is_write)
        except (RuntimeError, MemoryError):  # the system has no more threads
            message.close()
            self._pacer.release(start, interval)
            raise
        return future

    def _launch(self, call: _Call, file: _File | None = None, is_write: bool = False) -> None:
        """Start a call's thread; a write waits for the calls before it, a load or list for the writes."""
        try:
            with self._guard:  # so that `close` finds no thread before its start
                self._calls.add(call)
                if file is not None:
                    call.before = self._calls_before(file, is_write)
                    self._in_order.setdefault(file, {})[call] = is_write
                    call.file = file
                is_late = _has_ended()
                if not is_late:
                    call.start()
        except (RuntimeError, MemoryError):
            self._ended(call)
            raise
        if is_late:
            call.run_here()

    def _calls_before(self, file: _File, is_write: bool) -> Sequence[Future[ReplyDictionary]]:
        """Return the calls that a call waits for: of its thread, for the same file; a list is a read of all files."""
        thread, kind, name = file
        if name is None:
            ours = (calls for other, calls in self._in_order.items() if other[:2] == (thread, kind))
            return [future for calls in ours for future in _calls_to_wait_for(calls, is_write=False)]
        lists = self._in_order.get((thread, kind, None), {}) if is_write else {}
        calls = self._in_order.get(file, {})
        return [*_calls_to_wait_for(calls, is_write), *(call.future for call in lists)]

    def _reply(self, message: _Message, start: float, before: Sequence[Future[ReplyDictionary]]) -> ReplyDictionary:
        try:
            with message:
                if before:
                    wait(before)
                    if self._pacer.delay(start) < 0:
                        start = self._pacer.reserve(self._interval())  # other calls have used the time since
                self._pacer.wait(start)
                reply = self._sender.exchange(message, self._wait_for_turn)
        except _UnreadableError as error:
            return _failed("Error parsing data", error, error.response)
        except Exception as error:  # noqa: BLE001 - an error of the user's file, hook or adapter is the reply, too
            return _failed("Error sending data", error)
        answer = {"error": reply.error, "message": reply.sentence, "response": reply.response}
        if reply.error is not None:
            return answer
        if message.operation == "load":
            answer["message"] = reply.message
            answer["data"] = copy.deepcopy(reply.message) if reply.data is _ABSENT else reply.data
        elif message.operation == "list":
            try:
                answer["data"] = reply.names()
            except ValueError as error:
                return _failed("Error parsing data", error, reply.response)
        elif message.operation == "upload" and reply.data is not _ABSENT:
            answer["data"] = reply.data
        return answer

    def _wait_for_turn(self, longest: float) -> bool:
        """Wait for the rate limit before another attempt; return False at once if it would take too long."""
        interval = self._interval()
        start = self._pacer.reserve(interval)
        if self._pacer.delay(start) > longest:
            self._pacer.release(start, interval)
            return False
        self._pacer.wait(start)
        return True

    def _interval(self) -> float:
        """Return the seconds between two requests: `maxRate`, but its default only for the vendor's servers."""
        if isinstance(self.maxRate, _DefaultInterval):
            return default_interval(self._server)
        return self.maxRate

    def _running(self) -> tuple[_Call, ...]:
        with self._guard:
            return tuple(self._calls)

    def _started(self) -> tuple[_Call, ...]:
        return tuple(call for call in self._running() if call.ident is not None)  # others run where they were called

    def _ended(self, call: _Call) -> None:
        """Forget a call that has ended."""
        with self._guard:
            self._calls.discard(call)
            if call.file is not None and (others := self._in_order.get(call.file)) is not None:
                others.pop(call, None)
                if not others:
                    del self._in_order[call.file]
        self._close_if_last()

    def _close_if_last(self) -> None:
        if self._closed and not self._running():
            self._sender.close()


#: Not empty once the functions of `atexit` run that were registered before this file was imported.
_is_over: Final[list[bool]] = []


def _has_ended() -> bool:
    """
    Return True in a function of `atexit`: no thread that starts now would be waited for, or it could not start.

    Also return True on a daemon thread once the main one has ended, because such a function may wait for it.
    """
    thread = threading.current_thread()
    is_waited_for = not (_is_over or thread.daemon or thread is threading.main_thread())
    return not is_waited_for and not threading.main_thread().is_alive()


@atexit.register
def _wait_for_daemons() -> None:
    """Wait for the calls that run on daemon threads: the interpreter would stop them, and waits for no later one."""
    _is_over.append(True)
    for store in list(_forking):
        if isinstance(store, CloudStore):
            for call in store._running():  # noqa: SLF001 - of the same file
                call.has_ended.wait()


def _calls_to_wait_for(calls: dict[_Call, bool], is_write: bool) -> list[Future[ReplyDictionary]]:
    """Return the latest write among the calls for a file, and for a write also the loads after it."""
    found = []
    for call, writes in reversed(calls.items()):
        if writes or is_write:
            found.append(call.future)
        if writes:
            break
    return found


#: Thread, kind and name of a file, None for all of the kind: the thread's calls for it are sent in order.
_File: TypeAlias = tuple[int, str, str | None]

#: Requests that change nothing.
_READS: Final = frozenset({"load", "list"})
#: Field `options` of a request.
_OPTIONS: Final = {"merge": "merge", "delete": "delete", "list": "list"}


class _Call(threading.Thread):
    """Thread of a call, which waits for those `before`; the class tells `close` if it is called by a callback."""

    def __init__(
        self,
        store: CloudStore,
        work: Callable[[Sequence[Future[ReplyDictionary]]], ReplyDictionary],
        future: Future[ReplyDictionary],
        callback: Callback | None,
    ) -> None:
        super().__init__(daemon=False)
        self._store = store
        self._work = work
        self._callback = callback
        self.future = future
        self.file: _File | None = None
        self.before: Sequence[Future[ReplyDictionary]] = ()
        self.has_ended = threading.Event()

    def run_here(self) -> None:
        """Run to the end on the thread that calls, instead of `start`; an exception goes to `threading.excepthook`."""
        try:
            self.run()
        except BaseException:  # noqa: BLE001 - as if it were a thread
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self)))

    def run(self) -> None:
        """Set the future to the reply, then call back."""
        try:
            try:
                reply = self._work(self.before)
                self.before = ()
            except BaseException as error:
                self.future.set_exception(error)
                raise
            self.future.set_result(reply)
            if self._callback is not None:
                _call_back(self._callback, reply)
        finally:
            self._store._ended(self)  # noqa: SLF001 - a part of it
            self.has_ended.set()


def _call_back(callback: Callback, reply: ReplyDictionary) -> None:
    lock = CloudStore.lock
    if _holds(lock):  # the caller's, with whom the callback shares a thread
        callback(reply)
        return
    lock.acquire()
    try:
        callback(reply)
    finally:
        # The callback may have acquired or released the lock any number of times: release it completely.
        with suppress(RuntimeError):
            while True:
                lock.release()


def _failed(name: str, error: Exception, response: Any = None) -> ReplyDictionary:
    if response is None:
        response = getattr(error, "response", None)
    return {"error": name, "message": str(error) or type(error).__name__, "response": response, "exception": error}


def _text(text: str, argument: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be a str, not {type(text).__name__}.")
    return str.__str__(text)  # the content of a StrEnum


# Checks of the options.


def _masked_options(options: Any) -> Any:
    """Return the options with masked texts, and in place of anything but a mapping its type."""
    if options is None:
        return {}
    return {name: _masked(options[name]) for name in options} if isinstance(options, Mapping) else type(options)


def _check_api_key(key: Any) -> SecretText:
    if isinstance(key, type) or key is None:
        raise TypeError(f"The API key must be a str, not {(key or type(key)).__name__}.")
    if not key:
        raise ValueError("The API key is empty; the dashboard of the service shows it.")
    if "://" in key:
        raise ValueError("The API key is an address; give the key alone, or open the address with cm.open(…).")
    masked: SecretText = key
    return masked


def _check_options(password: Any, media_password: Any, options: Any) -> None:
    if isinstance(options, type):
        raise TypeError(f"options must be a mapping with dataPass and mediaPass, or None, not {options.__name__}.")
    unknown = [name for name in options if name not in ("dataPass", "mediaPass")]
    if unknown:
        raise ValueError(f"options has no {unknown[0]!r:.100}; it may hold dataPass and mediaPass.")
    for name, value in {"password": password, "media_password": media_password, **options}.items():
        if isinstance(value, type):
            raise ValueError(f"{name} must be a text, or None, not of type {value.__name__}.")  # noqa: TRY004


_ALLOWED: Final = {
    "min_interval": "a number of seconds, 0 or above, or None for the service's default",
    "timeout": "a number of seconds above 0, or two: for the connection and for the answer",
    "retries": "a whole number, 0 or above",
    "insecure": "True or False",
    "session": "a requests.Session, or None",
}


def _check_option(name: str, is_allowed: bool, value: object) -> None:
    if not is_allowed:
        raise ValueError(f"{name} must be {_ALLOWED[name]}, not {value!r:.100}.")


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_interval(value: object) -> bool:
    return value is None or _is_seconds(value)


def _is_timeout(value: object) -> bool:
    parts = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    return all(_is_seconds(part) and part != 0 for part in parts)


# Values: JSON, exact in both directions.

_MAX_DEPTH: Final = 500
_TOO_LONG: Final = 10**4300
_compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class _Absent:
    """Mark for an absent field of a reply."""


_ABSENT: Final = _Absent()


def _plain(value: Any, path: str = "$", depth: int = 0) -> Any:
    """Return a copy of a value in exact types, or raise an error with the path of its first bad part."""
    kind = type(value)  # not isinstance: a mock may pretend to be a str
    if value is None or kind is bool:
        return value
    if issubclass(kind, str):
        return _plain_text(value, path)
    if issubclass(kind, int):
        if not -_TOO_LONG < value < _TOO_LONG:
            raise BadValueError(f"{path} is an integer of more than 4,300 digits; store it as text.")
        return int.__int__(value)
    if issubclass(kind, float):
        if not math.isfinite(value):
            raise BadValueError(f"{path} is {float.__repr__(value)}, which JSON can't represent; store None or a text.")
        return float.__float__(value)
    if not issubclass(kind, dict | list | tuple):
        raise TypeError(f"{path} is of type {kind.__name__}, which JSON can't represent; convert it first.")
    if depth == _MAX_DEPTH:
        raise BadValueError(f"The value is nested deeper than {_MAX_DEPTH} levels, or contains itself; flatten it.")
    # Loops, because a comprehension would use twice the stack.
    if issubclass(kind, dict):
        names: dict[str, Any] = {}
        for name, part in value.items():
            if not issubclass(type(name), str):
                raise TypeError(f"{path} has a key of type {type(name).__name__}; JSON has only str keys.")
            inner = f"{path}.{name}"
            names[_plain_text(name, inner)] = _plain(part, inner, depth + 1)
        return names
    parts: list[Any] = []
    for index, part in enumerate(value):
        parts.append(_plain(part, f"{path}[{index}]", depth + 1))
    return parts


def _plain_text(value: str, path: str) -> str:
    text = str.__str__(value)  # the content of a subclass, not its `__str__`
    try:
        text.encode()
    except UnicodeEncodeError:
        path = path.encode(errors="backslashreplace").decode()
        raise BadValueError(f"{path} holds a lone surrogate, which JSON can't hold; remove it.") from None
    return text


def _encoded(asked: dict[str, Any]) -> bytes:
    try:
        return _compact(asked).encode()
    except UnicodeEncodeError:
        # Not chained: Python's exception holds the whole text.
        raise BadValueError(_SURROGATE) from None


_SURROGATE: Final = "The API key, name or password holds a lone surrogate, which can't be sent; remove it."


def decode_strictly(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; `ValueError` for anything else, and for numbers beyond a float."""
    return json.loads(body.decode(), parse_constant=_refuse_number, parse_float=_finite)


def _refuse_number(text: str) -> float:
    raise ValueError(f"it holds {text}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


# Media files: what is stored of a text, and the form that is sent.

UNKNOWN_TYPE: Final = "application/octet-stream"

_CHUNK: Final = 2**16
#: Bytes of a copied file beyond which the copy is a temporary file.
_MAX_IN_MEMORY: Final = 2**23
_DATA_URL: Final = re.compile(
    r"data:(?=[^,\s])(?P<type>[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:;[\w-]+=[^;,\s]*)*)?(?P<base64>;base64)?,",
    re.ASCII | re.IGNORECASE,
)
#: How files begin, by the type or its first part: only a text that is base64 of such bytes is decoded.
_BEGINNINGS: Final = {
    "image": rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM|II\*\x00|MM\x00\*|\x00\x00[\x01\x02]\x00|"
    rb"....ftyp|8BPS|\x00\x00\x00\x0c(JXL |jP  )|P[1-6]\s",
    "image/svg+xml": rb"(\xef\xbb\xbf)?\s*<(\?xml|!|svg)",
    "image/jxl": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "audio": rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xf9-\xfd]|RIFF....WAVE|fLaC|OggS|....ftyp|\x1a\x45\xdf\xa3|MThd|FORM|"
    rb"#!AMR|\.snd|caff|0&\xb2u",
    "video": rb"RIFF....AVI |OggS|....(ftyp|moov|mdat|free|wide|skip)|\x1a\x45\xdf\xa3|\x00\x00\x01[\xb0-\xbf]|FLV|"
    rb"G.{187}G|0&\xb2u",
    "font": rb"wOF[F2]|OTTO|\x00\x01\x00\x00|true|ttcf",
    "application/pdf": rb"%PDF-",
    "application/zip": rb"PK(\x03\x04|\x05\x06)",
    "application/gzip": rb"\x1f\x8b",
    "application/x-gzip": rb"\x1f\x8b",
    "application/x-tar": rb".{257}ustar",
    "application/x-7z-compressed": rb"7z\xbc\xaf\x27\x1c",
}
#: Types of `_BEGINNINGS` whose files may be text; `.ts` is guessed to be a video.
_TEXTUAL: Final = r".*\+xml|image/x-(portable-.*|xbitmap|xpixmap)|audio/(x-)?(mpegurl|scpls)|video/mp2t"
_ZIPPED: Final = (
    r".*\+zip$|application/(java-archive|vnd\.(openxmlformats-|oasis\.opendocument\.(?!.*xml)|android\.package))"
)
_PRINTABLE: Final = re.compile(r"[ -~]+")
# WHATWG HTML escapes exactly these three characters in a name of a form's header.
_FORM_ESCAPES: Final = str.maketrans({"\n": "%0A", "\r": "%0D", '"': "%22"})
#: What services decode in a name: an encoded word, or one of these escapes.
_ESCAPED: Final = re.compile(r"=\?|%(22|0[AD])")


def open_media(
    data: MediaData, filename: str, content_type: str | None, *, at_once: bool = False
) -> tuple[bytes | IO[bytes], str, IO[bytes] | None]:
    """
    Return the bytes or binary file in `data`, its content type, and a file to be closed by the caller.

    `CloudStore.upload` tells what is stored of a text. By default the type is that of a ``data:`` URL, or follows from
    the filename. With `at_once` nothing is read from the user's file later.

    Raises
    ------
    BadValueError
        The text is declared to be base64 and is not, or can't be encoded; or a file can't be read.
    TypeError
        `data` is not `MediaData`.
    """
    if not isinstance(data, str | bytes | bytearray | memoryview):
        data = _binary(data)
    if isinstance(data, str):
        content, content_type = _from_text(data, filename, content_type)
        return content, _full_type(content_type), None
    content_type = _full_type(_guess_type(filename) if content_type is None else content_type)
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), content_type, None
    source, own = _handle_on(data, at_once=at_once)
    return source, content_type, own


def _binary(file: Any) -> Any:
    """Return the binary file of what the next `read` of an open file returns, or the text of one in memory."""
    if not hasattr(file, "read"):
        raise TypeError(f"upload takes bytes, text or an open file, not {type(file).__name__}.")
    if isinstance(file, tempfile._TemporaryFileWrapper):  # noqa: SLF001 - it is not a file itself, it has one
        file = file.file
    if not isinstance(file, io.TextIOBase):
        return file
    buffer = getattr(file, "buffer", None)
    if buffer is None:
        return file.read()
    return buffer if type(file) is io.TextIOWrapper and _undo_read_ahead(file) else _Stream(file)


def _undo_read_ahead(file: io.TextIOWrapper[Any]) -> bool:
    """Bring the file below a text file to the same position; False if that is impossible."""
    try:
        position = file.tell()
        # The bytes alone would lack the decoder's state, or a mark at the beginning.
        if position >= 2**64 or (position > 0 and "".encode(file.encoding)):
            return False
        file.seek(position)
    except OSError:  # a pipe, or `next` was called
        try:
            file.reconfigure(encoding=file.encoding, errors=file.errors)  # refused if anything is read ahead
        except OSError:
            return False
    return True


class _Stream:
    """Binary file of what an object's `read` returns until its end; text in the encoding of the object."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._encoder: codecs.IncrementalEncoder | None = None
        self._takes_size = _takes_size(file.read)
        self._has_ended = False

    def read(self, size: int) -> bytes:
        """Return up to about `size` bytes, none at the end."""
        if self._has_ended:
            return b""
        try:
            data = self._next(size)
        except UnicodeDecodeError as error:
            raise BadValueError(f"The file is not {error.encoding} text; open it in binary mode.") from None
        if data is None:
            raise BadValueError("The file has no bytes yet; upload it when all are there, or make it blocking.")
        if not isinstance(data, str):
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(
                    f"The file's read() gives {type(data).__name__}; give an object that reads bytes or text."
                )
            return bytes(data)
        try:
            return self._encoded(data)
        except UnicodeEncodeError as error:
            raise BadValueError(f"The text can't be encoded as {error.encoding}; pass bytes.") from None

    def _next(self, size: int) -> Any:
        try:
            if self._takes_size:
                return self._file.read(size)
            self._has_ended = True
            return self._file.read()
        except (TypeError, ValueError, OSError, RecursionError, MemoryError):
            raise
        except Exception as error:  # such as `EOFError` and `zlib.error` of a damaged archive
            raise BadValueError(f"The file can't be read ({type(error).__name__}).") from error

    def _encoded(self, text: str) -> bytes:
        if self._encoder is None:
            if not text:  # no mark of a byte order either
                return b""
            encoding, errors = (getattr(self._file, name, None) for name in ("encoding", "errors"))
            make = codecs.getincrementalencoder(encoding if isinstance(encoding, str) else "utf-8")
            self._encoder = make(errors if isinstance(errors, str) else "strict")
        while text:
            if data := self._encoder.encode(text):
                return data
            text = self._file.read(_CHUNK)  # the encoder waits for more
        return self._encoder.encode("", final=True)


def _takes_size(read: Callable[..., Any]) -> bool:
    try:
        inspect.signature(read).bind(_CHUNK)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True


class _Positioned(io.RawIOBase):
    """
    Handle on an open file of the system, with a position of its own: a mere duplicate shares the position.

    It ends where the file ended at the beginning.
    """

    def __init__(self, descriptor: int, position: int) -> None:
        self._descriptor = descriptor
        self._position = position
        self._end = max(os.fstat(descriptor).st_size, position)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._end - self._position)
        data = os.pread(self._descriptor, max(size, 0), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (self._end if begin is None else begin)
        return self._position

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _handle_on(file: Any, *, at_once: bool) -> tuple[IO[bytes], IO[bytes] | None]:
    """
    Return a file to read from, and the same again if it is our own: a user may read on in theirs, or close it.

    With `at_once` it is always our own. Otherwise it is the user's if that may be written, and a `_Stream` if its size
    is unknown.
    """
    if type(file) is io.BytesIO:
        copied = io.BytesIO(file.getvalue())  # CPython copies no bytes before a change
        copied.seek(file.tell())
        return copied, copied
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    is_regular = type(raw) is io.FileIO and raw.seekable() and _has_true_size(raw.fileno())
    if is_regular and not raw.writable():
        own = _duplicate(raw, file.tell())
        return own, own
    if is_regular and not at_once:
        return file, None
    stream: Any = file if isinstance(file, _Stream) else _Stream(file)
    if not at_once and not _is_seekable(file):
        return stream, None
    spooled: Any = tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        for piece in pieces_of(stream):
            spooled.write(piece)
        spooled.seek(0)
    except BaseException:
        spooled.close()
        raise
    return spooled, spooled


def _has_true_size(descriptor: int) -> bool:
    """Return True if a file ends where its size says: those of /proc and /sys, and devices, don't."""
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return False
        if not hasattr(os, "pread"):
            return True
        size = facts.st_size
        return not os.pread(descriptor, 1, size) and (size == 0 or bool(os.pread(descriptor, 1, size - 1)))
    except OSError:
        return False


def _duplicate(raw: io.FileIO, position: int) -> IO[bytes]:
    descriptor = os.dup(raw.fileno())
    if hasattr(os, "pread"):
        return io.BufferedReader(_Positioned(descriptor, position))
    own = os.fdopen(descriptor, "rb")  # shares the position
    own.seek(position)
    return own


def _is_seekable(file: Any) -> bool:
    try:
        return bool(file.seekable())
    except AttributeError:
        return hasattr(file, "seek")  # a `mmap` before Python 3.13


def _from_text(text: str, filename: str, content_type: str | None) -> tuple[bytes, str]:
    url = None if content_type is not None and _is_text(content_type) else _DATA_URL.match(text)
    if url is not None:
        payload = unquote_to_bytes(text[url.end() :])
        content_type = content_type or url["type"] or _guess_type(filename)
        return (_decode_base64(payload) if url["base64"] else payload), content_type
    content_type = _guess_type(filename) if content_type is None else content_type
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError("The text holds a lone surrogate, which UTF-8 can't encode; remove it.") from error
    beginning = _beginning_of(content_type)
    if beginning is None or not text:
        return encoded, content_type
    try:
        content = _decode_base64(encoded)
    except BadValueError:
        if re.fullmatch(_TEXTUAL, _kind_of(content_type)):
            return encoded, content_type
        raise
    if re.match(beginning, content, re.DOTALL):
        return content, content_type
    if re.fullmatch(_TEXTUAL, _kind_of(content_type)):
        return encoded, content_type
    raise BadValueError(f"The text is base64, but not of {content_type}; pass bytes, or the type 'text'.")


def _beginning_of(content_type: str) -> bytes | None:
    """Return a pattern of how files of a type begin, None if the type may be text, or nothing is known of it."""
    kind = _kind_of(content_type)
    found = _BEGINNINGS.get("application/zip" if re.match(_ZIPPED, kind) else kind)
    return found or _BEGINNINGS.get(kind.partition("/")[0])


def _kind_of(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_text(content_type: str) -> bool:
    return content_type.lower() == "text" or content_type.lower().startswith("text/")


def _guess_type(filename: str) -> str:
    content_type, encoding = mimetypes.guess_type(filename)
    return UNKNOWN_TYPE if content_type is None or encoding is not None else content_type


def _full_type(content_type: str) -> str:
    return "text/plain" if content_type.lower() == "text" else content_type


def _decode_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadValueError(
            "The text is not base64, as required for this type; pass bytes, or the type 'text'."
        ) from error


class MultipartForm:
    """
    Multipart body of an upload: iterate over it to get its bytes.

    `len` is the length of the body, None for a stream of unknown size; `requests` looks for this name.

    Raises `BadValueError` for a content type or text that a form can't hold.
    """

    def __init__(self, fields: Mapping[str, str], filename: str, content_type: str, data: bytes | IO[bytes]) -> None:
        check_type(content_type)
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        # Only the plain name beside it says that a service must not decode any escape in the name.
        plain = f"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}" if _ESCAPED.search(filename) else ""
        part = f'"file"; filename="{filename.translate(_FORM_ESCAPES)}"{plain}\r\nContent-Type: {content_type}'
        try:
            self._head = hide(
                "\r\n".join(
                    f"--{boundary}\r\nContent-Disposition: form-data; name={name}\r\n\r\n{hide(value)}"
                    for name, value in [*((f'"{name}"', value) for name, value in fields.items()), (part, "")]
                ).encode()
            )
        except UnicodeEncodeError:
            raise BadValueError(_SURROGATE) from None  # not chained, as Python's exception holds the whole text
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._data = data
        self._size = size_of(data)
        self._start = data.tell() if self._size is not None and not isinstance(data, bytes) else None
        self.len = None if self._size is None else len(self._head) + self._size + len(self._tail)

    def rewind(self) -> bool:
        """Return to the beginning for another attempt; False for a stream impossible to send twice."""
        if self._start is not None and not isinstance(self._data, bytes):
            self._data.seek(self._start)
        return self._size is not None

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        yield from self._pieces()
        yield self._tail

    def _pieces(self) -> Iterator[bytes]:
        return pieces_of(self._data)


def check_type(content_type: str) -> None:
    """Raise `BadValueError` for a content type with characters not allowed in a form."""
    if not _PRINTABLE.fullmatch(content_type):
        raise BadValueError(f"{content_type!r} is not a content type; give one such as 'image/jpeg', or 'text'.")


def size_of(data: bytes | IO[bytes]) -> int | None:
    """Return the size of an upload in bytes, a file's from its position; None if unknown."""
    if isinstance(data, bytes):
        return len(data)
    try:
        start = data.tell()
        end = data.seek(0, os.SEEK_END)
        data.seek(start)
    except (OSError, AttributeError):
        return None
    return max(0, end - start)


def pieces_of(data: bytes | IO[bytes], on_read: Callable[[], object] = lambda: None) -> Iterator[bytes]:
    """Yield the bytes of an upload, a file's from its position and no more than its size at the beginning."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    left = size_of(file)
    while left != 0:
        try:
            piece: Any = file.read(_CHUNK if left is None else min(left, _CHUNK))
        except OSError as error:
            # urllib3 would take an OSError for a broken connection.
            raise BadValueError(f"The file can't be read ({error.strerror or type(error).__name__}).") from error
        on_read()
        if isinstance(piece, str):
            raise TypeError("The file gives text where bytes are sent; open it in binary mode.")
        if not piece:
            break
        if left is not None:
            left -= len(piece)
        yield piece
    on_read()
    if left:
        raise BadValueError("The file became shorter while it was sent; upload it again.")


# Requests: send one until its outcome is final.

#: Seconds a request may wait in total between its attempts, including ``Retry-After``.
_MAX_WAIT: Final = 30.0
#: Seconds after the first attempt until which a request may be sent again: services keep ids for at least 600.
_MAX_AGE: Final = 480.0
_FIRST_BACKOFF: Final = 0.5
_LONGEST_BACKOFF: Final = 8.0
_MAX_REPLY: Final = 2**28
#: Digits of a length that are converted; Python refuses thousands.
_MOST_DIGITS: Final = 100
_POOL_SIZE: Final = 32
#: Statuses after which the same request may succeed.
_BUSY: Final = frozenset({429, 502, 503, 504})
#: Refusals valid for every attempt of the same request.
_ABOUT_REQUEST: Final = frozenset({"BadName", "BadValue"})
#: Refusals by which a service that knows the request's id says that no attempt was applied.
_AFTER_ID: Final = frozenset({"NoFile", "Changed", "BadMerge", "TooBig", "TooManyFiles", "IdMismatch"})


class _Message:
    """Request to send; a context manager that closes `own`, our handle on the user's file."""

    def __init__(
        self,
        operation: str,
        name: str,
        path: str,
        body: SecretBytes | MultipartForm,
        content_type: str,
        own: IO[bytes] | None = None,
    ) -> None:
        self.operation = operation
        self.name = name
        self.path = path
        self.body = body
        self.content_type = content_type
        self.own = own

    def close(self) -> None:
        if self.own is not None:
            self.own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_write(self) -> bool:
        return self.operation not in _READS

    def rewind(self) -> bool:
        return not isinstance(self.body, MultipartForm) or self.body.rewind()


class _Reply:
    """Reply of a service: fields of its JSON object, and the response."""

    def __init__(self, error: str | None, message: Any, data: Any, response: Any) -> None:
        self.error = error
        self.message = message
        self.data = data
        self.response = response

    @property
    def status(self) -> int:
        status: int = self.response.status_code
        return status

    @property
    def sentence(self) -> str:
        """Message as text, even if it is another JSON value."""
        return self.message if isinstance(self.message, str) else _compact(self.message)

    def names(self) -> list[str]:
        """Return the names in the reply to a list: an array in `data`, or comma-joined text in `message`."""
        names = self.data
        if names is _ABSENT and isinstance(self.message, str):
            return self.message.split(",") if self.message else []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("The answer to a list holds no names; is the address right?")
        return names

    @property
    def may_hide_write(self) -> bool:
        # A gateway's error may hide an applied write, but its 3xx and 4xx mean a request that it did not pass on.
        return self.error == "OutcomeUnknown" or (self.error == "Http error" and self.status >= 500)


class _UnreadableError(ValueError):
    """The answer is no reply of a service."""

    def __init__(self, message: str, response: Any) -> None:
        super().__init__(message)
        self.response = response


class _Sender:
    """
    Send requests with retries, over a session of our own or the user's.

    All requests of this client may be repeated: a second application has the result of the first. Writes of data carry
    an id (idempotency key), so that a service with the extension `once` applies each only once.
    """

    def __init__(
        self,
        server: str,
        timeout: float | tuple[float, float],
        retries: int,
        session: requests.Session | None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        import requests  # a slow import, so not before it is needed

        self._requests = requests
        self._server = server
        self._timeout = timeout
        self._retries = retries
        self._users_session = session
        self._session: Any = None
        self._sleep = sleep
        self._knows_ids: bool | None = None  # before the first reply
        self.after_fork()

    def after_fork(self) -> None:
        """Leave the open connections to the parent process."""
        self._lock = threading.RLock()
        self._session = None

    def close(self) -> None:
        """Close the connections, but not the user's session."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def exchange(self, message: _Message, wait_for_turn: Callable[[float], bool]) -> _Reply:
        """
        Return the service's reply, also if it is an error.

        `wait_for_turn` is called before each further attempt with the longest wait in seconds, and returns False if
        there will be no turn.

        Raises
        ------
        TransportError
            No reply came and nothing was changed: the request never left, or was a read.
        OutcomeUnknownError
            No reply came to a write, and an attempt of it may have been applied.
        _UnreadableError
            The answer can't be read.
        """
        request_id = secrets.token_hex(16) if message.is_write and message.operation != "upload" else None
        latest = time.monotonic() + _MAX_AGE
        longest, wait_left = _FIRST_BACKOFF, _MAX_WAIT
        maybe_applied = False
        retries = self._retries
        while True:
            outcome: _Reply | TransportError
            try:
                outcome = self._attempt(message, None if self._knows_ids is False else request_id)
            except TransportError as error:
                outcome = error
            has_id = request_id is not None and bool(self._knows_ids)
            pause = max(longest * random.uniform(0.5, 1), _retry_after(outcome))  # noqa: S311 - jitter
            if retries == 0 or pause > wait_left or not _is_retryable(outcome, has_id) or not message.rewind():
                return _final(message, outcome, maybe_applied, has_id)
            retries -= 1
            wait_left -= pause
            longest = min(2 * longest, _LONGEST_BACKOFF)
            self._sleep(pause)
            if not wait_for_turn(latest - time.monotonic()):
                return _final(message, outcome, maybe_applied, has_id)
            maybe_applied = maybe_applied or _may_have_applied(outcome)

    def _attempt(self, message: _Message, request_id: str | None) -> _Reply:
        headers = {"Content-Type": message.content_type}
        if request_id is not None:
            headers["Idempotency-Key"] = f'"{request_id}"'
        received: list[Any] = []
        try:
            response = self._post(message, headers, received)
            with response:
                try:
                    content = _read(response)
                except ValueError as error:
                    if isinstance(error, self._requests.RequestException | _UnreadableError):
                        raise
                    raise self._unreadable(str(error), error) from error  # of `http.client`: a negative length
        except TransportError:
            raise
        except Exception as error:
            is_about_answer = _is_about_answer(error)
            translated = error
            if isinstance(error, self._requests.RequestException) or is_about_answer:
                translated = self._translated(error, was_sent=is_about_answer or bool(received))
            if received and isinstance(translated, TransportError):
                translated.sent = True  # a hook's own request may have failed after it
            if message.is_write and isinstance(translated, _UnreadableError):
                translated = TransportError(str(translated), sent=True, is_retryable=False)
            if translated is error:  # too large, or an exception of a hook or adapter
                raise
            # The message of a ValueError shows a URL, and a proxy's URL may hold a password.
            raise translated from (None if isinstance(error, ValueError) else error)
        finally:
            received.clear()  # breaks a cycle that would keep the response's connection open after `session.close()`
        if not content and is_cut_off(response.status_code, response.headers):
            raise TransportError(f"The connection to {self._server} broke within the answer; try again.", sent=True)
        extensions = response.headers.get("CloudStore-Extensions", "")
        reply = _reply_of(response, content)
        if reply.error != "Http error" or extensions:  # otherwise the reply is a proxy's
            self._knows_ids = "once" in map(str.strip, extensions.split(","))
        return reply

    def _post(self, message: _Message, headers: dict[str, str], received: list[Any]) -> Any:
        """Return the response to a request, and put into `received` all responses that came, also before an error."""

        def check(response: Any, **_: Any) -> None:
            received.append(response)
            self._refuse_interim(response)

        session: Any = self._users_session
        options: dict[str, Any] = {}
        if session is None:
            session = self._own_session()
            options["auth"] = _unchanged  # `requests` would look for a password in ~/.netrc
            if is_loopback(urlsplit(self._server).hostname or ""):
                options["proxies"] = {"http": "", "https": "", "all": ""}
        # Hooks of a request replace those of the session. Ours runs first, as another hook may read the content and so
        # give the connection back.
        theirs = (getattr(session, "hooks", None) or {}).get("response", ())
        hooks = [check, *((theirs,) if callable(theirs) else theirs)]
        try:
            response = session.post(
                self._server + message.path,
                data=message.body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,  # the body holds the API key
                stream=True,
                hooks={"response": hooks},
                **options,
            )
        except BaseException as error:
            # A hook may call `raise_for_status`: the response is the reply all the same.
            if isinstance(error, self._requests.HTTPError) and error.response in received:
                response = error.response
            elif received and _is_about_redirect(error):
                response = received[-1]
            else:
                for each in received:
                    each.close()
                raise
        received.append(response)
        self._refuse_interim(response)  # again, as something may have sent the request without hooks
        return response

    def _refuse_interim(self, response: Any) -> None:
        """Close the connection of an interim (1xx) response, and raise `TransportError`: the final one will follow."""
        if response.status_code not in range(100, 200):
            return
        response.close()
        # If the content was read, the connection is already back in its pool.
        if (adapter := getattr(response, "connection", None)) is not None:
            adapter.close()
        raise TransportError(
            f"{self._server} sent a status {response.status_code} before its answer, which requests can't skip; "
            "have the service or its proxy send none.",
            sent=True,
        )

    def _own_session(self) -> Any:
        with self._lock:
            if self._session is None:
                from http.cookiejar import DefaultCookiePolicy

                session = self._requests.Session()
                session.headers["User-Agent"] = "CloudStore.py"
                session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
                for prefix in ("http://", "https://"):
                    session.mount(prefix, self._requests.adapters.HTTPAdapter(pool_maxsize=_POOL_SIZE))
                self._session = session
            return self._session

    def _translated(self, error: Exception, *, was_sent: bool) -> Exception:
        """
        Return the error for an exception of `requests`; it quotes only the system's words, and no URLs.

        `was_sent` is True if the request was sent for certain: then any error is about the answer.
        """
        chain = [*_chain(error)]
        names = {kind.__name__ for link in chain for kind in type(link).__mro__}
        system = [link for link in chain if type(link).__module__.partition(".")[0] not in ("requests", "urllib3")]
        cause = system[-1] if system else chain[-1]
        reason = getattr(cause, "strerror", None) or str(cause)[:200] if system else type(cause).__name__
        server = self._server
        if was_sent and isinstance(error, ValueError):
            return self._unreadable(type(cause).__name__, error)
        if {"ProxyError", "InvalidProxyURL", "ProxySchemeUnknown"} & names:
            return TransportError(
                f"The proxy on the way to {server} can't be used ({reason}); "
                "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or the session's proxies.",
                sent=False,
                is_retryable="InvalidProxyURL" not in names,
            )
        if "SSLError" in names:
            return TransportError(
                f"TLS with {server} failed ({reason}); check the address and its certificate, "
                "and the CA file if REQUESTS_CA_BUNDLE names one.",
                sent=not any(map(_in_handshake, chain)),
                is_retryable="SSLCertVerificationError" not in names,
            )
        if "NewConnectionError" in names:
            return TransportError(f"{server} was not reached ({reason}); check the address.", sent=False)
        if {"ConnectTimeout", "ConnectTimeoutError"} & names:
            return TransportError(
                f"{server} did not take the connection in time; try again later, or give a longer timeout.", sent=False
            )
        if {"Timeout", "TimeoutError"} & names:
            return _TimedOutError(
                f"{server} did not answer in time; try again later, or give a longer timeout.", sent=True
            )
        if {"ContentDecodingError", "HTTPError"} & {type(error).__name__}:
            return self._unreadable(reason, error)
        if isinstance(error, ValueError):
            return ValueError(f"The request to {server} can't be sent ({reason}); check the address, and the proxy's.")
        return TransportError(f"The connection to {server} broke ({reason}); try again.", sent=True)

    def _unreadable(self, reason: str, error: Exception) -> _UnreadableError:
        sentence = f"The answer of {self._server} can't be read ({reason}); is the address right?"
        return _UnreadableError(sentence, getattr(error, "response", None))


class _TimedOutError(TransportError):
    """The service did not answer in time."""


def _unchanged(prepared: T) -> T:
    return prepared


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the exceptions inside it, causes last."""
    yield error
    for part in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(part, BaseException):
            yield from _chain(part)


def _in_handshake(error: BaseException) -> bool:
    # TLS raises the same classes before, during and after a request; only the traceback distinguishes them.
    return not _functions(error).isdisjoint({"ssl_wrap_socket", "do_handshake"})


def _is_about_answer(error: BaseException) -> bool:
    """Return True for an exception of the libraries while they read the answer, so after the request was sent."""
    names = {name for link in _chain(error) for name in _functions(link)}
    return "getresponse" in names and "dispatch_hook" not in names


def _is_about_redirect(error: BaseException) -> bool:
    """Return True for an exception of `requests` about a redirect's address, which it reads but doesn't follow."""
    return "resolve_redirects" in _functions(error)


def _functions(error: BaseException) -> frozenset[str]:
    """Return the names of the functions that an exception passed."""
    return frozenset(frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))


def _read(response: Any) -> bytes:
    """Return the content, at most `_MAX_REPLY` bytes of it, whatever its length is said to be; also uncompressed."""
    if response.raw is None:  # a mock's, made by hand
        return response.content or b""
    told = response.headers.get("Content-Length", "")
    if told.isdecimal() and (len(told) > _MOST_DIGITS or int(told) > _MAX_REPLY):
        raise _too_large(response)
    size, pieces = 0, []
    for piece in response.iter_content(_CHUNK):
        size += len(piece)
        if size > _MAX_REPLY:
            raise _too_large(response)
        pieces.append(piece)
    response._content = b"".join(pieces)  # noqa: SLF001 - requests has no other way to set what was read with a limit
    content: bytes = response._content  # noqa: SLF001
    return content


def is_cut_off(status: int, headers: Mapping[str, str]) -> bool:
    """
    Return True if a success without a body ended within its headers, for all that they tell.

    Python takes the end of the connection for the end of the headers, and without the length for that of the body.
    """
    is_told = headers.get("Content-Length") or "chunked" in headers.get("Transfer-Encoding", "").lower()
    return status in (200, 206) and not is_told


def _too_large(response: Any) -> _UnreadableError:
    response.close()
    response._content = b""  # noqa: SLF001 - so that `response.content` reads no more
    return _UnreadableError(f"The answer is larger than {_MAX_REPLY} bytes; ask for less.", response)


def _reply_of(response: Any, content: bytes) -> _Reply:
    """Return the reply in a response; with another status than 200 anything else is an ``Http error``."""
    try:
        fields = decode_strictly(content)
        is_reply = isinstance(fields, dict) and "message" in fields and isinstance(fields.get("error", 0), str | None)
        why = "no object with `error` and `message`"
    except (ValueError, RecursionError) as error:
        is_reply = False
        why = str(error)
    if is_reply and (response.status_code == 200 or fields["error"] is not None):
        return _Reply(fields["error"], fields["message"], fields.get("data", _ABSENT), response)
    if response.status_code != 200:
        return _Reply("Http error", response.reason or f"Status {response.status_code}", _ABSENT, response)
    raise _UnreadableError(
        f"The answer is not CloudStore's ({why}); is the address right, and is no sign-in page in between?", response
    )


def _retry_after(outcome: _Reply | TransportError) -> float:
    """Return the seconds of ``Retry-After``."""
    text = "" if isinstance(outcome, TransportError) else outcome.response.headers.get("Retry-After", "").strip()
    return float(text[:9]) if text.isascii() and text.isdigit() else 0.0


def _is_retryable(outcome: _Reply | TransportError, has_id: bool) -> bool:
    """Return True if another attempt may succeed; `has_id` for a write that the service knows by its id."""
    if isinstance(outcome, _Reply):
        return outcome.status in _BUSY
    return outcome.is_retryable and (has_id or not isinstance(outcome, _TimedOutError))


def _may_have_applied(outcome: _Reply | TransportError) -> bool:
    return outcome.may_hide_write if isinstance(outcome, _Reply) else outcome.sent


def _final(message: _Message, outcome: _Reply | TransportError, maybe_applied: bool, has_id: bool) -> _Reply:
    """Return the final reply, or raise the error for its absence; `maybe_applied` tells of the earlier attempts."""
    unknown = f"No answer came to the {message.operation} of {message.name!r:.100}: it may have been done or not; " + (
        "do it again." if message.operation == "upload" else "load it to see, or do it again."
    )
    if isinstance(outcome, TransportError):
        if message.is_write and (maybe_applied or outcome.sent):
            raise OutcomeUnknownError(unknown, sent=True) from outcome
        raise outcome
    if not message.is_write or not maybe_applied or outcome.error is None or outcome.may_hide_write:
        return outcome
    if message.operation == "delete" and outcome.error == "NoFile" and not has_id:  # an earlier attempt deleted it
        return _Reply(None, "Entry deleted", _ABSENT, outcome.response)
    if outcome.error in _ABOUT_REQUEST or (has_id and outcome.error in _AFTER_ID):
        return outcome
    # A refusal says nothing about the attempts before it.
    raise OutcomeUnknownError(f"{unknown} Then came {outcome.error}: {outcome.sentence}", sent=True)
