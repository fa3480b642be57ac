"""Subclasses of shelves as programs write them: with names of their own, and with the attribute `dict`."""

from __future__ import annotations

import pickle
import shelve as standard
from collections.abc import Callable
from contextlib import closing
from dbm import dumb
from pathlib import Path
from typing import Any, Final

import pytest

from cloudstore_mapping import shelve
from cloudstore_mapping.errors import BadValueError

#: Names of the standard library's shelf in any version.
STANDARD: Final = {*dir(standard.DbfilenameShelf), "reorganize", "serializer", "deserializer"}


def theirs(path: Path) -> Any:
    """Return the standard library's shelf over a dbm file of any Python."""
    database: Any = dumb.open(str(path), "c")  # noqa: SIM115 - the shelf closes it
    return standard.Shelf(database)


def ours(path: Path) -> Any:
    """Return our shelf in a file."""
    return shelve.open(path)


def test_names_of_our_own(tmp_path: Path) -> None:
    """All names that our shelf adds have a prefix that no subclass uses."""
    with shelve.open(tmp_path / "shelf") as db:
        added = {*dir(db), *vars(db)} - {*STANDARD, *vars(theirs(tmp_path / "std"))}
    assert {name for name in added if not name.startswith(("_StoreShelf__", "__", "shelf_", "_abc_"))} == set()


def test_a_subclass_with_names_like_ours(tmp_path: Path) -> None:
    """Methods and attributes of a subclass, whatever they are called, take nothing from the write-back cache."""
    names = [
        "open",
        "keep",
        "kept",
        "load",
        "store",
        "is_changed",
        "envelopes",
        "closed",
        "opened",
        "readonly",
        "encode",
    ]

    class Own(shelve.DbfilenameShelf):
        def __init__(self, path: Path) -> None:
            super().__init__(path, writeback=True)
            for name in names:
                setattr(self, f"_{name}", None)
                setattr(self, name, None)

    with Own(tmp_path / "shelf") as db:
        db["a"] = [1]
        db["a"].append(2)
    with shelve.open(tmp_path / "shelf") as again:
        assert dict(again) == {"a": [1, 2]}


USES: Final[dict[str, Callable[[Any], object]]] = {
    "in": lambda db: (b"a" in db.dict, b"x" in db.dict, "a" in db.dict),
    "get": lambda db: (pickle.loads(db.dict[b"a"]), db.dict.get(b"x"), db.dict.get(b"x", 5)),
    "of a pickle": lambda db: pickle.loads(db.dict[b"set"]),
    "keys": lambda db: (sorted(db.dict.keys()), len(db.dict), sorted(db.dict)),
    "items": lambda db: sorted((key, pickle.loads(data) == db[key.decode()]) for key, data in db.dict.items()),
    "set": lambda db: (db.dict.__setitem__(b"new", pickle.dumps({1})), db["new"], db.dict[b"new"] == pickle.dumps({1})),
    "set text": lambda db: (db.dict.__setitem__("n\xe9w", pickle.dumps(1)), db["n\xe9w"]),
    "delete": lambda db: (db.dict.__delitem__(b"a"), "a" in db, sorted(db)),
    "sync": lambda db: db.dict.sync(),
    "update": lambda db: (db.dict.update({b"b": pickle.dumps(7)}), db["b"]),
    "encoded": lambda db: db.dict["\xe9".encode(db.keyencoding)] != b"",
}
FAILING: Final[dict[str, Callable[[Any], object]]] = {
    "absent": lambda db: db.dict[b"x"],
    "delete absent": lambda db: db.dict.__delitem__(b"x"),
    "a value": lambda db: db.dict.__setitem__(b"x", {1}),
}


@pytest.mark.parametrize("make", [theirs, ours])
def test_uses_of_dict(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """The attribute `dict` has encoded keys and pickles, as the standard library's."""
    for number, (name, use) in enumerate(USES.items()):
        results = []
        for kind in (theirs, make):
            with closing(kind(tmp_path / f"{kind.__name__}{number}")) as db:
                db.update({"a": [1], "set": {1, 2}, "\xe9": "text"})
                results.append(use(db))
        assert results[1] == results[0], name


@pytest.mark.parametrize("name", FAILING)
def test_errors_of_dict(name: str, tmp_path: Path) -> None:
    """An absent key is a `KeyError`, and a value that isn't bytes a `TypeError`, as the standard library's."""
    for kind in (theirs, ours):
        with closing(kind(tmp_path / kind.__name__)) as db, pytest.raises((KeyError, TypeError)):
            FAILING[name](db)


class Reversing(shelve.DbfilenameShelf):
    """A shelf that encodes its values itself, as programs do for encryption, and looks keys up as the library does."""

    def __setitem__(self, key: str, value: Any) -> None:
        self.dict[key.encode(self.keyencoding)] = pickle.dumps(value)[::-1]

    def __getitem__(self, key: str) -> Any:
        return pickle.loads(self.dict[key.encode(self.keyencoding)][::-1])

    def __contains__(self, key: object) -> bool:
        return str(key).encode(self.keyencoding) in self.dict

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value as the standard library does."""
        return self[key] if key.encode(self.keyencoding) in self.dict else default


def test_a_subclass_with_its_own_encoding(tmp_path: Path) -> None:
    """Its values come back, and what it stores is signed."""
    with Reversing(tmp_path / "shelf") as db:
        db["ann@x"] = {"name": "Ann"}
        db["count"] = db.get("count", 0) + 1
    with Reversing(tmp_path / "shelf") as db:
        db["count"] = db.get("count", 0) + 1
        assert dict(db.items()) == {"ann@x": {"name": "Ann"}, "count": 2}
        assert ("ann@x" in db, "x" in db) == (True, False)
    with shelve.open(tmp_path / "shelf", secret="another secret of the tests") as other, pytest.raises(BadValueError):
        other.dict[b"count"]


def test_dict_of_a_shelf_for_reading(tmp_path: Path) -> None:
    """Nothing is written through the attribute `dict` of a shelf that is open for reading only, or closed."""
    with shelve.open(tmp_path / "shelf") as db:
        db["a"] = 1
        db.dict.reorganize()
    with shelve.open(tmp_path / "shelf", "r") as db:
        with pytest.raises(OSError, match="for reading only"):
            db.dict[b"a"] = b"x"
        with pytest.raises(OSError, match="for reading only"):
            del db.dict[b"a"]
    with pytest.raises(ValueError, match="closed"):
        db.dict[b"a"]


def test_pop_with_a_keyword(tmp_path: Path) -> None:
    """`pop` takes its default value by name, too."""
    with shelve.open(tmp_path / "shelf") as db:
        assert (db.pop("a", default=5), db.pop(key="a", default=None), db.pop("a", 1)) == (5, None, 1)
        with pytest.raises(KeyError):
            db.pop("a")
