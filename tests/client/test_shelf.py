"""A shelf keeps the contract of the standard library's, wherever its data is."""

from __future__ import annotations

import copy
import dbm
import os
import shelve as standard
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.client.shelf import Envelopes, StoreShelf
from cloudstore_mapping.errors import (
    BadNameError,
    BadValueError,
    BulkError,
    CloudStoreError,
    TooBigError,
    UnavailableError,
)
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.shelves import store_of
from tests.vendor import serve_vendor

SECRET = "a secret of the tests"

#: Opens a shelf on always the same place, with the options of `shelve.open`.
Open = Callable[..., Any]


@pytest.fixture(params=["standard", "file", "http", "vendor"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Return how a shelf is opened: the standard library's, and ours in a file, at a service, at the vendor's."""
    with ExitStack() as stack:
        if request.param == "standard":
            yield lambda *arguments, **options: standard.open(str(tmp_path / "shelf"), *arguments, **options)  # noqa: SIM115
            return
        if request.param == "file":
            location = str(tmp_path / "shelf")
        elif request.param == "http":
            service = stack.enter_context(Service(new_storage()))
            address = stack.enter_context(background(service))
            location = address.replace("://", f"://{service.accounts.create('owner')}@")
        else:
            vendor = stack.enter_context(serve_vendor())
            location = vendor.address.replace("://", f"://{vendor.api_key}@")
        yield lambda *arguments, **options: shelve.open(location, *arguments, secret=SECRET, **options)


def test_values_outlast_the_shelf(opened: Open) -> None:
    """What was put in one shelf is in the next one on the same place, equal and of the same type."""
    values = {
        "set": {1, 2},
        "tuple": (1, [2]),
        "none": None,
        "empty": {},
        "bytes": b"\0",
        "text": "é,/%",
        "nested": {1: (2,)},
    }
    with opened() as db:
        for key, value in values.items():
            db[key] = value
    with opened("w") as db:
        assert dict(db) == values
        assert {key: type(value) for key, value in db.items()} == {key: type(value) for key, value in values.items()}
        assert sorted(db) == sorted(db.keys()) == sorted(values)
        assert len(db) == len(list(db.values())) == len(values)


def test_it_is_a_dictionary(opened: Open) -> None:
    """get, in, pop, setdefault, update, del and clear do what a dictionary's do."""
    with opened() as db:
        assert db.get("absent") is None
        assert db.get("absent", ()) == ()
        assert "absent" not in db
        with pytest.raises(KeyError):
            db["absent"]
        with pytest.raises(KeyError):
            del db["absent"]
        assert db.setdefault("a", (1,)) == (1,)
        db.update({"b": {2}, "c": 3}, d=4)
        db.update([("e", 5)])
        assert db.pop("a") == (1,)
        assert db.pop("a", "gone") == "gone"
        assert dict(db) == {"b": {2}, "c": 3, "d": 4, "e": 5}
        del db["b"]
        db.clear()
        assert (len(db), list(db)) == (0, [])


def test_a_value_that_is_changed_is_not_written_by_itself(opened: Open) -> None:
    """Without writeback a change of what was read is nobody else's."""
    with opened() as db:
        db["list"] = [1]
        db["list"].append(2)
        assert db["list"] == [1]


def test_writeback(opened: Open) -> None:
    """With writeback what was read or put in may be changed in place; sync and close write it."""
    with opened(writeback=True) as db:
        db["read"] = [1]
    with opened(writeback=True) as db:
        db["read"].append(2)
        db["new"] = {"a": ()}
        db["new"]["a"] += (1,)
        assert db["read"] is db["read"]
        db.sync()
        db["read"].append(3)
    with opened() as db:
        assert dict(db) == {"read": [1, 2, 3], "new": {"a": (1,)}}


def test_flags(opened: Open) -> None:
    """Read-only refuses every change, and a new one is empty."""
    with opened("n") as db:
        db["a"] = 1
    with opened("r") as db:
        assert db["a"] == 1
        with pytest.raises(dbm.error):
            db["a"] = 2
        with pytest.raises((*dbm.error, KeyError)):
            del db["a"]
    with opened("n") as db:
        assert len(db) == 0


def test_a_closed_shelf(opened: Open) -> None:
    """After close every use is `ValueError`, and closing again is nothing."""
    db = opened()
    db["a"] = 1
    db.close()
    db.close()
    for use in (lambda: db["a"], lambda: db.__setitem__("a", 1), lambda: len(db), lambda: list(db), lambda: "a" in db):
        with pytest.raises(ValueError, match="closed shelf"):
            use()


@pytest.mark.parametrize("flag", ["r", "w"])
def test_a_file_that_is_not_there(tmp_path: Path, flag: str) -> None:
    """Only 'c' and 'n' make a file; without one it is an error that `dbm.error` catches, and nothing is made."""
    with pytest.raises(dbm.error, match="'c' makes one"):
        shelve.open(tmp_path / "absent", flag)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["", "x", "rw", "cf"])
def test_a_flag_that_is_none(tmp_path: Path, flag: str) -> None:
    """Any other flag is `ValueError`."""
    with pytest.raises(ValueError, match="one of 'r', 'w', 'c' and 'n'"):
        shelve.open(tmp_path / "shelf", flag)


def test_names_of_files(tmp_path: Path) -> None:
    """The name may be text, bytes or a path."""
    path = tmp_path / "shelf"
    with shelve.open(path) as db:
        db["a"] = 1
    for name in (str(path), os.fsencode(path)):
        with shelve.open(name, "r") as db:
            assert db["a"] == 1


def test_it_is_a_shelf() -> None:
    """A program that asks gets told that it has a shelf."""
    with shelve.open("memory:") as db:
        assert isinstance(db, standard.Shelf)
        assert "memory:" in repr(db)


def test_keys_are_text() -> None:
    """A key of another type is `TypeError`, and nothing is stored."""
    with shelve.open("memory:") as db:
        keys: list[Any] = [1, None, b"a"]
        for key in keys:
            with pytest.raises(TypeError, match="Keys are str"):
                db[key] = 1
        with pytest.raises(TypeError, match="Keys are str"):
            db.update({1: 1})
        assert len(db) == 0


def test_what_is_json_is_readable(tmp_path: Path) -> None:
    """A value that JSON says exactly is stored as that; other programs read it, and the other way round."""
    path = tmp_path / "shelf"
    with shelve.open(path) as db:
        db["plain"] = {"a": [1, 2.5, None, True, "é"]}
        db["set"] = {1}
    with cm.open(path) as store:
        assert store["plain"] == {"a": [1, 2.5, None, True, "é"]}
        assert list(store["set"]) == ["__shelf__"]
        store["theirs"] = [1, {"b": 2}]
    with shelve.open(path) as db:
        assert db["theirs"] == [1, {"b": 2}]


@pytest.mark.parametrize("content", [1, {"pickle": "x", "hmac-sha256": "00"}, {"json": 1}])
def test_data_that_looks_like_ours(content: Any) -> None:
    """A user's object with our mark comes back as it is."""
    value = {"__shelf__": content}
    with shelve.open("memory:") as db:
        db["a"] = value
        db["b"] = [value]
        assert db["a"] == value
        assert db["b"] == [value]


def test_many_values_in_one_request(tmp_path: Path) -> None:
    """Reading and saving all takes as few requests as the store lets one."""
    with shelve.open(tmp_path / "shelf") as db:
        db["first"] = 1
        db.update({str(number): (number,) for number in range(500)})
        before = store_of(db).stats.requests
        assert len(dict(db.items())) == 501
        after = store_of(db).stats.requests
    assert sum(after.values()) - sum(before.values()) == 2


class Old:
    """Object that can't be loaded: its class wants an attribute that was not saved."""

    def __getstate__(self) -> dict[str, Any]:
        return {"old": 1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.new = state["new"]


@pytest.mark.parametrize(
    "use",
    [
        lambda db: db["a"],
        lambda db: db.get("a", 1),
        lambda db: db.pop("a", 1),
        lambda db: db.setdefault("a", 1),
        lambda db: dict(db),
        lambda db: list(db.values()),
    ],
)
@pytest.mark.parametrize("writeback", [True, False])
def test_a_value_that_cannot_be_loaded_is_not_absent(
    use: Callable[[Any], Any], writeback: bool, tmp_path: Path
) -> None:
    """A `KeyError` in loading a value comes out as it is: no default is given for a key that is there."""
    with shelve.open(tmp_path / "shelf", writeback=writeback) as db:
        db["a"] = Old()
    with shelve.open(tmp_path / "shelf", writeback=writeback) as db:
        stored = store_of(db)["a"]
        with pytest.raises(KeyError, match="new"):
            use(db)
        assert "a" in db
        assert store_of(db)["a"] == stored


def test_defaults_of_absent_keys(opened: Open) -> None:
    """An absent key gives the default, also in a subclass that has keys of its own."""
    with opened() as db:
        assert (db.get("a"), db.get("a", 1), db.pop("a", 2), db.setdefault("a", 3)) == (None, 1, 2, 3)
        assert (db.get("a", 1), db.setdefault("a", 1), db.pop("a", 1)) == (3, 3, 3)
        with pytest.raises(KeyError):
            db.pop("a")
        with pytest.raises(TypeError):
            db.pop("a", 1, 2)


def test_a_subclass_with_its_own_keys(tmp_path: Path) -> None:
    """`get`, `pop` and `setdefault` look up the key with a subclass's own methods."""

    class Lower(shelve.DbfilenameShelf):
        def __getitem__(self, key: str) -> Any:
            return super().__getitem__(key.lower())

    with Lower(tmp_path / "shelf") as db:
        db["a"] = 1
        assert (db.get("A"), db.setdefault("A"), db.get("B", 2)) == (1, 1, 2)


def test_a_subclass_with_its_own_values(tmp_path: Path) -> None:
    """A subclass's own access to a key is used by every method, as in the standard library's shelf."""
    for module in (standard, shelve):

        class Wrapping(module.DbfilenameShelf):  # type: ignore[name-defined,misc]  # mypy takes no module in a variable
            deleted: list[str] = []  # noqa: RUF012 - of the class

            def __getitem__(self, key: str) -> Any:
                return super().__getitem__(key)["wrapped"]

            def __setitem__(self, key: str, value: Any) -> None:
                super().__setitem__(key, {"wrapped": value})

            def __delitem__(self, key: str) -> None:
                self.deleted.append(key)
                super().__delitem__(key)

        path = str(tmp_path / module.__name__)
        with Wrapping(path) as db:
            db.update(a=1)
            db.update({"b": 2}, c=3)
            assert db.setdefault("d", 4) == 4
            assert sorted(db.items()) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
            assert (sorted(db.values()), db.get("a"), db.pop("a")) == ([1, 2, 3, 4], 1, 1)
        with module.open(path) as plain:
            assert plain["b"] == {"wrapped": 2}
        with Wrapping(path) as db:
            db.clear()
            is_quick = module is standard and Wrapping.clear is not MutableMapping.clear  # since Python 3.13
            assert (sorted(db.deleted), len(db)) == (["a"] if is_quick else ["a", "b", "c", "d"], 0)


class Full(dict[str, Any]):
    """A store that takes no writes while it is `full`."""

    full = False

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(super().__getitem__(key))

    def __delitem__(self, key: str) -> None:
        if self.full:
            raise UnavailableError("The disk is full.")
        super().__delitem__(key)

    def clear(self) -> None:
        """Delete only the keys "saved" and "other" while it is full."""
        if self.full:
            self.pop("other", None)
            raise BulkError("Not all.", succeeded=["other"], failed={"a": UnavailableError("The disk is full.")})
        super().clear()

    def __setitem__(self, key: str, value: Any) -> None:
        if self.full:
            raise UnavailableError("The disk is full.")
        super().__setitem__(key, copy.deepcopy(value))

    def update(self, *values: Any, **more: Any) -> None:
        """Save all but, while it is full, those whose key is not "saved"."""
        new = copy.deepcopy(dict(*values, **more))
        if self.full and new:
            done = [key for key in new if key == "saved"]
            super().update({key: new[key] for key in done})
            failed = {key: UnavailableError("The disk is full.") for key in new if key not in done}
            raise BulkError("Not all was saved.", succeeded=done, failed=failed)
        super().update(new)

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def full() -> Iterator[tuple[StoreShelf, Full]]:
    """Return a shelf with writeback, and the store behind it."""
    store = Full()
    db = StoreShelf(store, Envelopes([SECRET.encode()]), writeback=True)
    yield db, store
    store.full = False
    db.close()


def test_a_value_whose_write_failed_is_not_served(full: tuple[StoreShelf, Full]) -> None:
    """What could not be written is not what one reads: the store's own value is."""
    db, store = full
    db["a"] = [1]
    store.full = True
    with pytest.raises(UnavailableError):
        db["a"] = [2]
    assert db["a"] == [1]
    with pytest.raises(UnavailableError):
        db["new"] = 1
    assert "new" not in db


def test_a_failed_sync_loses_nothing(full: tuple[StoreShelf, Full]) -> None:
    """What a sync could not write stays, and the next one writes it; what it did write is not written again."""
    db, store = full
    db.update({"saved": [1], "other": {1}, "same": (1,)})
    db["saved"].append(2)
    db["other"].add(2)
    store.full = True
    with pytest.raises(BulkError) as caught:
        db.sync()
    assert (caught.value.succeeded, list(caught.value.failed)) == (["saved"], ["other"])
    assert (db["saved"], db["other"]) == ([1, 2], {1, 2})
    with pytest.raises(BulkError) as caught:
        db.close()
    assert list(caught.value.failed) == ["other"]
    store.full = False
    db.sync()
    assert db["other"] == {1, 2}


class Interrupted(dict[str, Any]):
    """Cache at whose first change the user presses Ctrl-C."""

    is_done = False

    def _interrupt(self) -> None:
        if not self.is_done:
            self.is_done = True
            raise KeyboardInterrupt

    def __setitem__(self, key: str, value: Any) -> None:
        self._interrupt()
        super().__setitem__(key, value)

    def pop(self, *arguments: Any) -> Any:
        """Remove a key."""
        self._interrupt()
        return super().pop(*arguments)

    def clear(self) -> None:
        """Remove all keys."""
        self._interrupt()
        super().clear()


@pytest.mark.parametrize(
    "use",
    [
        lambda db: db.__setitem__("a", [9]),
        lambda db: db.update(a=[9]),
        lambda db: db.__delitem__("a"),
        lambda db: db.clear(),
    ],
    ids=["set", "update", "del", "clear"],
)
def test_ctrl_c_after_a_write(use: Callable[[Any], Any], full: tuple[StoreShelf, Full]) -> None:
    """After Ctrl-C between the write to the store and that to the write-back cache, the shelf gives what is stored."""
    db, store = full
    db["a"] = [1]
    db.cache = Interrupted(db.cache)
    with pytest.raises(KeyboardInterrupt):
        use(db)
    assert db.get("a") == store.get("a") != [1]


@pytest.mark.parametrize(
    "use",
    [
        lambda db: db.__setitem__("a", [9]),
        lambda db: db.update(a=[9], b=[9]),
        lambda db: db.__delitem__("a"),
        lambda db: db.pop("a"),
        lambda db: db.clear(),
    ],
    ids=["set", "update", "del", "pop", "clear"],
)
def test_a_failed_write_keeps_earlier_changes(use: Callable[[Any], Any], full: tuple[StoreShelf, Full]) -> None:
    """If a key can't be replaced or deleted, its value's changes in the write-back cache are still to be saved."""
    db, store = full
    db.update(a=[1], b=[1], other=[1])
    db["a"].append(2)
    db["other"].append(2)
    store.full = True
    with pytest.raises(CloudStoreError):
        use(db)
    assert db["a"] == [1, 2]
    assert ("other" in db) == ("other" in store)
    store.full = False
    store["b"] = ["somebody else's"]
    db.sync()
    assert (store["a"], store["b"]) == ([1, 2], ["somebody else's"])


def test_a_sync_writes_all_that_can_be(full: tuple[StoreShelf, Full]) -> None:
    """If values can't be stored, all others are, the error names their keys, and they can be stored by a later sync."""
    db, store = full
    for key in "abcd":
        db[key] = [0]
    for key in "abcd":
        db[key].append(1)
    db["b"].append(lambda: 0)
    with pytest.raises((AttributeError, PicklingError)) as single:
        db.sync()
    assert "'b'" in single.value.__notes__[0]
    assert [store[key] for key in "abcd"] == [[0, 1], [0], [0, 1], [0, 1]]
    db["a"].append(2)
    db["c"].append(lambda: 0)
    with pytest.raises(BulkError, match="'b'") as several:
        db.close()
    assert (several.value.succeeded, list(several.value.failed)) == (["a"], ["b", "c"])
    assert store["a"] == [0, 1, 2]
    del db["b"][-1], db["c"][-1]
    db["d"].append(3)
    db["b"].append(4)
    db.sync()
    assert [store[key] for key in "bcd"] == [[0, 1, 4], [0, 1], [0, 1, 3]]


def test_a_sync_that_fails_in_two_ways(full: tuple[StoreShelf, Full]) -> None:
    """The error of a sync has the keys that can't be stored, and those that the store didn't take."""
    db, store = full
    db.update(a=[0], b=[0], saved=[0])
    for value in db.values():
        value.append(1)
    db["a"].append(lambda: 0)
    store.full = True
    with pytest.raises(BulkError) as caught:
        db.sync()
    assert (caught.value.succeeded, sorted(caught.value.failed)) == (["saved"], ["a", "b"])
    del db["a"][-1]


def test_a_close_that_fails_leaves_it_open(full: tuple[StoreShelf, Full]) -> None:
    """After a close whose sync failed the shelf can be used and closed again."""
    db, store = full
    db["a"] = [1]
    db["a"].append(2)
    store.full = True
    with pytest.raises(BulkError):
        db.close()
    store.full = False
    db.close()
    assert store["a"] == [1, 2]
    with pytest.raises(ValueError, match="closed shelf"):
        db["a"]


def test_a_sync_writes_only_what_was_changed(full: tuple[StoreShelf, Full]) -> None:
    """A value that was only read is not written back, where somebody else may have changed it meanwhile."""
    db, store = full
    db.update({"read": [1], "changed": [1]})
    db.sync()
    assert db["read"] == [1]
    db["changed"].append(2)
    store["read"] = ["somebody else's"]
    db.sync()
    assert store == {"read": ["somebody else's"], "changed": [1, 2]}


def test_a_forgotten_shelf_writes_back(tmp_path: Path) -> None:
    """A shelf that is dropped without close has written what was changed, as the standard library's has."""
    db = shelve.open(tmp_path / "shelf", writeback=True)
    db["a"] = [1]
    db["a"].append(2)
    del db
    with shelve.open(tmp_path / "shelf") as again:
        assert again["a"] == [1, 2]


def test_without_a_secret_only_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is neither a file nor a secret, what has to be pickled is refused with what to do; JSON is stored."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    with serve_vendor() as vendor, shelve.open(vendor.address.replace("://", f"://{vendor.api_key}@")) as db:
        db["plain"] = [1]
        with pytest.raises(BadValueError, match="CLOUDSTORE_SECRET"):
            db["set"] = {1}
        assert dict(db) == {"plain": [1]}


def test_keys_and_values_have_limits() -> None:
    """At a service, too long a key is `BadNameError`, also from `get` and `in`; too long a value is `TooBigError`."""
    with Service(new_storage()) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('owner')}@")
        with shelve.open(location, secret=SECRET, prefix="p") as db:
            longest = "é" * 511
            db[longest] = {1}
            assert (longest in db, db.get(longest)) == (True, {1})
            uses: list[Callable[[str], Any]] = [
                db.get,
                db.pop,
                db.__contains__,
                db.__getitem__,
                lambda key: db.__setitem__(key, 1),
                lambda key: db.setdefault(key, 1),
            ]
            for use in uses:
                with pytest.raises(BadNameError, match="longer than 1,024 bytes"):
                    use(longest + "x")
            values: list[Any] = ["x" * 2**24, b"x" * (13 * 2**20)]
            for value in values:
                with pytest.raises(TooBigError, match="split"):
                    db["big"] = value
            assert list(db) == [longest]
