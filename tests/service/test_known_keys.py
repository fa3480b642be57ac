"""Writes with an API key that opened its account before: looked at only when it is their turn, and by all rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.wire import Batch, Reply
from tests.service_fakes import Asker, ManualClock


@pytest.fixture
def known(service: Service, ask: Asker) -> Asker:
    """Return somebody whose key has just opened the account."""
    assert ask.save("name", 1).error is None
    return ask


def test_a_disabled_account_takes_no_write(service: Service, known: Asker) -> None:
    """An account that was switched off refuses the next write, and takes one again once it is switched on."""
    service.accounts.set_disabled("owner", True)
    assert [known.save("name", 2).error for _ in range(2)] == ["Disabled", "Disabled"]
    service.accounts.set_disabled("owner", False)
    assert known.value("name") == 1
    assert known.save("name", 3).error is None


def test_an_ended_key_opens_nothing(service: Service, known: Asker) -> None:
    """A key that was exchanged and dropped refuses the next write."""
    service.accounts.rotate_key("owner")
    service.accounts.drop_old_keys("owner")
    assert [known.save("name", 2).error, known.delete("name").error] == ["BadKey", "BadKey"]


def test_a_new_pace_holds_at_once(service: Service, known: Asker, clock: ManualClock) -> None:
    """A pace that was set meanwhile counts from the next write on, single or in a batch, and passes when it is time."""
    service.accounts.set_limits("owner", min_interval=60.0)
    assert [known.save("name", 2).error, known.save("name", 3).error] == [None, "TooOften"]
    clock.advance(60)
    assert known.merge("name", 4).error is None
    clock.advance(60)
    assert _batch(known).error is None
    assert _batch(known).error == "TooOften"


def test_a_pace_set_by_another_process_holds(tmp_path: Path, clock: ManualClock) -> None:
    """What another process changes of the account is known to the next write."""
    with (
        Service(SQLiteStorage(tmp_path / "s.db"), clock=clock) as here,
        Service(SQLiteStorage(tmp_path / "s.db"), clock=clock) as there,
    ):
        ask = Asker(here, here.accounts.create("owner"))
        assert ask.save("name", 1).error is None
        there.accounts.set_limits("owner", min_interval=60.0)
        assert [ask.save("name", 2).error, ask.save("name", 3).error] == [None, "TooOften"]
        there.accounts.delete("owner")
        assert ask.save("name", 4).error == "BadKey"


def test_a_bad_name_is_refused(known: Asker) -> None:
    """The rules that come after the account's hold as well."""
    assert [known.save("", 2).error, known.save("a\0b", 2).error] == ["BadName", "BadName"]


def _batch(ask: Asker) -> Reply:
    request = ask.request(None, "other", value=1)
    return ask.service.handle(Batch(api_key=ask.api_key, requests=[request]))
