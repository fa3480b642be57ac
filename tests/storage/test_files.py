"""Every storage engine keeps files: a value and the hashes of two passwords under a name."""

from __future__ import annotations

import pytest

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.records import File
from cloudstore_mapping.service.storage.sql import DRAWN, Transaction
from tests.service_fakes import unversioned

NAMES = [
    "a",
    " ",
    " leading and trailing ",
    "a,b",
    "../../etc/passwd",
    "%2e%2e%00",
    "100%",
    "a_b",
    "'; DROP TABLE files; --",
    '"',
    "\\",
    "line\nbreak\ttab\x1b\x7f",
    "\0",
    "\x01\x03\x05",
    "é",
    "e\u0301",
    "\ufeff",
    "\uffff",
    "😀\U0010ffff",
    "__proto__",
    "n" * 1024,
]
VALUES = [b"null", b"0", b'""', b"{}", b'{"a":1, "a":2}', b" [1.0,-0.0,1e400]\n", '"\U0001f600\\u0000"'.encode()]


def put(storage: Storage, account: int, name: str, value: bytes) -> None:
    """Put a value."""
    storage.submit(lambda transaction: transaction.put(account, name, value, 1.0)).result()


def get(storage: Storage, account: int, name: str) -> File | None:
    """Get a file."""
    with storage.read() as transaction:
        return transaction.get(account, name)


def delete(storage: Storage, account: int, name: str) -> bool:
    """Delete a file."""
    return storage.submit(lambda transaction: transaction.delete(account, name)).result()


def lock(storage: Storage, account: int, name: str, edit: str | None, view: str | None) -> bool:
    """Set a file's passwords."""
    return storage.submit(lambda transaction: transaction.set_passwords(account, name, edit=edit, view=view)).result()


@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_byte_for_byte(storage: Storage, account: int, value: bytes) -> None:
    """A value is bytes that nobody looks into."""
    put(storage, account, "name", value)
    assert unversioned(get(storage, account, "name")) == File(value, None, None, "")


def test_any_text_is_a_name(storage: Storage, account: int) -> None:
    """Names that differ in anything are different files, and mean nothing to the engine."""
    for number, name in enumerate(NAMES):
        put(storage, account, name, str(number).encode())
    for number, name in enumerate(NAMES):
        assert unversioned(get(storage, account, name)) == File(str(number).encode(), None, None, "")
    with storage.read() as transaction:
        assert transaction.names(account) == sorted(NAMES)


def test_a_put_replaces(storage: Storage, account: int) -> None:
    """The last value that was put is the one that stands."""
    put(storage, account, "name", b"1")
    put(storage, account, "name", b"2")
    assert unversioned(get(storage, account, "name")) == File(b"2", None, None, "")


def test_a_big_value(storage: Storage, account: int) -> None:
    """A value of 20 MiB is kept like any other."""
    value = b'"' + bytes(range(32, 127)).replace(b'"', b"") * (20 * 2**20 // 94) + b'"'
    put(storage, account, "name", value)
    file = get(storage, account, "name")
    assert file is not None
    assert file.value == value


def test_many_are_read_as_one_by_one(storage: Storage, account: int) -> None:
    """What is read of many files at once is what is read of each, None where there is none, whatever their names."""
    for number, name in enumerate(NAMES[::2]):
        put(storage, account, name, str(number).encode())
    lock(storage, account, "a", "edit", "view")
    other = storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result().id
    put(storage, other, NAMES[1], b"1")
    for count in range(1, len(NAMES) + 1):
        names = [*NAMES[:count], NAMES[0]]
        with storage.read() as transaction:
            assert transaction.get_many(account, names, 10) == {n: transaction.get(account, n) for n in names}
            assert transaction.stat_many(account, names) == {n: transaction.stat(account, n) for n in names}


def test_large_values_are_not_read_with_others(storage: Storage, account: int) -> None:
    """A value of more bytes than are wanted is left to be read alone."""
    for size in (9, 10, 11):
        put(storage, account, f"{size}", b"1" * size)
    with storage.read() as transaction:
        found = transaction.get_many(account, ["9", "10", "11", "12"], 10)
    assert {name: file and len(file.value) for name, file in found.items()} == {"9": 9, "10": 10, "12": None}


def test_versions_are_never_the_same(storage: Storage, account: int) -> None:
    """However many are given at once, whatever they are of, no two are alike."""
    names = [f"{number}" for number in range(3 * DRAWN)]

    def put_all(transaction: Transaction) -> list[str]:
        return [transaction.put(account, name, b"1", 1.0) for name in names]

    versions = storage.submit(put_all).result() + storage.submit(put_all).result()
    assert len({version[:12] for version in versions}) == 2 * len(names)


def test_delete_tells_whether_there_was_one(storage: Storage, account: int) -> None:
    """A delete takes the file away and is True, where there is none it is False."""
    put(storage, account, "name", b"1")
    assert not delete(storage, account, "Name")
    assert delete(storage, account, "name")
    assert not delete(storage, account, "name")
    assert get(storage, account, "name") is None


def test_a_put_keeps_the_passwords(storage: Storage, account: int) -> None:
    """A file's passwords stay when its value changes, and go together with the file."""
    put(storage, account, "name", b"1")
    assert lock(storage, account, "name", "edit hash", "view hash")
    put(storage, account, "name", b"2")
    assert unversioned(get(storage, account, "name")) == File(b"2", "edit hash", "view hash", "")
    delete(storage, account, "name")
    put(storage, account, "name", b"3")
    assert unversioned(get(storage, account, "name")) == File(b"3", None, None, "")


def test_passwords_are_set_together(storage: Storage, account: int) -> None:
    """Both passwords of a file are set at once, None taking one away; where there is no file it is False."""
    put(storage, account, "name", b"1")
    assert lock(storage, account, "name", "edit", None)
    assert unversioned(get(storage, account, "name")) == File(b"1", "edit", None, "")
    assert lock(storage, account, "name", None, "view")
    assert unversioned(get(storage, account, "name")) == File(b"1", None, "view", "")
    assert not lock(storage, account, "absent", "edit", "view")
    assert get(storage, account, "absent") is None


def test_accounts_share_no_files(storage: Storage, account: int) -> None:
    """A file belongs to one account; the same name in another is another file."""
    other = storage.submit(lambda transaction: transaction.add_account("other", 1.0)).result().id
    put(storage, account, "name", b"1")
    assert get(storage, other, "name") is None
    assert not delete(storage, other, "name")
    assert not lock(storage, other, "name", "edit", "view")
    put(storage, other, "name", b"2")
    assert unversioned(get(storage, account, "name")) == File(b"1", None, None, "")
    with storage.read() as transaction:
        assert transaction.names(account) == transaction.names(other) == ["name"]


def test_names_come_in_the_order_of_their_code_points(storage: Storage, account: int) -> None:
    """A listing is in the order that Python sorts text in, astral characters last; UTF-16 would put them earlier."""
    names = ["\U0001f600", "\uffff", "\ue000", "z", "a", "Z", "A", "10", "9", "é", "e\u0301", "ä", "~", "!"]
    for name in names:
        put(storage, account, name, b"1")
    with storage.read() as transaction:
        assert transaction.names(account) == sorted(names)


@pytest.mark.parametrize(
    ("containing", "found"),
    [
        ("", ["%", "A_b", "a'b", "a_b", "aXb", 'q"', "\\", "É", "é", "😀x"]),
        ("a", ["a'b", "a_b", "aXb"]),
        ("A", ["A_b"]),
        ("_", ["A_b", "a_b"]),
        ("%", ["%"]),
        ("'", ["a'b"]),
        ('"', ['q"']),
        ("\\", ["\\"]),
        ("*", []),
        ("é", ["é"]),
        ("😀", ["😀x"]),
        ("_b", ["A_b", "a_b"]),
        ("a_b or 1", []),
    ],
)
def test_a_filter_is_a_literal_substring(storage: Storage, account: int, containing: str, found: list[str]) -> None:
    """The filter means itself and nothing else: no wildcards, no other case."""
    for name in ["aXb", "a_b", "A_b", "a'b", 'q"', "%", "\\", "é", "É", "😀x"]:
        put(storage, account, name, b"1")
    with storage.read() as transaction:
        assert transaction.names(account, containing) == sorted(found)


def scanned(storage: Storage, account: int, containing: str, prefix: str, rows: int) -> list[list[str]]:
    """Return the parts of a search, each read in a transaction of its own."""
    parts: list[list[str]] = []
    after: str | None = None
    while after is not None or not parts:
        with storage.read() as transaction:
            part, after = transaction.scan(account, containing, prefix=prefix, after=after, rows=rows)
        parts.append(part)
    return parts


@pytest.mark.parametrize("containing", ["", "a", "_", "\0", "\\", "😀", "nnn", "absent"])
@pytest.mark.parametrize("prefix", ["", "a", "n"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_parts_of_a_search(storage: Storage, account: int, containing: str, prefix: str, rows: int) -> None:
    """A search in parts, however small, finds in order all names that a search at once finds."""
    for name in NAMES:
        put(storage, account, name, b"1")
    with storage.read() as transaction:
        expected = transaction.names(account, containing, prefix=prefix)
    assert [name for part in scanned(storage, account, containing, prefix, rows) for name in part] == expected


def test_a_part_looks_at_few_names(storage: Storage, account: int) -> None:
    """A part of a search ends after so many names, even if none of them is found."""
    for number in range(10):
        put(storage, account, f"{number}", b"1")
    assert scanned(storage, account, "9", "", 4) == [[], [], ["9"]]
