"""Two clients of one store, with caches, on a network that loses requests and replies; only the test moves time."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.errors import BulkError, CloudStoreError, NoFileError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.faults import FaultyTransport, lost, refused
from tests.storages import new_storage

TTL = 10.0
MISSING = "missing"

keys = st.sampled_from("abc")
values = st.one_of(st.none(), st.integers(0, 3), st.dictionaries(st.sampled_from("xy"), st.integers(0, 3), max_size=2))
clients = st.integers(0, 1)


#: What becomes of a request: it is lost on its way there, or its reply on the way back.
LOSSES = {"request": refused, "reply": lost}


class CacheMachine(RuleBasedStateMachine):
    """Holds each read against all states that the store was in during the last `TTL` seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.service = Service(new_storage())
        api_key = self.service.accounts.create("tests")
        self.truth = CloudStoreMapping[Any](api_key, transport=InProcessTransport(self.service))
        self.networks = [FaultyTransport(InProcessTransport(self.service)) for _ in range(2)]
        self.stores = [
            CloudStoreMapping[Any](
                api_key,
                transport=network,
                retries=0,
                cache_ttl=TTL,
                cache_absent_ttl=TTL,
                cache_size=2,
                clock=lambda: self.now,
                max_workers=1,
            )
            for network in self.networks
        ]
        #: What was stored, and since when.
        self.history: list[tuple[float, dict[str, Any]]] = [(self.now, {})]
        #: From where in the history each client has to see each key: its own writes.
        self.own: dict[tuple[int, str], int] = {}

    def teardown(self) -> None:
        """Close the service."""
        self.service.close()

    def write(self, client: int, written: set[str], act: Any, *, perhaps: bool = False) -> None:
        """Write, be it in vain, and note what is stored then; `perhaps` it came no further than reading."""
        with suppress(CloudStoreError, KeyError):
            act(self.stores[client])
        state = dict(self.truth.items())
        changed = state != self.history[-1][1]
        if changed:
            self.history.append((self.now, state))
        for key in written if changed or not perhaps else ():
            self.own[client, key] = len(self.history) - 1

    def allowed(self, client: int, key: str) -> list[Any]:
        """Return what the client may read: of its own last write or later, and not older than the cache's time."""
        first = self.own.get((client, key), 0)
        recent = [
            state.get(key, MISSING)
            for index, (_, state) in enumerate(self.history)
            if index >= first and (index == len(self.history) - 1 or self.history[index + 1][0] > self.now - TTL)
        ]
        assert recent
        return recent

    @rule(client=clients, loss=st.sampled_from(sorted(LOSSES)))
    def lose(self, client: int, loss: str) -> None:
        """The client's next request or reply is lost."""
        self.networks[client].break_with([LOSSES[loss]])

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.0, 11.0]))
    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.now += seconds

    @rule(client=clients, key=keys, value=values)
    def save(self, client: int, key: str, value: Any) -> None:
        """Save."""
        self.write(client, {key}, lambda store: store.__setitem__(key, value))

    @rule(client=clients, key=keys, value=values)
    def merge(self, client: int, key: str, value: Any) -> None:
        """Merge."""
        self.write(client, {key}, lambda store: store.merge(key, value))

    @rule(client=clients, key=keys)
    def delete(self, client: int, key: str) -> None:
        """Delete."""
        self.write(client, {key}, lambda store: store.__delitem__(key))

    @rule(client=clients, key=keys)
    def pop(self, client: int, key: str) -> None:
        """Take out: what is returned was the value at that moment, where it was removed at all."""
        before = self.history[-1][1]
        popped: list[Any] = []
        self.write(client, {key}, lambda store: popped.append(store.pop(key)), perhaps=True)
        if popped:
            assert popped == [before[key]]

    @rule(client=clients, key=keys, value=values)
    def setdefault(self, client: int, key: str, value: Any) -> None:
        """Save where nothing is."""
        self.write(client, {key}, lambda store: store.setdefault(key, value), perhaps=True)

    @rule(client=clients, key=keys)
    def transform(self, client: int, key: str) -> None:
        """Save what is made of the value."""
        self.write(client, {key}, lambda store: store.transform(key, lambda value: [value], default=0), perhaps=True)

    @rule(client=clients, new=st.dictionaries(keys, values))
    def update(self, client: int, new: dict[str, Any]) -> None:
        """Save many."""
        self.write(client, set(new), lambda store: store.update(new))

    @rule(client=clients)
    def clear(self, client: int) -> None:
        """Delete everything that is listed."""
        listed = self.stores[client]
        try:
            gone = set(listed)
        except CloudStoreError:
            return
        done: list[bool] = []
        self.write(client, gone, lambda store: done.append(store.clear() is None), perhaps=True)
        for key in gone if done else ():  # else it came no further than listing, perhaps
            self.own[client, key] = len(self.history) - 1

    @rule(client=clients, key=keys)
    def read(self, client: int, key: str) -> None:
        """A read gives a value that the store held within the cache's time, and own writes are always seen."""
        try:
            value = self.stores[client][key]
        except NoFileError:
            value = MISSING
        except CloudStoreError:
            return
        assert value in self.allowed(client, key)

    @rule(client=clients, key=keys)
    def look(self, client: int, key: str) -> None:
        """So does `in`."""
        try:
            there = key in self.stores[client]
        except CloudStoreError:
            return
        assert there in {value != MISSING for value in self.allowed(client, key)}

    @rule(client=clients)
    def list_keys(self, client: int) -> None:
        """So does a listing, of each key for itself."""
        try:
            listed = set(self.stores[client])
        except CloudStoreError:
            return
        for key in "abc":
            assert (key in listed) in {value != MISSING for value in self.allowed(client, key)}

    @rule(client=clients)
    def read_all(self, client: int) -> None:
        """So do all items together."""
        try:
            items = dict(self.stores[client].items())
        except (CloudStoreError, BulkError):
            return
        for key, value in items.items():
            assert value in self.allowed(client, key)

    @precondition(lambda self: len(self.history) > 1)
    @rule(client=clients)
    def forget(self, client: int) -> None:
        """After `cache_clear` only what stands is read."""
        store = self.stores[client]
        store.cache_clear()
        self.networks[client].break_with([])
        assert dict(store) == self.history[-1][1]


@pytest.mark.slow
def test_two_clients_with_caches() -> None:
    """After any sequence, a read gives a value that was stored within the cache's time, and own writes are seen."""
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


def test_after_a_write_in_vain_the_listing_is_asked_for_again() -> None:
    """A key that was listed, and that somebody else deleted, is listed no more after a write to it failed."""
    state = CacheMachine()
    state.save(client=0, key="b", value=None)
    state.list_keys(client=0)
    state.clear(client=1)
    state.lose(client=0, loss="request")
    state.save(client=0, key="b", value=None)
    state.save(client=1, key="a", value=None)
    state.list_keys(client=0)
    state.teardown()
