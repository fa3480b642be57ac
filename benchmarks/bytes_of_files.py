"""What a file takes on the disk, in SQLite and in PostgreSQL: with what finds it, and what is lost around it."""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, LiteralString, TypeAlias

import psycopg

from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.postgres import PostgresStorage
from cloudstore_mapping.service.storage.records import AccessDelta
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage

FILES: Final = 20_000
#: Files in one commit.
TOGETHER: Final = 1_000
#: Bytes of values: one that PostgreSQL keeps apart from its row, the vendor's limit, and a small record.
SIZES: Final = (20_000, 3_072, 200)
#: The longest of these that is written `FILES` times; of longer ones there are fewer.
LONG: Final = 4_096

#: What finds a file by its name, or by a part of it.
INDEXES: Final = "the indexes alone, of a value of any size"
#: What SQLite doesn't tell.
NOT_APART: Final = "not apart"

#: Does something about the file with this number in an account.
Work: TypeAlias = Callable[[Transaction, int, int], object]

# All tables, with their indexes and what is kept apart from their rows.
_SIZE: Final = (
    "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
)


def name_of(number: int) -> str:
    """Return a name of 21 bytes."""
    return f"users/{number:06}/settings"


def saved(size: int) -> Work:
    """Return what saves a value that no compression makes much smaller."""
    dice = random.Random(size)

    def save(transaction: Transaction, account: int, number: int) -> None:
        transaction.put(account, name_of(number), b'"%s"' % dice.randbytes(size // 2 - 1).hex().encode(), 1.0)

    return save


def used(transaction: Transaction, account: int, number: int) -> None:
    """Count a use of a file."""
    transaction.add_accesses([AccessDelta(account, "data", name_of(number), 20_000, 1, 1_700_000_000.0)])


def answered(transaction: Transaction, account: int, _number: int) -> None:
    """Remember what a write was answered."""
    reply = b'{"error":null,"message":"Entry saved","version":"12345678901234567890"}'
    transaction.keep_answer(account, secrets.token_hex(16), reply, 1_700_000_000.0)


def bytes_each(storage: Storage, size: Callable[[], int], files: int) -> Iterator[tuple[str, float]]:
    """Yield what a file takes of each size, then how much more it is where its use is counted, and a write answered."""
    works = {f"a value of {size:,} bytes": (saved(size), min(files, files * LONG // size)) for size in SIZES}
    works["how often it was used"] = used, files
    works["what a write was answered, for ten minutes"] = answered, files
    account = 0
    for label, (work, count) in works.items():
        if work is not used:  # the last ones that were saved
            account = storage.submit(partial(_account, name=label)).result()
        numbers = list(range(count))
        random.Random(0).shuffle(numbers)
        before = size()
        for start in range(0, count, TOGETHER):
            some = numbers[start : start + TOGETHER]
            storage.submit(partial(_each, work=work, account=account, numbers=some)).result()
        yield label, (size() - before) / count


def _account(transaction: Transaction, name: str) -> int:
    return transaction.add_account(name, 1.0).id


def _each(transaction: Transaction, work: Work, account: int, numbers: Sequence[int]) -> None:
    for number in numbers:
        work(transaction, account, number)


def in_sqlite(files: int) -> dict[str, float]:
    """Return what a file takes in SQLite."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "store.db"
        with SQLiteStorage(file) as storage:

            def size() -> int:
                storage.back_up(file.with_name("copy.db"), lambda *_: None)
                copied = file.with_name("copy.db").stat().st_size
                file.with_name("copy.db").unlink()
                return copied

            return dict(bytes_each(storage, size, files))


def in_postgres(address: str, files: int) -> dict[str, float]:
    """Return what a file takes in an empty PostgreSQL database."""
    with PostgresStorage(address) as storage, psycopg.connect(address, autocommit=True) as connection:

        def size() -> int:
            return int(_number(connection, _SIZE))

        found = dict(bytes_each(storage, size, files))
        found[INDEXES] = _number(connection, "SELECT pg_indexes_size('files') / count(*)::float FROM files")
        return found


def _number(connection: psycopg.Connection[tuple[float]], query: LiteralString) -> float:
    row = connection.execute(query).fetchone()
    return 0 if row is None else float(row[0])


def table(address: str, files: int) -> Iterator[str]:
    """Yield the lines of a table in Markdown, of an empty PostgreSQL database at this address."""
    yield "| what on the disk | bytes in SQLite | bytes in PostgreSQL |"
    yield "|---|---|---|"
    in_other = in_postgres(address, files)
    for what, bytes_ in in_sqlite(files).items():
        yield f"| {what} | {bytes_:,.0f} | {in_other[what]:,.0f} |"
    yield f"| {INDEXES} | {NOT_APART} | {in_other[INDEXES]:,.0f} |"


if __name__ == "__main__":
    for line in table(sys.argv[1], FILES):
        print(line)
