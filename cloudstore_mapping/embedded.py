"""In-process transport: run the service inside the caller's process, with the same messages as over a network."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

from cloudstore_mapping.client.transport import Fetched, check_type, pieces_of, refused, scope
from cloudstore_mapping.errors import (
    BadNameError,
    CloudStoreError,
    NoFileError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
)
from cloudstore_mapping.forks import renew_after_fork
from cloudstore_mapping.interrupts import let_go, letting_go
from cloudstore_mapping.links import FILES_PATH
from cloudstore_mapping.service.media import described
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.places import MEMORY, StoreLocation, place_of
from cloudstore_mapping.service.storage.renaming import refuse_old_names
from cloudstore_mapping.service.storage.sqlite import has_finished
from cloudstore_mapping.service.storage.sqlite_files import LOST
from cloudstore_mapping.sqlite_forks import forkers, refuse_forker
from cloudstore_mapping.wire import (
    EXTENSIONS,
    Batch,
    Reply,
    Request,
    Upload,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    failure,
    for_operator,
)

if TYPE_CHECKING:
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.migrations import HasAccount
    from cloudstore_mapping.service.storage.records import Account, Media

#: Account with the files of an embedded store.
LOCAL_ACCOUNT: Final = "local"

#: Keys and values may be longer than on a network, as the caller could fill the machine's memory anyway; together they
#: stay below SQLite's limit of a billion bytes per row. Accesses are not counted, so that reading writes nothing.
LOCAL_SETTINGS: Final = Settings(
    max_name_bytes=2**20,
    max_value_bytes=900 * 2**20,
    max_batch_reply_bytes=64 * 2**20,
    max_media_bytes=2**50,
    count_accesses=False,
)

#: Without `once`: within a process no reply is lost, so no request needs an idempotency key.
LOCAL_EXTENSIONS: Final = frozenset(EXTENSIONS) - {"once"}


class InProcessTransport:
    """Send requests to a service in this process, as the same bytes as over a network."""

    is_in_process: Final = True

    def __init__(self, service: Service) -> None:
        self._service = service

    def send(self, request: Request | Batch | Upload) -> Reply:
        """Return the service's reply; `TimedOutError` if there is none before the request's deadline."""
        deadline = scope.deadline
        if deadline is not None:
            deadline.sent = False  # an interrupt is raised before the write or after it, never during it
        try:
            reply = self._upload(request) if isinstance(request, Upload) else self._handle(request)
        except TimedOutError:
            raise
        except CloudStoreError as error:
            reply = failure(error)
        except BaseException as error:
            let_go(error)
            self._service.withdraw()
            raise
        reply = for_operator(reply)
        if reply.error == UnavailableError.error and deadline is not None and deadline.left() <= 0:
            raise TimedOutError(f"The deadline passed: {reply.sentence}", sent=False)
        return decode_reply(
            encode_reply(reply), status=reply.status, retry_after=reply.retry_after, extensions=LOCAL_EXTENSIONS
        )

    def _handle(self, request: Request | Batch) -> Reply:
        max_depth = self._service.settings.max_depth
        decoded = decode_request(request.path, encode_request(request), max_depth=max_depth)
        return self._service.handle(decoded, raises=True, patience=_patience())

    def _upload(self, request: Upload) -> Reply:
        check_type(request.content_type)
        upload = self._service.media.begin(
            api_key=request.api_key,
            name=request.name,
            content_type=request.content_type,
            password=request.password,
            only_new=request.only_new,
        )
        try:
            for piece in pieces_of(request.data):
                if (waiting := upload.write(piece)) is not None:
                    self._wait(waiting)
            return upload.finish()
        except BaseException:
            upload.abort()
            raise

    def _wait(self, future: Future[Any]) -> None:
        try:
            future.result(_patience())
        except TimeoutError as error:
            raise TimedOutError("The store did not take the file in time; give a longer deadline.") from error

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """Begin to download a media file; see `HTTPTransport.fetch`."""
        try:
            media, mimetype = self._use(link)
        except CloudStoreError as error:
            return refused(for_operator(failure(error)))
        except BaseException as error:
            let_go(error)
            raise
        start = start if tag == media.digest else 0
        pieces = _letting_go(self._service.media.chunks(media, start))
        return Fetched(None, start, media.size, media.digest, mimetype, media.name, pieces, lambda: None, media.digest)

    def _use(self, link: str) -> tuple[Media, str]:
        folder, _, last = link.removeprefix(FILES_PATH).partition("/")
        found = self._service.media.find(folder, last.partition(".")[0])
        if found is None:
            raise NoFileError("There is no media file at this link.")
        account, media = found
        mimetype, _ = self._service.media.typed(media)
        self._service.media.use(account, media)
        return media, mimetype

    def hurry(self) -> None:
        """Let the service wait only a moment for other processes from now on."""
        self._service.hurry()

    def close(self) -> None:
        """Close the service."""
        self._service.close()


def _file_of(place: StoreLocation) -> tuple[int, int] | None:
    """Return the device and inode of a store's file, None without one."""
    try:
        found = None if place.file is None else place.file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


class StoreTransport(InProcessTransport):
    """Send requests to an embedded store; a forked process runs a service of its own."""

    def __init__(self, place: StoreLocation, *, readonly: bool = False) -> None:
        storage = place.open(readonly=readonly, admits=partial(_check_owner, place))
        try:
            _check_contents(storage, place)
        except BaseException:
            storage.close()
            raise
        super().__init__(Service(storage, LOCAL_SETTINGS))
        self._storage = storage
        self._place = place
        self._readonly = readonly
        self._process = os.getpid()
        self._file = _file_of(place)
        self._lock = threading.Lock()
        renew_after_fork(self)
        self.api_key = self._service.accounts.grant(LOCAL_ACCOUNT)

    def after_fork(self) -> None:
        """Renew the lock in a child process; its first request opens the store again."""
        self._lock = threading.Lock()

    def send(self, request: Request | Batch | Upload) -> Reply:
        """Return the service's reply; `UnsupportedError` to a thread that is forking, when SQLite must stay quiet."""
        if forkers and self._place.address is None:
            refuse_forker()
        if self._is_exiting():
            with self._new_service() as service:
                return InProcessTransport(service).send(request)
        self._reopen_after_fork()
        return super().send(request)

    def fetch(self, link: str, start: int = 0, tag: str | None = None) -> Fetched:
        """Begin to download a media file; see `HTTPTransport.fetch`."""
        if self._is_exiting():
            service = self._new_service()
            return replace(InProcessTransport(service).fetch(link, start, tag), close=service.close)
        self._reopen_after_fork()
        return super().fetch(link, start, tag)

    @letting_go
    def media_files(self) -> list[dict[str, Any]]:
        """Return the descriptions of all media files by name, as in the reply to an upload."""
        self._reopen_after_fork()
        account = self._account()
        if account is None:
            return []
        files: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = self._service.panels.media(account, after=after)
            files += [described(account, media) for media in page.rows]
            if page.next is None:
                return files
            after = page.next

    @letting_go
    def compact(self) -> None:
        """Give unused space of a store in a file back to the disk; raises `UnavailableError` where that fails."""
        if forkers and self._place.address is None:
            refuse_forker()
        if self._is_exiting():
            with self._new_service() as service:
                service.compact()
            return
        self._reopen_after_fork()
        self._service.compact()

    @letting_go
    def check_has_data(self) -> None:
        """Raise `UnsupportedError` if this account has no data, but a service's accounts have."""
        self._reopen_after_fork()
        account = self._account()
        if account is not None and self._has_data(account):
            return
        if any(self._has_data(other) for other in self._service.accounts.all()):
            raise _of_a_service(self._place)

    def _has_data(self, account: Account) -> bool:
        return bool(self._service.panels.data(account).rows or self._service.panels.media(account).rows)

    def _account(self) -> Account | None:
        with suppress(BadNameError):
            return self._service.accounts.named(LOCAL_ACCOUNT)
        return None  # nothing was written yet

    def _is_exiting(self) -> bool:
        """
        Return True if the program is ending and has closed the store; functions registered early in `atexit` still run.

        Each of their requests opens and closes the store, as nothing would close it later.
        """
        return has_finished() and not self._place.is_memory

    def _new_service(self) -> Service:
        if _file_of(self._place) != self._file:
            raise UnavailableError(LOST.format("file"))
        return self._serving(self._place.open(readonly=self._readonly))

    def _serving(self, storage: Storage) -> Service:
        service = Service(storage, LOCAL_SETTINGS)
        service.accounts.grant(LOCAL_ACCOUNT, self.api_key)
        return service

    def _reopen_after_fork(self) -> None:
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process != os.getpid():
                service = self._service_in_child()
                _inherited.append(self._service)
                self._service = service
                self._process = os.getpid()

    def _service_in_child(self) -> Service:
        copy = self._storage.in_child()
        if copy is None:
            return self._new_service()
        self._storage = copy
        return self._serving(copy)

    def hurry(self) -> None:
        """Have the service wait no longer than a moment for other processes; a child has none of its own at first."""
        if self._process == os.getpid():
            super().hurry()

    def close(self) -> None:
        """Close the service, but in a child never its parent's."""
        if self._process == os.getpid():
            super().close()


def _letting_go(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except BaseException as error:
        let_go(error)
        raise


def _patience() -> float | None:
    """Return the seconds left for the request, None for no limit."""
    left = math.inf if scope.deadline is None else scope.deadline.left()
    return None if left == math.inf else max(0.0, left)


def _check_contents(storage: Storage, place: StoreLocation) -> None:
    """Raise `UnsupportedError` for a service's store, without the embedded store's account, or for old file names."""
    with storage.read() as transaction:
        if transaction.account_named(LOCAL_ACCOUNT) is None and transaction.has_accounts():
            raise _of_a_service(place)
        refuse_old_names(transaction, str(place))


def _check_owner(place: StoreLocation, has_account: HasAccount) -> None:
    """Raise `UnsupportedError` for a service's store of an older version, before it is migrated."""
    if not has_account(LOCAL_ACCOUNT) and has_account(None):
        raise _of_a_service(place)


def _of_a_service(place: StoreLocation) -> UnsupportedError:
    """Return the error for a store with the data of a service's accounts."""
    return UnsupportedError(
        f"The data in {place} belong to the accounts of a service; run `cloudstore serve --store {quote(str(place))}` "
        "and use its address with an account's API key."
    )


#: Services copied by a fork: they wait for threads of the parent process, so this process never uses or closes them.
_inherited: Final[list[Service]] = []


def open_service(location: str | os.PathLike[str] | None) -> tuple[InProcessTransport, str]:
    """Return a transport to the store at a location (None: in memory), and an API key for it."""
    transport = StoreTransport(place_of(MEMORY if location is None else os.fspath(location)))
    return transport, transport.api_key
