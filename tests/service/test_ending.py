"""A service that is closed or fails answers so, and gives nothing away."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from cloudstore_mapping.errors import UnavailableError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.wire import Operation
from tests.service_fakes import PATIENCE, Asker, FakeHasher, Held
from tests.storages import new_storage


def test_a_closed_service_is_unavailable(service: Service, ask: Asker) -> None:
    """After `close` every operation is `Unavailable` with a time to come again, and closing again is nothing."""
    ask.save("name", 1)
    assert service.healthy()
    service.close()
    service.close()
    for reply in (ask.load("name"), ask.save("name", 2), ask.merge("name", 2), ask.delete("name"), ask.list()):
        assert (reply.error, reply.status) == ("Unavailable", 503)
        assert reply.retry_after is not None
    assert not service.healthy()
    with pytest.raises(UnavailableError):
        service.set_passwords("owner", "name", edit="edit")


def test_a_closed_storage_is_unavailable(storage: Storage) -> None:
    """Where only the storage is closed, the answer is `Unavailable` all the same."""
    with Service(storage) as service:
        ask = Asker(service, service.accounts.create("owner"))
        storage.close()
        for reply in (ask.load("name"), ask.save("name", 2), ask.list()):
            assert (reply.error, reply.status) == ("Unavailable", 503)
            assert reply.retry_after is not None


def test_closing_answers_what_was_submitted(tmp_path: Path, hasher: FakeHasher, no_threads_left: None) -> None:
    """Requests that wait for the writer or for the hashing of their password are done when `close` returns."""
    storage = new_storage(tmp_path / "store.db")
    with Service(storage, hasher=hasher) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("locked", 1)
        service.set_passwords("owner", "locked", edit="edit", view="view")
        hasher.gate.clear()
        proving = service.submit(ask.request(None, "locked", "edit", value=2))
        assert hasher.begun.acquire(timeout=PATIENCE)
        held = Held(storage)
        saving = service.submit(ask.request(None, "name", value=3))
        closing = threading.Thread(target=service.close)
        closing.start()
        hasher.gate.set()
        held.go.set()
        closing.join(PATIENCE)
        assert [future.result(0).error for future in (proving, saving)] == [None] * 2


def test_a_password_that_comes_up_too_late_is_unavailable(
    tmp_path: Path, hasher: FakeHasher, no_threads_left: None
) -> None:
    """A write that only needs its hashing when the service closes is `Unavailable`, and no fault in the log."""
    storage = new_storage(tmp_path / "store.db")
    with Service(storage, hasher=hasher) as service:
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("locked", 1)
        service.set_passwords("owner", "locked", edit="edit")
        held = Held(storage)
        late = service.submit(ask.request(None, "locked", "edit", value=2))
        service._passwords.close()
        held.go.set()
        reply = late.result(PATIENCE)
        assert (reply.error, reply.status) == ("Unavailable", 503)
        assert reply.retry_after is not None


class BrokenHasher(FakeHasher):
    """Fails at each check, with what it was given in its hands."""

    def fits(self, stored: str, password: str) -> bool:
        """Fail."""
        raise RuntimeError("It broke.")


def test_an_unexpected_exception_is_a_server_error(caplog: pytest.LogCaptureFixture, no_threads_left: None) -> None:
    """What nobody foresaw is `ServerError` without its reason, which the log holds, and neither tells a secret."""
    with Service(new_storage(), hasher=BrokenHasher()) as service, caplog.at_level(logging.DEBUG):
        ask = Asker(service, service.accounts.create("owner"))
        ask.save("name", "the value")
        service.set_passwords("owner", "name", edit="hunter2", view="hunter2")
        for operation, value in ((None, {"value": "a value"}), (None, {}), ("merge", {"value": "a value"})):
            reply = service.handle(ask.request(operation, "name", "hunter2", **value))
            assert (reply.error, reply.status) == ("ServerError", 500)
            assert reply.sentence == "The service failed; its owner finds the reason in its log."
    assert [record.getMessage() for record in caplog.records] == [
        "A request to save failed.",
        "A request to load failed.",
        "A request to merge failed.",
    ]
    assert "RuntimeError: It broke." in caplog.text
    for secret in ("hunter2", ask.api_key, "the value", "a value"):
        assert secret not in caplog.text


def test_a_fault_in_a_write_is_a_server_error_of_its_own(
    service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong on the writer's thread is answered to whom it concerns, and the next write is done."""
    ask.save("name", 1)
    monkeypatch.setitem(service.dispatcher._rules._rules, Operation.DELETE, lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR):
        assert ask.delete("name").error == "ServerError"
    assert "ZeroDivisionError" in caplog.text
    assert ask.save("name", 2).error is None
    assert ask.value("name") == 2
