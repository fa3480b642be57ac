"""Uploads whose API key or password comes after the file: spooled, within limits, and nothing is left of them."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from cloudstore_mapping.errors import CloudStoreError, TooBigError, UnavailableError
from cloudstore_mapping.service.media import UploadStream
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web import uploads
from cloudstore_mapping.web.connections import KnownClients
from cloudstore_mapping.web.forms import UploadForm
from cloudstore_mapping.web.http import BoundedWorkers, DisconnectedError, Message, RefusedError
from cloudstore_mapping.web.server import background
from cloudstore_mapping.web.uploads import (
    ALL_IN_MEMORY,
    AT_ONCE,
    IN_MEMORY,
    WAITING,
    Sender,
    Spool,
    SpoolSpace,
    take_upload,
)
from cloudstore_mapping.wire import Reply, decode_value
from tests.crash.small_disk import small_disk
from tests.media_fakes import BOUNDARY, Posted, Uploader, comes_to, field, file_part, form, write
from tests.storages import new_storage

MEBIBYTE = 2**20
#: A file that lies on the disk while its key is waited for.
LARGE = 3 * MEBIBYTE


@pytest.fixture
def uploader() -> Iterator[Uploader]:
    """Return somebody with an account."""
    with Service(new_storage()) as service:
        yield Uploader(service)


@pytest.fixture
def posted(uploader: Uploader) -> Iterator[Posted]:
    """Return somebody who uploads over HTTP."""
    with background(uploader.service) as address:
        yield Posted(uploader, address)


class Leaping(asyncio.SelectorEventLoop):
    """A loop whose time can leap forward."""

    leapt = 0.0

    def time(self) -> float:
        """Return the time, with all leaps."""
        return super().time() + self.leapt


class Taking:
    """Uploads taken from messages in place of a socket, in one space, by a loop whose time the test moves."""

    def __init__(self, uploader: Uploader, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.space = SpoolSpace(self.settings)
        self.media = uploader.service.media

    def take(self, *pieces: bytes, address: str = "192.0.2.1", pauses: float = 0.0, ends: bool = True) -> Reply:
        """Take an upload that comes in these pieces, with a pause before each; without an end the client hangs up."""
        left = list(pieces)
        loop = Leaping()

        async def receive() -> Message:
            loop.leapt += pauses
            for _ in range(3):
                await asyncio.sleep(0)
            if not left:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not ends}

        kind = f"multipart/form-data; boundary={BOUNDARY}".encode()
        scope = {"client": (address, 1), "headers": [(b"content-type", kind)]}
        turns = BoundedWorkers(AT_ONCE, WAITING, "test")
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            sender = Sender(self._owner, self._begin)
            return runner.run(take_upload(scope, receive, self.settings, sender, turns, self.space, needs="key"))

    async def busy_write(self, upload: UploadStream, piece: bytes) -> None:
        """Write to a storage that takes longer than any body may."""
        cast("Leaping", asyncio.get_running_loop()).leapt += 40
        write(upload, piece)

    async def _owner(self, form: UploadForm, _address: str) -> str:
        return form.fields["key"]

    def _begin(self, form: UploadForm, address: str) -> UploadStream:
        return self.media.begin(
            api_key=form.fields["key"],
            name=form.filename,
            content_type=form.content_type,
            password=form.fields.get("password"),
            address=address,
        )

    def refusal(self, *pieces: bytes, **options: Any) -> CloudStoreError:
        """Return what refuses such an upload."""
        try:
            self.take(*pieces, **options)
        except RefusedError as refused:
            return refused.error
        except CloudStoreError as error:
            return error
        pytest.fail("It was not refused.")


def cut(body: bytes, size: int) -> list[bytes]:
    """Return a body in pieces."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def file_first(uploader: Uploader, data: bytes, *more: bytes, key: str = "") -> bytes:
    """Return the body of a form whose file comes before its key."""
    return form(file_part(data), field("key", key or uploader.api_key), *more)[0]


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY - 1, IN_MEMORY, IN_MEMORY + 1, LARGE, 20 * MEBIBYTE])
def test_any_size(posted: Posted, size: int) -> None:
    """A file of any size whose key comes after it is stored, byte for byte."""
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    facts = posted.post(file_part(data), field("key", posted.uploader.api_key), field("password", "undefined"))["data"]
    assert facts["size"] == size
    assert posted.uploader.content(facts) == data


def test_the_accounts_limit(posted: Posted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's limit holds once the key has come: what is larger is refused before any of it is stored."""
    uploader = posted.uploader
    uploader.service.accounts.set_limits("owner", max_media_bytes=MEBIBYTE)
    assert posted.post(file_part(bytes(MEBIBYTE)), field("key", uploader.api_key))["error"] is None
    written: list[bytes] = []
    monkeypatch.setattr(UploadStream, "write", lambda _, data: written.append(data))
    reply = posted.post(file_part(bytes(MEBIBYTE + 1)), field("key", uploader.api_key))
    assert reply["error"] == "TooBig"
    assert f"{MEBIBYTE:,} bytes" in reply["message"]
    assert written == []
    assert comes_to(uploader.storage, 1, 1, 2)


def test_the_services_limit(uploader: Uploader) -> None:
    """What is larger than any file may be is refused while it comes, before its key."""
    taking = Taking(uploader, max_media_bytes=MEBIBYTE)
    pieces = cut(file_first(uploader, bytes(LARGE)), 2**16)
    refused = taking.refusal(*pieces[: MEBIBYTE // 2**16 + 2], ends=False)
    assert isinstance(refused, TooBigError)
    assert "(the service's max_media_bytes)" in str(refused)
    assert refused.error in ("TooBig", None)
    assert taking.space.taken == taking.space.in_memory == 0


ENDINGS: dict[str, tuple[Callable[[Uploader], bytes], int | None]] = {
    "stored": (lambda uploader: file_first(uploader, bytes(LARGE)), None),
    "small": (lambda uploader: file_first(uploader, bytes(9)), None),
    "a wrong key": (lambda uploader: file_first(uploader, bytes(LARGE), key="k" * 32), None),
    "no key": (lambda _: form(file_part(bytes(LARGE)))[0], None),
    "a bad field": (lambda uploader: file_first(uploader, bytes(LARGE), field("a", "b" * 9999)), None),
    "cut off": (lambda uploader: file_first(uploader, bytes(LARGE))[:-9], None),
    "hanging up": (lambda uploader: file_first(uploader, bytes(LARGE)), LARGE // 2),
    "hanging up early": (lambda uploader: file_first(uploader, bytes(LARGE)), 2**17),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_all_space_is_given_back(uploader: Uploader, ending: str) -> None:
    """However an upload ends, its bytes count no longer, in all and for its address."""
    make, until = ENDINGS[ending]
    taking = Taking(uploader, max_spool_bytes=LARGE + 1, max_address_spool_bytes=LARGE)
    for _ in range(3):
        with suppress(CloudStoreError, RefusedError, DisconnectedError):
            taking.take(*cut(make(uploader)[:until], 2**16), ends=until is None)
        assert taking.space.taken == taking.space.in_memory == 0
    assert taking.take(*cut(file_first(uploader, bytes(LARGE)), 2**16)).error is None


def held(taking: Taking, size: int, address: str) -> Spool:
    """Return the spool of another upload that is under way."""
    other = Spool(taking.space, address)
    asyncio.run(other.write(bytes(size)))
    return other


def test_the_space_of_all(uploader: Uploader) -> None:
    """What doesn't fit beside others' files is 503 with a sentence; it does once these have ended."""
    taking = Taking(uploader, max_spool_bytes=2 * MEBIBYTE)
    form_ = cut(file_first(uploader, bytes(MEBIBYTE)), 2**16)
    with held(taking, MEBIBYTE + 1, "192.0.2.9"):
        refused = taking.refusal(*form_)
        assert isinstance(refused, UnavailableError)
        assert refused.retry_after == uploads.WAIT
        assert "before the file" in str(refused)
        assert "(the service's max_spool_bytes)" in str(refused)
        key_first, _ = form(field("key", uploader.api_key), file_part(bytes(LARGE)))
        assert taking.take(*cut(key_first, 2**16)).error is None
    assert taking.take(*form_).error is None


def test_the_space_of_an_address(uploader: Uploader) -> None:
    """No address takes more than its share, one client's network of IPv6 being one; others still have room."""
    taking = Taking(uploader, max_spool_bytes=8 * MEBIBYTE, max_address_spool_bytes=2 * MEBIBYTE)
    form_ = cut(file_first(uploader, bytes(MEBIBYTE)), 2**16)
    with held(taking, MEBIBYTE + 1, "2001:db8::1"):
        refused = taking.refusal(*form_, address="2001:db8::2")
        assert isinstance(refused, UnavailableError)
        assert "of your address wait for an API key or password (the service's max_address_spool_bytes)" in str(refused)
        assert taking.take(*form_, address="2001:db8:0:1::1").error is None
        assert taking.take(*form_).error is None


def test_known_clients_keep_a_share(uploader: Uploader) -> None:
    """Strangers may take three quarters of the space; an address from which a right key came may take the rest."""
    taking = Taking(uploader, max_spool_bytes=4 * MEBIBYTE)
    taking.space = SpoolSpace(taking.settings, known := KnownClients())
    known.add(uploader.api_key, "2001:db8::1")
    form_ = cut(file_first(uploader, bytes(MEBIBYTE)), 2**16)
    with held(taking, 3 * MEBIBYTE, "192.0.2.9"):
        assert isinstance(taking.refusal(*form_), UnavailableError)
        assert taking.take(*form_, address="2001:db8::2").error is None


def test_temporary_files_are_few(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are so many temporary files at a time, of which known clients keep a share; more are 503."""
    monkeypatch.setattr(uploads, "MAX_FILES", 4)
    taking = Taking(uploader)
    taking.space = SpoolSpace(taking.settings, known := KnownClients())
    known.add(uploader.api_key, "192.0.2.7")
    form_ = cut(file_first(uploader, bytes(MEBIBYTE)), 2**16)
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(held(taking, IN_MEMORY, f"198.51.100.{number}"))
        assert isinstance(taking.refusal(*form_), UnavailableError)
        assert taking.take(*form_, address="192.0.2.7").error is None
        assert taking.take(*cut(file_first(uploader, bytes(9)), 2**16)).error is None
    assert taking.space.files == 0
    assert taking.take(*form_).error is None


def test_memory_is_bounded(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file takes little memory, and many together no more than their share; the rest lies on the disk."""
    monkeypatch.setattr(uploads, "MAX_FILES", 1000)
    taking = Taking(uploader)
    spools = []
    for _ in range(2 * ALL_IN_MEMORY // (IN_MEMORY // 2)):
        spools.append(held(taking, IN_MEMORY // 2, "192.0.2.1"))
        assert taking.space.in_memory <= ALL_IN_MEMORY
    assert taking.space.taken == 2 * ALL_IN_MEMORY
    with held(taking, LARGE, "192.0.2.1"):
        assert taking.space.in_memory <= ALL_IN_MEMORY
    for each in spools:
        each.__exit__(None, None, None)
    assert taking.space.taken == taking.space.in_memory == 0
    with held(taking, IN_MEMORY - 1, "192.0.2.1"):
        assert taking.space.in_memory == IN_MEMORY - 1
    with held(taking, IN_MEMORY, "192.0.2.1"):
        assert taking.space.in_memory == 0


@pytest.mark.parametrize("key_first", [True, False])
def test_silence_is_not_stretched(uploader: Uploader, key_first: bool) -> None:
    """An upload is held no longer than a body's time without a byte, however much came before."""
    taking = Taking(uploader, body_timeout=30, min_upload_rate=1024)
    parts = [field("key", uploader.api_key), file_part(bytes(MEBIBYTE))]
    body, _ = form(*(parts if key_first else parts[::-1]))
    pieces = [body[: MEBIBYTE // 2], body[MEBIBYTE // 2 :]]
    assert taking.take(*pieces, pauses=29).error is None
    pieces.insert(1, b"")
    assert "slow" in str(taking.refusal(*pieces, pauses=29))
    assert taking.space.taken == 0


def test_a_spool_has_an_end(uploader: Uploader) -> None:
    """A file whose key is to come is refused after `spool_timeout`, however fast it comes; behind its key it isn't."""
    settings = {"body_timeout": 30, "min_upload_rate": 1024, "spool_timeout": 100}
    pieces = cut(file_first(uploader, bytes(MEBIBYTE)), 2**18)
    assert Taking(uploader, **settings).take(*pieces, pauses=19).error is None
    taking = Taking(uploader, **settings)
    assert "slowly (the service's spool_timeout)" in str(taking.refusal(*pieces, pauses=21))
    assert taking.space.taken == taking.space.in_memory == taking.space.files == 0
    key_first, _ = form(field("key", uploader.api_key), file_part(bytes(MEBIBYTE)))
    assert Taking(uploader, **settings).take(*cut(key_first, 2**18), pauses=21).error is None


def test_the_storage_s_time_does_not_count(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that waits for the storage longer than a body may take is not too slow."""
    key_first, _ = form(field("key", uploader.api_key), file_part(bytes(LARGE)))
    taking = Taking(uploader, body_timeout=30, min_upload_rate=1024)
    monkeypatch.setattr(uploads, "_write", taking.busy_write)
    assert taking.take(*cut(key_first, 2**20)).error is None


def test_the_lowest_rate_of_a_spooled_file(uploader: Uploader) -> None:
    """A file whose key is to come may last as long as it keeps the lowest rate, and no longer."""
    body = file_first(uploader, bytes(2**19))
    settings = {"body_timeout": 30, "min_upload_rate": 1024}
    assert Taking(uploader, **settings).take(*cut(body, 21 * 1024), pauses=20).error is None
    refused = Taking(uploader, **settings).refusal(*cut(body, 15 * 1024), pauses=20)
    assert "slowly (the service's body_timeout and min_upload_rate)" in str(refused)


def of_no_use(folder: Path) -> str:
    """Return a file where a folder should be."""
    (folder / "file").touch()
    return str(folder / "file")


PLACES: dict[str, Callable[[Path], str]] = {
    "no folder": lambda folder: str(folder / "absent"),
    "a file": of_no_use,
    "a folder that takes no files": lambda _: "/proc",
}


def check_503(posted: Posted, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Check the answer to a large file before its key, and the log; small ones and those after their key are stored."""
    key = field("key", posted.uploader.api_key)
    answer = posted.answer(*form(file_part(bytes(LARGE)), key))
    assert (answer.status, answer.json["error"], answer.headers["retry-after"]) == (503, "Unavailable", "10")
    assert reason in answer.json["message"]
    assert answer.json["message"].endswith("send these before the file, or try again later.")
    assert "/" not in answer.json["message"]
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert comes_to(posted.uploader.storage, 0, 0, 0)
    assert posted.post(file_part(bytes(IN_MEMORY - 1), name="small.png"), key)["error"] is None
    assert posted.post(key, file_part(bytes(LARGE)))["error"] is None


@pytest.mark.parametrize("place", PLACES)
def test_no_temporary_file(
    posted: Posted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """Where no temporary file can be made a large file before its key is 503 with a sentence, and no traceback."""
    monkeypatch.setattr(tempfile, "tempdir", PLACES[place](tmp_path))
    check_503(posted, caplog, "(")


def test_no_folder_for_temporary_files(
    posted: Posted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python finds no folder for them, the answer doesn't tell which folders there are."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/absent folder"])
    check_503(posted, caplog, "(No such file or directory)")
    assert "/absent folder" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which this system doesn't have")
def test_a_full_device(posted: Posted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when the first byte is written, and still when the file is closed, is 503 with a sentence."""

    class Full(io.FileIO):
        """A file that can't even be closed."""

        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open:
                raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full("/dev/full", "r+"))
    check_503(posted, caplog, "(No space left on device)")


def test_a_full_disk(
    posted: Posted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A disk that is full in the middle of a file is 503 with a sentence, and all of it is free again afterwards."""
    with small_disk(tmp_path / "disk", 2 * MEBIBYTE) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        check_503(posted, caplog, "(No space left on device)")
        assert list(disk.iterdir()) == []
        assert posted.post(file_part(bytes(MEBIBYTE)), field("key", posted.uploader.api_key))["error"] is None


def test_the_reply_comes_while_the_file_is_sent(uploader: Uploader) -> None:
    """A refusal for want of space comes with the first byte for which there is none."""
    taking = Taking(uploader, max_spool_bytes=2**17)
    pieces = cut(file_first(uploader, bytes(LARGE)), 2**16)
    assert isinstance(taking.refusal(*pieces[:4], ends=False), UnavailableError)


def test_what_is_stored_is_what_was_sent(uploader: Uploader) -> None:
    """Bytes in memory and on the disk are put together in their order, whatever the pieces."""
    data = bytes(range(256)) * (LARGE // 256) + b"end"
    for size in (2**14, 99_991, 2**20):
        reply = Taking(uploader).take(*cut(file_first(uploader, data), size))
        facts: Any = decode_value(reply.data)  # type: ignore[arg-type]  # there always is some
        assert uploader.content(facts) == data
