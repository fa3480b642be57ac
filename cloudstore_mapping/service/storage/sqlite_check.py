"""A look at all that an SQLite store holds: whether it is whole, what nobody has any more, how much there is."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from cloudstore_mapping.jsontext import decode_value
from cloudstore_mapping.service.storage.sqlite_backup import verify
from cloudstore_mapping.service.storage.sqlite_session import unavailable

#: Is told how many of the store's files were looked at, and of how many.
Report = Callable[[int, int], object]


@dataclass
class Findings:
    """
    What was found: counts and bytes, and `faults`, a sentence each.

    `orphan_blobs` are bytes of media on their way in or out, which the service takes away by itself.
    """

    schema: int
    accounts: int = 0
    files: int = 0
    file_bytes: int = 0
    media: int = 0
    media_bytes: int = 0
    orphan_blobs: int = 0
    orphan_accesses: int = 0
    faults: list[str] = field(default_factory=list)


def check(path: Path, report: Report = lambda _done, _total: None) -> Findings:
    """
    Return what is found in the store at `path`, as it is at one moment; it may be in use.

    Every page, value and media file is read. Raises `UnsupportedError` for what is no store of ours or too damaged to
    be read, and `FileNotFoundError` where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no store {path}; look at its name.")
    findings = Findings(verify(path))
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("BEGIN")
            _count(connection, findings)
            total = findings.files + findings.media
            for done, fault in enumerate(chain(_values(connection), _media(connection)), 1):
                if fault is not None:
                    findings.faults.append(fault)
                report(done, total)
    except sqlite3.Error as error:
        raise unavailable(error) from error
    return findings


def _count(connection: sqlite3.Connection, findings: Findings) -> None:
    def number(query: str) -> int:
        return int(connection.execute(query).fetchone()[0])

    findings.accounts = number("SELECT count(*) FROM accounts")
    findings.files = number("SELECT count(*) FROM files")
    findings.file_bytes = number("SELECT coalesce(sum(length(value)), 0) FROM files")
    if findings.schema > 1:
        findings.media = number("SELECT count(*) FROM media")
        findings.media_bytes = number("SELECT coalesce(sum(size), 0) FROM media")
        findings.orphan_blobs = number("SELECT count(*) FROM blobs WHERE NOT kept")
        findings.orphan_accesses = number(
            "SELECT count(*) FROM accesses a WHERE NOT EXISTS (SELECT 1 FROM files f"
            " WHERE kind = 'data' AND f.account_id = a.account_id AND f.name = a.name) AND NOT EXISTS"
            " (SELECT 1 FROM media m WHERE kind = 'media' AND m.account_id = a.account_id AND m.id = a.name)"
        )


def _values(connection: sqlite3.Connection) -> Iterator[str | None]:
    query = "SELECT a.name, f.name, value FROM files f JOIN accounts a ON a.id = account_id"
    for account, name, value in connection.execute(query):
        try:
            decode_value(bytes(value))
        except (ValueError, RecursionError):
            yield f"The file {name!r} of {account!r} is no JSON; save it again."
        else:
            yield None


def _media(connection: sqlite3.Connection) -> Iterator[str | None]:
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'media'").fetchone():
        return
    query = "SELECT a.name, m.name, size, digest, blob_id FROM media m JOIN accounts a ON a.id = account_id"
    for account, name, size, digest, blob in connection.execute(query).fetchall():
        found = hashlib.sha256()
        length = 0
        chunks = "SELECT data FROM chunks WHERE blob_id = ? ORDER BY number"
        for (chunk,) in connection.execute(chunks, (blob,)):
            found.update(chunk)
            length += len(chunk)
        whole = length == size and found.hexdigest() == digest
        yield None if whole else f"The media file {name!r} of {account!r} is not what was uploaded; upload it again."
