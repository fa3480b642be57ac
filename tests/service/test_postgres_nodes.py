"""Several services on one PostgreSQL database answer as one: what is changed at one is in force at all others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from msgspec.structs import replace

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.wire import Reply
from tests.postgres_fixtures import address
from tests.service_fakes import Asker, FakeHasher, ManualClock

__all__ = ["address"]

THREADS = 8


@pytest.fixture
def nodes(address: str, clock: ManualClock, hasher: FakeHasher, no_threads_left: None) -> Iterator[list[Service]]:
    """Return two services that share a database, a clock, and a hasher."""
    with ExitStack() as stack:
        yield [stack.enter_context(Service(PostgresStorage(address), clock=clock, hasher=hasher)) for _ in range(2)]


@pytest.fixture
def askers(nodes: list[Service]) -> list[Asker]:
    """Return the same owner at each of them."""
    key = nodes[0].accounts.create("owner")
    return [Asker(node, key) for node in nodes]


def times(nodes: list[Service], name: str) -> int:
    """Return how often the owner's file was used at all nodes together."""
    for node in nodes:
        node.usage.flush()
    file = nodes[0].panels.data_file(nodes[0].accounts.named("owner"), name)
    assert file is not None
    return file.accesses.today


def at_once(askers: list[Asker], ask: str, *arguments: object) -> list[Reply]:
    """Ask all nodes the same many times at once, and return the replies."""
    starting = threading.Barrier(THREADS)

    def work(number: int) -> Reply:
        starting.wait()
        reply: Reply = getattr(askers[number % len(askers)], ask)(*arguments)
        return reply

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def test_a_file_is_there_for_all(askers: list[Asker]) -> None:
    """What one node saved another one loads, merges and deletes."""
    here, there = askers
    here.save("list", {"Apples": 8})
    there.merge("list", {"Pears": 1})
    assert here.value("list") == {"Apples": 8, "Pears": 1}
    there.delete("list")
    assert here.load("list").error == "NoFile"


def test_a_password_that_is_changed(nodes: list[Service], askers: list[Asker], hasher: FakeHasher) -> None:
    """A node that remembers a password as the right one asks for the new one at the very next request."""
    here, there = askers
    here.save("list", 1)
    nodes[0].set_passwords("owner", "list", view="old")
    assert there.value("list", "old") == 1
    checks = hasher.checks
    assert there.value("list", "old") == 1
    assert hasher.checks == checks  # remembered
    nodes[0].set_passwords("owner", "list", view="new")
    assert there.load("list", "old").error == "Locked"
    assert there.value("list", "new") == 1
    nodes[0].set_passwords("owner", "list", view=None)
    assert there.value("list") == 1


def test_a_key_that_is_exchanged(nodes: list[Service], askers: list[Asker]) -> None:
    """A key that was ended at one node opens nothing at the other, whose last request it opened; the new one does."""
    here, there = askers
    here.save("list", 1)
    assert there.value("list") == 1
    key = nodes[0].accounts.rotate_key("owner")
    assert (there.value("list"), Asker(nodes[1], key).value("list")) == (1, 1)
    nodes[0].accounts.drop_old_keys("owner")
    assert there.load("list").error == "BadKey"
    assert Asker(nodes[1], key).value("list") == 1


def test_an_account_that_is_switched_off(nodes: list[Service], askers: list[Asker]) -> None:
    """An account that one node disabled is refused by all until it is enabled again, and its sessions end."""
    there = askers[1]
    there.save("list", 1)
    nodes[0].accounts.set_disabled("owner", True)
    assert (there.load("list").error, there.save("list", 2).error) == ("Disabled", "Disabled")
    nodes[0].accounts.set_disabled("owner", False)
    assert there.value("list") == 1
    token = nodes[1].owners.sign_in("owner", nodes[1].owners.reset_password("owner"), "127.0.0.1")
    nodes[0].accounts.set_disabled("owner", True)
    assert nodes[1].owners.session(token) is None


def test_an_owner_who_signs_in(nodes: list[Service], askers: list[Asker]) -> None:
    """A session that began at one node is known at the other, and ended there for both."""
    here, there = nodes
    token = here.owners.sign_in("owner", here.owners.reset_password("owner"), "127.0.0.1")
    signed_in = there.owners.session(token)
    assert signed_in is not None
    there.owners.sign_out(signed_in, origin="127.0.0.1")
    assert here.owners.session(token) is None


def test_merges_at_once(nodes: list[Service], askers: list[Asker]) -> None:
    """Merges of two nodes into one file at once are all in it in the end, and each is counted once."""
    with ThreadPoolExecutor(THREADS) as pool:
        replies = list(pool.map(lambda number: askers[number % 2].merge("list", {str(number): number}), range(100)))
    assert {reply.error for reply in replies} == {None}
    assert times(nodes, "list") == 100
    assert askers[0].value("list") == {str(number): number for number in range(100)}


def test_a_quota_holds_over_all_nodes(nodes: list[Service], askers: list[Asker]) -> None:
    """Of many that would make the last file that there is room for, one does, wherever they ask."""
    nodes[0].accounts.set_limits("owner", max_files=3)
    askers[0].save("one", 1)
    askers[1].save("two", 2)
    with ThreadPoolExecutor(THREADS) as pool:
        replies = list(pool.map(lambda number: askers[number % 2].save(f"new {number}", 3), range(THREADS)))
    assert sorted(str(reply.error) for reply in replies) == ["None"] + ["TooManyFiles"] * (THREADS - 1)
    assert len(askers[0].list().sentence.split(",")) == 3


def test_a_pace_holds_over_all_nodes(nodes: list[Service], askers: list[Asker], clock: ManualClock) -> None:
    """An account that has to wait between two requests has one turn at a time, wherever it asks."""
    askers[0].save("list", 1)
    nodes[0].accounts.set_limits("owner", min_interval=60.0)
    for _ in range(3):
        replies = at_once(askers, "load", "list")
        assert sorted(str(reply.error) for reply in replies) == ["None"] + ["TooOften"] * (THREADS - 1)
        clock.advance(60.0)


def test_a_request_is_done_once_on_all_nodes(askers: list[Asker]) -> None:
    """A request with an id that comes to all nodes at once is done by one, and all answer as that one did."""
    here = askers[0]
    for number in range(10):
        request = replace(here.request("merge", f"list {number}", value={"a": 1}), once=f"request {number}")
        with ThreadPoolExecutor(THREADS) as pool:
            handled = pool.map(lambda at, request=request: askers[at % 2].service.handle(request), range(THREADS))
            assert len({reply.version for reply in handled}) == 1


def test_accesses_add_up(nodes: list[Service], askers: list[Asker]) -> None:
    """What each node counted of a file's use is counted together."""
    askers[0].save("list", 1)
    for _ in range(3):
        for asker in askers:
            asker.value("list")
    assert times(nodes, "list") == 7


def test_nobody_waits_on_the_callers_thread(nodes: list[Service], askers: list[Asker], address: str) -> None:
    """A request is taken at once, however long the database takes to answer it."""
    askers[0].save("list", 1)
    with psycopg.connect(address) as slow:
        slow.execute("LOCK TABLE accounts, api_keys, files IN ACCESS EXCLUSIVE MODE")
        asked = [nodes[0].submit(askers[0].request(*request)) for request in ((None, "list"), ("list", ""))]
        assert not any(future.done() for future in asked)
        slow.rollback()
        assert [future.result().error for future in asked] == [None, None]
