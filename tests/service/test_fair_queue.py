"""The fair queue: accounts are served in turn, by the time that each has used."""

from __future__ import annotations

from cloudstore_mapping.service.threads import MAX_CHARGE, MAX_KEPT, FairQueue


def taken(queue: FairQueue[str], seconds: dict[str, float] | None = None) -> str:
    """Return all items in the order in which they are served; an item's first letter is its account."""
    order = []
    while (item := queue.take()) is not None:
        order.append(item)
        queue.charge(item[0], (seconds or {}).get(item[0], 0.0))
    return "".join(order)


def filled(*items: str) -> FairQueue[str]:
    """Return a queue with items, each of the account that its first letter names."""
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.put(item[0], item)
    return queue


def test_accounts_are_served_in_turn() -> None:
    """One item of each account that waits is served before the next one of any, in the order of arrival."""
    assert taken(filled("a1", "a2", "a3", "b1", "b2", "c1")) == "a1b1c1a2b2a3"


def test_long_work_is_paid_for() -> None:
    """An account whose work takes four times as long is served a quarter as often while another waits."""
    items = [*(f"a{number}" for number in range(3)), *(f"b{number}" for number in range(12))]
    order = taken(filled(*items), {"a": 1.0, "b": 0.25})
    assert [item for item in order if item.isalpha()] == list("abbbbabbbbabbbb")


def test_idleness_earns_nothing() -> None:
    """An account that comes later is served at once, and then in turn: it doesn't catch up on the time before."""
    queue = filled(*(f"a{number}" for number in range(8)))
    for _ in range(4):
        queue.take()
        queue.charge("a", 1.0)
    for number in range(4):
        queue.put("b", f"b{number}")
    assert taken(queue, {"a": 1.0, "b": 1.0}) == "b0a4b1a5b2a6b3a7"


def test_a_debt_outlasts_an_empty_queue() -> None:
    """An account that had long work rests also where it asks for the next piece only after the first."""
    queue = filled("a1", "b1", "b2")
    queue.take()
    queue.charge("a", 1.0)
    queue.put("a", "a2")
    assert taken(queue, {"b": 0.1}) == "b1b2a2"


def test_a_charge_is_bounded() -> None:
    """Work that seems to have taken an hour, on a machine that was suspended, makes its account rest for seconds."""
    queue = filled("a1", "a2", *["b1"] * 10)
    queue.take()
    queue.charge("a", 3600.0)
    assert taken(queue, {"b": MAX_CHARGE / 2}).index("a2") == len("b1" * 2)


def test_a_held_account_waits() -> None:
    """Nothing of a held account is served until its release, and others are."""
    queue = filled("a1", "b1", "a2")
    queue.hold("a")
    assert (taken(queue), len(queue), queue.peek()) == ("b1", 2, None)
    queue.release("a")
    queue.release("a")
    assert (taken(queue), len(queue)) == ("a1a2", 0)
    queue.hold("a")
    queue.put("a", "a3")
    assert queue.take() is None
    queue.release_all()
    assert queue.take() == "a3"


def test_whether_others_wait() -> None:
    """Only other accounts' items count; the service's own work, of no account, is another's."""
    queue: FairQueue[int] = FairQueue()
    queue.put("a", 1)
    assert not queue.others_wait("a")
    assert queue.others_wait("b")
    queue.put(None, 2)
    assert queue.others_wait("a")
    assert [queue.take(), queue.take()] == [1, 2]
    assert not queue.others_wait("b")


def test_idle_accounts_are_forgotten() -> None:
    """However many accounts came once, few are remembered."""
    queue: FairQueue[int] = FairQueue()
    for number in range(3 * MAX_KEPT):
        queue.put(number, number)
        queue.take()
        queue.charge(number, 0.001)
    assert len(queue._used) <= MAX_KEPT + 3
