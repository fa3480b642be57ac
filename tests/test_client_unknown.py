"""A service that can't tell whether it did a write says so, and a client claims neither."""

from __future__ import annotations

import pytest
from msgspec import Raw

from cloudstore_mapping.errors import ChangedError, NoFileError, OutcomeUnknownError
from cloudstore_mapping.wire import Reply, encode_value, failure
from tests.scripted import ALL, DONE, NO_FILE, Script, told

UNKNOWN = failure(OutcomeUnknownError("The database was lost.", error="OutcomeUnknown"))
CHANGED = Reply(error="Changed", message=encode_value("Somebody else changed it."), version="2")


def test_how_it_travels() -> None:
    """It is an error of its own, under the status that proxies give a service which didn't answer in time."""
    assert (UNKNOWN.error, UNKNOWN.status) == ("OutcomeUnknown", 504)


def test_a_write_with_an_id_is_sent_again() -> None:
    """Where the service knows the request again, it is repeated until the outcome is known."""
    client, script = told(ALL, UNKNOWN, UNKNOWN, DONE)
    client.save("a", Raw(b"1"))
    first, *others = script.sent
    assert len(others) == 2
    assert all(request is first for request in others)


def test_a_write_that_bears_repeating_is_sent_again() -> None:
    """Without ids a plain save is repeated, and a delete that then finds nothing was done."""
    script = Script(UNKNOWN, DONE, UNKNOWN, NO_FILE)
    script.client().save("a", Raw(b"1"))
    script.client().delete("a")
    assert len(script.requests) == 4


def test_a_write_that_looks_at_a_version_is_not() -> None:
    """A second time it would find what the first one may have left: that its outcome is unknown is all that is told."""
    client, script = told(ALL - {"once"}, UNKNOWN, CHANGED)
    with pytest.raises(OutcomeUnknownError, match="database was lost") as caught:
        client.save("a", Raw(b"1"), if_version="1")
    assert (caught.value.key, caught.value.status, caught.value.sent) == ("a", 504, True)
    assert len(script.requests) == 1


def test_it_is_told_in_the_end() -> None:
    """Where no try is left, the outcome is still unknown, whatever the last try was refused for."""
    script = Script(*[UNKNOWN] * 4)
    with pytest.raises(OutcomeUnknownError):
        script.client().save("a", Raw(b"1"))
    busy = Reply(error="Unavailable", message=encode_value("Busy."), status=503)
    script = Script(UNKNOWN, *[busy] * 3)
    with pytest.raises(OutcomeUnknownError):
        script.client().save("a", Raw(b"1"))


def test_an_answer_that_is_final() -> None:
    """What the service then says for certain is believed."""
    client, _ = told(ALL, UNKNOWN, CHANGED)
    with pytest.raises(ChangedError):
        client.save("a", Raw(b"1"), if_version="1")
    client, _ = told(ALL, UNKNOWN, NO_FILE)
    with pytest.raises(NoFileError):
        client.delete("a")
