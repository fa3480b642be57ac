"""Random operations on a store and on a `dict`, compared after each."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.embedded import InProcessTransport
from cloudstore_mapping.errors import BadMergeError, BulkError
from cloudstore_mapping.locations import open as open_store
from cloudstore_mapping.merge import merge
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web.serve import background

keys = st.one_of(
    st.sampled_from(["", " ", "a", "a,b", "a/b", "..", "%", "%2C", "é", "e\u0301", "\0", "😀"]),
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8),
)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), finite, st.text())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab01"), inner, max_size=3),
    max_leaves=6,
)


class StoreMachine(RuleBasedStateMachine):
    """Drives a store beside a `dict`; a subclass says where the store is."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, Any] = {}
        self.stack = ExitStack()
        self.store = self.begin()

    known = Bundle("known")

    def begin(self) -> CloudStoreMapping[Any]:
        """Return an empty store."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close what was opened."""
        self.store.close()
        self.stack.close()

    @initialize(target=known, key=keys)
    def first_key(self, key: str) -> str:
        """Make sure that rules find a key."""
        return key

    @rule(target=known, key=keys, value=values)
    def save(self, key: str, value: Any) -> str:
        """Save under any key."""
        self.store[key] = self.model[key] = value
        return key

    @rule(key=known, value=values)
    def overwrite(self, key: str, value: Any) -> None:
        """Save under a key that was used."""
        self.store[key] = self.model[key] = value

    @rule(key=known)
    def read(self, key: str) -> None:
        """Read in every way."""
        assert (key in self.store) == (key in self.model)
        assert self.store.get(key, "default") == self.model.get(key, "default")
        if key in self.model:
            assert self.store[key] == self.model[key]
            assert type(self.store[key]) is type(self.model[key])
        else:
            with pytest.raises(KeyError):
                self.store[key]

    @rule(key=known)
    def delete(self, key: str) -> None:
        """Delete, where it is there."""
        if key in self.model:
            del self.store[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.store[key]

    @rule(key=known)
    def pop(self, key: str) -> None:
        """Take out."""
        assert self.store.pop(key, "default") == self.model.pop(key, "default")

    @rule(key=known, value=values)
    def setdefault(self, key: str, value: Any) -> None:
        """Save only where nothing is."""
        assert self.store.setdefault(key, value) == self.model.setdefault(key, value)

    @rule(target=known, key=keys, value=values)
    def merge(self, key: str, value: Any) -> str:
        """Merge into one key."""
        try:
            merged = merge(self.model.get(key), value)
        except BadMergeError:
            with pytest.raises(BadMergeError):
                self.store.merge(key, value)
        else:
            self.store.merge(key, value)
            self.model[key] = merged
        return key

    @rule(other=st.dictionaries(keys, values, max_size=3))
    def merge_many(self, other: dict[str, Any]) -> None:
        """Merge with `|` and with `|=`."""
        merged, refused = dict(self.model), False
        for key, value in other.items():
            try:
                merged[key] = merge(self.model.get(key), value)
            except BadMergeError:
                refused = True
        if refused:
            with pytest.raises((BadMergeError, BulkError)):
                self.store |= other
        else:
            assert self.store | other == merged
            self.store |= other
        self.model = merged

    @rule(other=st.dictionaries(keys, values, max_size=3))
    def update(self, other: dict[str, Any]) -> None:
        """Replace many."""
        self.store.update(other)
        self.model.update(other)

    @rule()
    def popitem(self) -> None:
        """Take out the last listed."""
        if self.model:
            key, value = self.store.popitem()
            assert self.model.pop(key) == value
        else:
            with pytest.raises(KeyError):
                self.store.popitem()

    @rule()
    def clear(self) -> None:
        """Delete everything."""
        self.store.clear()
        self.model.clear()

    @rule(other=st.sets(keys, max_size=3))
    def views(self, other: set[str]) -> None:
        """Do set operations on the keys."""
        assert self.store.keys() & other == self.model.keys() & other
        assert self.store.keys() ^ other == self.model.keys() ^ other
        assert (self.store.keys() >= other) == (self.model.keys() >= other)
        assert self.store.keys() == self.model.keys()

    @invariant()
    def same(self) -> None:
        """The store holds what the dictionary holds."""
        assert dict(self.store.items()) == self.model
        assert len(self.store) == len(self.model)
        assert self.store == self.model
        assert bool(self.store) == bool(self.model)


class MemoryMachine(StoreMachine):
    """In memory."""

    def begin(self) -> CloudStoreMapping[Any]:
        """Return an empty store."""
        return open_store("memory:")


class FileMachine(StoreMachine):
    """In a file, which is closed and opened again now and then."""

    def begin(self) -> CloudStoreMapping[Any]:
        """Return an empty store."""
        self.path = Path(self.stack.enter_context(TemporaryDirectory())) / "store.db"
        return open_store(self.path)

    @rule()
    def reopen(self) -> None:
        """Close, and open again."""
        self.store.close()
        self.store = open_store(self.path)


SMALL = settings(max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_store_in_memory_is_a_dict() -> None:
    """Whatever is done to it, a store in memory holds what a `dict` would."""
    run_state_machine_as_test(MemoryMachine, settings=SMALL)


def test_a_store_in_a_file_is_a_dict() -> None:
    """Whatever is done to it, a store in a file holds what a `dict` would, also when it is opened again."""
    run_state_machine_as_test(FileMachine, settings=SMALL)


def test_a_store_over_http_is_a_dict() -> None:
    """Whatever is done to it, a store over HTTP holds what a `dict` would."""
    with Service(SQLiteStorage(None)) as service, background(service) as address:

        class HTTPMachine(StoreMachine):
            accounts = 0

            def begin(self) -> CloudStoreMapping[Any]:
                HTTPMachine.accounts += 1
                api_key = service.accounts.create(f"account {HTTPMachine.accounts}")
                return CloudStoreMapping(api_key, transport=HTTPTransport(address))

        run_state_machine_as_test(HTTPMachine, settings=SMALL)


def test_the_machine_finds_faults() -> None:
    """A store that loses empty objects is caught, so the machine does look."""
    with Service(SQLiteStorage(None)) as service:

        class Forgetful(CloudStoreMapping[Any]):
            def __setitem__(self, key: str, value: Any) -> None:
                if value != {}:
                    super().__setitem__(key, value)

        class ForgetfulMachine(StoreMachine):
            def begin(self) -> CloudStoreMapping[Any]:
                store = Forgetful(service.accounts.grant("tests"), transport=_Kept(service))
                store.clear()
                return store

        with pytest.raises(AssertionError):
            run_state_machine_as_test(
                ForgetfulMachine, settings=settings(SMALL, max_examples=200, database=None, report_multiple_bugs=False)
            )


class _Kept(InProcessTransport):
    def close(self) -> None:
        """Leave the service to the test."""
