"""
A node that is killed at any point of a write leaves the state before or after it, and other nodes go on at once.

A point is a message of PostgreSQL's protocol, sent or received: after the n-th of a write, nothing of the node passes
any more. Each write is tried with one more message each time, until it comes to its end.
"""

from __future__ import annotations

import enum
import hashlib
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
import pytest
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cloudstore_mapping.errors import (
    BadNameError,
    CloudStoreError,
    NoFileError,
    OutcomeUnknownError,
    UnavailableError,
)
from cloudstore_mapping.service.media import ABANDONED_AFTER
from cloudstore_mapping.service.quotas import AccessCounter
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.maintenance import check_integrity
from cloudstore_mapping.service.storage.postgres import PATIENCE as STORAGE_PATIENCE
from cloudstore_mapping.service.storage.postgres import PostgresStorage, newest_schema
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value
from tests.media_fakes import comes_to, write
from tests.postgres_fixtures import address
from tests.postgres_proxy import Fate, MessageProxy
from tests.postgres_server import shared
from tests.service_fakes import PATIENCE, Asker, FakeHasher, ManualClock, run_for

__all__ = ["address"]

#: No write takes as many messages.
MOST: Final = 1000
#: Bytes of a chunk of a media file here, and of a file of some chunks.
CHUNK: Final = 1000
MEDIA: Final = 2 * CHUNK + 500

T = TypeVar("T")
N = TypeVar("N", "Node", "NodeProcess")
Values = dict[str, Any]


class Told(enum.Enum):
    """What the one who asked for a write was told."""

    DONE = enum.auto()
    NOT_DONE = enum.auto()
    UNKNOWN = enum.auto()


class Outcome(NamedTuple):
    """What was told, and the reply if there was one."""

    told: Told
    reply: Reply | None = None


class Change:
    """
    A write to files whose names begin alike.

    It makes one after the other of some `states`, values by the rest of the name; the first is there before.
    """

    def __init__(self, *states: Values, make: Callable[[Asker, str], Request | Batch]) -> None:
        self.states = states
        self._make = make

    def prepare(self, there: Asker, name: str) -> None:
        """Make the files that are there before."""
        for rest, value in self.states[0].items():
            assert there.save(name + rest, value).error is None

    def request(self, asker: Asker, name: str, once: str | UnsetType) -> Request | Batch | None:
        """Return what is asked for; None if it took a load that failed."""
        try:
            return replace(self._make(asker, name), once=once)
        except (AssertionError, NoFileError):
            return None

    def remove(self, there: Asker, name: str) -> None:
        """Remove all files of the name, for the next look at all that there is."""
        for each in decode_value(there.list(name).content):
            assert there.delete(each).error is None

    def found(self, there: Asker, name: str) -> Values:
        """Return the values that there are, as loads and a listing tell."""
        listed = there.list(name)
        assert listed.error is None
        names = decode_value(listed.content)
        found = {each.removeprefix(name): there.value(each) for each in names}
        for rest in self.states[0].keys() | self.states[-1].keys():
            assert (there.load(name + rest).error is None) == (rest in found)
        return found


def save(asker: Asker, name: str, value: Any, **fields: Any) -> Request:
    """Return a save."""
    return replace(asker.request(None, name, value=value), **fields)


def changed(asker: Asker, name: str, change: Callable[[Any], Any]) -> Request:
    """Return what saves a change of the value that is there, as the clients do it: if nobody else saved one."""
    loaded = asker.load(name)
    assert loaded.error is None
    return save(asker, name, change(decode_value(loaded.content)), if_version=loaded.version)


def several(asker: Asker, name: str, *, atomic: bool) -> Batch:
    """Return a batch that saves, merges and deletes."""
    requests = [
        asker.request(None, f"{name} new", value=1),
        asker.request("merge", f"{name} merged", value={"b": 2}),
        asker.request("delete", f"{name} old"),
    ]
    return Batch(api_key=asker.api_key, requests=requests, atomic=atomic)


_BEFORE: Final[Values] = {" merged": {"a": 1}, " old": 0}
_SAVED: Final[Values] = {**_BEFORE, " new": 1}
_MERGED: Final[Values] = {**_SAVED, " merged": {"a": 1, "b": 2}}
_AFTER: Final[Values] = {" new": 1, " merged": {"a": 1, "b": 2}}
#: More than is sent in one go.
_LARGE: Final = "x" * (3 * 2**19)

IN_PIECES: Final = "a batch in pieces"
CHANGES: Final[Mapping[str, Change]] = {
    "save a new file": Change({}, {"": 1}, make=lambda asker, name: save(asker, name, 1)),
    "save over a file": Change({"": [1]}, {"": [2]}, make=lambda asker, name: save(asker, name, [2])),
    "save if it is new": Change({}, {"": 1}, make=lambda asker, name: save(asker, name, 1, if_version=None)),
    "save if unchanged": Change({"": 1}, {"": 2}, make=lambda asker, name: changed(asker, name, lambda _: 2)),
    "merge": Change(
        {"": {"a": 1}}, {"": {"a": 1, "b": 2}}, make=lambda asker, name: asker.request("merge", name, value={"b": 2})
    ),
    "increment": Change({"": 41}, {"": 42}, make=lambda asker, name: changed(asker, name, lambda value: value + 1)),
    "append": Change(
        {"": ["a"]}, {"": ["a", "b"]}, make=lambda asker, name: changed(asker, name, lambda value: [*value, "b"])
    ),
    "save a large value": Change({"": 1}, {"": _LARGE}, make=lambda asker, name: save(asker, name, _LARGE)),
    "delete": Change({"": 1}, {}, make=lambda asker, name: asker.request("delete", name)),
    "an atomic batch": Change(_BEFORE, _AFTER, make=lambda asker, name: several(asker, name, atomic=True)),
    IN_PIECES: Change(_BEFORE, _SAVED, _MERGED, _AFTER, make=lambda asker, name: several(asker, name, atomic=False)),
}


class Work:
    """A write that no request stands for: a media file, or an account. `found` is False before it, True after it."""

    def __init__(
        self,
        do: Callable[[Asker, str], object],
        found: Callable[[Asker, str], bool],
        prepare: Callable[[Asker, str], object] = lambda _, __: None,
        done_already: type[CloudStoreError] | None = None,
        remove: Callable[[Asker, str], object] = lambda _, __: None,
    ) -> None:
        self.do = do
        self.found = found
        self.prepare = prepare
        self.remove = remove
        #: What is raised where it is done once more.
        self.done_already = done_already


def upload(data: bytes) -> Callable[[Asker, str], None]:
    """Return what uploads these bytes, in several chunks."""

    def do(asker: Asker, name: str) -> None:
        stream = asker.service.media.begin(name=name, content_type="image/png", api_key=asker.api_key)
        try:
            for start in range(0, len(data), CHUNK):
                write(stream, data[start : start + CHUNK])
            assert stream.finish().error is None
        except BaseException:
            stream.abort()
            raise

    return do


def is_uploaded(*before: bytes, after: bytes) -> Callable[[Asker, str], bool]:
    """Return what tells whether a media file has the bytes after the write or those before it, if any."""

    def found(there: Asker, name: str) -> bool:
        account = there.service.accounts.named("owner")
        try:
            media = there.service.media.named(account, name)
        except NoFileError:
            assert not before
            return False
        content = b"".join(there.service.media.chunks(media))
        assert (media.size, media.digest) == (len(content), hashlib.sha256(content).hexdigest())
        assert content in (*before, after)
        assert [media.id for media in there.service.panels.media(account, name).rows] == [media.id]
        return content == after

    return found


def delete_media(asker: Asker, name: str) -> None:
    """Delete a media file."""
    account = asker.service.accounts.named("owner")
    asker.service.media.delete(account, asker.service.media.named(account, name).id)


def is_media_deleted(there: Asker, name: str) -> bool:
    """Tell whether a media file is gone."""
    return not is_uploaded(after=_ONE)(there, name)


def key_of(name: str) -> str:
    """Return the API key of an account of this name."""
    return f"key-of-{name}".replace(" ", "-")


def create(asker: Asker, name: str) -> None:
    """Make an account."""
    asker.service.accounts.create(name, key_of(name))


def answers(there: Asker, name: str) -> str | None:
    """Return how an account's key is refused, None if it isn't; all else that is told of the account has to agree."""
    refused = Asker(there.service, key_of(name)).list().error
    assert refused in {None, "BadKey", "Disabled"}
    found = [account.disabled for account in there.service.accounts.all() if account.name == name]
    assert found == {None: [False], "Disabled": [True], "BadKey": []}[refused]
    if found:
        keys = there.service.accounts.keys(name)
        events = there.service.panels.user(there.service.accounts.named(name))
        assert len(keys) == 1
        assert events is not None
    return refused


def delete(asker: Asker, name: str) -> None:
    """Delete an account."""
    asker.service.accounts.delete(name)


def create_with_file(asker: Asker, name: str) -> None:
    """Make an account that has a file."""
    create(asker, name)
    assert Asker(asker.service, key_of(name)).save("file", 1).error is None


_ONE, _TWO = b"1" * MEDIA, b"2" * (MEDIA + 1)
WORKS: Final[Mapping[str, Work]] = {
    "upload a new file": Work(upload(_ONE), is_uploaded(after=_ONE), remove=delete_media),
    "upload over a file": Work(upload(_TWO), is_uploaded(_ONE, after=_TWO), upload(_ONE), remove=delete_media),
    "delete a media file": Work(delete_media, is_media_deleted, upload(_ONE), NoFileError),
    "make an account": Work(
        create, lambda there, name: answers(there, name) is None, done_already=BadNameError, remove=delete
    ),
    "disable an account": Work(
        lambda asker, name: asker.service.accounts.set_disabled(name, True),
        lambda there, name: answers(there, name) == "Disabled",
        create_with_file,
        remove=delete,
    ),
    "delete an account": Work(
        delete,
        lambda there, name: answers(there, name) == "BadKey",
        create_with_file,
        BadNameError,
    ),
}


class Node:
    """A service in this process whose connections to the database pass a proxy."""

    def __init__(self, address: str, api_key: str, patience: float) -> None:
        settings = Settings(count_accesses=False)
        storage = PostgresStorage(address, patience=patience)
        self.service = Service(storage, settings, clock=ManualClock(), hasher=FakeHasher())
        self._asker = Asker(self.service, api_key)

    def warm_up(self) -> None:
        """Open what a node has open while it runs: here the connection that its next request will take."""
        assert self._asker.save("warm", 1).error is None

    def attempt(self, write: str, name: str, once: str | UnsetType) -> Outcome:
        """Do a write, and return what came of it."""
        return attempt(self._asker, write, name, once)

    def close(self) -> None:
        """Leave nothing of it."""
        self.service.close()


def attempt(asker: Asker, write: str, name: str, once: str | UnsetType) -> Outcome:
    """Do a write at a node, and return what came of it."""
    if write in WORKS:
        try:
            WORKS[write].do(asker, name)
        except OutcomeUnknownError:
            return Outcome(Told.UNKNOWN)
        except UnavailableError:
            return Outcome(Told.NOT_DONE)
        return Outcome(Told.DONE)
    request = CHANGES[write].request(asker, name, once)
    if request is None:
        return Outcome(Told.NOT_DONE)
    reply = asker.service.handle(request)
    return Outcome(_TOLD[reply.error], reply)


_TOLD: Final = {None: Told.DONE, "Unavailable": Told.NOT_DONE, "OutcomeUnknown": Told.UNKNOWN}
_processes: Final = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])  # or each process would load all modules anew


class NodeProcess:
    """A node that is a process of its own, which a proxy can kill with -9."""

    def __init__(self, address: str, api_key: str, patience: float) -> None:
        self._connection, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(theirs, address, api_key, patience), daemon=True)
        self._process.start()
        theirs.close()

    def warm_up(self) -> None:
        """Wait until it has opened what a node has open while it runs."""
        self._connection.recv()

    def attempt(self, write: str, name: str, once: str | UnsetType) -> Outcome:
        """Have it do a write, and return what came of it."""
        try:
            self._connection.send((write, name, None if once is UNSET else once))
            outcome: Outcome = self._connection.recv()
        except (EOFError, ConnectionError):
            return Outcome(Told.UNKNOWN)
        return outcome

    def kill(self) -> None:
        """Kill it with -9, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """Leave nothing of it."""
        self.kill()
        self._process.close()
        self._connection.close()


def _serve(connection: Connection, address: str, api_key: str, patience: float) -> None:
    make_small(pytest.MonkeyPatch())
    node = Node(address, api_key, patience)
    node.warm_up()
    connection.send(None)
    while True:
        write, name, once = connection.recv()
        connection.send(node.attempt(write, name, UNSET if once is None else once))


def patience_of(fate: Fate) -> float:
    """Return how long a node waits for its database: not at all where it comes back no more."""
    return STORAGE_PATIENCE if fate is Fate.LOST else 0.0


def is_waiting(event: str | None, kind: str | None) -> bool:
    """Tell whether a process of the server waits for its client, or for a lock."""
    return event == "ClientRead" or kind == "Lock"


class World:
    """A database, a node that is there all the time, and the way of another node to the database."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.clock = ManualClock()
        self.proxy = stack.enter_context(MessageProxy(shared.socket))
        self._by_proxy = shared.by_port(address, self.proxy.port) + "&sslmode=disable&gssencmode=disable"
        self._looking = stack.enter_context(psycopg.connect(address, autocommit=True))
        storage = PostgresStorage(address)
        settings = Settings(count_accesses=False)
        self.service = stack.enter_context(Service(storage, settings, clock=self.clock, hasher=FakeHasher()))
        self._api_key = self.service.accounts.create("owner")
        self.there = Asker(self.service, self._api_key)
        self.service.accounts.set_limits("owner", max_files=10**6, max_total_bytes=10**10)
        while storage.submit(lambda transaction: transaction.tidy(-math.inf, lambda: False)).result(PATIENCE):
            pass
        self._pool = stack.enter_context(ThreadPoolExecutor(1))

    def node(self, kind: type[N], patience: float, idle: str = "") -> N:
        """Return a new node, which runs; the server ends those of its transactions that are `idle` for so long."""
        brief = f"%20-cidle_in_transaction_session_timeout%3D{idle}" if idle else ""
        node = kind(self._by_proxy.replace("&sslmode", f"{brief}&sslmode"), self._api_key, patience)
        node.warm_up()
        return node

    def is_in_transaction(self) -> bool:
        """Tell whether the server waits for more of a vanished node's transaction, which has locked a name."""
        query = (
            "SELECT count(*) FROM pg_stat_activity AS a JOIN pg_locks USING (pid) WHERE a.state = 'idle in transaction'"
            " AND locktype = 'advisory' AND mode = 'ExclusiveLock' AND pid = ANY(%s)"
        )
        return self._looking.execute(query, [self.proxy.processes]).fetchone() != (0,)

    def at_once(self, work: Callable[[], T]) -> T:
        """Have something done while the server still takes the connections of a node that vanished for open."""
        doing = self._pool.submit(work)
        self.proxy.let_go()
        return doing.result(PATIENCE)

    def settle(self, fate: Fate) -> None:
        """
        Wait until the server has done what it was told before the cut, and where it heard of that, ended it.

        Two connections of a node that vanished may wait for each other: then one of them is done.
        """
        end = time.monotonic() + PATIENCE
        while fate is not Fate.LOST:
            assert time.monotonic() < end
            unread = self.proxy.unread()  # before the look, for what is read is done only then
            query = "SELECT wait_event, wait_event_type FROM pg_stat_activity WHERE pid = ANY(%s)"
            waits = self._looking.execute(query, [self.proxy.processes]).fetchall()
            is_done = fate is Fate.PULLED and all(is_waiting(*wait) for wait in waits)
            if not waits or (is_done and (not unread or any(kind == "Lock" for _, kind in waits))):
                return

    def check(self) -> None:
        """Check that the store is sound: counters, values, and chunks of media."""
        with self.service._storage.read() as transaction:
            assert check_integrity(transaction, newest_schema()).faults == []
            chunks = (
                "SELECT count(*) FROM chunks c LEFT JOIN blobs b ON (b.account_id, b.id) = (c.account_id, c.blob_id)"
            )
            assert transaction.row(f"{chunks} WHERE b.id IS NULL") == (0,)

    def sweep(self) -> None:
        """Check that an hour later nothing is left of uploads that came to no end."""
        run_for(ABANDONED_AFTER + 120, self.service, self.clock)
        assert comes_to(self.service._storage, 0, 0, 0)
        self.check()

    def judge(self, write: str, name: str, outcome: Outcome, fate: Fate) -> bool:
        """Check what another node sees at once, compare it with what was told, and tell whether all of it is done."""
        told = outcome.told
        assert told is Told.DONE or fate is not Fate.LOST
        if write in WORKS:
            done = WORKS[write].found(self.there, name)
            assert told is Told.UNKNOWN or done == (told is Told.DONE)
        else:
            states = CHANGES[write].states
            state = CHANGES[write].found(self.there, name)
            assert state in states
            done = state == states[-1]
            if write != IN_PIECES:
                assert told is Told.UNKNOWN or done == (told is Told.DONE)
            elif told is Told.DONE and outcome.reply is not None:
                errors = [reply.error for reply in decode_replies(outcome.reply.content)]
                told_done = errors.count(None)
                assert errors[:told_done] == [None] * told_done
                unknown = errors[told_done:][:1] == ["OutcomeUnknown"]
                assert states.index(state) in {told_done, told_done + unknown}
        self.check()
        return done

    def repeat(self, name: str, request: Request | Batch, outcome: Outcome, change: Change) -> None:
        """Check that the same request at another node is done once in all, and answered as it was the first time."""
        reply = self.at_once(lambda: self.service.handle(request))
        assert reply.error is None
        if outcome.told is Told.DONE:
            assert reply == outcome.reply
        parts = decode_replies(reply.content) if isinstance(request, Batch) else [reply]
        requests = request.requests if isinstance(request, Batch) else [request]
        for part, each in zip(parts, requests, strict=True):
            assert part.error is None
            if each.options != "delete":
                assert part.version == self.there.load(each.name).version
        assert change.found(self.there, name) == change.states[-1]
        self.write_over(name, change)
        assert self.service.handle(request) == reply
        assert change.found(self.there, name) == dict.fromkeys(change.found(self.there, name), "theirs")

    def write_over(self, name: str, change: Change) -> None:
        """Write over all that there is or was, while the server may still take the vanished node for connected."""
        rests = change.states[0].keys() | change.states[-1].keys()
        replies = self.at_once(lambda: [self.there.save(name + rest, "theirs") for rest in rests])
        assert [reply.error for reply in replies] == [None] * len(rests)
        assert change.found(self.there, name) == dict.fromkeys(rests, "theirs")

    def go_on(self, name: str, work: Work, *, done: bool) -> None:
        """Check that another node can do at once what wasn't done, and only that."""
        refused = work.done_already if done else None
        with nullcontext() if refused is None else pytest.raises(refused):
            self.at_once(lambda: work.do(self.there, name))
        assert work.found(self.there, name)

    def trial(
        self,
        write: str,
        fate: Fate,
        point: int | None,
        *,
        with_id: bool,
        process: bool = False,
        node: Node | None = None,
    ) -> int:
        """Cut a write after so many messages, check all that is to hold then, and return how many passed."""
        name = f"{write} {point} {fate.name} {with_id} {process}"
        once = f"id of {name}" if with_id else UNSET
        what = WORKS.get(write) or CHANGES[write]
        what.prepare(self.there, name)
        request = CHANGES[write].request(self.there, name, once) if write in CHANGES else None
        killed: Node | NodeProcess
        if node is not None:
            killed = node
            node.warm_up()
        elif process:
            killed = self.node(NodeProcess, patience_of(fate))
        else:
            killed = self.node(Node, patience_of(fate))
        with nullcontext() if killed is node else closing(killed):
            self.proxy.cut_after(point, fate, killed.kill if isinstance(killed, NodeProcess) else lambda: None)
            outcome = killed.attempt(write, name, once)
            passed, was_cut = self.proxy.passed, self.proxy.is_cut
        self.settle(fate if was_cut else Fate.LOST)
        done = self.judge(write, name, outcome, fate)
        if isinstance(what, Work):
            self.go_on(name, what, done=done)
        elif with_id:
            assert request is not None
            self.repeat(name, request, outcome, what)
        else:
            self.write_over(name, what)
        self.proxy.open()
        what.remove(self.there, name)
        return passed


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have media files of some bytes come in several chunks, and each request of a batch be a piece of its own."""
    monkeypatch.setattr("cloudstore_mapping.service.media.CHUNK_BYTES", CHUNK)
    monkeypatch.setattr("cloudstore_mapping.service.batch.LONE_PIECE_SECONDS", 0.0)


@pytest.fixture
def world(address: str, no_threads_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return a database, a node and a way to the database, where chunks and pieces are small."""
    make_small(monkeypatch)
    with ExitStack() as stack:
        yield World(address, stack)


def every_point(
    world: World, write: str, fates: Sequence[Fate], step: int, *, with_id: bool = False, process: bool = False
) -> int:
    """Try a write at every point, or every so many, with each fate in turn; return the number of points tried."""
    with ExitStack() as stack:
        nodes: dict[Fate, Node] = {}
        if write in CHANGES and not process:  # what goes on after a call of one of `WORKS` would meet the next trial
            for fate in fates:
                nodes[fate] = world.node(Node, patience_of(fate))
                stack.callback(nodes[fate].close)
        for tried, point in enumerate(range(0, MOST, step)):
            fate = fates[tried % len(fates)]
            if world.trial(write, fate, point, with_id=with_id, process=process, node=nodes.get(fate)) < point:
                break
        else:
            raise AssertionError(write)
    world.check()
    if "upload" in write:
        world.sweep()
    return tried


def every_mode(world: World, write: str, fates: Sequence[Fate], step: int, *, process: bool = False) -> list[int]:
    """Try a write without an id and, if it may have one, with one; return the numbers of points tried."""
    modes = (False, True) if write in CHANGES else (False,)
    return [every_point(world, write, fates, step, with_id=with_id, process=process) for with_id in modes]


WRITES: Final = [*CHANGES, *WORKS]
#: Those that send what another one sends, or nearly so: all their points are tried only at full length.
SIMILAR: Final = frozenset({"save if unchanged", "append", "upload over a file"})


@pytest.mark.parametrize("write", WRITES)
def test_a_node_cut_off_at_some_points(world: World, write: str) -> None:
    """A node that is gone leaves the state before a write or after it, and others go on with the same file at once."""
    assert sum(every_mode(world, write, list(Fate), 47)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITES)
def test_a_node_cut_off_at_every_point(
    world: World, write: str, at_length: bool, record_property: Callable[[str, object], None]
) -> None:
    """Wherever in a write a node goes, and however, the write is done whole or not at all, and with its id once."""
    step = 1 if at_length else 15 if write in SIMILAR else 5
    for fates in [[Fate.ENDED], [Fate.PULLED]] if at_length else [[Fate.ENDED, Fate.PULLED]]:
        record_property("points", every_mode(world, write, fates, step))


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITES)
def test_a_node_that_lost_its_connections(world: World, write: str, at_length: bool) -> None:
    """A node that only lost its connections, wherever in a write, does it once in all over others, and says so."""
    assert sum(every_mode(world, write, [Fate.LOST], 1 if at_length else 23)) > 1


@pytest.mark.parametrize(
    "write", ["merge", *(pytest.param(write, marks=pytest.mark.slow) for write in WRITES if write != "merge")]
)
def test_a_process_that_is_killed(world: World, write: str, at_length: bool) -> None:
    """The same holds for a process that is killed with -9 between two messages."""
    assert sum(every_mode(world, write, [Fate.ENDED], 1 if at_length else 47, process=True)) > 1


def test_increments_add_up(world: World) -> None:
    """However many nodes are cut off, a counter shows every increment that was acknowledged, and none that failed."""
    told: Counter[Told] = Counter()
    world.there.save("counter", 0)
    with closing(world.node(Node, 0.0)) as node:
        for point in range(0, 120, 5):
            node.warm_up()
            world.proxy.cut_after(point, Fate.ENDED)
            told[node.attempt("increment", "counter", UNSET).told] += 1
            world.settle(Fate.ENDED if world.proxy.is_cut else Fate.LOST)
            world.proxy.open()
    assert set(told) == set(Told)
    assert told[Told.DONE] <= world.there.value("counter") <= told[Told.DONE] + told[Told.UNKNOWN]


def test_locks_of_a_node_that_vanished(world: World) -> None:
    """What a vanished node had locked is free once the server ends its idle transaction, without anybody's help."""
    world.there.save("file", 1)
    for point in range(MOST):
        with closing(world.node(Node, 0.0, idle="300")) as node:
            world.proxy.cut_after(point, Fate.PULLED)
            node.attempt("save over a file", "file", UNSET)
        world.settle(Fate.PULLED)
        if world.is_in_transaction():
            break
        assert world.proxy.is_cut
        world.proxy.open()
    assert world.there.value("file") == 1
    assert world.there.save("file", "theirs").error is None
    assert world.there.value("file") == "theirs"


def test_half_of_what_a_vanished_node_sent(address: str) -> None:
    """A server that waits for the rest of what a node sent gives it up before others give up waiting for its locks."""
    with PostgresStorage(shared.by_port(address, shared.port)) as storage:
        link = storage._pool.take(PATIENCE)
        names = ("idle", "interval", "count")
        query = f"SELECT {', '.join(f'CAST(current_setting($$tcp_keepalives_{name}$$) AS bigint)' for name in names)}"
        ((idle, interval, count),) = link.rows(query)
        storage._pool.give_back(link)
    assert 0 < idle + interval * count < STORAGE_PATIENCE


@pytest.mark.parametrize("fate", [Fate.ENDED, Fate.PULLED])
def test_counts_of_uses(world: World, fate: Fate) -> None:
    """How often a file was used is stored once or not at all, and never twice by a node that comes back."""
    account = world.service.accounts.named("owner").id
    with closing(world.node(Node, 0.0)) as node:
        for point in range(0, MOST, 3):
            name = f"file {point}"
            world.there.save(name, 1)
            counter = AccessCounter(node.service._storage, world.clock)
            node.warm_up()
            counter.count(account, "data", name, times=3)
            world.proxy.cut_after(point, fate)
            with suppress(UnavailableError, OutcomeUnknownError):
                counter.flush()
            passed, was_cut = world.proxy.passed, world.proxy.is_cut
            world.settle(fate if was_cut else Fate.LOST)
            world.proxy.open()
            node.warm_up()
            counter.flush()
            counter.close()
            with world.service._storage.read() as transaction:
                found = transaction.accesses(account, "data", name)
            assert found is None or found.times == 3
            assert found is not None or was_cut
            if passed < point:
                break
