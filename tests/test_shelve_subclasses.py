"""Subclasses of shelves as programs write them: with names of their own, and with the attribute `dict`."""

from __future__ import annotations

import pickle
import shelve as standard
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing
from dbm import dumb
from pathlib import Path
from typing import Any, ClassVar, Final

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


def test_uses_of_dict(tmp_path: Path) -> None:
    """The attribute `dict` has encoded keys and pickles, as the standard library's."""
    for number, (name, use) in enumerate(USES.items()):
        results = []
        for kind in (theirs, ours):
            with closing(kind(tmp_path / f"{kind.__name__}{number}")) as db:
                db.update({"a": [1], "set": {1, 2}, "\xe9": "text"})
                results.append(use(db))
        assert results[1] == results[0], name


@pytest.mark.parametrize("name", FAILING)
def test_errors_of_dict(name: str, tmp_path: Path) -> None:
    """An absent key is a `KeyError`, and a value that isn't bytes a `TypeError`, as the standard library's."""
    for kind in (theirs, ours):
        expected = TypeError if name == "a value" else KeyError
        with closing(kind(tmp_path / kind.__name__)) as db, pytest.raises(expected):
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


class Compressing(shelve.DbfilenameShelf):
    """A shelf that compresses its values, with a write-back cache as the standard library has it."""

    def __setitem__(self, key: str, value: Any) -> None:
        if self.writeback:
            self.cache[key] = value
        self.dict[key.encode(self.keyencoding)] = zlib.compress(pickle.dumps(value))

    def __getitem__(self, key: str) -> Any:
        if key in self.cache:
            return self.cache[key]
        value = pickle.loads(zlib.decompress(self.dict[key.encode(self.keyencoding)]))
        if self.writeback:
            self.cache[key] = value
        return value


def test_a_write_back_by_the_subclass(tmp_path: Path) -> None:
    """Changed values are written by a subclass's own `__setitem__`; one that it refuses keeps no other from it."""
    with Compressing(tmp_path / "shelf", writeback=True) as db:
        db.update({"a": [1], "b": {1}})
        db["a"].append(2)
        db["b"].add(2)
    with Compressing(tmp_path / "shelf") as db:
        assert (db["a"], db["b"]) == ([1, 2], {1, 2})

    class Checking(Compressing):
        def __setitem__(self, key: str, value: Any) -> None:
            if len(value) > 3:
                raise ValueError("too long")
            super().__setitem__(key, value)

    with Checking(tmp_path / "shelf", writeback=True) as db:
        db["a"].extend([3, 4])
        db["b"].add(3)
        with pytest.raises(ValueError, match="too long"):
            db.sync()
        assert db.cache["a"] == [1, 2, 3, 4]
        db.cache["a"].pop()
    with Compressing(tmp_path / "shelf") as db:
        assert (db["a"], db["b"]) == ([1, 2, 3], {1, 2, 3})


class Reversed(MutableMapping[bytes, bytes]):
    """A dictionary around another one, as programs put in place of a shelf's `dict`."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __getitem__(self, key: bytes) -> bytes:
        return bytes(self.content[key][::-1])

    def __setitem__(self, key: bytes, data: bytes) -> None:
        self.content[key] = data[::-1]

    def __delitem__(self, key: bytes) -> None:
        del self.content[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)


class Wrapping(shelve.DbfilenameShelf):
    """A shelf that wraps its `dict`."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.dict = Reversed(self.dict)


@pytest.mark.parametrize("writeback", [False, True])
def test_another_dict(writeback: bool, tmp_path: Path) -> None:
    """A shelf keeps its values in what a subclass has put in place of `dict`."""
    with Wrapping(tmp_path / "shelf", writeback=writeback) as db:
        db["a"] = [1]
        db.update({"b": {1}, "c": "text"})
        if writeback:
            db["a"].append(2)
        del db["c"]
        assert (sorted(db), len(db), "a" in db, "c" in db) == (["a", "b"], 2, True, False)
    expected = {"a": [1, 2] if writeback else [1], "b": {1}}
    with Wrapping(tmp_path / "shelf") as db:
        assert dict(db.items()) == expected
        assert db.pop("b") == {1}
    with shelve.open(tmp_path / "shelf") as plain:
        assert pickle.loads(plain.dict[b"a"][::-1]) == expected["a"]
        with pytest.raises(pickle.UnpicklingError):
            plain["a"]


def test_a_change_back(tmp_path: Path) -> None:
    """A value changed back is written if another one was stored meanwhile, through `dict` or without the cache."""

    def store_without_cache(db: Any) -> None:
        db.writeback = False
        db["a"] = [1, 2]
        db.writeback = True

    for store in (lambda db: db.dict.__setitem__(b"a", pickle.dumps([1, 2])), store_without_cache):
        with shelve.open(tmp_path / "shelf", writeback=True) as db:
            db["a"] = [1]
            db.sync()
            db["a"].append(2)
            store(db)
            db.cache["a"][:] = [1]
        with shelve.open(tmp_path / "shelf") as db:
            assert db["a"] == [1]


LATER: Final = """
import sys
from cloudstore_mapping import shelve
class Own(shelve.DbfilenameShelf):
    def __init__(self, path):
        super().__init__(path)
        self.writeback = True
class App:
    db = Own(sys.argv[1])
App.db["a"] = [1]
App.db["a"].append(2)
"""


def test_write_back_that_is_switched_on_later(tmp_path: Path) -> None:
    """A subclass may switch the write-back cache on after `__init__`: changes are saved at the end of the program."""
    run = [sys.executable, "-c", LATER, str(tmp_path / "shelf")]
    ran = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    with shelve.open(tmp_path / "shelf") as db:
        assert dict(db) == {"a": [1, 2]}


class Named:
    """A class that keeps one object for each name, whatever makes it."""

    all: ClassVar[dict[str, Named]] = {}

    def __new__(cls, name: str) -> Named:
        """Return the object of this name."""
        return cls.all.setdefault(name, super().__new__(cls))

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = getattr(self, "seen", 0)

    def __getnewargs__(self) -> tuple[str]:
        return (self.name,)


@pytest.mark.parametrize("packed", [lambda one: one, lambda one: [one]])
def test_one_object_for_each_name(packed: Callable[[Any], Any], tmp_path: Path) -> None:
    """Looking for changes takes none of them back in an object that loading doesn't make anew."""
    with shelve.open(tmp_path / "shelf", writeback=True) as db:
        ann = Named("Ann")
        db["a"] = packed(ann)
        ann.seen = 5
        db.sync()
        assert ann.seen == 5
        found = db["a"]
        ann.seen = 6
    assert ann.seen == 6
    del found
    Named.all.clear()
    with shelve.open(tmp_path / "shelf") as db:
        value = db["a"]
        assert (value[0] if isinstance(value, list) else value).seen == 6
