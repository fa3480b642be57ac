"""Work on many keys where the service takes no batches: several requests at once, or one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.bulk import in_batches
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.errors import BadMergeError, BulkError, TransportError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.web.server import background
from cloudstore_mapping.wire import Batch, Reply, Request, Upload
from tests.storages import new_storage
from tests.vendor import Vendor


class Watched(HTTPTransport):
    """Counts the requests that are under way at once; loads wait until `together` of them are."""

    def __init__(self, address: str, together: int) -> None:
        super().__init__(address)
        self._counting = threading.Lock()
        self._now = 0
        self.most = 0
        self._barrier = threading.Barrier(together)

    def send(self, request: Request | Batch | Upload) -> Reply:
        """Send."""
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
        if isinstance(request, Request) and request.operation.value == "load":
            self._barrier.wait(30)
        reply = super().send(request)
        with self._counting:
            self._now -= 1
        return reply


def test_several_at_once(vendor: Vendor) -> None:
    """Loads of many keys are under way together, and their values come in the keys' order."""
    vendor.files.update({str(number): number for number in range(8)})
    transport = Watched(vendor.address, together=4)
    with CloudStoreMapping[Any](vendor.api_key, transport=transport, max_workers=4) as store:
        assert list(store.values()) == list(range(8))
    assert transport.most == 4


def test_items_in_batches() -> None:
    """A batch holds a thousand items and four MiB at most, and none that came seconds after its first one."""
    assert [len(batch) for batch in in_batches(range(2_500), lambda _: 1)] == [1_000, 1_000, 500]
    assert [len(batch) for batch in in_batches(range(5), lambda _: 2**21)] == [2, 2, 1]
    assert [len(batch) for batch in in_batches(range(2), lambda _: 2**23)] == [1, 1]
    ticks = iter(range(0, 1_000, 2))
    slow = in_batches(range(5), lambda _: 1, seconds=5.0, clock=lambda: float(next(ticks)))
    assert [len(batch) for batch in slow] == [2, 3]


def test_items_before_an_error() -> None:
    """What came before the source broke is handed on, and then the error."""

    def items() -> Iterator[int]:
        yield from range(3)
        raise TransportError("The connection broke.")

    got: list[list[int]] = []
    with pytest.raises(TransportError):
        got.extend(in_batches(items(), lambda _: 1))
    assert got == [[0, 1, 2]]


DEEP: Any = 0
for _ in range(150):
    DEEP = [DEEP]


def test_a_value_that_no_service_takes() -> None:
    """A value for which a service refuses a batch unread fails alone: all others are saved, each with its own value."""
    values = {str(number): number for number in range(900)}
    for settings in (Settings(), Settings(max_body_bytes=200_000)):
        with Service(new_storage(), settings) as service, background(service) as address:
            key = service.accounts.create("owner")
            with CloudStoreMapping[Any](key, transport=HTTPTransport(address)) as store:
                with pytest.raises(BulkError) as caught:
                    store.update({**values, "deep": DEEP, "large": "x" * 200_000, "more": 1})
                expected = {"deep", "large"} if settings.max_body_bytes == 200_000 else {"deep"}
                assert set(caught.value.failed) == expected
                assert store.copy().keys() == values.keys() | ({"more", "large"} - expected)


def test_an_error_about_one_of_many_values_names_its_key() -> None:
    """Whichever operation on many values is refused, a note of its error has the key."""
    with cm.open("memory:") as store:
        store["there"] = [1]
        acts: list[tuple[Callable[[], object], str]] = [
            (lambda: store.update({"a": 1, "b": {"c": set()}}), "b"),
            (lambda: store.__ior__({"a": 1, "b": {"c": set()}}), "b"),
            (lambda: store | {"a": 1, "b": {"c": set()}}, "b"),
            (lambda: store | {"there": {"x": 1}}, "there"),
        ]
        for act, key in acts:
            with pytest.raises((TypeError, BadMergeError)) as raised:
                act()
            assert raised.value.__notes__ == [f"This is about the value of {key!r}; $ stands for the whole value."]


def test_a_paced_service_gets_one_at_a_time(vendor: Vendor) -> None:
    """Where there is a pace, requests go one after another, whatever `max_workers` says."""
    transport = Watched(vendor.address, together=1)
    with CloudStoreMapping[Any](vendor.api_key, transport=transport, max_workers=4, min_interval=1e-9) as store:
        store.update({str(number): number for number in range(8)})
        assert len(store.copy()) == 8
    assert transport.most == 1


def test_an_iteration_that_ends_early(vendor: Vendor) -> None:
    """Who leaves an iteration over items begins no more loads than are ahead already."""
    vendor.files.update({f"{number:03}": number for number in range(500)})
    transport = Watched(vendor.address, together=1)
    with CloudStoreMapping[Any](vendor.api_key, transport=transport, max_workers=2) as store:
        items = iter(store.items())
        assert next(items) == ("000", 0)
        items.close()  # type: ignore[attr-defined]  # a generator
    assert sum(body.get("options") is None for body in vendor.bodies) <= 8


class Unreachable:
    """A network that takes so many requests, and then is gone."""

    def __init__(self, inner: HTTPTransport, requests: int) -> None:
        self._inner = inner
        self.left = requests
        self.tries = 0

    def send(self, request: Request | Batch | Upload) -> Reply:
        """Send, or say that nothing gets through."""
        self.left -= 1
        if self.left < 0:
            self.tries += 1
            raise TransportError("Gone.", sent=False)
        return self._inner.send(request)

    def close(self) -> None:
        """Close the transport behind."""
        self._inner.close()


@pytest.mark.parametrize("max_workers", [1, 4])
def test_a_service_that_is_gone(vendor: Vendor, max_workers: int) -> None:
    """Once nothing gets through, the rest isn't tried, and the error says what was done and what not."""
    transport = Unreachable(HTTPTransport(vendor.address), 5)
    with CloudStoreMapping[Any](vendor.api_key, transport=transport, retries=0, max_workers=max_workers) as store:
        with pytest.raises(BulkError) as caught:
            store.update({str(number): number for number in range(100)})
        assert sorted(caught.value.succeeded) == sorted(vendor.files)
        assert len(caught.value.succeeded) == 5
        assert len(caught.value.failed) == 95
        assert all(isinstance(error, TransportError) for error in caught.value.failed.values())
        assert transport.tries <= max_workers
