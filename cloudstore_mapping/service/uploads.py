"""Media files on their way in: checked before the first byte, stored piece by piece, and whole or not there at all."""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeVar

from cloudstore_mapping.errors import (
    BadKeyError,
    BadValueError,
    ChangedError,
    TooBigError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.service.limits import check_room, take_turn
from cloudstore_mapping.service.media_types import BEGINNING, known_type, real_type
from cloudstore_mapping.service.names import check_name
from cloudstore_mapping.service.passwords import UnprovenError
from cloudstore_mapping.service.storage.records import Media
from cloudstore_mapping.wire import Reply, encode_value, success

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Accounts
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.passwords import Passwords
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.base import Storage, Transaction
    from cloudstore_mapping.service.storage.records import Account
    from cloudstore_mapping.service.sweeping import Sweeper

T = TypeVar("T")

#: Bytes of each chunk but the last: few enough that its commit is quick, enough that a large file has few.
CHUNK_BYTES: Final = 512 * 2**10
#: Chunks of one upload that may wait for their commit; past it its sender has to wait.
CHUNKS_IN_FLIGHT: Final = 2
#: Random bytes of an id: 32 hexadecimal digits.
ID_BYTES: Final = 16

_CONTENT_TYPE: Final = re.compile(r"[ -~]{1,255}")


@dataclass(frozen=True)
class Sender:
    """
    Who uploads what: with an API key and perhaps a password, or as the account's owner, who is signed in.

    `media_password` opens what the account's default password of media files opens, whatever `password` is.
    `only_new` asks for no other file of this name to be replaced.
    """

    name: str
    content_type: str
    api_key: str = field(repr=False)
    password: str | None = field(repr=False)
    media_password: str | None = field(repr=False)
    address: str
    owner: Account | None
    only_new: bool


class Uploads:
    """Takes uploads for all accounts; threads may share it."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: Passwords,
        sweeper: Sweeper,
    ) -> None:
        self.storage = storage
        self.settings = settings
        self.clock = clock
        self.sweeper = sweeper
        self._accounts = accounts
        self._passwords = passwords
        self._closed = False

    def begin(self, sender: Sender) -> Upload:
        """
        Return where the file's bytes go; waits for the storage, and where there is a password for its hashing.

        Raises what refuses the upload whatever its bytes are: `BadKeyError`, `DisabledError`, `TooOftenError`,
        `BadNameError`, `LockedError`, `ChangedError`, `TooManyFilesError`.
        """
        if self._closed:
            raise UnavailableError("The service is closed; try again later.", retry_after=1.0)
        check_name(sender.name, self.settings.max_name_bytes)
        with self.storage.read() as transaction:
            self._account(transaction, sender, writes=False)  # so that a key of nobody costs no write
        blob, room = self._proved(sender, self._begin)
        return Upload(self, sender, blob, room)

    def finish(self, sender: Sender, blob: int, size: int, digest: str) -> Reply:
        """Make the blob a media file, checked again in the transaction that does it; return the reply to the upload."""
        return self._proved(sender, lambda transaction, sender: self._finish(transaction, sender, blob, size, digest))

    def close(self) -> None:
        """Begin no more uploads."""
        self._closed = True

    def _proved(self, sender: Sender, work: Callable[[Transaction, Sender], T]) -> T:
        while True:
            try:
                return self.storage.submit(lambda transaction: work(transaction, sender)).result()
            except UnprovenError as error:
                for question in error.questions:
                    self._passwords.prove(question, sender.address).result()

    def _begin(self, transaction: Transaction, sender: Sender) -> tuple[int, int]:
        account = self._account(transaction, sender, writes=True)
        now = self.clock.wall()
        if sender.owner is None and account.limits.min_interval:
            # Undone where the upload is refused: one whose password comes late is begun twice.
            take_turn(transaction, account, now)
        _, room = self._admitted(transaction, account, sender)
        return transaction.add_blob(account.id, now), room

    def _finish(self, transaction: Transaction, sender: Sender, blob: int, size: int, digest: str) -> Reply:
        account = self._account(transaction, sender, writes=True)
        before, room = self._admitted(transaction, account, sender)
        check_size(size, room, sender.name)
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

    def _account(self, transaction: Transaction, sender: Sender, *, writes: bool) -> Account:
        if sender.owner is None:
            return self._accounts.find(transaction, sender.api_key, sender.address, writes=writes)
        account = transaction.account(sender.owner.id)
        if account is None:
            raise BadKeyError("The account is there no longer.")
        return account

    def _admitted(self, transaction: Transaction, account: Account, sender: Sender) -> tuple[Media | None, int]:
        """Return the file that would be replaced, and how many bytes the new one may have."""
        before = transaction.media_named(account.id, sender.name)
        if sender.owner is None:
            own = None if before is None else before.edit_password
            subject = (account.id, "media") if own is None else (account.id, "media", sender.name)
            default = account.media_password if own is None else None
            self._passwords.require(subject, (sender.password, (own or default,)), (sender.media_password, (default,)))
        if before is not None and sender.only_new:
            raise ChangedError(
                "There is a media file of this name already, and it was asked for none; give another name.",
                version=before.digest,
                key=sender.name,
            )
        if before is None:
            check_room(transaction, account, sender.name)
        room = min(self.settings.max_media_bytes, account.limits.max_media_bytes or sys.maxsize)
        if account.limits.max_total_bytes is not None:
            others = transaction.media_bytes(account.id) - (0 if before is None else before.size)
            room = min(room, max(0, account.limits.max_total_bytes - others))
        return before, room


class Upload:
    """
    The bytes of a file on their way to the storage, for one thread or task at a time; `finish` or `abort` ends it.

    What is not finished leaves nothing, in the worst case, after a crash, an hour later.
    """

    def __init__(self, uploads: Uploads, sender: Sender, blob: int, room: int) -> None:
        self._uploads = uploads
        self._sender = sender
        self._blob = blob
        self._room = room
        self._size = 0
        self._number = 0
        self._digest = hashlib.sha256()
        self._beginning = b""
        self._gathered = bytearray()
        self._in_flight: deque[Future[bool]] = deque()

    def expect(self, size: int) -> None:
        """Raise `TooBigError` where so many bytes are more than the file may take, before they are written."""
        check_size(size, self._room, self._sender.name)

    def write(self, data: bytes) -> Future[bool] | None:
        """
        Take the next bytes, without waiting; where a future comes back, it has to be waited for before the next ones.

        Raises `TooBigError` past what the file may take, and what made an earlier chunk fail.
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
        """Store the rest, and return the reply to the upload; waits for the storage."""
        if self._gathered:
            self._store(len(self._gathered))
        while self._in_flight:
            self._landed(self._in_flight.popleft())
        content_type = real_type(self._sender.content_type, self._sender.name, self._beginning)
        sender = replace(self._sender, content_type=content_type)
        reply = self._uploads.finish(sender, self._blob, self._size, self._digest.hexdigest())
        self._uploads.sweeper.begin()  # of what it replaced
        return reply

    def abort(self) -> None:
        """Leave nothing of it; it is taken away in the background."""
        try:
            dropped = self._uploads.storage.submit(lambda transaction: transaction.drop_blob(self._blob))
        except TransportError:
            return  # the storage is closed, or takes no writes: what is there is swept later
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
            return transaction.add_chunk(self._blob, number, chunk, self._uploads.clock.wall())

        self._in_flight.append(self._uploads.storage.submit(work))


def described(account: Account, media: Media) -> dict[str, str | int]:
    """Return what the answer to an upload says of the file."""
    return {
        "name": media.name,
        "folder": account.folder,
        "id": media.id,
        "mimetype": known_type(media.mimetype) or media.mimetype,  # older files have what was sent
        "size": media.size,
    }


def _abandoned() -> UnavailableError:
    return UnavailableError("The upload stood still for too long; begin it again.", retry_after=1.0)


def check_type(content_type: str) -> str:
    """Return the type that was sent, empty if none was; raise `BadValueError` for what can't stand in a header."""
    content_type = content_type.strip()
    if content_type and not _CONTENT_TYPE.fullmatch(content_type):
        raise BadValueError("The file's content type is none; send one such as image/jpeg.")
    return content_type


def check_size(size: int, room: int, name: str) -> None:
    """Raise `TooBigError` for a file that is larger than there is room."""
    if size > room:
        raise TooBigError(
            f"A file of this account may take {room:,} bytes at most, with what its others take; send a smaller one.",
            key=name,
        )
