"""A media file that comes in is whole in the end, replaces one of its name, and leaves nothing where it is refused."""

from __future__ import annotations

import hashlib

import pytest

from cloudstore_mapping.errors import (
    BadKeyError,
    BadNameError,
    BadValueError,
    DisabledError,
    NoFileError,
    UnavailableError,
)
from cloudstore_mapping.service.idempotency import IdempotencyStore
from cloudstore_mapping.service.media import ABANDONED_AFTER, CHUNK_BYTES, CHUNKS_IN_FLIGHT, BlobCleaner, UploadStream
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sql import MediaStatements
from cloudstore_mapping.wire import decode_value, encode_reply
from tests.media_fakes import Uploader, comes_to, rows, write
from tests.service_fakes import Held, ManualClock


@pytest.fixture
def uploader(service: Service) -> Uploader:
    """Return somebody with an account who uploads to `service`."""
    return Uploader(service)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_what_comes_in_comes_back(uploader: Uploader, size: int) -> None:
    """Of any size and in any pieces: all its bytes, their number and their SHA-256."""
    data = bytes(number % 251 for number in range(size))
    facts = uploader.upload(data)
    upload = uploader.begin("pieces")
    for start in range(0, size, 100_001):
        write(upload, data[start : start + 100_001])
    upload.finish()
    for media in (uploader.find(facts), uploader.service.media.named(uploader.account, "pieces")):
        assert media is not None
        assert (media.size, media.digest) == (size, hashlib.sha256(data).hexdigest())
        assert b"".join(uploader.service.media.chunks(media)) == data


def test_the_reply_tells_where_it_is(uploader: Uploader) -> None:
    """As the vendor's service tells it: the name, the account's folder, a new id, the type and the size."""
    upload = uploader.begin("photo.png", "image/png")
    write(upload, b"12345")
    reply = upload.finish()
    assert reply.error is None
    assert decode_value(encode_reply(reply))["message"] == "File Uploaded"
    facts, other = uploader.upload(b"123", "other", "text/plain"), uploader.upload(b"12345")
    assert other == {
        "name": "photo.png",
        "folder": uploader.account.folder,
        "id": other["id"],
        "mimetype": "image/png",
        "size": 5,
    }
    assert len(other["id"]) == 32
    assert int(other["id"], 16) != int(facts["id"], 16)


def test_the_same_name_replaces(uploader: Uploader, clock: ManualClock) -> None:
    """The file stays where it was, with its password and the time it was made; the bytes before are gone."""
    facts = uploader.upload(b"before" * CHUNK_BYTES)
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    before = uploader.find(facts)
    clock.advance(5)
    again = uploader.upload(b"after", "photo.png", "image/jpeg", password="secret")
    assert again == {**facts, "mimetype": "image/jpeg", "size": 5}
    after = uploader.find(facts)
    assert before is not None
    assert after is not None
    assert (after.edit_password, after.created_at) == (before.edit_password, before.created_at)
    assert after.updated_at == before.updated_at + 5
    assert uploader.content(facts) == b"after"
    assert comes_to(uploader.storage, 1, 1, 1)


def test_nothing_is_there_before_the_end(uploader: Uploader) -> None:
    """Until an upload is finished its name has what it had before, or nothing."""
    upload = uploader.begin()
    write(upload, b"x" * 2 * CHUNK_BYTES)
    with pytest.raises(NoFileError):
        uploader.service.media.named(uploader.account, "photo.png")
    upload.finish()
    replacing = uploader.begin()
    write(replacing, b"y" * 2 * CHUNK_BYTES)
    assert uploader.service.media.named(uploader.account, "photo.png").size == 2 * CHUNK_BYTES
    replacing.abort()
    assert comes_to(uploader.storage, 1, 1, 2)


def test_an_upload_that_is_given_up_leaves_nothing(uploader: Uploader) -> None:
    """Whether chunks of it are stored, on their way, or none came yet."""
    uploader.begin().abort()
    stored, on_its_way = uploader.begin(), uploader.begin("other")
    write(stored, b"x" * 5 * CHUNK_BYTES)
    held = Held(uploader.storage)
    on_its_way.write(b"x" * 5 * CHUNK_BYTES)
    stored.abort()
    on_its_way.abort()
    held.go.set()
    assert comes_to(uploader.storage, 0, 0, 0)


def test_a_sender_waits_for_the_storage(uploader: Uploader) -> None:
    """No more than a few chunks wait for their commit: past that a write returns what has to be waited for."""
    upload = uploader.begin()
    held = Held(uploader.storage)
    waiting = [upload.write(b"x" * CHUNK_BYTES) for _ in range(CHUNKS_IN_FLIGHT)]
    assert [each is None for each in waiting] == [True] * (CHUNKS_IN_FLIGHT - 1) + [False]
    assert upload.write(b"y") is waiting[-1]
    held.go.set()
    assert waiting[-1] is not None
    waiting[-1].result()
    upload.finish()
    assert uploader.service.media.named(uploader.account, "photo.png").size == CHUNKS_IN_FLIGHT * CHUNK_BYTES + 1


def test_two_of_one_name_at_once(uploader: Uploader) -> None:
    """Each is whole; the one that is finished last stands, at the address that the first was told."""
    one, two = uploader.begin(), uploader.begin()
    for number in range(3):
        write(one, b"1" * CHUNK_BYTES)
        write(two, b"2" * (CHUNK_BYTES + number))
    first, second = one.finish(), two.finish()
    assert first.error is second.error is None
    facts = uploader.upload(b"3", "other")
    media = uploader.service.media.named(uploader.account, "photo.png")
    assert b"".join(uploader.service.media.chunks(media)) == b"2" * (3 * CHUNK_BYTES + 3)
    assert media.id.encode() in bytes(first.data)  # type: ignore[arg-type]
    assert media.id.encode() in bytes(second.data)  # type: ignore[arg-type]
    assert facts["id"] != media.id
    assert comes_to(uploader.storage, 2, 2, 5)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "C:\\x\\y", 'a"b\r\nc', "\u202egnp.exe", "é", "e\u0301", "n" * 1024]
)
def test_a_name_is_data(uploader: Uploader, name: str) -> None:
    """What looks like a path or worse is kept as it is, and stands in no address."""
    facts = uploader.upload(b"data", name)
    assert facts["name"] == name
    assert uploader.service.media.named(uploader.account, name).id == facts["id"]


@pytest.mark.parametrize("name", ["", "a\0b", "n" * 1025, "é" * 513])
def test_what_is_no_name(uploader: Uploader, name: str) -> None:
    """A name is as for data files: not empty, without NUL, and not too long."""
    with pytest.raises(BadNameError):
        uploader.upload(b"data", name)
    assert rows(uploader.storage) == (0, 0, 0)


def test_a_type_is_what_can_stand_in_a_header(uploader: Uploader) -> None:
    """Whatever it says; one that isn't given is that of bytes of any kind."""
    assert uploader.upload(b"data", "a", "text/html; charset=x")["mimetype"] == "text/html; charset=x"
    assert uploader.upload(b"data", "b", " ")["mimetype"] == "application/octet-stream"
    for bad in ("text/html\r\nSet-Cookie: a=b", "é", "x" * 256, "\0"):
        with pytest.raises(BadValueError):
            uploader.upload(b"data", "c", bad)
    assert rows(uploader.storage) == (2, 2, 2)


def test_who_may_not(uploader: Uploader) -> None:
    """A key of nobody and one of an account that is switched off are refused before the first byte."""
    with pytest.raises(BadKeyError):
        uploader.begin(api_key="k" * 32)
    uploader.service.accounts.set_disabled("owner", disabled=True)
    with pytest.raises(DisabledError):
        uploader.begin()
    assert rows(uploader.storage) == (0, 0, 0)


def test_who_may_no_longer(uploader: Uploader) -> None:
    """A key that ended, or an account that was switched off or deleted during the upload, stores nothing."""
    accounts = uploader.service.accounts
    upload = uploader.begin()
    write(upload, b"x" * CHUNK_BYTES)
    accounts.set_disabled("owner", disabled=True)
    with pytest.raises(DisabledError):
        upload.finish()
    upload.abort()
    accounts.set_disabled("owner", disabled=False)
    uploads = [uploader.begin(), uploader.begin(owner=uploader.account)]
    accounts.delete("owner")
    for upload in uploads:
        write(upload, b"x")
        with pytest.raises((BadKeyError, UnavailableError)):
            upload.finish()
        upload.abort()
    assert comes_to(uploader.storage, 0, 0, 0)


def test_an_owner_s_upload_is_an_event(uploader: Uploader) -> None:
    """What is uploaded in the dashboard is in the list of events, with the address it came from."""
    uploader.upload(b"data", owner=uploader.account, address="192.0.2.1")
    uploader.upload(b"data", "by key")
    with uploader.storage.read() as transaction:
        events = transaction.events(uploader.account.id, 10)
    assert [event[1:] for event in events if "upload" in event.action] == [
        ("media file uploaded", "photo.png", "192.0.2.1")
    ]


@pytest.mark.sqlite("writes come one after another")
def test_an_upload_that_stood_still_has_no_holes(uploader: Uploader, clock: ManualClock) -> None:
    """One that was swept in the meantime is told so, whenever it goes on, and is no file in the end."""
    for more in (b"", b"x" * CHUNK_BYTES):
        upload = uploader.begin()
        for _ in range(20):
            write(upload, b"x" * CHUNK_BYTES)
        uploader.storage.submit(lambda _: None, upload._sender.queue).result()  # after it all are stored
        clock.advance(ABANDONED_AFTER + 1)
        BlobCleaner(uploader.storage, clock, IdempotencyStore(clock)).begin()
        rows(uploader.storage)  # after the first of its steps
        upload.write(more)
        with pytest.raises(UnavailableError, match="begin it again"):
            upload.finish()
        upload.abort()
    assert comes_to(uploader.storage, 0, 0, 0)


def test_a_storage_that_fails(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be stored is no file: the next write, or the end, says so."""

    def full(*_: object) -> bool:
        raise UnavailableError("The store's disk is full.")

    for writes in (1, 3):
        upload = uploader.begin()
        with monkeypatch.context() as patch:
            patch.setattr(MediaStatements, "add_chunk", full)
            with pytest.raises(UnavailableError, match="full"):
                _all_of(upload, writes)
        upload.abort()
    assert comes_to(uploader.storage, 0, 0, 0)


def _all_of(upload: UploadStream, chunks: int) -> None:
    for _ in range(chunks):
        write(upload, b"x" * CHUNK_BYTES)
    upload.finish()


def test_a_service_that_is_closed(uploader: Uploader) -> None:
    """It begins no upload, and one that was begun fails, with nothing stored."""
    upload = uploader.begin()
    uploader.service.close()
    with pytest.raises(UnavailableError):
        uploader.begin()
    write(upload, b"x")
    with pytest.raises(UnavailableError):
        upload.finish()
    upload.abort()
