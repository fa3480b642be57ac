"""What stands at the service's seams in tests: a clock, a hasher, work that lasts; and somebody who asks it."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from cloudstore_mapping.service.quotas import Clock
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import MAX_BYTES, Storage
from cloudstore_mapping.service.storage.records import File
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import Reply, Request, decode_value, encode_value

#: Seconds after which a test that waits for another thread fails; it never waits that long.
PATIENCE = 30.0


class ManualClock(Clock):
    """A clock that stands still until `advance`; it was set forward by `ahead` seconds."""

    def __init__(self) -> None:
        super().__init__(wall=lambda: self.seconds + self.ahead, monotonic=lambda: self.seconds)
        self.seconds = 1_700_000_000.0
        self.ahead = 0.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds


class FakeHasher:
    """Hashes at once, and counts; while `gate` is shut, a check that has `begun` doesn't end."""

    def __init__(self) -> None:
        self.checks = 0
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._salts = itertools.count()

    def hash(self, password: str) -> str:
        """Return a hash that is another one at each call."""
        return f"{next(self._salts)}${password}"

    def fits(self, stored: str, password: str) -> bool:
        """Whether `stored` is a hash of the password."""
        self.checks += 1
        self.begun.release()
        assert self.gate.wait(PATIENCE)
        return stored.partition("$")[2] == password


def unversioned(file: File | None) -> File | None:
    """Return the file without its version, which is random."""
    return None if file is None else file._replace(version="")


class Held:
    """The writer of a storage, busy with some work until `go`."""

    def __init__(self, storage: Storage) -> None:
        self.go = threading.Event()
        begun = threading.Event()

        def wait(_: Transaction) -> bool:
            begun.set()
            return self.go.wait(PATIENCE)

        self.future = storage.submit(wait, size=MAX_BYTES)  # alone in its transaction
        assert begun.wait(PATIENCE)


def settle(storage: Storage) -> None:
    """Wait until all that was submitted before is done, on an engine that writes side by side too."""
    together = getattr(storage, "writers", 1)
    barrier = threading.Barrier(together)
    for future in [storage.submit(lambda _: barrier.wait(PATIENCE)) for _ in range(together)]:
        future.result(PATIENCE)


def run_for(seconds: float, service: Service, *clocks: ManualClock) -> None:
    """Let time pass for a service: like a running one it looks for work, here every minute."""
    passed = 0.0
    while passed < seconds:
        step = min(60.0, seconds - passed)
        for clock in clocks:
            clock.advance(step)
        passed += step
        service.sweeper.look()
        settle(service._storage)


class Asker:
    """Sends requests on the files of one account to a service, from one address."""

    def __init__(self, service: Service, api_key: str, address: str = "") -> None:
        self.service = service
        self.api_key = api_key
        self.address = address

    def request(self, operation: str | None, name: str, password: str | None = None, **value: Any) -> Request:
        """Return a request: a save where `operation` is None and there is a `value`, without one a load."""
        fields = {"value": encode_value(value["value"])} if value else {}
        return Request(api_key=self.api_key, name=name, options=operation, password=password, **fields)  # type: ignore[arg-type]  # some are wrong on purpose

    def _ask(self, *request: Any, **value: Any) -> Reply:
        return self.service.handle(self.request(*request, **value), address=self.address)

    def save(self, name: str, value: Any, password: str | None = None) -> Reply:
        """Save a value."""
        return self._ask(None, name, password, value=value)

    def merge(self, name: str, value: Any, password: str | None = None) -> Reply:
        """Merge a value."""
        return self._ask("merge", name, password, value=value)

    def load(self, name: str, password: str | None = None) -> Reply:
        """Load a value."""
        return self._ask(None, name, password)

    def delete(self, name: str, password: str | None = None) -> Reply:
        """Delete a file."""
        return self._ask("delete", name, password)

    def list(self, containing: str = "") -> Reply:
        """List the names that contain a text."""
        return self._ask("list", containing)

    def value(self, name: str, password: str | None = None) -> Any:
        """Return a file's value, which has to be there."""
        reply = self.load(name, password)
        assert reply.error is None
        return decode_value(reply.content)
