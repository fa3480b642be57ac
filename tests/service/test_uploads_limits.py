"""An upload is held against passwords and limits when it begins, and again in the transaction that ends it."""

from __future__ import annotations

import pytest

from cloudstore_mapping.errors import LockedError, ProtocolError, TooBigError, TooManyFilesError, TooOftenError
from cloudstore_mapping.service.media import CHUNK_BYTES
from cloudstore_mapping.service.quotas import DRIFT, JITTER
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from tests.media_fakes import Uploader, comes_to, write
from tests.service_fakes import Asker, FakeHasher, ManualClock, settle
from tests.storages import new_storage


@pytest.fixture
def uploader(service: Service) -> Uploader:
    """Return somebody with an account who uploads to `service`."""
    return Uploader(service)


def test_a_locked_file_is_replaced_with_its_password(uploader: Uploader) -> None:
    """Without it, or with another, nothing changes; the account's owner, who is signed in, needs none."""
    facts = uploader.upload(b"before")
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    for password in (None, "", "wrong"):
        with pytest.raises(LockedError):
            uploader.begin(password=password)
    assert uploader.content(facts) == b"before"
    uploader.upload(b"after", password="secret")
    assert uploader.content(facts) == b"after"
    uploader.upload(b"by the owner", owner=uploader.account)
    assert uploader.content(facts) == b"by the owner"
    assert uploader.upload(b"another's name", "other.png")["size"] == 14
    uploader.service.media.set_password(uploader.account, facts["id"], "")
    uploader.upload(b"unlocked")
    assert comes_to(uploader.storage, 2, 2, 2)


def test_the_default_password_is_for_files_without_their_own(uploader: Uploader) -> None:
    """It is asked for new names as well; a file's own password is asked in its place."""
    facts = uploader.upload(b"before")
    uploader.service.set_default_passwords("owner", data="for data", media="default")
    for password in (None, "for data"):
        with pytest.raises(LockedError):
            uploader.begin(password=password)
        with pytest.raises(LockedError):
            uploader.begin("new.png", password=password)
    uploader.upload(b"after", password="default")
    uploader.upload(b"after", "new.png", password="default")
    uploader.service.media.set_password(uploader.account, facts["id"], "own")
    with pytest.raises(LockedError):
        uploader.begin(password="default")
    uploader.upload(b"at last", password="own")
    assert uploader.content(facts) == b"at last"


def test_a_password_set_meanwhile_is_in_force(uploader: Uploader) -> None:
    """An upload that began before the lock was set can't end after it, unless its password is the right one."""
    facts = uploader.upload(b"before")
    one, two = uploader.begin(), uploader.begin(password="secret")
    write(one, b"one")
    write(two, b"two")
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    with pytest.raises(LockedError):
        one.finish()
    one.abort()
    assert uploader.content(facts) == b"before"
    two.finish()
    assert uploader.content(facts) == b"two"
    assert comes_to(uploader.storage, 1, 1, 1)


def test_guesses_are_slowed(uploader: Uploader, hasher: FakeHasher) -> None:
    """Five wrong passwords from one address, and it has to wait; another has not. A long one isn't even hashed."""
    facts = uploader.upload(b"before")
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    with pytest.raises(ProtocolError, match="longer than"):
        uploader.begin(password="x" * 1025)
    assert hasher.checks == 0
    for number in range(5):
        with pytest.raises(LockedError):
            uploader.begin(password=f"guess {number}", address="192.0.2.1")
    with pytest.raises(TooOftenError):
        uploader.begin(password="secret", address="192.0.2.1")
    uploader.upload(b"after", password="secret", address="192.0.2.2")


def test_an_unfinished_upload_in_the_way(uploader: Uploader) -> None:
    """An account whose limit of files is used up by an upload is told to wait, for there is nothing to delete."""
    uploader.service.accounts.set_limits("owner", max_files=1)
    late = uploader.begin("late.png")
    with pytest.raises(TooManyFilesError, match=r"holds 1 file with .*; wait until an upload ends; one that a crash"):
        uploader.begin("other.png")
    late.abort()


def test_data_and_media_are_one_number_of_files(uploader: Uploader) -> None:
    """Past it a new name is refused, of either kind, and an unfinished upload is a file; one may be replaced."""
    uploader.service.accounts.set_limits("owner", max_files=2)
    ask = Asker(uploader.service, uploader.api_key)
    uploader.upload(b"1")
    late = uploader.begin("late.png")
    with pytest.raises(TooManyFilesError, match=r"holds 2 files with its unfinished uploads and may hold 2 \(files"):
        uploader.begin("early.png")
    ask.save("data", 1)
    with pytest.raises(TooManyFilesError, match=r"holds 3 files .* may hold 2 "):
        uploader.begin("other.png")
    with pytest.raises(TooManyFilesError):
        uploader.begin("other.png", owner=uploader.account)
    with pytest.raises(TooManyFilesError):
        late.finish()
    late.abort()
    assert ask.save("other", 1).error == "TooManyFiles"
    uploader.upload(b"2")
    ask.delete("data")
    uploader.upload(b"3", "other.png")
    assert comes_to(uploader.storage, 2, 2, 2)


def test_a_file_of_an_account_with_a_limit(uploader: Uploader) -> None:
    """It ends at the first byte over the limit, which the error names; a file of just that size is stored."""
    uploader.service.accounts.set_limits("owner", max_media_bytes=CHUNK_BYTES + 1)
    uploader.upload(b"x" * (CHUNK_BYTES + 1))
    upload = uploader.begin("other.png")
    write(upload, b"x" * CHUNK_BYTES)
    with pytest.raises(TooBigError, match=f"{CHUNK_BYTES + 1:,} bytes") as caught:
        write(upload, b"xx")
    assert caught.value.key == "other.png"
    upload.abort()
    assert comes_to(uploader.storage, 1, 1, 2)


def test_all_files_of_an_account_together(uploader: Uploader) -> None:
    """What a file may take is what the others leave, without the one that it replaces, at the begin and at the end."""
    uploader.service.accounts.set_limits("owner", max_total_bytes=10)
    uploader.upload(b"1234")
    with pytest.raises(TooBigError, match="6 bytes"):
        uploader.upload(b"1234567", "other.png")
    uploader.upload(b"1234567890")
    with pytest.raises(TooBigError, match="0 bytes"):
        uploader.upload(b"1", "other.png")
    uploader.upload(b"", "other.png")
    uploader.upload(b"1")
    one, two = uploader.begin("other.png"), uploader.begin("third.png")
    write(one, b"12345")
    write(two, b"12345")
    one.finish()
    with pytest.raises(TooBigError, match="may hold 10"):
        two.finish()
    two.abort()
    assert comes_to(uploader.storage, 2, 2, 2)


def test_a_file_of_a_service_with_a_limit(clock: ManualClock) -> None:
    """A service's own limit holds for accounts without one as well, and for such that may more."""
    with Service(new_storage(), Settings(max_media_bytes=5), clock) as service:
        uploader = Uploader(service)
        for limit in (None, 10):
            service.accounts.set_limits("owner", max_media_bytes=limit)
            uploader.upload(b"12345")
            with pytest.raises(TooBigError, match="5 bytes"):
                uploader.upload(b"123456")


def test_uploads_keep_the_account_s_pace(uploader: Uploader, clock: ManualClock) -> None:
    """They take turns with all other requests; the owner's own, and one that was refused, take none."""
    facts = uploader.upload(b"before")
    uploader.service.media.set_password(uploader.account, facts["id"], "secret")
    uploader.service.accounts.set_limits("owner", min_interval=60)
    with pytest.raises(LockedError):
        uploader.begin()
    uploader.upload(password="secret")
    with pytest.raises(TooOftenError) as caught:
        uploader.begin("other.png")
    assert caught.value.retry_after == pytest.approx(60 - JITTER - 60 * DRIFT)
    uploader.upload(owner=uploader.account)
    ask = Asker(uploader.service, uploader.api_key)
    assert ask.load("data").error == "TooOften"
    clock.advance(60)
    assert ask.load("data").error == "NoFile"
    with pytest.raises(TooOftenError):
        uploader.begin("other.png")
    clock.advance(60)
    uploader.upload(b"after", "other.png")
    assert comes_to(uploader.storage, 2, 2, 2)


def test_unfinished_uploads_take_space(uploader: Uploader) -> None:
    """What unfinished uploads have brought counts, each at each chunk; when they end, there is room again."""
    uploader.service.accounts.set_limits("owner", max_total_bytes=3 * CHUNK_BYTES)
    begun = [uploader.begin(f"{number}.png") for number in range(5)]
    for upload in begun:
        write(upload, b"x" * CHUNK_BYTES)
        settle(uploader.storage)  # behind the chunk
    with pytest.raises(TooBigError, match="with unfinished uploads"):
        write(begun[3], b"")  # an earlier chunk that failed is told of here
    with uploader.storage.read() as transaction:
        counted = transaction.counters(uploader.account.id)
        assert counted is not None
        assert counted.bytes <= 3 * CHUNK_BYTES
        assert counted.uploads == 5
    with pytest.raises(TooBigError):
        uploader.upload(b"x" * CHUNK_BYTES, "late.png")
    for upload in begun:
        upload.abort()
    assert comes_to(uploader.storage, 0, 0, 0)
    uploader.upload(b"x" * 3 * CHUNK_BYTES)


def test_an_account_does_not_upload_faster_than_it_is_tidied(
    uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted media that is yet to be removed is bounded: past it an upload has to wait a moment."""
    monkeypatch.setattr("cloudstore_mapping.service.quotas.MAX_LEAVING", 5)
    uploader.service.accounts.set_limits("owner", max_total_bytes=10)
    uploader.service.sweeper.close()
    facts = uploader.upload(b"123456")
    uploader.service.media.delete(uploader.account, facts["id"])
    with pytest.raises(TooOftenError, match="yet to be removed") as caught:
        uploader.begin("other.png")
    assert caught.value.retry_after == 1.0
