"""Rename files whose names were escaped by version 0.1.0."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import groupby
from shlex import quote
from typing import Final, Literal, NamedTuple, TypeAlias

from cloudstore_mapping.errors import UnsupportedError
from cloudstore_mapping.service.storage.base import Report, Storage
from cloudstore_mapping.service.storage.sql import Transaction, new_name

#: Maximum number of renames submitted before waiting for them; they may share a commit.
IN_FLIGHT: Final = 100
#: Query for a file to be renamed first.
OLD_NAME: Final = "SELECT name FROM old_names WHERE NOT clashes ORDER BY account_id, name LIMIT 1"

_Outcome: TypeAlias = Literal["renamed", "clash", "gone"]


class Rename(NamedTuple):
    """Old and new name of an account's file."""

    account: str
    old: str
    new: str


class Renames(NamedTuple):
    """Renamed files (in a dry run: to be renamed), and files left because their new name is taken."""

    renamed: list[Rename]
    clashes: list[Rename]


class _OldName(NamedTuple):
    account_id: int
    name: str


def old_names_among(rows: Iterable[tuple[int, object]]) -> Iterator[tuple[int, str]]:
    """Yield the rows (account id, name) with a name of version 0.1.0, skipping damaged names."""
    for account_id, name in rows:
        if isinstance(name, str) and new_name(name) is not None:
            yield account_id, name


def refuse_old_names(transaction: Transaction, place: str) -> None:
    """Raise `UnsupportedError` if the store at `place` still has files to be renamed."""
    row = transaction.row(OLD_NAME)
    if row is not None:
        raise must_be_renamed(place, row[0])


def must_be_renamed(place: str, name: str) -> UnsupportedError:
    """Return the error for a store with a file to be renamed first."""
    return UnsupportedError(
        f"{place} has file names of version 0.1.0, such as {name!r}, so keys would seem to be missing; stop all "
        f"programs that use it, then run `cloudstore migrate-names --store {quote(place)}`."
    )


def rename_files(
    storage: Storage, now: float, report: Report, *, keep: Collection[str] = (), dry_run: bool = False
) -> Renames:
    """
    Rename all files with old names, except those in `keep`, and return the result; `dry_run` changes nothing.

    A file keeps its name if another file has the new one. Such a clash is reported once; then the store can be used.
    """
    with storage.read() as reading:
        transaction = reading
        is_known = _is_scanned(transaction)
        found = [_OldName._make(row) for row in _listed(transaction) if row[1] not in keep] if dry_run else []
        accounts = {account.id: account.name for account in transaction.accounts()}
        if dry_run:
            return _foreseen(transaction, found, accounts)
    if not is_known:
        storage.submit(partial(_scan, now)).result()
    with storage.read() as reading:
        rows = [_OldName._make(row) for row in _listed(reading)]
    renames = Renames([], [])
    done = 0
    # A new name is shorter than its old name. In order of length, an old name in the way is itself renamed first.
    for _, of_length in groupby(sorted(rows, key=_order), key=lambda file: len(file.name)):
        files_left = [*of_length]
        while files := files_left[:IN_FLIGHT]:
            del files_left[:IN_FLIGHT]
            begun = [storage.submit(partial(_keep if file.name in keep else _rename, file)) for file in files]
            for file, future in zip(files, begun, strict=True):
                _note(renames, future.result(), accounts, file)
            done += len(files)
            report(done, len(rows))
    return renames


def _order(file: _OldName) -> tuple[int, int, str]:
    return len(file.name), *file


def _note(renames: Renames, outcome: _Outcome, accounts: dict[int, str], file: _OldName) -> None:
    if outcome != "gone":
        rename = Rename(accounts[file.account_id], file.name, new_name(file.name) or file.name)
        (renames.renamed if outcome == "renamed" else renames.clashes).append(rename)


def _is_scanned(transaction: Transaction) -> bool:
    return transaction.row("SELECT 1 FROM name_scans LIMIT 1") is not None


def _listed(transaction: Transaction) -> list[tuple[int, str]]:
    if _is_scanned(transaction):
        return transaction.rows("SELECT account_id, name FROM old_names")
    return _scanned(transaction)


def _scanned(transaction: Transaction) -> list[tuple[int, str]]:
    accounts = (account.id for account in transaction.accounts())
    return [*old_names_among((id_, name) for id_ in accounts for name in transaction.names(id_, "%"))]


def _scan(now: float, writing: Transaction) -> None:
    transaction = writing
    if not _is_scanned(transaction):
        for row in _scanned(transaction):
            transaction.do("INSERT INTO old_names (account_id, name) VALUES (?, ?)", *row)
        transaction.do("INSERT INTO name_scans (at) VALUES (?)", now)


def _rename(file: _OldName, writing: Transaction) -> _Outcome:
    transaction = writing
    account_id, name = file
    new = new_name(name)
    if new is None or transaction.stat(account_id, name) is None:
        return _keep(file, transaction)
    if transaction.stat(account_id, new) is not None:
        transaction.do("UPDATE old_names SET clashes = TRUE WHERE account_id = ? AND name = ?", *file)
        return "clash"
    transaction.rename_file(account_id, name, new)
    transaction.forget_accesses(account_id, "data", new)  # counts of a deleted file
    transaction.do("UPDATE accesses SET name = ? WHERE account_id = ? AND kind = 'data' AND name = ?", new, *file)
    _keep(file, transaction)
    return "renamed"


def _keep(file: _OldName, transaction: Transaction) -> _Outcome:
    transaction.do("DELETE FROM old_names WHERE account_id = ? AND name = ?", *file)
    return "gone"


def _foreseen(transaction: Transaction, files: list[_OldName], accounts: dict[int, str]) -> Renames:
    """Return the result of a run without any change."""
    renames = Renames([], [])
    moved: set[_OldName] = set()
    for file in sorted(files, key=_order):
        target = _OldName(file.account_id, new_name(file.name) or file.name)
        is_there = transaction.stat(*file) is not None
        is_taken = target not in moved and transaction.stat(*target) is not None
        if is_there and not is_taken:
            moved.add(file)
        _note(renames, "gone" if not is_there else "clash" if is_taken else "renamed", accounts, file)
    return renames
