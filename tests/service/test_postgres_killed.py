"""
A node that is killed at any point of a write leaves the state before or after it, and other nodes go on at once.

A point is a message of PostgreSQL's protocol, sent or received: after the n-th of a write, nothing of the node passes any
more. Each write is tried with one more message each time, until it comes to its end.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
import pytest
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from cloudstore_mapping.errors import (
    BadKeyError,
    BadNameError,
    CloudStoreError,
    DisabledError,
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
from cloudstore_mapping.wire import Batch, Reply, Request, decode_replies, decode_value, encode_value
from tests.media_fakes import comes_to, rows, write
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
    IN_PIECES: Change(
        _BEFORE, _SAVED, _MERGED, _AFTER, make=lambda asker, name: several(asker, name, atomic=False)
    ),
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
        self._connection.send((write, name, None if once is UNSET else once))
        try:
            outcome: Outcome = self._connection.recv()
        except EOFError:
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
    node = Node(address, api_key, patience)
    node.warm_up()
    connection.send(None)
    while True:
        write, name, once = connection.recv()
        connection.send(node.attempt(write, name, UNSET if once is None else once))


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

    def node(self, kind: type[Node] | type[NodeProcess], patience: float) -> Node | NodeProcess:
        """Return a new node, which has begun to run."""
        node = kind(self._by_proxy, self._api_key, patience)
        node.warm_up()
        return node

    def at_once(self, work: Callable[[], T]) -> T:
        """Have something done while the server still takes the connections of a node that vanished for open."""
        doing = self._pool.submit(work)
        self.proxy.let_go()
        return doing.result(PATIENCE)

    def settle(self, fate: Fate) -> None:
        """Wait until the server has done what it was told before the cut, and where it was told to, ended that."""
        if fate is Fate.LOST:
            return
        condition = "wait_event IS DISTINCT FROM 'ClientRead'" if fate is Fate.PULLED else "TRUE"
        query = f"SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s) AND {condition}"
        end = time.monotonic() + PATIENCE
        while self.proxy.unread() or self._looking.execute(query, [self.proxy.processes]).fetchone() != (0,):
            assert time.monotonic() < end

    def check(self) -> None:
        """Check that the store is sound: counters, values, and chunks of media."""
        with self.service._storage.read() as transaction:
            assert check_integrity(transaction, newest_schema()).faults == []
            chunks = "SELECT count(*) FROM chunks c LEFT JOIN blobs b ON (b.account_id, b.id) = (c.account_id, c.blob_id)"
            assert transaction.row(f"{chunks} WHERE b.id IS NULL") == (0,)

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
        try:
            self.at_once(lambda: work.do(self.there, name))
        except CloudStoreError as error:
            assert done
            assert type(error) is work.done_already
        else:
            assert not done or work.done_already is None
        assert work.found(self.there, name)

    def trial(
        self, write: str, fate: Fate, point: int | None, *, with_id: bool, process: bool = False, node: Node | None = None
    ) -> int:
        """Cut a write after so many messages, check all that is to hold then, and return how many passed."""
        name = f"{write} {point} {fate.name} {with_id} {process}"
        once = f"id of {name}" if with_id else UNSET
        what = WORKS.get(write) or CHANGES[write]
        what.prepare(self.there, name)
        request = CHANGES[write].request(self.there, name, once) if write in CHANGES else None
        if node is None:
            killed = self.node(NodeProcess if process else Node, STORAGE_PATIENCE if fate is Fate.LOST else 0.0)
        else:
            killed = node
            node.warm_up()
        self.proxy.cut_after(point, fate, killed.kill if isinstance(killed, NodeProcess) else lambda: None)
        outcome = killed.attempt(write, name, once)
        passed, was_cut = self.proxy.passed, self.proxy.is_cut
        if killed is not node:
            killed.close()
        self.settle(fate if was_cut else Fate.LOST)
        done = self.judge(write, name, outcome, fate)
        if isinstance(what, Work):
            self.go_on(name, what, done=done)
        elif with_id:
            assert request is not None
            self.repeat(name, request, outcome, what)
        else:
            self.write_over(name, what)
        self.check()
        self.proxy.open()
        what.remove(self.there, name)
        return passed


@pytest.fixture
def world(address: str, no_threads_left: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return a database, a node and a way to the database, where chunks and pieces are small."""
    monkeypatch.setattr("cloudstore_mapping.service.media.CHUNK_BYTES", CHUNK)
    monkeypatch.setattr("cloudstore_mapping.service.batch.LONE_PIECE_SECONDS", 0.0)
    with ExitStack() as stack:
        yield World(address, stack)


def every_point(
    world: World, write: str, fates: Sequence[Fate], step: int = 1, *, with_id: bool = False, process: bool = False
) -> int:
    """Try a write at every point, or every so many, with each fate in turn; return the number of points tried."""
    with ExitStack() as stack:
        node = None
        if write in CHANGES and not process:  # what goes on after a call of one of `WORKS` would meet the next trial
            node = world.node(Node, STORAGE_PATIENCE if Fate.LOST in fates else 0.0)
            stack.callback(node.close)
        for tried, point in enumerate(range(0, MOST, step)):
            fate = fates[tried % len(fates)]
            if world.trial(write, fate, point, with_id=with_id, process=process, node=node) < point:
                return tried
    raise AssertionError(write)


#: Each write, without an id and, where it can have one, with one.
MODES: Final = [*itertools.product(CHANGES, (False, True)), *itertools.product(WORKS, (False,))]


@pytest.mark.parametrize("fates", [(Fate.ENDED, Fate.PULLED), (Fate.LOST,)])
@pytest.mark.parametrize(("write", "with_id"), MODES)
def test_points(world: World, write: str, fates: Sequence[Fate], with_id: bool) -> None:
    """X."""
    t = time.monotonic()
    n = every_point(world, write, fates, 7, with_id=with_id)
    print("POINTS", write, fates, with_id, n, round(time.monotonic() - t, 2))
