"""Media files: upload in chunks, find, read, lock and delete; content types; cleanup of unused blobs."""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from cloudstore_mapping.errors import (
    BadValueError,
    ChangedError,
    NoFileError,
    TooBigError,
    TransportError,
    UnavailableError,
    shorten,
)
from cloudstore_mapping.links import media_link
from cloudstore_mapping.service.accounts import COMMAND_LINE, Accounts, dashboard_queue
from cloudstore_mapping.service.idempotency import REMEMBERED_FOR, IdempotencyStore
from cloudstore_mapping.service.operations import check_name
from cloudstore_mapping.service.quotas import (
    DAY,
    MAX_AHEAD,
    SteadyClock,
    check_bytes,
    check_file_quota,
    check_uploads,
    day_of,
    take_slot,
)
from cloudstore_mapping.service.security import Unproven
from cloudstore_mapping.service.storage.base import PAUSE, STEP, DiskFullError
from cloudstore_mapping.service.storage.records import Media
from cloudstore_mapping.wire import Reply, encode_value, success

if TYPE_CHECKING:
    from cloudstore_mapping.service.quotas import AccessCounter, Clock
    from cloudstore_mapping.service.security import PasswordVerifier
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import Account
    from cloudstore_mapping.service.storage.sql import Transaction

#: Type of a file if nothing is known about it.
UNKNOWN_TYPE: Final = "application/octet-stream"
#: Number of first bytes needed to recognise a file.
BEGINNING: Final = 16

#: Magic bytes of the types safe to display in a browser; a file of unknown type gets the first match.
SIGNATURES: Final[Mapping[str, re.Pattern[bytes]]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    # Layers II and III only: layer I is unused, and its first bytes are also those of UTF-16 text.
    "audio/mpeg": re.compile(rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xfd]"),
    "audio/wav": re.compile(rb"RIFF....WAVE", re.DOTALL),
    "audio/flac": re.compile(rb"fLaC"),
    "audio/ogg": re.compile(rb"OggS"),
    "video/ogg": re.compile(rb"OggS"),
    "video/mp4": re.compile(rb"....ftyp", re.DOTALL),
    "audio/mp4": re.compile(rb"....ftyp", re.DOTALL),
    "video/webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    "audio/webm": re.compile(rb"\x1a\x45\xdf\xa3"),
    "application/pdf": re.compile(rb"%PDF-"),
}

_ALIASES: Final[Mapping[str, str]] = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "audio/mp3": "audio/mpeg",
    "audio/mpeg3": "audio/mpeg",
    "audio/x-mp3": "audio/mpeg",
    "audio/x-mpeg": "audio/mpeg",
    "audio/x-mpeg-3": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/x-m4a": "audio/mp4",
    "audio/m4a": "audio/mp4",
    "video/x-m4v": "video/mp4",
    "application/ogg": "video/ogg",
    "application/x-pdf": "application/pdf",
    "application/x-json": "application/json",
    "text/json": "application/json",
    # These carry no information.
    "binary/octet-stream": UNKNOWN_TYPE,
    "application/unknown": UNKNOWN_TYPE,
    "application/x-unknown": UNKNOWN_TYPE,
    "*/*": UNKNOWN_TYPE,
}

# Missing in the table of some Python versions.
_ENDINGS: Final[Mapping[str, str]] = {
    "text": "text/plain",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "m4v": "video/mp4",
    "oga": "audio/ogg",
    "ogg": "audio/ogg",
    "ogv": "video/ogg",
    "opus": "audio/ogg",
    "weba": "audio/webm",
}
# Without the machine's own table, so that an upload gets the same type everywhere.
_PYTHONS: Final = mimetypes.MimeTypes()
_PLAIN: Final = re.compile(r"[a-z0-9]{1,16}")


def real_type(content_type: str, name: str, beginning: bytes) -> str:
    """Return the media type of an upload: the resolved `content_type`, or else a guess."""
    return known_type(content_type) or _guess(name, beginning)


def known_type(content_type: str) -> str:
    """Return `content_type` with aliases resolved, keeping its parameters; empty if it carries no information."""
    kind, semicolon, parameters = content_type.strip().partition(";")
    plain = kind.strip().lower()
    real = _ALIASES.get(plain, plain) if "/" in plain else _of_ending(plain)
    if real in {"", UNKNOWN_TYPE}:
        return ""
    return content_type.strip() if real == plain else f"{real}{semicolon}{parameters}"


def begins_as(content_type: str, beginning: bytes) -> bool:
    """Return True if the type is safe to display in a browser, and `beginning` has its magic bytes."""
    pattern = SIGNATURES.get(known_type(content_type).partition(";")[0].strip().lower())
    return pattern is not None and pattern.match(beginning) is not None


def _guess(name: str, beginning: bytes) -> str:
    by_name = _of_ending(name.rpartition(".")[2].lower()) if "." in name else ""
    if by_name and (by_name not in SIGNATURES or begins_as(by_name, beginning)):
        return by_name
    return next((kind for kind, pattern in SIGNATURES.items() if pattern.match(beginning)), UNKNOWN_TYPE)


def _of_ending(ending: str) -> str:
    if not _PLAIN.fullmatch(ending):
        return ""
    kind, encoding = _PYTHONS.guess_type(f"x.{ending}", strict=False)
    return _ENDINGS.get(ending) or ("" if kind is None or encoding is not None else _ALIASES.get(kind, kind))


T = TypeVar("T")

#: Bytes per chunk, except the last. A smaller chunk commits faster; a larger one makes fewer rows per file.
CHUNK_BYTES: Final = 512 * 2**10
#: Maximum number of uncommitted chunks per upload; at this number its sender must wait.
CHUNKS_IN_FLIGHT: Final = 2
#: Random bytes of a media id, written as 32 hexadecimal digits.
ID_BYTES: Final = 16

_CONTENT_TYPE: Final = re.compile(r"[ -~]{1,255}")


@dataclass(frozen=True)
class UploadRequest:
    """
    Request to upload a media file: authenticated by API key and optional passwords, or by a signed-in `owner`.

    `media_password` is accepted where the account's default password of media files applies, in addition to
    `password`. With `only_new`, no existing media file of this name is replaced.
    """

    name: str
    content_type: str
    api_key: str = field(repr=False)
    password: str | None = field(repr=False)
    media_password: str | None = field(repr=False)
    address: str
    owner: Account | None
    only_new: bool

    @property
    def queue(self) -> Hashable:
        """Key of the writer's queue for the account's uploads."""
        return ("uploads", self.api_key if self.owner is None else self.owner.id)


class Uploads:
    """Begins and finishes uploads of all accounts; thread-safe."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: PasswordVerifier,
        sweeper: BlobCleaner,
    ) -> None:
        self.storage = storage
        self.settings = settings
        self.clock = clock
        self.sweeper = sweeper
        self._accounts = accounts
        self._passwords = passwords
        self._closed = False

    def begin(self, sender: UploadRequest) -> UploadStream:
        """
        Begin an upload, and return the stream for its bytes; wait for the storage and for hashing of a password.

        Runs all checks independent of the file's content. Raises `BadKeyError`, `DisabledError`, `TooOftenError`,
        `BadNameError`, `LockedError`, `ChangedError` or `TooManyFilesError`, and `UnavailableError` after `close`.
        """
        if self._closed:
            raise UnavailableError("The service is closed; try again later.", retry_after=1.0)
        check_name(sender.name, self.settings.max_name_bytes, self.storage.max_name_bytes)
        with self.storage.read() as transaction:
            self._account(transaction, sender, writes=False)  # in a read first: a wrong API key must not cost a write
        return UploadStream(self, sender, self._proved(sender, self._begin))

    def add_chunk(self, transaction: Transaction, sender: UploadRequest, blob: int, number: int, chunk: bytes) -> bool:
        """Authenticate the sender again and store a chunk; return False if the cleanup removed the upload."""
        self._account(transaction, sender, writes=True)
        return transaction.add_chunk(blob, number, chunk, self.clock.wall())

    def finish(self, sender: UploadRequest, blob: int, size: int, digest: str) -> Reply:
        """Check the upload again and turn its blob into a media file, in one transaction; return the reply."""
        return self._proved(sender, lambda transaction, sender: self._finish(transaction, sender, blob, size, digest))

    def close(self) -> None:
        """Refuse further uploads."""
        self._closed = True

    def _proved(self, sender: UploadRequest, work: Callable[[Transaction, UploadRequest], T | Unproven]) -> T:
        """Return the result of the work, done again after its passwords were verified."""
        while True:
            result = self.storage.submit(lambda transaction: work(transaction, sender), sender.queue).result()
            if not isinstance(result, Unproven):
                return result
            for check in result.checks:
                self._passwords.prove(check, sender.address).result()

    def _begin(self, transaction: Transaction, sender: UploadRequest) -> _Begun | Unproven:
        account = self._account(transaction, sender, writes=True)
        now = self.clock.wall()
        if sender.owner is None and account.limits.min_interval:
            # `Unproven` rolls this back, so an upload retried after password verification takes a single slot.
            take_slot(transaction, account, now)
        admitted = self._admitted(transaction, account, sender)
        if isinstance(admitted, Unproven):
            return admitted
        before, room = admitted
        check_uploads(transaction, account, sender.name)
        return _Begun(account, transaction.add_blob(account.id, now), room, 0 if before is None else before.size)

    def _finish(
        self, transaction: Transaction, sender: UploadRequest, blob: int, size: int, digest: str
    ) -> Reply | Unproven:
        account = self._account(transaction, sender, writes=True)
        admitted = self._admitted(transaction, account, sender, unfinished=size)
        if isinstance(admitted, Unproven):
            return admitted
        before, _ = admitted
        now = self.clock.wall()
        media = Media(
            id=secrets.token_hex(ID_BYTES) if before is None else before.id,
            name=sender.name,
            mimetype=sender.content_type,
            size=size,
            digest=digest,
            blob=blob,
            edit_password=None if before is None else before.edit_password,
            created_at=now if before is None else before.created_at,
            updated_at=now,
        )
        if not transaction.put_media(account.id, media):
            raise _abandoned()
        if sender.owner is not None:
            self._accounts.record(transaction, account, "media file uploaded", sender.name, sender.address)
        return success("File Uploaded", encode_value(described(account, media)))

    def _account(self, transaction: Transaction, sender: UploadRequest, *, writes: bool) -> Account:
        if sender.owner is None:
            return self._accounts.find(transaction, sender.api_key, sender.address, writes=writes)
        return self._accounts.owned(transaction, sender.owner.id, sender.address)

    def _admitted(
        self, transaction: Transaction, account: Account, sender: UploadRequest, unfinished: int | None = None
    ) -> tuple[Media | None, _Room] | Unproven:
        """
        Check passwords and quotas; return the media file to be replaced, if any, and the maximum size.

        `unfinished` is the size of an upload about to finish, None for an upload about to begin.
        """
        before = transaction.media_named(account.id, sender.name)
        if sender.owner is None:
            own = None if before is None else before.edit_password
            subject = (account.id, "media") if own is None else (account.id, "media", sender.name)
            default = account.media_password if own is None else None
            given = (sender.password, (own or default,)), (sender.media_password, (default,))
            if (unproven := self._passwords.require(subject, sender.address, *given)) is not None:
                return unproven
        if before is not None and sender.only_new:
            raise ChangedError(
                "There is a media file of this name already, and it was asked for none; give another name.",
                version=before.digest,
                key=sender.name,
            )
        if before is None:
            check_file_quota(transaction, account, sender.name, is_upload=unfinished is None)
        room = _Room(self.settings.max_media_bytes, "the service's max_media_bytes")
        if (limit := account.limits.max_media_bytes) is not None and limit < room.size:
            room = _Room(limit, "the account's media-bytes")
        counted = transaction.counters(account.id) if account.limits.max_total_bytes is not None else None
        if counted is not None and account.limits.max_total_bytes is not None:
            others = counted.bytes - (unfinished or 0) - (0 if before is None else before.size)
            left = account.limits.max_total_bytes - others
            if left < room.size:
                whose = f"the rest of the account's total-bytes, {account.limits.max_total_bytes:,}"
                remedy = "delete something first" if not left else f"delete more than {-left:,} bytes first"
                room = _Room(left, whose) if left > 0 else _Room(0, whose, remedy)
        check_size(unfinished or 0, room, sender.name)
        return before, room


class _Room(NamedTuple):
    """Maximum size of a media file in bytes, the name of the limit, and what to do about a larger file."""

    size: int
    limit: str
    remedy: str = "send a smaller one"


class _Begun(NamedTuple):
    """Upload in progress: its blob, its maximum size, and the size of the file it replaces in bytes."""

    account: Account
    blob: int
    room: _Room
    replaces: int


class UploadStream:
    """
    Stream of an upload's bytes to the storage, ended by `finish` or `abort`; use it on one thread or task at a time.

    An unfinished upload leaves nothing behind; after a crash the cleanup removes it an hour later.
    """

    def __init__(self, uploads: Uploads, sender: UploadRequest, begun: _Begun) -> None:
        self._uploads = uploads
        self._sender = sender
        self._begun = begun
        self._blob = begun.blob
        self._room = begun.room
        self._size = 0
        self._number = 0
        self._digest = hashlib.sha256()
        self._beginning = b""
        self._gathered = bytearray()
        self._in_flight: deque[Future[bool]] = deque()

    def expect(self, size: int) -> None:
        """Raise `TooBigError` before any bytes are written if `size` exceeds the maximum size of the file."""
        check_size(size, self._room, self._sender.name)

    def write(self, data: bytes) -> Future[bool] | None:
        """
        Accept the next bytes without waiting; if this returns a future, wait for it before the next call.

        Raises `TooBigError` beyond the maximum size of the file, and the error of an earlier chunk.
        """
        self._size += len(data)
        check_size(self._size, self._room, self._sender.name)
        self._beginning += data[: BEGINNING - len(self._beginning)]
        self._gathered += data
        while len(self._gathered) >= CHUNK_BYTES:
            self._store(CHUNK_BYTES)
        while self._in_flight and self._in_flight[0].done():
            self._landed(self._in_flight.popleft())
        return self._in_flight[0] if len(self._in_flight) >= CHUNKS_IN_FLIGHT else None

    def finish(self) -> Reply:
        """Store the remaining bytes, wait for the storage, and return the reply to the upload."""
        if self._gathered:
            self._store(len(self._gathered))
        while self._in_flight:
            self._landed(self._in_flight.popleft())
        content_type = real_type(self._sender.content_type, self._sender.name, self._beginning)
        sender = replace(self._sender, content_type=content_type)
        reply = self._uploads.finish(sender, self._blob, self._size, self._digest.hexdigest())
        self._uploads.sweeper.begin()  # remove the replaced blob
        return reply

    def abort(self) -> None:
        """Discard the upload; a background task removes its chunks."""
        try:
            dropped = self._uploads.storage.submit(
                lambda transaction: transaction.drop_blob(self._blob), self._sender.queue
            )
        except TransportError:
            return  # the storage is closed or takes no writes: a later cleanup removes the chunks
        dropped.add_done_callback(lambda _: self._uploads.sweeper.begin())

    def _landed(self, chunk: Future[bool]) -> None:
        if not chunk.result():
            raise _abandoned()

    def _store(self, size: int) -> None:
        chunk = bytes(memoryview(self._gathered)[:size])
        del self._gathered[:size]
        self._digest.update(chunk)
        number = self._number
        self._number += 1

        def work(transaction: Transaction) -> bool:
            # Check the quota per chunk: concurrent uploads of the account share the same free space.
            check_bytes(transaction, self._begun.account, self._sender.name, size, self._begun.replaces)
            return self._uploads.add_chunk(transaction, self._sender, self._blob, number, chunk)

        self._in_flight.append(self._uploads.storage.submit(work, self._sender.queue, len(chunk)))


def described(account: Account, media: Media) -> dict[str, str | int]:
    """Return the description of a media file for the reply to an upload."""
    return {
        "name": media.name,
        "folder": account.folder,
        "id": media.id,
        "mimetype": known_type(media.mimetype) or media.mimetype,  # older versions stored the client's type unresolved
        "size": media.size,
    }


def _abandoned() -> UnavailableError:
    return UnavailableError("The upload stood still for too long; begin it again.", retry_after=1.0)


def check_type(content_type: str) -> str:
    """Return the client's content type, stripped, or an empty string; raise `BadValueError` if unfit for a header."""
    content_type = content_type.strip()
    if content_type and not _CONTENT_TYPE.fullmatch(content_type):
        raise BadValueError("The file's content type is none; send one such as image/jpeg.")
    return content_type


def check_size(size: int, room: _Room, name: str) -> None:
    """Raise `TooBigError`, naming the limit, if a file of `size` bytes exceeds it."""
    if size > room.size:
        raise TooBigError(f"A media file may take {room.size:,} bytes at most ({room.limit}); {room.remedy}.", key=name)


_log: Final = logging.getLogger(__name__)

#: Seconds without a new chunk until the cleanup treats an upload, of any process, as ended by a crash.
ABANDONED_AFTER: Final = 3600.0
#: Seconds between two checks of a running service for cleanup work left by other processes.
LOOK_EVERY: Final = 10.0


class BlobCleaner:
    """
    Background cleanup of a storage, in steps on the writer's thread until no work is left.

    Removes orphaned blobs and the data of deleted accounts, counts files of accounts with a new quota, and returns
    unused space to the disk.

    Callers' threads use only locks of `with` and `SimpleQueue`: an interrupt inside an `Event` would leave its lock
    behind.
    """

    def __init__(self, storage: Storage, clock: Clock, answers: IdempotencyStore, pause: float = PAUSE) -> None:
        self._storage = storage
        self._clock = clock
        self._steady = SteadyClock(clock, REMEMBERED_FOR)
        self._answers = answers
        self._lock = threading.Lock()
        self._running = False
        self._again = False
        self._is_disk_full = False  # steps are as small as can be then
        self._watches = False
        self._pause = pause
        self._closed = False
        self._end_of_watch: SimpleQueue[None] = SimpleQueue()
        self._waiters: list[SimpleQueue[None]] = []

    def begin_if_needed(self) -> None:
        """Begin the cleanup if there is work; a read decides, so opening a store costs no write."""
        try:
            with self._storage.read() as transaction:
                is_needed = transaction.is_untidy(self._abandoned_before())
        except UnavailableError:
            return  # users of the store report the problem; the next check retries
        if is_needed:
            self.begin()

    def _abandoned_before(self) -> float:
        """Return the time of the last chunk before which an upload is abandoned; after a step forward not at once."""
        return self._steady.read() - ABANDONED_AFTER

    def watch(self) -> None:
        """Check for work every few seconds from now on, on a thread: other processes and expiry create some."""
        with self._lock:
            if self._watches:
                return
            self._watches = True
        threading.Thread(target=self._watch, name="cloudstore-sweeper", daemon=True).start()

    def _watch(self) -> None:
        while not self._closed:
            with suppress(Empty):
                self._end_of_watch.get(timeout=LOOK_EVERY)
                return
            with suppress(UnavailableError):
                self.look()

    def look(self) -> None:
        """Delete expired idempotency replies, begin the cleanup if there is work, and shorten the store's file."""
        now = self._clock.wall()
        with self._storage.read() as transaction:
            works = [self._answers.forget] if self._answers.look(transaction) else []
            if transaction.has_blobs_after(now + MAX_AHEAD):  # by a clock that was wrong; they are abandoned later
                works.append(lambda transaction: transaction.redate_blobs(now + MAX_AHEAD, now))
        for work in works:
            self._storage.submit(work).add_done_callback(lambda done: done.cancelled() or done.exception())
        self.begin_if_needed()
        self._storage.shorten()

    def wait(self) -> None:
        """Wait until the cleanup has finished, or given up until the next time."""
        waiter: SimpleQueue[None] = SimpleQueue()
        with self._lock:
            if not self._running:
                return
            self._waiters.append(waiter)
        waiter.get()

    def _stop(self) -> None:
        """Note that no step follows; call it with the lock."""
        self._running = self._again = self._is_disk_full = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.put(None)

    def begin(self) -> None:
        """Begin the cleanup without waiting; if it is running, run it once more afterwards."""
        try:
            with self._lock:
                self._again = self._running
                if self._running or self._closed:
                    return
                self._running = True
            self._step()
        except BaseException:  # an interrupt: the next `begin` starts the cleanup again
            with self._lock:
                self._stop()
            raise

    def close(self) -> None:
        """Begin no further step; the next service on the store does the rest."""
        with self._lock:
            self._closed = True
        self._end_of_watch.put(None)

    def _step(self) -> None:
        before = self._abandoned_before()

        try:
            self._storage.submit(partial(self._tidied, before)).add_done_callback(self._stepped)
        except UnavailableError as error:
            self._end(error)

    def _stepped(self, step: Future[bool]) -> None:
        if step.cancelled():  # an interrupt of the submitting thread cancelled the step
            self._step()
            return
        error = step.exception()
        if isinstance(error, DiskFullError) and not self._is_disk_full:
            self._is_disk_full = True
            self._step()
            return
        if error is not None:
            self._end(error)
            return
        with self._lock:
            goes_on = (step.result() or self._again) and not self._closed
            self._again = False
            if not goes_on:
                self._stop()
        if not goes_on:
            return
        if self._pause and self._watches:  # in a service; a program's own store has nobody else to wait for
            timer = threading.Timer(self._pause, self._step)
            timer.daemon = True
            with suppress(RuntimeError):  # no thread starts at the interpreter's end
                timer.start()
                return
        self._step()

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._stop()
            if self._closed:
                return  # the service closed meanwhile; the next service does the rest
        with suppress(UnavailableError), self._storage.read() as transaction:
            if not transaction.is_untidy(self._abandoned_before()):
                return  # a write in the same transaction failed, and reports its own error
        _log.warning("What deleted files and accounts left could not be removed: %s", error)

    def _tidied(self, before: float, transaction: Transaction) -> bool:
        now = self._clock.monotonic
        end = now() + STEP
        return transaction.tidy(before, lambda: self._is_disk_full or now() >= end)


_IN_ADDRESS: Final = re.compile(r"[0-9a-f]{32}")


class ReplacedError(UnavailableError):
    """A media file was replaced or deleted while it was read."""


class MediaFiles:
    """Media files of all accounts: upload, find, read, lock and delete; thread-safe. Doesn't close the storage."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: PasswordVerifier,
        usage: AccessCounter,
        sweeper: BlobCleaner,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._accounts = accounts
        self._passwords = passwords
        self._usage = usage
        self._using = threading.Lock()
        self._sweeper = sweeper
        self._sweeper.begin_if_needed()  # a crash may have left orphaned blobs
        self._uploads = Uploads(storage, settings, clock, accounts, passwords, self._sweeper)

    def begin(
        self,
        *,
        name: str,
        content_type: str,
        api_key: str = "",
        password: str | None = None,
        media_password: str | None = None,
        address: str = "",
        owner: Account | None = None,
        only_new: bool = False,
    ) -> UploadStream:
        """Begin an upload, authenticated by API key or by a signed-in owner; raise the errors of `Uploads.begin`."""
        sender = UploadRequest(
            name, check_type(content_type), api_key, password, media_password, address, owner, only_new
        )
        return self._uploads.begin(sender)

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return self._clock.wall()

    def find(self, folder: str, media_id: str) -> tuple[Account, Media] | None:
        """Return the account and media file of a link; None if there is no such file, or its account is disabled."""
        if not (_IN_ADDRESS.fullmatch(folder) and _IN_ADDRESS.fullmatch(media_id)):
            return None
        with self._storage.read() as transaction:
            account = transaction.account_of_folder(folder)
            media = None if account is None or account.disabled else transaction.media(account.id, media_id)
            return None if account is None or media is None else (account, media)

    def use(self, account: Account, media: Media) -> None:
        """Count an access; raise `DailyLimitError` if today's accesses have reached the account's daily limit."""
        if account.limits.max_daily_accesses is None:
            self._usage.count(account.id, "media", media.id)
            return
        with self._using, self._storage.read() as transaction:  # atomic, so that parallel threads keep the limit
            self._usage.admit(transaction, account, "media", media.id)
            self._usage.count(account.id, "media", media.id)

    def rest_of_day(self) -> float:
        """Return the seconds until the daily limit resets, at midnight UTC."""
        now = self._clock.wall()
        return (day_of(now) + 1) * DAY - now

    def chunks(self, media: Media, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """
        Yield the file's bytes from `start` up to, but excluding, `stop`; each piece is read on demand.

        Raises `ReplacedError` if the file was replaced or deleted meanwhile.
        """
        stop = media.size if stop is None else min(stop, media.size)
        while start < stop:
            number, offset = divmod(start, CHUNK_BYTES)
            with self._storage.read() as transaction:
                chunk = transaction.chunk(media.blob, number)
            if chunk is None:
                raise ReplacedError(
                    f"{shorten(media.name)} was replaced while it was read; begin again.", retry_after=1.0
                )
            piece = chunk[offset : offset + stop - start]
            start += len(piece)
            yield piece

    def while_enabled(self, account: Account, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield a file's pieces; raise `UnavailableError` once its account is disabled or deleted."""
        for number, piece in enumerate(pieces):
            if number:  # the caller has just checked for the first piece
                with self._storage.read() as transaction:
                    found = transaction.account(account.id)
                if found is None or found.disabled:
                    raise UnavailableError(
                        "The account was disabled or deleted while its file was read.", retry_after=1.0
                    )
            yield piece

    def typed(self, media: Media) -> tuple[str, bytes]:
        """Return the file's media type and first bytes; resolve types stored unresolved by older versions."""
        beginning = next(self.chunks(media, 0, BEGINNING), b"")
        return real_type(media.mimetype, media.name, beginning), beginning

    def delete(self, account: Account, media_id: str, *, origin: str = COMMAND_LINE) -> None:
        """Delete the account's media file; its link stops working. Raise `NoFileError` if there is none."""

        def work(transaction: Transaction) -> None:
            self._accounts.owned(transaction, account.id, origin)
            media = _found(transaction, account, media_id)
            transaction.delete_media(account.id, media_id)
            transaction.forget_accesses(account.id, "media", media_id)  # safe: ids are never reused
            self._accounts.record(transaction, account, "media file deleted", media.name, origin)

        self._storage.submit(work, dashboard_queue(account.name)).result()
        self._sweeper.begin()

    def set_password(self, account: Account, media_id: str, edit: str | None, *, origin: str = COMMAND_LINE) -> None:
        """Set the password to replace the file, None or empty to clear it; raise `NoFileError` if there is none."""
        hash_ = self._passwords.hash(edit)

        def work(transaction: Transaction) -> None:
            self._accounts.owned(transaction, account.id, origin)
            media = _found(transaction, account, media_id)
            transaction.set_media_password(account.id, media_id, hash_)
            action = f"edit password of a media file {'cleared' if hash_ is None else 'set'}"
            self._accounts.record(transaction, account, action, media.name, origin)

        self._storage.submit(work, dashboard_queue(account.name)).result()

    def named(self, account: Account, name: str) -> Media:
        """Return the account's media file with this name; raise `NoFileError` if there is none."""
        with self._storage.read() as transaction:
            media = transaction.media_named(account.id, name)
        if media is None:
            raise _no_media(name)
        return media

    def hurry(self) -> None:
        """Stop the cleanup; the next service on the store does the rest."""
        self._sweeper.close()

    def close(self) -> None:
        """Refuse further uploads and stop the cleanup; a later cleanup removes unfinished uploads."""
        self._uploads.close()
        self.hurry()


def link(account: Account, media: Media) -> str:
    """Return the URL path of a media file, relative to the service's URL."""
    return media_link(account.folder, media.id, media.name, media.mimetype)


def _found(transaction: Transaction, account: Account, media_id: str) -> Media:
    media = transaction.media(account.id, media_id)
    if media is None:
        raise _no_media(media_id)
    return media


def _no_media(name: str) -> NoFileError:
    return NoFileError(f"There is no media file {shorten(name)}.", key=name)
