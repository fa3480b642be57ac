"""Media uploads: read the multipart body, store the file as it arrives, or spool it to disk within limits."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Final, NamedTuple, Self

from cloudstore_mapping.errors import CloudStoreError, LockedError, ProtocolError, TooBigError, UnavailableError
from cloudstore_mapping.service.security import network_of
from cloudstore_mapping.web.connections import STRANGERS_SHARE, SparseLog
from cloudstore_mapping.web.forms import CONDITION, UploadForm
from cloudstore_mapping.web.http import (
    CLOSE,
    Application,
    BoundedWorkers,
    DisconnectedError,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    answer,
    check_method,
    headers_of,
    outcome,
)

if TYPE_CHECKING:
    from cloudstore_mapping.service.media import UploadStream
    from cloudstore_mapping.service.service import Service
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.web.connections import KnownClients
    from cloudstore_mapping.wire import Reply

#: Maximum spooled bytes in memory, per file and for all files together; more go to temporary files.
IN_MEMORY: Final = 2**18
ALL_IN_MEMORY: Final = 2**24
#: Maximum temporary files of a process; `connections.OTHER_FILES` reserves open files for them.
MAX_FILES: Final = 100
#: Threads for reading and writing temporary files.
SPOOLS_AT_ONCE: Final = 2
#: Seconds until a client refused for lack of space should retry (Retry-After).
WAIT: Final = 10.0
#: What an operator can do if no temporary file can be written.
REMEDY: Final = "free space there, or set TMPDIR to a folder on another disk"


class SpoolSpace:
    """
    Limit of a process's spooled bytes (in total and per address) and temporary files; only for the loop's thread.

    Strangers may use `STRANGERS_SHARE` of the totals; the rest is reserved for addresses with a recently valid API key.
    """

    def __init__(self, settings: Settings, known: KnownClients | None = None) -> None:
        self._most = settings.max_spool_bytes
        self._most_per_address = settings.max_address_spool_bytes
        self._known = known
        # The queue needs no limit: a waiting spool takes no more bytes from its client.
        self.turns = BoundedWorkers(SPOOLS_AT_ONCE, sys.maxsize, "cloudstore-spool")
        self._by_subject: Counter[str] = Counter()
        self.taken = 0
        self.in_memory = 0
        self.files = 0
        self.failures = SparseLog()

    def take(self, subject: str, size: int) -> None:
        """Count `size` more bytes of an address; `UnavailableError` over a limit."""
        if self._by_subject[subject] + size > self._most_per_address:
            raise _no_space("bytes of your address", "the service's max_address_spool_bytes")
        if self.taken + size > self._share(subject, self._most):
            raise _no_space("bytes", "the service's max_spool_bytes")
        self.taken += size
        self._by_subject[subject] += size

    def give_back(self, subject: str, size: int) -> None:
        """Release `size` bytes of an address."""
        self.taken -= size
        self._by_subject[subject] -= size
        if not self._by_subject[subject]:
            del self._by_subject[subject]

    def take_file(self, subject: str) -> None:
        """Count another temporary file; `UnavailableError` over the limit."""
        if self.files >= self._share(subject, MAX_FILES):
            raise _no_space("files", f"at most {MAX_FILES}")
        self.files += 1

    def _share(self, subject: str, most: int) -> int:
        if self._known is None or self._known.has_network(subject):
            return most
        return int(STRANGERS_SHARE * most)


def _no_space(what: str, limit: str) -> UnavailableError:
    return UnavailableError(
        f"Too many {what} wait for an API key or password ({limit}); send these before the file, or try again later.",
        retry_after=WAIT,
    )


class Spool:
    """
    Spool of a file sent before its API key or password; a context manager, deleting the bytes at its exit.

    The temporary file has no name, so it vanishes even if the process is killed.
    """

    def __init__(self, space: SpoolSpace, address: str) -> None:
        self._space = space
        self._subject = network_of(address)
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._has_file = False
        # After a task is cancelled its thread still runs, and must not use a closed file.
        self._lock = threading.Lock()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._space.give_back(self._subject, self.size)
        self._space.in_memory -= len(self._held)
        self._space.files -= self._has_file
        with self._lock:
            if self._file is not None:
                with suppress(OSError):  # from flushing bytes to a full disk
                    self._file.close()

    async def write(self, data: bytes) -> None:
        """Write the next bytes; `UnavailableError` if there is no space for them."""
        self._space.take(self._subject, len(data))
        self.size += len(data)
        self._held += data
        self._space.in_memory += len(data)
        if len(self._held) < IN_MEMORY and self._space.in_memory <= ALL_IN_MEMORY:
            return
        if not self._has_file:
            self._space.take_file(self._subject)
            self._has_file = True
        try:
            await self._space.turns.run(self._put_down, self._subject)
        except OSError as error:
            self._space.failures.warn(f"An upload can't be kept in a temporary file ({error})", REMEDY)
            raise UnavailableError(
                f"The service can't keep a file whose API key or password comes after it ({_reason(error)});"
                " send these before the file, or try again later.",
                retry_after=WAIT,
            ) from error
        self._space.in_memory -= len(self._held)
        self._held.clear()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all bytes in order."""
        if self._file is not None:
            self._file.seek(0)
            while piece := await self._space.turns.run(self._read, self._subject):
                yield piece
        yield bytes(self._held)

    def _put_down(self) -> None:
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="cloudstore-upload-")  # noqa: SIM115 - closed at the exit
            self._file.write(self._held)
            self._file.flush()

    def _read(self) -> bytes:
        with self._lock:
            return b"" if self._file is None or self._file.closed else self._file.read(IN_MEMORY)


def _reason(error: OSError) -> str:
    # The error's own text may list folders of the server, as tried by Python.
    return type(error).__name__ if error.errno is None else os.strerror(error.errno)


class Sender(NamedTuple):
    """
    How the sender of an upload is authenticated, by the fields received so far and the client's address.

    `owner` returns whose upload it is. `begin` begins it; on `LockedError`, the password may be still to come.
    """

    owner: Callable[[UploadForm, str], Awaitable[Hashable]]
    begin: Callable[[UploadForm, str], UploadStream]


#: Threads for uploads waiting for the storage or for password hashing, those of one owner, and maximum queued uploads.
AT_ONCE: Final = 12
OF_ONE: Final = 3
WAITING: Final = 256
#: Maximum bytes of the form besides the file.
AROUND: Final = 2**17
#: Password fields of a form: the file password, and the account's default password for media files.
PASSWORDS: Final = frozenset({"password", "mediaPass"})
# Form fields are text only; the vendor's browser client sends "undefined" for a missing password.
_NO_PASSWORD: Final = frozenset({"", "null", "undefined"})


def upload_turns() -> BoundedWorkers:
    """Return the threads of a way to upload."""
    return BoundedWorkers(AT_ONCE, WAITING, "cloudstore-uploads", of_one=OF_ONE)


def make_upload(service: Service, path: str, space: SpoolSpace) -> Application:
    """Return the ASGI application for uploads with an API key, posted to `path`."""

    def begin(form: UploadForm, address: str) -> UploadStream:
        return service.media.begin(
            api_key=form.fields["key"],
            name=form.filename,
            content_type=form.content_type,
            password=_password(form, "password"),
            media_password=_password(form, "mediaPass"),
            address=address,
            only_new=CONDITION in form.fields,
        )

    async def owner(form: UploadForm, address: str) -> Hashable:
        key = form.fields["key"]
        checked = service.dispatcher.check_key(key, address)
        if checked is not None:
            await outcome(checked)
        return key

    turns = upload_turns()
    sender = Sender(owner, begin)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        async def work(scope: Scope, receive: Receive) -> Reply:
            if scope["path"] != path:
                raise RefusedError(ProtocolError(f"There is nothing here; upload to {path}.", error="NoPath"))
            check_method(scope["method"], ("POST",))
            return await take_upload(scope, receive, service.settings, sender, turns, space, needs="key")

        await answer(scope, receive, send, work)

    return application


async def take_upload(
    scope: Scope,
    receive: Receive,
    settings: Settings,
    sender: Sender,
    turns: BoundedWorkers,
    space: SpoolSpace,
    *,
    needs: str,
) -> Reply:
    """
    Store the upload in a request's body, and return its reply; an incomplete upload is removed from the storage.

    If the field `needs` and any password come before the file, the file's bytes are stored as they arrive. Otherwise
    the file is spooled until the form's end. All passwords must come on the same side of the file.

    Raise `RefusedError` (and close the connection) for errors before the body's end, else `CloudStoreError`.
    """
    headers = headers_of(scope)
    if headers.get(b"content-encoding", b"identity").strip().lower() not in {b"identity", b""}:
        raise RefusedError(ProtocolError("The form can't be compressed; send it as it is.", error="BadType"))
    taking: _Taking | None = None
    try:
        form = UploadForm(headers.get(b"content-type", b"").decode("latin-1"))
        _check_body(int(headers.get(b"content-length", 0)), settings)
        address = scope["client"][0] if scope["client"] else ""
        with Spool(space, address) as spool:
            taking = _Taking(form, address, settings, sender, turns, spool, needs)
            return await taking.take(receive)
    except CloudStoreError as error:
        if taking is not None and taking.is_read:
            raise
        raise RefusedError(error, CLOSE) from error


class _Taking:
    """Upload in progress, while its form arrives."""

    def __init__(
        self,
        form: UploadForm,
        address: str,
        settings: Settings,
        sender: Sender,
        turns: BoundedWorkers,
        spool: Spool,
        needs: str,
    ) -> None:
        self._form = form
        self._settings = settings
        self._address = address
        self._sender = sender
        self._owner: Hashable = None
        self._turns = turns
        self._spool = spool
        self._needs = needs
        self._upload: UploadStream | None = None
        self._is_late = False
        self._received = 0
        self.is_read = False

    async def take(self, receive: Receive) -> Reply:
        try:
            await self._read(receive)
            if self._upload is None:
                self._upload = await self._begun()
                self._upload.expect(self._spool.size)
                async for piece in self._spool.pieces():
                    await _write(self._upload, piece)
            return await self._turns.run(self._upload.finish, self._owner)
        except BaseException:
            if self._upload is not None:
                self._upload.abort()
            raise

    async def _read(self, receive: Receive) -> None:
        """
        Read the form within its timeouts: for silence, for the minimum average rate, and for the end of a spool.

        Time spent in the storage doesn't count.
        """
        now = asyncio.get_running_loop().time
        timeout = self._settings.body_timeout
        deadline = now() + timeout
        last = now() + self._settings.spool_timeout
        more = True
        while more:
            if self._upload is not None or deadline <= last:
                message = await _by(deadline, "body_timeout and min_upload_rate", receive)
            else:
                message = await _by(last, "spool_timeout", receive)
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            body = message.get("body", b"")
            more = message.get("more_body", False)
            self._received += len(body)
            self.is_read = not more
            _check_body(self._received, self._settings)
            # Fast sending earns no credit beyond `timeout`, so a silent client can't hold an upload open.
            deadline = min(deadline + len(body) / self._settings.min_upload_rate, now() + timeout)
            began = now()
            self._form.feed(body)
            await self._store()
            deadline += now() - began
        if not self._form.has_ended:
            raise ProtocolError("The form was cut off before its end; send it again.", error="BadRequest")
        if not self._form.has_file or self._needs not in self._form.fields:
            sentence = f"The form has to hold the field {self._needs!r}, and the file as 'file' with its filename."
            raise ProtocolError(sentence, error="BadRequest")

    async def _begun(self) -> UploadStream:
        self._owner = await self._sender.owner(self._form, self._address)
        return await self._turns.run(partial(self._sender.begin, self._form, self._address), self._owner)

    async def _store(self) -> None:
        pieces = self._form.take()
        before = self._form.before_file
        if self._upload is None and self._needs in before and not self._is_late:
            try:
                self._upload = await self._begun()
            except LockedError:
                if before & PASSWORDS:
                    raise
                self._is_late = True  # its password may come after the file
        for piece in pieces:
            if self._upload is not None:
                await _write(self._upload, piece)
                continue
            if self._spool.size + len(piece) > self._settings.max_media_bytes:
                raise TooBigError(_too_big(self._settings), key=self._form.filename)
            await self._spool.write(piece)


def _password(form: UploadForm, field: str) -> str | None:
    password = form.fields.get(field, "")
    return None if password in _NO_PASSWORD else password


def _check_body(size: int, settings: Settings) -> None:
    if size > settings.max_media_bytes + AROUND:
        raise TooBigError(_too_big(settings), error="BodyTooBig")


def _too_big(settings: Settings) -> str:
    most = settings.max_media_bytes
    return f"A media file may take {most:,} bytes at most (the service's max_media_bytes); send a smaller one."


async def _write(upload: UploadStream, piece: bytes) -> None:
    waiting = upload.write(piece)
    if waiting is not None:
        await outcome(waiting)


async def _by(deadline: float, settings: str, receive: Receive) -> Message:
    try:
        async with asyncio.timeout_at(deadline):
            return await receive()
    except TimeoutError:
        sentence = f"The upload came too slowly (the service's {settings}); send it faster, or a smaller file."
        raise RefusedError(ProtocolError(sentence, error="BadRequest"), CLOSE) from None
