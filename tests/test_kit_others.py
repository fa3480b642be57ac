"""The kit on mappings of others: which keep the contract, and what it found where they don't."""

from __future__ import annotations

import collections
import importlib
import itertools
import json
import re
import shelve
import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, MutableMapping, ValuesView
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cachetools
import diskcache  # type: ignore[import-untyped]  # nobody types it
import hypothesis.strategies as st
import pytest
import sqlitedict  # type: ignore[import-untyped]  # nobody types it
import zict
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from cloudstore_mapping.testing import mapping_machine, strategies
from cloudstore_mapping.testing.machine import OTHER_KEYS
from tests.dbm_kinds import force

PAGE = Path(__file__).parent.parent / "docs" / "testing.md"
TRIES = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)

#: Makes a mapping at a path where nothing is.
Make = Callable[[Path], MutableMapping[Any, Any]]
picklable = strategies.json_values() | st.sets(st.integers()) | st.binary() | st.tuples(st.integers(), st.booleans())
hashable_keys = OTHER_KEYS.filter(lambda key: not isinstance(key, list))


class MendedIndex(diskcache.Index):  # type: ignore[misc]  # it has no types
    """diskcache's Index with the comparison of a `Mapping`: the rest of it keeps the contract."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, collections.abc.Mapping) and dict(self.items()) == dict(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # like dict's


class MendedSqliteDict(sqlitedict.SqliteDict):  # type: ignore[misc]  # it has no types
    """sqlitedict with the views of a `Mapping`, and without what it inherits but can't do."""

    __or__ = __ror__ = __ior__ = copy = None

    def keys(self) -> KeysView[Any]:
        """Return a view of the keys."""
        return KeysView(self)

    def items(self) -> ItemsView[Any, Any]:
        """Return a view of the pairs."""
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values."""
        return ValuesView(self)


def json_files(path: Path) -> MutableMapping[Any, Any]:
    """Return zict's files, with JSON in them."""
    return zict.Func(lambda value: json.dumps(value).encode(), json.loads, zict.File(path))


def on_dbm(path: Path, kind: str) -> MutableMapping[Any, Any]:
    """Return a shelf on a database of this kind."""
    database: Any = importlib.import_module(kind).open(str(path), "c")
    return shelve.Shelf(database)


KEEPERS: dict[str, tuple[Make, dict[str, Any]]] = {
    "dict": (lambda _: {}, {"copies": False}),
    "OrderedDict": (lambda _: collections.OrderedDict(), {"copies": False}),
    "UserDict": (lambda _: collections.UserDict(), {"copies": False}),
    "ChainMap": (lambda _: collections.ChainMap(), {"copies": False}),
    "int keys": (lambda _: {}, {"copies": False, "keys": st.integers(), "values": st.text()}),
    # But for dbm.ndbm, which has no empty key. Which kind `shelve.open` takes is the machine's choice.
    "shelve on dbm.dumb": (lambda path: on_dbm(path, "dbm.dumb"), {"values": picklable, "other_keys": None}),
    "shelve on dbm.gnu": (lambda path: on_dbm(path, "dbm.gnu"), {"values": picklable, "other_keys": None}),
    "diskcache.Index": (lambda path: MendedIndex(str(path)), {"values": picklable, "other_keys": hashable_keys}),
    "sqlitedict": (
        lambda path: MendedSqliteDict(str(path), autocommit=True),
        {"values": picklable, "other_keys": None},
    ),
    "zict.Cache": (lambda _: zict.Cache({}, {}), {"copies": False}),
    "cachetools.LRUCache": (lambda _: cachetools.LRUCache(1000), {"copies": False}),
}


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.slow
def test_it_keeps_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mapping passes, where need be with what it takes, and without what the page says that it does otherwise."""
    make, parameters = KEEPERS[name]
    if name.startswith("shelve on "):
        force(name.removeprefix("shelve on "), monkeypatch)
    numbers = itertools.count()
    machine = mapping_machine(lambda: make(tmp_path / str(next(numbers))), **parameters)
    run_state_machine_as_test(machine, settings=TRIES)


class Finding(NamedTuple):
    """What the page shows: the mapping, the error, and the program that the kit printed."""

    mapping: str
    error: str
    program: str


#: The mappings in which something was found, as they are, and what is given to the machine.
OTHERS: dict[str, tuple[Make, dict[str, Any]]] = {
    "shelve": (lambda path: on_dbm(path, "dbm.dumb"), {}),
    "diskcache.Index": (lambda path: diskcache.Index(str(path)), {"other_keys": None}),
    "sqlitedict": (lambda path: sqlitedict.SqliteDict(str(path), autocommit=True), {}),
    "zict.LRU": (lambda _: zict.LRU(1000, {}), {"copies": False}),
    "zict.File": (json_files, {"other_keys": None}),
    "zict.Buffer": (lambda _: zict.Buffer({}, {}, n=2), {"copies": False}),
}
FINDINGS = [
    Finding(*found)
    for found in re.findall(
        r"^```python\n# \d+ ([\w.]+): (\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
]


@pytest.fixture
def close_later() -> Iterator[Callable[[Any], Any]]:
    """Return a function that closes a mapping at the end of the test, where it can be closed."""
    opened: list[Any] = []

    def remember(mapping: Any) -> Any:
        opened.append(mapping)
        return mapping

    yield remember
    for mapping in opened:
        if hasattr(mapping, "close"):
            mapping.close()


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: f"{finding.mapping} {finding.error}")
def test_what_was_found_still_stands(
    finding: Finding, tmp_path: Path, close_later: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Each program of the page fails as the page says, with the version that is installed."""
    make, _ = OTHERS[finding.mapping]
    names = {"factory": lambda: close_later(make(tmp_path / "here"))}
    caught: Exception | None = None
    try:
        exec(finding.program, names)
    except Exception as error:  # noqa: BLE001 - compared with what the page says
        caught = error
    complaint = (
        f"{installed(finding.mapping)} may have mended this: look, and change docs/testing.md.\n{finding.program}"
    )
    assert type(caught).__name__ == finding.error, complaint


def installed(mapping: str) -> str:
    """Return what a mapping is of, with its version."""
    distribution = mapping.partition(".")[0]
    if distribution == "shelve":
        return f"Python {sys.version.split()[0]}"
    return f"{distribution} {version(distribution)}"


def test_the_page_lists_them_all() -> None:
    """Each finding has a row in the page's table, and a program."""
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)`", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [name for _, name in rows] == [finding.mapping for finding in FINDINGS]
    assert [number for number, _ in rows] == [str(number) for number in range(1, len(FINDINGS) + 1)]
    assert {finding.mapping for finding in FINDINGS} == OTHERS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_kit_finds_it(name: str, tmp_path: Path) -> None:
    """The kit itself finds something in each of them."""
    make, parameters = OTHERS[name]
    numbers = itertools.count()
    machine = mapping_machine(lambda: make(tmp_path / str(next(numbers))), **parameters)
    # Of zict's it takes some 300 tries, and now and then four times as many.
    with pytest.raises(Exception) as failure:  # noqa: PT011 - one of those on the page, or another
        run_state_machine_as_test(machine, settings=settings(TRIES, max_examples=10_000, report_multiple_bugs=False))
    assert any(note.startswith("As a program:") for note in failure.value.__notes__)
