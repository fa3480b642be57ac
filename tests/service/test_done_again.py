"""A storage may undo work and have it done again: whatever the service did for it beside the storage is undone too."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import NoReturn, TypeVar

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteSession, SQLiteStorage
from cloudstore_mapping.wire import Batch, decode_replies
from tests.service_fakes import Asker, FakeHasher, ManualClock

T = TypeVar("T")


class UndoneError(Exception):
    """What undoes the first try."""


def _do_in_vain(work: Callable[[Transaction], object], transaction: Transaction) -> NoReturn:
    work(transaction)
    raise UndoneError


class TwiceStorage(SQLiteStorage):
    """Does all work twice, as if the first time somebody else had been in the way."""

    def submit(self, work: Callable[[Transaction], T], account: Hashable = None, size: int = 0) -> Future[T]:
        """Run `work`, undo it, and run it again."""

        def again(transaction: Transaction) -> T:
            assert isinstance(transaction, SQLiteSession)
            try:
                with transaction.savepoint():
                    _do_in_vain(work, transaction)
            except UndoneError:
                return work(transaction)

        return super().submit(again, account, size)


@pytest.fixture
def service(clock: ManualClock, hasher: FakeHasher, no_threads_left: None) -> Iterator[Service]:
    """Return a service on such a storage."""
    with Service(TwiceStorage(None), clock=clock, hasher=hasher) as service:
        yield service


def times(service: Service, name: str = "name") -> int:
    """Return how often the owner's file was used."""
    file = service.panels.data_file(service.accounts.named("owner"), name)
    assert file is not None
    return file.accesses.today


def test_a_write_is_counted_once(service: Service, ask: Asker) -> None:
    """A save or merge that is done again is one access, in a batch too, and whether it has an id or not."""
    ask.save("name", {"a": 1})
    assert times(service) == 1
    ask.merge("name", {"b": 2})
    assert times(service) == 2
    request = ask.request(None, "name", value=1)
    service.handle(replace(request, once="request"))
    assert times(service) == 3
    batch = Batch(api_key=ask.api_key, requests=[request, request], atomic=True)
    reply = service.handle(batch)
    assert reply.data is not UNSET
    assert [each.error for each in decode_replies(reply.data)] == [None, None]
    assert times(service) == 5
    service.usage.flush()
    assert times(service) == 5


def test_a_refused_write_is_not_counted(service: Service, ask: Asker) -> None:
    """What a batch counted before it was refused as a whole is counted no longer, however often it was tried."""
    ask.save("name", 1)
    request = ask.request(None, "name", value=1)
    refused = service.handle(
        Batch(api_key=ask.api_key, requests=[request, ask.request("delete", "absent")], atomic=True)
    )
    assert refused.error == "NoFile"
    assert times(service) == 1


def test_the_administration_of_an_account(service: Service) -> None:
    """What is told of a change is what was changed once."""
    key = service.accounts.create("bob")
    newer = service.accounts.rotate_key("bob")
    assert service.accounts.drop_old_keys("bob") == 1
    assert Asker(service, key).load("name").error == "BadKey"
    assert Asker(service, newer).load("name").error == "NoFile"
    assert len(service.panels.activity(service.accounts.named("bob")).events) == 3


def test_an_upload(service: Service, ask: Asker) -> None:
    """A media file is what was sent, once."""
    upload = service.media.begin(name="a.bin", content_type="text/plain", api_key=ask.api_key)
    upload.write(b"12345")
    upload.finish()
    media = service.media.named(service.accounts.named("owner"), "a.bin")
    assert b"".join(service.media.chunks(media)) == b"12345"
