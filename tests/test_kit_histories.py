"""The recorder of histories."""

from __future__ import annotations

import itertools
import threading

import pytest

from cloudstore_mapping.errors import BadMergeError, NoFileError, OutcomeUnknownError
from cloudstore_mapping.testing.linearizability import ABSENT, Call, History, check_linearizable, register_step


def ticking() -> History:
    """Return a history whose clock moves on by one at each look."""
    return History(clock=map(float, itertools.count()).__next__)


def fail(error: Exception) -> None:
    """Raise an error, as what a client calls may do."""
    raise error


def test_what_is_recorded() -> None:
    """A call is recorded with its client, operation, argument, both times and the result that the block set."""
    history = ticking()
    with history.call(3, "save", {"a": 1}):
        pass
    with history.call(4, "load") as call:
        call.result = {"a": 1}
    assert history.calls == [Call(3, "save", {"a": 1}, 0.0, 1.0, None), Call(4, "load", None, 2.0, 3.0, {"a": 1})]


@pytest.mark.parametrize(("error", "kind"), [(NoFileError("No."), KeyError), (BadMergeError("No."), BadMergeError)])
def test_errors_that_are_answers(error: Exception, kind: type[Exception]) -> None:
    """An error that is an answer is the result, as the class that stands for it, and goes no further."""
    history = ticking()
    with history.call(0, "load"):
        fail(error)
    assert history.calls == [Call(0, "load", None, 0.0, 1.0, kind)]


def test_unknown_outcomes() -> None:
    """After an error that says so the outcome is unknown; the client goes on."""
    history = ticking()
    with history.call(0, "save", 1):
        fail(OutcomeUnknownError("Perhaps."))
    assert history.calls == [Call(0, "save", 1, 0.0, None, None)]


def test_other_errors() -> None:
    """Any other error is raised, and what was done is unknown too."""
    history = ticking()
    with pytest.raises(ZeroDivisionError), history.call(0, "save", 1):
        fail(ZeroDivisionError())
    assert history.calls == [Call(0, "save", 1, 0.0, None, None)]


def test_threads_share_a_history() -> None:
    """Threads record into one history, and lose nothing."""
    history = History()
    lock, counter = threading.Lock(), itertools.count(1)

    def work(client: int) -> None:
        for _ in range(50):
            with history.call(client, "increment", 1) as call, lock:
                call.result = next(counter)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(history.calls) == 400
    check_linearizable(history.calls, register_step, ABSENT)
