"""Our `shelve` has every name, class and argument of the standard library's, also those of newer versions of Python."""

from __future__ import annotations

import inspect
import json
import pickle
import shelve as standard
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from tests.support.shelves import store_of

SECRET = "a secret of the tests"


def test_every_public_name_is_there() -> None:
    """Each public name of the standard library's module, in this Python and the newest, is in ours."""
    newer = {"ShelveError", "Shelf", "BsdDbShelf", "DbfilenameShelf", "open"}
    older = {"Pickler", "Unpickler", "DEFAULT_PROTOCOL", "BytesIO"}
    names = {name for name in vars(standard) if not name.startswith("_")} | newer | older
    assert names <= set(dir(shelve))
    assert set(standard.__all__) | newer == set(shelve.__all__) | {"ShelveError"}


@pytest.mark.parametrize("name", ["open", "Shelf", "BsdDbShelf", "DbfilenameShelf"])
def test_every_argument_is_there(name: str) -> None:
    """Ours take the arguments of the standard library's, in the same order and with the same defaults."""
    theirs = dict(inspect.signature(getattr(standard, name)).parameters)
    ours = inspect.signature(getattr(shelve, name)).parameters
    assert [*ours][: len(theirs)] == [*theirs]
    assert {key: ours[key].default for key in theirs} == {key: theirs[key].default for key in theirs}
    assert {"serializer", "deserializer"} <= ours.keys()


def test_classes(tmp_path: Path) -> None:
    """A shelf is of the classes that `shelve.open` of the standard library returns, and can be made by its class."""
    with shelve.DbfilenameShelf(str(tmp_path / "shelf"), "n", 4, True) as db:
        db["a"] = {1}
        assert isinstance(db, standard.DbfilenameShelf)
        assert isinstance(db, shelve.Shelf)
        assert db.writeback is True

    class Own(shelve.DbfilenameShelf):
        def __init__(self, filename: str) -> None:
            shelve.DbfilenameShelf.__init__(self, filename, "r")

        def __getitem__(self, key: str) -> Any:
            return [super().__getitem__(key)]

    with Own(str(tmp_path / "shelf")) as own:
        assert own["a"] == [{1}]
        assert own.get("b", 1) == 1


def test_a_shelf_over_a_dictionary() -> None:
    """`Shelf(d)` is the standard library's: keys in bytes, pickles, closed with the dictionary."""
    data: dict[bytes, bytes] = {}
    with shelve.Shelf(data, writeback=True, keyencoding="latin-1") as db:
        db["é"] = [1]
        db["é"].append(2)
        db.reorganize()
        db["é"].append(3)
    assert pickle.loads(data["é".encode("latin-1")]) == [1, 2, 3]
    with standard.Shelf[Any](data, keyencoding="latin-1") as theirs:
        assert theirs["é"] == [1, 2, 3]
    with pytest.raises(ValueError, match="closed shelf"):
        db["é"]


class Database(dict[bytes, bytes]):
    """Berkeley DB's methods over a dictionary."""

    place = 0

    def _pair(self) -> tuple[bytes, bytes]:
        return sorted(self.items())[self.place]

    def first(self) -> tuple[bytes, bytes]:
        """Move to the first key."""
        self.place = 0
        return self._pair()

    def last(self) -> tuple[bytes, bytes]:
        """Move to the last key."""
        self.place = len(self) - 1
        return self._pair()

    def __next__(self) -> tuple[bytes, bytes]:
        self.place += 1
        return self._pair()

    def previous(self) -> tuple[bytes, bytes]:
        """Move to the key before."""
        self.place -= 1
        return self._pair()

    def set_location(self, key: bytes) -> tuple[bytes, bytes]:
        """Move to a key."""
        self.place = sorted(self).index(key)
        return self._pair()


def test_a_shelf_over_a_berkeley_database() -> None:
    """`BsdDbShelf` moves through a database, and decodes its keys and values."""
    db = shelve.BsdDbShelf(Database())
    db.update({"a": (1,), "b": (2,), "c": (3,)})
    assert (db.first(), db.next(), db.last()) == (("a", (1,)), ("b", (2,)), ("c", (3,)))
    assert (db.previous(), db.set_location(b"a")) == (("b", (2,)), ("a", (1,)))


def to_json(value: Any, protocol: int) -> bytes:
    """Encode a value and the protocol."""
    return json.dumps([value, protocol]).encode()


def from_json(data: bytes) -> Any:
    """Decode a value."""
    return ("decoded", json.loads(data)[0])


@pytest.mark.parametrize("kind", ["dictionary", "file"])
def test_serializers(kind: str, tmp_path: Path) -> None:
    """A serializer and a deserializer replace pickles, as in Python 3.15; one without the other is an error."""
    data: dict[bytes, bytes] = {}

    def opened(**options: Any) -> Any:
        if kind == "dictionary":
            return shelve.Shelf(data, 2, **options)
        return shelve.open(tmp_path / "shelf", "c", 2, **options)

    both: dict[str, Any] = {"serializer": to_json, "deserializer": from_json}
    with opened(**both) as db:
        db["a"] = {"b": [1]}
        assert db["a"] == ("decoded", {"b": [1]})
    with opened(**both, writeback=True) as db:
        db["c"] = [1]
        db["c"].append(2)
    with opened(**both) as db:
        assert db["c"] == ("decoded", [1, 2])
    for one in both:
        with pytest.raises(shelve.ShelveError, match="belong together"):
            opened(**{one: both[one]})


def test_a_serializer_s_bytes_are_signed(tmp_path: Path) -> None:
    """What a serializer made is loaded only with its deserializer, and only if the shelf's secret signed it."""
    path = tmp_path / "shelf"
    with shelve.open(path, serializer=to_json, deserializer=from_json, secret=SECRET) as db:
        db["a"] = 1
        stored = store_of(db)["a"]
        store_of(db)["b"] = stored
        with pytest.raises(ValueError, match="not signed"):
            db["b"]
    with shelve.open(path, secret=SECRET) as db, pytest.raises(ValueError, match="give the shelf its deserializer"):
        db["a"]
    moved = {"pickle": stored["__shelf__"]["bytes"], "hmac-sha256": stored["__shelf__"]["hmac-sha256"]}
    with shelve.open(path, secret=SECRET) as db:
        store_of(db)["a"] = {"__shelf__": moved}
        with pytest.raises(ValueError, match="not signed"):
            db["a"]


def test_a_serializer_that_returns_no_bytes(tmp_path: Path) -> None:
    """A serializer that returns anything but bytes is a `TypeError`, and nothing is stored."""
    nothing: Any = lambda *_: None  # noqa: E731 - of a wrong type
    with shelve.open(tmp_path / "shelf", serializer=nothing, deserializer=from_json) as db:
        with pytest.raises(TypeError, match="must return bytes, not NoneType"):
            db["a"] = 1
        assert "a" not in db


def test_another_pickle_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may put other classes in the place of `shelve.Pickler` and `shelve.Unpickler`."""
    calls: list[str] = []

    class OwnPickler(pickle.Pickler):
        def dump(self, value: Any) -> None:
            calls.append("dump")
            super().dump(value)

    class OwnUnpickler(pickle.Unpickler):
        def load(self) -> Any:
            calls.append("load")
            return super().load()

    monkeypatch.setattr(shelve, "Pickler", OwnPickler)
    monkeypatch.setattr(shelve, "Unpickler", OwnUnpickler)
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = {1}
        assert db["a"] == {1}
    assert calls == ["dump", "load"]


def test_a_shelf_at_the_environment_s_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shelve.open(None)` is the location in CLOUDSTORE_URL; a bare name is always a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUDSTORE_URL", str(tmp_path / "central"))
    with shelve.open(None) as db, shelve.open("bare") as bare:
        db["a"], bare["a"] = 1, 2
    with shelve.open(tmp_path / "central", "r") as db:
        assert dict(db) == {"a": 1}
    with shelve.open(tmp_path / "bare", "r") as db:
        assert dict(db) == {"a": 2}


def test_several_shelves_in_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cloudstore:NAME` is the shelf of this name at CLOUDSTORE_URL, and `prefix=` is the same on any location."""
    central = str(tmp_path / "central")
    monkeypatch.setenv("CLOUDSTORE_URL", central)
    with shelve.open("cloudstore:sessions") as sessions, shelve.open("cloudstore:users") as users:
        sessions["ann"], users["ann"] = {1}, {2}
        assert (list(sessions), len(users)) == (["ann"], 1)
    for prefix in ("sessions", "sessions/"):
        with shelve.open(central, prefix=prefix) as db:
            assert dict(db) == {"ann": {1}}
    with shelve.open("cloudstore:sessions", "n") as db:
        assert dict(db) == {}
    with shelve.open(central, "r") as whole:
        assert list(whole) == ["users/ann"]
        assert whole["users/ann"] == {2}
    with shelve.open(central, prefix="s:") as db:
        db["a"] = 1
    with shelve.open(central, "r") as whole:
        assert "s:a" in whole


def test_a_name_needs_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf's name without CLOUDSTORE_URL is an error, never a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    with pytest.raises(ValueError, match="set it to the service's address"):
        shelve.open("cloudstore:sessions")
    with pytest.raises(ValueError, match="cloudstore:NAME"):
        shelve.open("cloudstore:")
    assert list(tmp_path.iterdir()) == []
    with shelve.open(tmp_path / "cloudstore:sessions") as db:
        db["a"] = 1
    with shelve.open(Path("cloudstore:sessions"), "r") as db:
        assert db["a"] == 1


def test_only_shelves_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf's name is no location of a store: it is refused, and no file of this name is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUDSTORE_URL", str(tmp_path / "central"))
    with pytest.raises(ValueError, match=r"names a shelf, for shelve\.open"):
        cm.open("cloudstore:sessions")
    assert list(tmp_path.iterdir()) == []
    with cm.open(Path("cloudstore:sessions")) as store:
        store["a"] = 1
    assert (tmp_path / "cloudstore:sessions").exists()


def test_a_signature_covers_the_whole_key(tmp_path: Path) -> None:
    """A pickle moved to the same key of another shelf in the same store is refused."""
    path = tmp_path / "shelf"
    with shelve.open(path, prefix="a") as one, shelve.open(path, prefix="b") as other:
        one["key"] = {1}
        store_of(other)["key"] = store_of(one)["key"]
        with pytest.raises(ValueError, match="not signed"):
            other["key"]
        assert one["key"] == {1}
    with shelve.open(path) as whole:
        assert whole["a/key"] == {1}
