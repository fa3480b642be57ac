"""A media file is found by its address alone, read piece by piece, counted, locked and deleted."""

from __future__ import annotations

import mimetypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.errors import DailyLimitError, NoFileError, ProtocolError, UnavailableError
from cloudstore_mapping.links import extension
from cloudstore_mapping.service.media import CHUNK_BYTES, link
from cloudstore_mapping.service.quotas import DAY
from cloudstore_mapping.service.service import Service
from tests.media_fakes import Uploader, comes_to
from tests.service_fakes import ManualClock
from tests.storages import new_storage


@pytest.fixture
def uploader(service: Service) -> Uploader:
    """Return somebody with an account who uploads to `service`."""
    return Uploader(service)


def events(uploader: Uploader) -> list[tuple[str, str, str]]:
    """Return what was done to files in the account's name, the latest first."""
    with uploader.storage.read() as transaction:
        found = transaction.events(uploader.account.id, 10)
    return [(event.action, event.subject, event.origin) for event in found if event.subject]


def test_an_address_is_a_folder_and_an_id(uploader: Uploader) -> None:
    """Only the two together lead to a file: neither parts of them, nor another account's folder."""
    facts = uploader.upload()
    files = uploader.service.media
    uploader.service.accounts.create("other")
    other = uploader.service.accounts.named("other").folder
    folder, media_id = facts["folder"], facts["id"]
    found = files.find(folder, media_id)
    assert found is not None
    assert (found[0], found[1].name) == (uploader.account, "photo.png")
    for wrong in (
        (other, media_id),
        (media_id, folder),
        (folder, "0" * 32),
        (folder, media_id[:-1]),
        (folder, media_id.upper() if media_id.upper() != media_id else "A" * 32),
        (folder, f"{media_id}\n"),
        (folder, ""),
        ("", media_id),
    ):
        assert files.find(*wrong) is None


def test_addresses_can_t_be_guessed(uploader: Uploader) -> None:
    """Each file has 128 bits of its own, from whatever its name and bytes are."""
    ids = {uploader.upload(b"data", f"{number}.png")["id"] for number in range(50)}
    assert len(ids) == 50
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)
    assert len({each[:4] for each in ids}) > 40


def test_an_account_that_is_switched_off_shows_nothing(uploader: Uploader) -> None:
    """Its addresses lead nowhere, until it is switched on."""
    facts = uploader.upload()
    uploader.service.accounts.set_disabled("owner", disabled=True)
    assert uploader.find(facts) is None
    uploader.service.accounts.set_disabled("owner", disabled=False)
    assert uploader.find(facts) is not None


@pytest.mark.parametrize(
    ("name", "mimetype", "end"),
    [
        ("photo.PNG", "image/jpeg", "png"),
        ("a.tar.gz", "application/gzip", "gz"),
        ("../.htaccess", "text/plain", "htaccess"),
        ("photo", "image/png", "png"),
        ("photo.", "image/png; x=y", "png"),
        ("x.é", "application/pdf", "pdf"),
        ("x.png/../../y", "application/pdf", "pdf"),
        ("x." + "y" * 17, "no/such-type", "bin"),
        ("x\ny.m4a", "audio/mp4", "m4a"),
    ],
)
def test_a_link_ends_like_the_name(uploader: Uploader, name: str, mimetype: str, end: str) -> None:
    """A plain extension is the name's, else the type's, else none that says anything; the rest of a name is in none."""
    facts = uploader.upload(b"data", name, mimetype)
    media = uploader.find(facts)
    assert media is not None
    assert link(uploader.account, media) == f"/files/{facts['folder']}/{facts['id']}.{end}"


def test_no_type_makes_a_link_that_leads_nowhere() -> None:
    """Whatever a system guesses from a type: ``.c++``, say, stands in no link."""
    for mimetype in (*mimetypes.types_map.values(), *mimetypes.common_types.values()):
        assert re.fullmatch(r"[a-z0-9]{1,16}", extension("photo", mimetype))


def test_any_part_of_a_file(uploader: Uploader) -> None:
    """From a byte on to before another, across chunks and past the end."""
    data = bytes(number % 251 for number in range(2 * CHUNK_BYTES + 10))
    media = uploader.find(uploader.upload(data))
    assert media is not None
    edges = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, len(data) - 1, len(data))
    for start in edges:
        for stop in (*edges, len(data) + 100, None):
            pieces = list(uploader.service.media.chunks(media, start, stop))
            assert b"".join(pieces) == data[start:stop]
            assert all(0 < len(piece) <= CHUNK_BYTES for piece in pieces)


def test_a_file_that_is_replaced_while_it_is_read(uploader: Uploader) -> None:
    """Nobody gets the beginning of one file and the end of another."""
    media = uploader.find(uploader.upload(b"1" * 3 * CHUNK_BYTES))
    assert media is not None
    pieces = uploader.service.media.chunks(media)
    assert next(pieces) == b"1" * CHUNK_BYTES
    uploader.upload(b"2" * 3 * CHUNK_BYTES)
    assert comes_to(uploader.storage, 1, 1, 3)
    with pytest.raises(UnavailableError, match="replaced"):
        next(pieces)


def test_a_deleted_file_is_gone(uploader: Uploader) -> None:
    """Its address leads nowhere, its bytes are swept, its name may be another file's, and it is an event."""
    facts = uploader.upload(b"x" * 9 * CHUNK_BYTES)
    files = uploader.service.media
    files.use(uploader.account, files.named(uploader.account, "photo.png"))
    uploader.service.usage.flush()
    files.delete(uploader.account, facts["id"], origin="192.0.2.1")
    assert uploader.find(facts) is None
    assert comes_to(uploader.storage, 0, 0, 0)
    with pytest.raises(NoFileError):
        files.delete(uploader.account, facts["id"])
    assert events(uploader) == [("media file deleted", "photo.png", "192.0.2.1")]
    with uploader.storage.read() as transaction:
        assert transaction.accesses(uploader.account.id, "media", facts["id"]) is None
    assert uploader.upload()["id"] != facts["id"]


def test_a_lock_is_an_event_without_its_password(uploader: Uploader) -> None:
    """Who set or cleared it is told, and nothing of it."""
    facts = uploader.upload()
    files = uploader.service.media
    files.set_password(uploader.account, facts["id"], "secret")
    files.set_password(uploader.account, facts["id"], None, origin="192.0.2.1")
    assert events(uploader) == [
        ("edit password of a media file cleared", "photo.png", "192.0.2.1"),
        ("edit password of a media file set", "photo.png", "command line"),
    ]
    with pytest.raises(NoFileError):
        files.set_password(uploader.account, "0" * 32, "secret")
    with pytest.raises(ProtocolError, match="longer than"):
        files.set_password(uploader.account, facts["id"], "x" * 1025)


def test_another_account_s_file(uploader: Uploader) -> None:
    """Its id means nothing here: it can be neither deleted, nor locked, nor named."""
    facts = uploader.upload()
    uploader.service.accounts.create("other")
    other = uploader.service.accounts.named("other")
    files = uploader.service.media
    for attempt in (
        lambda: files.delete(other, facts["id"]),
        lambda: files.set_password(other, facts["id"], "mine"),
        lambda: files.named(other, "photo.png"),
    ):
        with pytest.raises(NoFileError):
            attempt()
    uploader.upload(b"still without a password")
    assert uploader.content(facts) == b"still without a password"


def test_a_file_is_used_as_often_as_its_account_allows(uploader: Uploader, clock: ManualClock) -> None:
    """Then it says until when, and at midnight UTC it may be used again; a replaced file is the same one."""
    media = uploader.find(uploader.upload())
    other = uploader.find(uploader.upload(b"", "other.png"))
    assert media is not None
    assert other is not None
    uploader.service.accounts.set_limits("owner", max_daily_accesses=2)
    account, files = uploader.account, uploader.service.media
    files.use(account, media)
    uploader.upload(b"replaced")
    files.use(account, media)
    with pytest.raises(DailyLimitError, match="allows 2"):
        files.use(account, media)
    files.use(account, other)
    assert files.rest_of_day() == DAY - clock.seconds % DAY
    clock.advance(files.rest_of_day())
    files.use(account, media)
    assert files.rest_of_day() == DAY


def test_many_at_once_don_t_pass_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads that use a file only one at a time is between what is asked and what is counted."""
    with Service(new_storage(tmp_path / "store.db")) as service:  # in memory readers take turns anyway
        uploader = Uploader(service)
        media = uploader.find(uploader.upload())
        assert media is not None
        service.accounts.set_limits("owner", max_daily_accesses=100)
        account, admit, count = uploader.account, service.usage.admit, service.usage.count
        between: list[int] = []
        seen: list[int] = []

        def admitting(*asked: Any) -> None:
            admit(*asked)
            between.append(1)
            for _ in range(10):
                os.sched_yield()  # so that other threads come between, if they can
            seen.append(len(between))

        def counting(*used: Any) -> None:
            count(*used)
            between.pop()

        def use(_: int) -> None:
            with suppress(DailyLimitError):
                service.media.use(account, media)

        monkeypatch.setattr(service.usage, "admit", admitting)
        monkeypatch.setattr(service.usage, "count", counting)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use, range(200)))
        assert seen == [1] * 100
