"""What tests of media files share: an upload in one call, and a look at what the storage holds of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from cloudstore_mapping.service.media import UploadStream
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import Account, Media
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import decode_value
from tests.raw_http import Answer, Connection
from tests.service_fakes import settle

UPLOAD = "/upload-2"
BOUNDARY = "----boundary"
#: How often it is looked for something that happens on the writer's thread; a look takes its turn there.
LOOKS = 10_000


class Rows(NamedTuple):
    """How many rows the tables of media have: nothing is left where all are 0."""

    media: int
    blobs: int
    chunks: int


def rows(storage: Storage) -> Rows:
    """Return what there is."""

    def count(transaction: Transaction) -> Rows:
        session = transaction
        return Rows(*[session.row(f"SELECT count(*) FROM {table}")[0] for table in FIELDS])

    return storage.submit(count).result()


FIELDS = Rows._fields


def comes_to(storage: Storage, *wanted: int) -> bool:
    """Whether it comes to these rows, once all is swept that can be."""
    for _ in range(LOOKS):
        settle(storage)
        if rows(storage) == wanted:
            return True
    return False


class Uploader:
    """Uploads to the account "owner" of a service, which this makes."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.storage = service._storage
        self.api_key = service.accounts.create("owner")

    @property
    def account(self) -> Account:
        """The account, as it is now."""
        return self.service.accounts.named("owner")

    def begin(self, name: str = "photo.png", content_type: str = "image/png", **who: Any) -> UploadStream:
        """Begin an upload, by the account's API key where nobody else does it."""
        if "owner" not in who:
            who.setdefault("api_key", self.api_key)
        return self.service.media.begin(name=name, content_type=content_type, **who)

    def upload(self, data: bytes = b"data", *begun: str, **who: Any) -> Any:
        """Upload a file in one piece, and return what the reply says of it."""
        upload = self.begin(*begun, **who)
        try:
            write(upload, data)
            return decode_value(upload.finish().data)  # type: ignore[arg-type]  # there always is some
        except BaseException:
            upload.abort()
            raise

    def find(self, facts: Any) -> Media | None:
        """Return what is at the address that a reply told."""
        found = self.service.media.find(facts["folder"], facts["id"])
        return None if found is None else found[1]

    def content(self, facts: Any) -> bytes:
        """Return the bytes of a file that is there."""
        media = self.find(facts)
        assert media is not None
        return b"".join(self.service.media.chunks(media))


def write(upload: UploadStream, data: bytes) -> None:
    """Write, and wait where that is asked for."""
    waiting = upload.write(data)
    if waiting is not None:
        waiting.result()


def field(name: str, value: str) -> bytes:
    """Return a form's field."""
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def file_part(data: bytes, *, name: str = "photo.png", part: str = "file", content_type: str = "image/png") -> bytes:
    """Return a form's file."""
    head = f'Content-Disposition: form-data; name="{part}"; filename="{name}"\r\nContent-Type: {content_type}\r\n\r\n'
    return head.encode() + data


def form(*parts: bytes) -> tuple[bytes, str]:
    """Return the body of a form, and the header that says so."""
    body = b"".join(f"--{BOUNDARY}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()
    return body, f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"


class Posted:
    """Somebody who uploads over HTTP, to a service at an address."""

    def __init__(self, uploader: Uploader, address: str) -> None:
        self.uploader = uploader
        self.address = address

    def answer(self, body: bytes, header: str, path: str = UPLOAD) -> Answer:
        """Return the answer to a body with a header."""
        with Connection(self.address) as connection:
            connection.start(path, f"{header}Content-Length: {len(body)}\r\n")
            with suppress(ConnectionError):  # it may have been answered before it was sent
                connection.send(body)
            return connection.answer()

    def post(self, *parts: bytes) -> Any:
        """Return the reply to a form of these parts."""
        return self.answer(*form(*parts)).json
