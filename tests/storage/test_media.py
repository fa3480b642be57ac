"""Every storage engine keeps media files: what is known of them, and their bytes in chunks that nobody can lose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import Media
from cloudstore_mapping.service.storage.sql import Transaction

T = TypeVar("T")

NOW = 10_000.0
#: Before it blobs that nobody has were touched for the last time, and after it they weren't.
LONG_AGO = 5_000.0


class Library:
    """The media files of an account in a storage."""

    def __init__(self, storage: Storage, account: int) -> None:
        self.storage = storage
        self.account = account

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Return what some work in a writing transaction returns."""
        return self.storage.submit(work).result()

    def read(self, query: Callable[[Transaction], T]) -> T:
        """Return what a query returns."""
        with self.storage.read() as transaction:
            return query(transaction)

    def blob(self, *chunks: bytes, now: float = NOW) -> int:
        """Add a blob of these chunks."""
        blob = self.write(lambda transaction: transaction.add_blob(self.account, now))
        for number, data in enumerate(chunks):
            assert self.write(lambda transaction, n=number, d=data: transaction.add_chunk(blob, n, d, now))  # type: ignore[misc]
        return blob

    def put(self, media_id: str, name: str, **facts: Any) -> Media:
        """Put a media file, with a new blob where none is given."""
        blob = facts.pop("blob") if "blob" in facts else self.blob(name.encode())
        media = Media(media_id, name, "image/png", len(name), "digest", blob, None, NOW, NOW)._replace(**facts)
        assert self.write(lambda transaction: transaction.put_media(self.account, media))
        return media

    def of(self, media_id: str) -> Media | None:
        """Return a media file."""
        return self.read(lambda transaction: transaction.media(self.account, media_id))

    def chunks(self, blob: int) -> list[bytes]:
        """Return a blob's first chunks, as far as they are there."""
        found = self.read(lambda transaction: [transaction.chunk(blob, number) for number in range(20)])
        return [chunk for chunk in found if chunk is not None]

    def names(self, containing: str = "", after: str | None = None, limit: int = 100) -> list[str]:
        """Return the names of media files."""
        found = self.read(
            lambda transaction: transaction.describe_media(self.account, containing, after=after, limit=limit)
        )
        return [media.name for media in found]

    def sweep(self, chunks: int = 100, before: float = LONG_AGO) -> int:
        """Sweep to the end, and return the number of steps that it took."""
        steps = 1
        while self.write(lambda transaction: transaction.sweep(before, chunks)):
            steps += 1
        return steps


@pytest.fixture
def library(storage: Storage, account: int) -> Library:
    """Return the media files of an account that has none."""
    return Library(storage, account)


def test_what_is_put_is_found(library: Library) -> None:
    """A media file is found by its id and its name, with all that is known of it."""
    media = library.put("a" * 32, "photo.png", edit_password="hash", size=2**40)
    assert library.of("a" * 32) == media
    assert library.read(lambda transaction: transaction.media_named(library.account, "photo.png")) == media
    assert library.of("b" * 32) is None
    assert library.read(lambda transaction: transaction.media_named(library.account, "a" * 32)) is None


def test_chunks_come_back_byte_for_byte(library: Library) -> None:
    """A blob is its chunks in their order, of any bytes and lengths."""
    chunks = [bytes(range(256)) * 2048, b"\0", b"", b"end"]
    blob = library.blob(*chunks)
    assert library.chunks(blob) == chunks
    assert library.read(lambda transaction: transaction.chunk(blob, 4)) is None
    assert library.chunks(blob + 1) == []


def test_a_replaced_file_keeps_its_place(library: Library) -> None:
    """A put under the same id changes all but the time it was made, and leaves only the new bytes."""
    before = library.put("a" * 32, "photo.png")
    after = library.put("a" * 32, "photo.png", mimetype="image/jpeg", size=7, updated_at=NOW + 1, created_at=NOW + 1)
    assert library.of("a" * 32) == after._replace(created_at=NOW)
    library.sweep()
    assert library.chunks(before.blob) == []
    assert library.chunks(after.blob) == [b"photo.png"]


def test_a_deleted_file_leaves_nothing(library: Library) -> None:
    """A delete tells whether there was such a file, and leaves its bytes to the sweep."""
    media = library.put("a" * 32, "photo.png")
    assert library.write(lambda transaction: transaction.delete_media(library.account, "a" * 32))
    assert not library.write(lambda transaction: transaction.delete_media(library.account, "a" * 32))
    assert library.of("a" * 32) is None
    library.sweep()
    assert library.chunks(media.blob) == []


def test_only_what_nobody_has_is_swept(library: Library) -> None:
    """Neither a media file's bytes are swept, however old, nor an upload's that is on its way; what stood still is."""
    kept = library.put("a" * 32, "kept.png", blob=library.blob(b"kept", now=1.0))
    young = library.blob(b"young", now=LONG_AGO)
    library.blob(b"old", now=1.0)
    library.blob(now=1.0)
    assert library.sweep() == 3
    assert library.chunks(kept.blob) == [b"kept"]
    assert library.chunks(young) == [b"young"]
    assert library.sweep() == 1


def test_a_sweep_is_done_in_steps(library: Library) -> None:
    """A step takes away so many chunks at most, the last ones first."""
    blob = library.blob(*[b"%d" % number for number in range(10)], now=1.0)
    for left in (7, 4, 1):
        assert library.write(lambda transaction: transaction.sweep(LONG_AGO, 3))
        assert library.chunks(blob) == [b"%d" % number for number in range(left)]
    assert library.sweep(3) == 2
    assert library.chunks(blob) == []


def test_what_is_being_swept_is_no_file_any_more(library: Library) -> None:
    """Once a step has taken some of a blob, it gets no chunk and no media file: none comes out with a hole."""
    blob = library.blob(b"0", b"1", now=1.0)
    assert library.write(lambda transaction: transaction.sweep(LONG_AGO, 1))
    media = library.put("a" * 32, "photo.png")
    assert not library.write(lambda transaction: transaction.add_chunk(blob, 2, b"2", NOW))
    assert not library.write(
        lambda transaction: transaction.put_media(library.account, media._replace(blob=blob, size=3))
    )
    library.sweep()
    assert not library.write(lambda transaction: transaction.add_chunk(blob, 2, b"2", NOW))
    assert library.of("a" * 32) == media
    assert library.chunks(media.blob) == [b"photo.png"]


def test_a_chunk_keeps_a_blob_from_the_sweep(library: Library) -> None:
    """An upload is as young as its last chunk."""
    blob = library.blob(b"0", now=1.0)
    assert library.write(lambda transaction: transaction.add_chunk(blob, 1, b"1", NOW))
    library.sweep()
    assert library.chunks(blob) == [b"0", b"1"]


def test_a_dropped_blob_is_swept_at_once(library: Library) -> None:
    """It needn't be old, and takes no further chunk; but nothing drops what a media file has."""
    blob = library.blob(b"0")
    media = library.put("a" * 32, "photo.png")
    for dropped in (blob, media.blob):
        library.write(lambda transaction, d=dropped: transaction.drop_blob(d))  # type: ignore[misc]
    assert not library.write(lambda transaction: transaction.add_chunk(blob, 1, b"1", NOW))
    library.sweep()
    assert library.chunks(blob) == []
    assert library.chunks(media.blob) == [b"photo.png"]


def test_a_media_file_s_bytes_never_change(library: Library) -> None:
    """A blob that a media file has gets no chunk, and is no second file's."""
    media = library.put("a" * 32, "photo.png")
    assert not library.write(lambda transaction: transaction.add_chunk(media.blob, 1, b"more", NOW))
    second = media._replace(id="b" * 32, name="second.png")
    assert not library.write(lambda transaction: transaction.put_media(library.account, second))
    assert library.of("b" * 32) is None


def test_a_password_of_its_own(library: Library) -> None:
    """A password is set on a file that is there, and taken off again."""
    library.put("a" * 32, "photo.png")
    for edit in ("hash", None):
        assert library.write(lambda transaction, e=edit: transaction.set_media_password(library.account, "a" * 32, e))  # type: ignore[misc]
        found = library.of("a" * 32)
        assert found is not None
        assert found.edit_password == edit
    assert not library.write(lambda transaction: transaction.set_media_password(library.account, "b" * 32, "hash"))


def test_media_page_by_page(library: Library) -> None:
    """They come in the order of their names' code points, behind one name and so many at most."""
    names = ["B", "a", "a%b", "a_b", "aXb", "é", "\uffff", "😀"]
    for number, name in enumerate(reversed(names)):
        library.put(f"{number:032x}", name)
    assert library.names() == sorted(names)
    assert library.names(limit=3) == sorted(names)[:3]
    assert library.names(after="a_b", limit=2) == ["é", "\uffff"]
    assert library.names(after="😀") == []


def test_a_filter_is_a_literal_substring(library: Library) -> None:
    """Neither capitals nor what SQL or patterns mean something by is anything else than itself."""
    for number, name in enumerate(["a%b", "a_b", "aXb", "'", "A"]):
        library.put(f"{number:032x}", name)
    assert library.names("%") == ["a%b"]
    assert library.names("_") == ["a_b"]
    assert library.names("a") == ["a%b", "aXb", "a_b"]
    assert library.names("'") == ["'"]
    assert library.names("a", after="aXb", limit=1) == ["a_b"]


def test_how_much_they_take(library: Library) -> None:
    """Sizes add up over an account, and the largest come first, by name where they are equal."""
    assert library.read(lambda transaction: transaction.media_bytes(library.account)) == 0
    for number, (name, size) in enumerate([("small", 1), ("b", 2**40), ("a", 2**40)]):
        library.put(f"{number:032x}", name, size=size)
    assert library.read(lambda transaction: transaction.media_bytes(library.account)) == 2**41 + 1
    largest = library.read(lambda transaction: transaction.largest_media(library.account, 2))
    assert largest == [("a", 2**40), ("b", 2**40)]


def test_accounts_share_no_media(library: Library) -> None:
    """The same name and even the same id are another account's own file, and go with that account."""
    mine = library.put("a" * 32, "photo.png")
    other = Library(library.storage, library.write(lambda transaction: transaction.add_account("other", 1.0)).id)
    assert other.of("a" * 32) is None
    assert other.names() == []
    assert not other.write(lambda transaction: transaction.delete_media(other.account, "a" * 32))
    assert not other.write(lambda transaction: transaction.set_media_password(other.account, "a" * 32, "hash"))
    theirs = other.put("a" * 32, "photo.png", size=1)
    assert library.of("a" * 32) == mine
    other.write(lambda transaction: transaction.delete_account(other.account))
    while other.write(lambda transaction: transaction.tidy(LONG_AGO, lambda: True)):
        pass
    assert other.of("a" * 32) is None
    assert other.chunks(theirs.blob) == []
    assert library.of("a" * 32) == mine
    assert library.chunks(mine.blob) == [b"photo.png"]
