"""A look at all that a store holds: whether it is whole, what nobody has any more, how much there is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from cloudstore_mapping.service.storage.sql import Transaction, checksum_matches
from cloudstore_mapping.wire import decode_value

#: Media files whose facts are read at a time.
PAGE: Final = 1000
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


def look(
    session: Transaction, schema: int, report: Report = lambda _done, _total: None, *, has_media: bool = True
) -> Findings:
    """Return what a transaction sees, whose tables are of a schema: every value and media file is read."""
    findings = Findings(schema)
    _count(session, findings, has_media=has_media)
    total = findings.files + findings.media
    for done, fault in enumerate(chain(_values(session), _media(session) if has_media else ()), 1):
        if fault is not None:
            findings.faults.append(fault)
        report(done, total)
    return findings


def _count(session: Transaction, findings: Findings, *, has_media: bool) -> None:
    def number(query: str) -> int:
        return int(session.row(query)[0])

    findings.accounts = number("SELECT count(*) FROM accounts")
    findings.files = number("SELECT count(*) FROM files")
    findings.file_bytes = number(f"SELECT coalesce(sum({session.size}), 0) FROM files")  # noqa: S608 - of constants
    if has_media:
        findings.media = number("SELECT count(*) FROM media")
        findings.media_bytes = number("SELECT coalesce(sum(size), 0) FROM media")
        findings.orphan_blobs = number("SELECT count(*) FROM blobs WHERE NOT kept")
        findings.orphan_accesses = number(
            "SELECT count(*) FROM accesses a WHERE NOT EXISTS (SELECT 1 FROM files f"
            " WHERE kind = 'data' AND f.account_id = a.account_id AND f.name = a.name) AND NOT EXISTS"
            " (SELECT 1 FROM media m WHERE kind = 'media' AND m.account_id = a.account_id AND m.id = a.name)"
        )


def _values(session: Transaction) -> Iterator[str | None]:
    query = f"SELECT a.name, f.name, version, {session.value} FROM files f JOIN accounts a ON a.id = account_id"  # noqa: S608 - of constants
    for account, name, version, value in session.stream(query):
        if not _is_json(value):
            yield f"The file {name!r} of {account!r} is no JSON; save it again."
        elif not checksum_matches(version, name, value):
            yield f"The file {name!r} of {account!r} is not what was saved; save it again."
        else:
            yield None


def _is_json(value: object) -> bool:
    if not isinstance(value, bytes):
        return False
    try:
        decode_value(value)
    except (ValueError, RecursionError):
        return False
    return True


def _media(session: Transaction) -> Iterator[str | None]:
    for account in session.accounts():
        after = None
        while page := session.describe_media(account.id, after=after, limit=PAGE):
            for media in page:
                found = hashlib.sha256()
                length = 0
                for chunk in session.chunks(media.blob):
                    found.update(chunk)
                    length += len(chunk)
                is_whole = length == media.size and found.hexdigest() == media.digest
                fault = f"The media file {media.name!r} of {account.name!r} is not what was uploaded; upload it again."
                yield None if is_whole else fault
            after = page[-1].name
