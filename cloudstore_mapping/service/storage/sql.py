"""SQL queries on accounts, API keys, sessions, quotas, data files, idempotency keys, media files and access counts."""

from __future__ import annotations

import math
import re
import secrets
import sys
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import count
from typing import Any, ClassVar, Final, NamedTuple

from cloudstore_mapping.errors import UnavailableError, shorten
from cloudstore_mapping.keys import escape_key, unescape_name
from cloudstore_mapping.service.storage.records import (
    LARGE,
    AccessCount,
    AccessDelta,
    Account,
    Answer,
    ApiKey,
    Counters,
    Event,
    File,
    FileInfo,
    Kind,
    Limits,
    Listed,
    Media,
    OwnerPassword,
    SignIn,
)


def after_prefix(prefix: str) -> str | None:
    """Return the first text after all texts with `prefix`, by code points; None if there is none."""
    for index in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[index]) + 1
        if following == 0xD800:
            following = 0xE000  # texts hold no surrogates
        if following <= sys.maxunicode:
            return prefix[:index] + chr(following)
    return None


# Version 0.1.0 escaped these characters, a space at either end, and the first dot of "." and "..".
_BREAKING: Final = r"[\x00-\x1f\x7f,/\\]|\A[ ]|[ ]\Z|\A\.(?=\.?\Z)"
# It also escaped a "%" in front of such an escape, or of an escaped one: "%2C", "%252C".
_PERCENT: Final = (
    r"%(?=(?:25)*(?:[01][0-9A-F]|7F|2C|2F|5C|20\Z))"
    r"|\A%(?=(?:25)*(?:20|2E\.?\Z|\Z))"
)
_TO_ESCAPE: Final = re.compile(rf"{_BREAKING}|{_PERCENT}")
_ESCAPE: Final = re.compile(rf"(?:{_PERCENT})([0-9A-F]{{2}})?")


def old_name(name: str) -> str:
    """Return the file name in version 0.1.0 for the key of a present file name."""
    return _TO_ESCAPE.sub(lambda match: f"%{ord(match[0]):02X}", unescape_name(name)) or "%"


def new_name(name: str) -> str | None:
    """Return the present name of a file of version 0.1.0; None if it is unchanged or was invalid in that version."""
    if "%" not in name:
        return None
    key = _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else "", name)
    new = escape_key(key)
    return new if new != name and old_name(new) == name else None


#: Random bytes of a version; they make each version of a file unique.
RANDOM_BYTES: Final = 9
#: Number of random parts drawn at a time; drawing each alone would double the cost of a version.
DRAWN: Final = 64

#: Length in characters of a version's random part and of the checksum behind it.
_RANDOM: Final = 12
_SUM: Final = 8


class VersionMaker:
    """Maker of versions for new values; not thread-safe, not usable in a forked child."""

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def new_version(self, name: str, value: bytes) -> str:
        """Return a new version for a value stored under `name`."""
        if not self._drawn:
            text = secrets.token_urlsafe(RANDOM_BYTES * DRAWN)
            self._drawn = [text[start : start + _RANDOM] for start in range(0, len(text), _RANDOM)]
        random = self._drawn.pop()
        return random + _checksum(random, name, value)


def checksum_matches(version: Any, name: str, value: Any) -> bool:
    """
    Return True if the checksum in the version fits the name and value, or the version is old and has none.

    In a damaged row, SQLite may return any type, and a name outside UTF-8.
    """
    try:
        random, checksum = version[:_RANDOM], version[_RANDOM:]
        if checksum == _checksum(random, name, value) or len(checksum) != _SUM:
            return True
        # Renaming a file of version 0.1.0 keeps its version.
        return bool(checksum == _checksum(random, old_name(name), value))
    except (TypeError, UnicodeError):
        return False


def _checksum(random: str, name: str, value: bytes) -> str:
    # Detects failing disks only: a program able to change a value in the store can also change its version.
    return "%08x" % zlib.crc32(value, zlib.crc32((random + name).encode()))  # noqa: UP031 - faster than an f-string


class LookAhead(NamedTuple):
    """
    What a request is going to read, so that an engine beyond a network reads all of it in one round trip.

    The account has an API key of this SHA-256, or this id. `values` says whether the value of its one file is wanted,
    unless it takes more than `max_bytes`; None if the files are read later. `requests` are the request's ids.
    """

    key_hash: bytes | None
    account_id: int | None
    names: Sequence[str]
    values: bool | None = None
    max_bytes: int | None = None
    requests: Sequence[str] = ()


#: LIMIT for all rows: the engines have no common syntax for "no limit".
ALL: Final = 2**63 - 1


class Dialect(ABC):
    """Dialect: a connection for SQL with ``?`` as placeholder, and the SQL fragments in which the engines differ."""

    #: Row locks at the end of a query, held until the transaction ends: on any rows, on rows of accounts, and on
    #: unlocked rows only (locked rows are skipped).
    held: ClassVar[str] = ""
    account_held: ClassVar[str] = ""
    free_held: ClassVar[str] = ""
    #: SQL of a data file: its stored value, a placeholder for a new value, and the value's size in bytes.
    value: ClassVar[str] = "value"
    value_given: ClassVar[str] = "?"
    size: ClassVar[str]
    #: Conditions selecting the row of a blob, and the rows of its chunks.
    is_blob: ClassVar[str]
    is_chunk: ClassVar[str]
    #: Columns of a chunk that identify its blob.
    chunk_key: ClassVar[str]
    #: SQL of a blob's public id in table blobs and in table media, and the statement creating a blob.
    blob: ClassVar[str]
    blob_of_media: ClassVar[str]
    new_blob: ClassVar[str]

    @staticmethod
    def bytes_of(column: str) -> str:
        """Return SQL for the number of bytes in a text column."""
        return f"octet_length({column})"

    @staticmethod
    def blob_bytes_of(column: str) -> str:
        """Return SQL for the number of bytes in a binary column."""
        return f"octet_length({column})"

    @abstractmethod
    def _blob(self, blob: int) -> tuple[int, ...]:
        """Return the parameters of `is_blob` and `is_chunk` for a blob's public id."""

    @abstractmethod
    def _chunk(self, blob: int) -> tuple[int, ...]:
        """Return the values of `chunk_key` for a chunk of a new upload."""

    def end_filling(self) -> None:  # noqa: B027 - optional hook
        """Finish a row-by-row copy: open the store for use, and number new rows after the copied ones."""

    @abstractmethod
    def _hold_account(self, account_id: int) -> None:
        """Lock the account's row until the transaction ends, against other writers locking it."""

    @abstractmethod
    def _of(self, columns: str, account_id: int, names: Sequence[str], *parameters: int) -> list[Any]:
        """
        Return the name and `columns` of the account's files with these names (at least one).

        `parameters` are those of `columns`. Rows are locked in the order of names, so two transactions can't deadlock.
        """

    @abstractmethod
    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Return a condition matching names that contain the literal text, and its parameters."""

    def _is_indexed(self, text: str) -> bool:  # noqa: ARG002 - no text by default
        """Return True if an index finds the names containing the text, without a scan of the others."""
        return False

    @abstractmethod
    def row(self, query: str, *parameters: Any) -> Any:
        """Return the first row, or None."""

    @abstractmethod
    def rows(self, query: str, *parameters: Any) -> list[Any]:
        """Return all rows."""

    @abstractmethod
    def stream(self, query: str, *parameters: Any) -> Iterator[Any]:
        """Yield the rows one by one; run no other statement before the last row."""

    @abstractmethod
    def do(self, query: str, *parameters: Any) -> None:
        """Execute the statement; an engine with a network round trip doesn't wait for the result."""

    @abstractmethod
    def count(self, query: str, *parameters: Any) -> int:
        """Execute the statement and return the number of changed rows."""


#: Data files counted per step; takes a small part of a step's time.
ROWS_COUNTED: Final = 500

_SELECT: Final = "SELECT files, bytes, uploads, replies, leaving FROM counters WHERE account_id = ?"
_OF_BLOB: Final = "account_id = (SELECT account_id FROM blobs WHERE {})"


class CounterStatements(Dialect):
    """Quota counters of accounts with a limit on files or bytes, updated in the transaction of each write."""

    @cached_property
    def _uncounted(self) -> set[int]:
        """Return the accounts without quota counters in the current work; their writes skip counter statements."""
        return set()

    def counters(self, account_id: int) -> Counters | None:
        """Return the account's quota counters, or None; they are too low until `tidy` has counted all files."""
        row = self.row(_SELECT + self.held, account_id)
        return None if row is None else Counters._make(row)

    def start_counting(self, account_id: int) -> None:
        """Reset the account's quota counters and update them on each write; `tidy` counts its data files, in steps."""
        self.do("DELETE FROM counters WHERE account_id = ?", account_id)
        replies = f"SELECT coalesce(sum({self.bytes_of('request')} + {self.blob_bytes_of('reply')}), 0) FROM answers"  # noqa: S608 - of constants
        blobs = "FROM blobs WHERE account_id = a.id AND"
        self.do(
            "INSERT INTO counters (account_id, files, bytes, uploads, replies, leaving, counted_to) SELECT id,"  # noqa: S608 - of constants
            " (SELECT count(*) FROM media WHERE account_id = a.id),"
            f" (SELECT coalesce(sum(size), 0) {blobs} (kept OR touched_at > 0))"
            f" + ({replies} WHERE account_id = a.id),"
            f" (SELECT count(*) {blobs} NOT kept AND touched_at > 0),"
            f" ({replies} WHERE account_id = a.id),"
            f" (SELECT coalesce(sum(size), 0) {blobs} NOT kept AND touched_at <= 0),"
            " '' FROM accounts AS a WHERE id = ?",
            account_id,
        )
        self.count_files_behind(account_id, "")  # covers all files of most accounts

    def count_files_behind(self, account_id: int, counted_to: str) -> None:
        """Count the next data files of an account, after the name `counted_to`."""
        files = self.rows(
            f"SELECT name, {self.bytes_of('name')} + {self.size} FROM files WHERE account_id = ? AND name > ?"  # noqa: S608 - of constants
            " ORDER BY name LIMIT ?",
            *(account_id, counted_to, ROWS_COUNTED),
        )
        last = files[-1][0] if len(files) == ROWS_COUNTED else None
        total = sum(size for _, size in files)
        query = "UPDATE counters SET files = files + ?, bytes = bytes + ?, counted_to = ? WHERE account_id = ?"
        self.do(query, len(files), total, last, account_id)

    def stop_counting(self, account_id: int) -> None:
        """Delete the account's quota counters."""
        self.do("DELETE FROM counters WHERE account_id = ?", account_id)

    def is_counted(self, account_id: int) -> bool:
        """Return True if the account has quota counters and they include all its files."""
        return self.row("SELECT 1 FROM counters WHERE account_id = ? AND counted_to IS NULL", account_id) is not None

    def recounted(self, account_id: int) -> Counters:
        """Return freshly counted quota counters, for comparison with `counters`."""
        replies = f"SELECT coalesce(sum({self.bytes_of('request')} + {self.blob_bytes_of('reply')}), 0) FROM answers"  # noqa: S608 - of constants
        blobs = "FROM blobs WHERE account_id = ? AND"
        files = "FROM files WHERE account_id = ?"
        (row,) = self.rows(
            f"SELECT (SELECT count(*) {files}) + (SELECT count(*) FROM media WHERE account_id = ?),"  # noqa: S608 - of constants
            f" (SELECT coalesce(sum({self.bytes_of('name')} + {self.size}), 0) {files})"
            f" + (SELECT coalesce(sum(size), 0) {blobs} (kept OR touched_at > 0)) + ({replies} WHERE account_id = ?),"
            f" (SELECT count(*) {blobs} NOT kept AND touched_at > 0), ({replies} WHERE account_id = ?),"
            f" (SELECT coalesce(sum(size), 0) {blobs} NOT kept AND touched_at <= 0)",
            *(account_id,) * 8,
        )
        return Counters(*map(int, row))

    def _count_put(self, account_id: int, name: str, size: int) -> None:
        """Update the quota counters before a put of a value of `size` bytes."""
        if account_id in self._uncounted:
            return
        its = "FROM files WHERE account_id = counters.account_id AND name = ?"
        self.do(
            f"UPDATE counters SET files = files + 1 - (SELECT count(*) {its}), bytes = bytes + ?"  # noqa: S608 - of constants
            f" + {self.bytes_of('CAST(? AS TEXT)')} - coalesce((SELECT {self.bytes_of('name')} + {self.size} {its}), 0)"
            " WHERE account_id = ? AND (counted_to IS NULL OR counted_to >= ?)",
            *(name, size, name, name, account_id, name),
        )

    def _count_off(self, account_id: int, name: str) -> None:
        """Subtract a file from the quota counters before its deletion or renaming."""
        self._count_row(account_id, name, "-")

    def _count_on(self, account_id: int, name: str) -> None:
        """Add a file to the quota counters after its renaming."""
        self._count_row(account_id, name, "+")

    def _count_row(self, account_id: int, name: str, sign: str) -> None:
        if account_id in self._uncounted:
            return
        its = "FROM files WHERE account_id = counters.account_id AND name = ?"
        self.do(
            f"UPDATE counters SET files = files {sign} (SELECT count(*) {its}),"  # noqa: S608 - of constants
            f" bytes = bytes {sign} coalesce((SELECT {self.bytes_of('name')} + {self.size} {its}), 0)"
            " WHERE account_id = ? AND (counted_to IS NULL OR counted_to >= ?)",
            *(name, name, account_id, name),
        )

    def _count_reply(self, account_id: int, size: int, request: str = "") -> None:
        """Add the bytes of a stored reply (negative to subtract) and of its request id to the quota counters."""
        if account_id not in self._uncounted:
            more = f"? + {self.bytes_of('CAST(? AS TEXT)')}"
            self.do(
                f"UPDATE counters SET bytes = bytes + {more}, replies = replies + {more} WHERE account_id = ?",  # noqa: S608 - of constants
                *(size, request, size, request, account_id),
            )

    def _count_media(self, account_id: int, number: int) -> None:
        """Add a number of media files to the quota counters; negative to subtract."""
        self.do("UPDATE counters SET files = files + ? WHERE account_id = ?", number, account_id)

    def _count_blob(self, blob: int, changes: str, *parameters: int) -> None:
        """Change the quota counters of a blob's account."""
        self.do(f"UPDATE counters SET {changes} WHERE {_OF_BLOB.format(self.is_blob)}", *parameters, *self._blob(blob))  # noqa: S608 - of constants


#: Random bytes of a media folder's name, written as 32 hexadecimal digits.
FOLDER_BYTES: Final = 16

ACCOUNT_COLUMNS: Final = (
    "id, name, disabled, plan, folder, data_password, media_password, max_files, max_file_bytes,"
    " max_daily_accesses, min_interval, max_media_bytes, max_total_bytes"
)
_ACCOUNT: Final = f"SELECT {ACCOUNT_COLUMNS} FROM accounts"  # noqa: S608 - of constants
ACCOUNT_BY_ID: Final = f"{_ACCOUNT} WHERE id = ? AND NOT deleted"
ACCOUNT_BY_KEY: Final = f"{_ACCOUNT} WHERE id = (SELECT account_id FROM api_keys WHERE hash = ?) AND NOT deleted"  # noqa: S608 - of constants
ANSWER: Final = "SELECT reply, fingerprint FROM answers WHERE account_id = ? AND request = ?"


class AccountStatements(CounterStatements):
    """
    Accounts, API keys, owner passwords, dashboard sessions and events.

    Queries made only by ordinary requests read without a row lock; queries behind changes of an account lock its row.
    """

    def account(self, account_id: int) -> Account | None:
        """Return the account with this id, or None."""
        return self._account(ACCOUNT_BY_ID, account_id)

    def account_of_key(self, key_hash: bytes) -> Account | None:
        """Authenticate: return the account of the API key with this SHA-256, or None."""
        return self._account(ACCOUNT_BY_KEY, key_hash)

    def account_named(self, name: str) -> Account | None:
        """Return the account with this name, or None."""
        return self._account(f"{_ACCOUNT} WHERE name = ? AND NOT deleted{self.account_held}", name)

    def account_of_folder(self, folder: str) -> Account | None:
        """Return the account with this media folder, or None."""
        return self._account(f"{_ACCOUNT} WHERE folder = ? AND NOT deleted", folder)

    def _account(self, query: str, parameter: int | bytes | str) -> Account | None:
        row = self.row(query, parameter)
        if row is None:
            return None
        account = _account(row)
        if not account.is_counted:
            self._uncounted.add(account.id)
        return account

    def accounts(self) -> list[Account]:
        """Return all accounts, sorted by name."""
        return [_account(row) for row in self.rows(f"{_ACCOUNT} WHERE NOT deleted ORDER BY name")]

    def has_accounts(self) -> bool:
        """Return True if there is any account."""
        return self.row("SELECT 1 FROM accounts WHERE NOT deleted LIMIT 1") is not None

    def add_account(self, name: str, now: float) -> Account:
        """Add an account under an unused name."""
        folder = secrets.token_hex(FOLDER_BYTES)
        row = self.row(
            "INSERT INTO accounts (name, created_at, folder) VALUES (?, ?, ?) RETURNING id", name, now, folder
        )
        return Account(row[0], name, disabled=False, folder=folder)

    def delete_account(self, account_id: int) -> None:
        """Hide the account and everything in it at once; `tidy` deletes the rows later, in steps."""
        # Frees the name at once: no valid name has a control character.
        deleting = "UPDATE accounts SET deleted = TRUE, name = ? WHERE id = ? AND NOT deleted"
        if self.count(deleting, f"\x01{account_id}", account_id):
            for table in ("api_keys", "sessions", "counters"):
                self.do(f"DELETE FROM {table} WHERE account_id = ?", account_id)  # noqa: S608 - of constants

    def set_disabled(self, account_id: int, disabled: bool) -> None:
        """Disable or enable the account."""
        self.do("UPDATE accounts SET disabled = ? WHERE id = ?", disabled, account_id)

    def set_limits(self, account_id: int, plan: str, limits: Limits) -> None:
        """Set the account's limits and the name of its plan."""
        self.do(
            "UPDATE accounts SET plan = ?, max_files = ?, max_file_bytes = ?, max_daily_accesses = ?,"
            " min_interval = ?, max_media_bytes = ?, max_total_bytes = ? WHERE id = ?",
            plan,
            *limits,
            account_id,
        )
        self._uncounted.discard(account_id)
        if limits.max_files is None and limits.max_total_bytes is None:
            self.stop_counting(account_id)
        elif self.counters(account_id) is None:
            self.start_counting(account_id)

    def set_default_passwords(self, account_id: int, *, data: str | None, media: str | None) -> None:
        """Set the default password hashes, used for files without a password."""
        self.do("UPDATE accounts SET data_password = ?, media_password = ? WHERE id = ?", data, media, account_id)

    def next_request_at(self, account_id: int) -> float | None:
        """Rate limit: return the time of the account's next allowed request; None if it never had to wait."""
        query = "SELECT next_request_at FROM accounts WHERE id = ? AND NOT deleted"
        row = self.row(query + self.account_held, account_id)
        return None if row is None else row[0]

    def set_next_request_at(self, account_id: int, at: float) -> None:
        """Rate limit: set the time of the account's next allowed request."""
        self.do("UPDATE accounts SET next_request_at = ? WHERE id = ?", at, account_id)

    def add_key(self, account_id: int, key_hash: bytes, hint: str, now: float) -> None:
        """Add an API key to the account by its SHA-256; existing keys stay valid."""
        self.do(
            "INSERT INTO api_keys (hash, account_id, created_at, hint) VALUES (?, ?, ?, ?)",
            key_hash,
            account_id,
            now,
            hint,
        )

    def keys(self, account_id: int) -> list[ApiKey]:
        """Return the account's API keys, oldest first."""
        query = "SELECT hash, hint, created_at FROM api_keys WHERE account_id = ? ORDER BY created_at, hash"
        return [ApiKey._make(row) for row in self.rows(query, account_id)]

    def remove_key(self, account_id: int, key_hash: bytes) -> None:
        """Revoke this API key of the account."""
        self.do("DELETE FROM api_keys WHERE account_id = ? AND hash = ?", account_id, key_hash)

    def owner_password(self, account_id: int) -> OwnerPassword:
        """Return the owner's password; its hash is None if sign-in is off or the account is missing."""
        query = "SELECT owner_password, must_change_password FROM accounts WHERE id = ?"
        hash_, must_change = self.row(query + self.account_held, account_id) or (None, False)
        return OwnerPassword(hash_, bool(must_change))

    def set_owner_password(self, account_id: int, password: OwnerPassword) -> None:
        """Set the owner's password."""
        self.do("UPDATE accounts SET owner_password = ?, must_change_password = ? WHERE id = ?", *password, account_id)

    def add_session(self, token_hash: bytes, account_id: int, now: float) -> None:
        """Start a dashboard session with this token."""
        self.do(
            "INSERT INTO sessions (hash, account_id, created_at, used_at) VALUES (?, ?, ?, ?)",
            token_hash,
            account_id,
            now,
            now,
        )

    def session(self, token_hash: bytes) -> SignIn | None:
        """Return the session with this token, or None."""
        row = self.row("SELECT account_id, created_at, used_at FROM sessions WHERE hash = ?", token_hash)
        return None if row is None else SignIn._make(row)

    def touch_session(self, token_hash: bytes, now: float) -> None:
        """Set the time of the session's last use."""
        self.do("UPDATE sessions SET used_at = ? WHERE hash = ?", now, token_hash)

    def end_session(self, token_hash: bytes) -> None:
        """End the session with this token (sign out)."""
        self.do("DELETE FROM sessions WHERE hash = ?", token_hash)

    def end_sessions(self, account_id: int, but: bytes | None = None) -> None:
        """End all sessions of an account, except the one with token `but`."""
        self.do("DELETE FROM sessions WHERE account_id = ? AND hash <> ?", account_id, b"" if but is None else but)

    def forget_sessions(self, created_before: float, used_before: float, created_after: float) -> None:
        """Delete the expired sessions of all accounts: begun before or after these times, or last used before one."""
        self.do(
            "DELETE FROM sessions WHERE created_at < ? OR used_at < ? OR created_at > ?",
            *(created_before, used_before, created_after),
        )

    def add_event(self, account_id: int, event: Event, keep: int) -> None:
        """Add an event, and delete all but the last `keep` events of the account."""
        self.do(
            "INSERT INTO events (account_id, at, action, subject, origin) VALUES (?, ?, ?, ?, ?)", account_id, *event
        )
        self.do(
            "DELETE FROM events WHERE account_id = ? AND id <= (SELECT id FROM events WHERE account_id = ?"
            " ORDER BY id DESC LIMIT 1 OFFSET ?)",
            account_id,
            account_id,
            keep,
        )

    def events(self, account_id: int, limit: int) -> list[Event]:
        """Return the account's events, latest first."""
        query = "SELECT at, action, subject, origin FROM events WHERE account_id = ? ORDER BY id DESC LIMIT ?"
        return [Event._make(row) for row in self.rows(query, account_id, limit)]


@lru_cache(maxsize=1024)
def _account(row: Any) -> Account:
    number, name, disabled, plan, folder, data_password, media_password, *numbers = row
    limits = Limits(*numbers)
    is_counted = limits.max_files is not None or limits.max_total_bytes is not None
    return Account(number, name, bool(disabled), plan, limits, folder, data_password, media_password, is_counted)


_INFO: Final = "version, created_at, updated_at, edit_password, view_password"
_ONE: Final = "FROM files WHERE account_id = ? AND name = ?"


class FileStatements(CounterStatements):
    """Data files, by account and name, and replies stored for idempotency."""

    @cached_property
    def get_query(self) -> str:
        """The statement of `get`."""
        return f"SELECT {self.value}, edit_password, view_password, version {_ONE}{self.held}"

    @cached_property
    def small_query(self) -> str:
        """The statement of `get` for a value that may be too large."""
        return f"SELECT {self._small_files} {_ONE}{self.held}"

    @cached_property
    def stat_query(self) -> str:
        """The statement of `stat`."""
        return f"SELECT {self.size}, {_INFO} {_ONE}{self.held}"

    def get(self, account_id: int, name: str, max_bytes: int | None = None) -> File | None:
        """Return the file; None if there is none, `LARGE` if its value exceeds `max_bytes`."""
        if max_bytes is None:
            row = self.row(self.get_query, account_id, name)
        else:
            row = self.row(self.small_query, max_bytes, account_id, name)
        if row is None:
            return None
        if row[0] is None:  # the value exceeds `max_bytes`: the column itself is NOT NULL
            return LARGE
        file = File._make(row)
        if not checksum_matches(file.version, name, file.value):
            raise UnavailableError(
                f"The value of {shorten(name)} is damaged; save it again, or restore a backup.", key=name
            )
        return file

    def stat(self, account_id: int, name: str) -> FileInfo | None:
        """Return the file's size, version, times and passwords without reading its value; None if there is none."""
        row = self.row(self.stat_query, account_id, name)
        return None if row is None else FileInfo._make(row)

    def get_many(self, account_id: int, names: Sequence[str], max_bytes: int) -> dict[str, File | None]:
        """Return the results of `get` by name, leaving out damaged files and files above `max_bytes`."""
        found: dict[str, File | None] = dict.fromkeys(names)
        for name, *row in self._of(self._small_files, account_id, names, max_bytes):
            file = File._make(row)
            if checksum_matches(file.version, name, file.value):
                found[name] = file
            else:
                del found[name]
        return found

    @property
    def _small_files(self) -> str:
        return f"CASE WHEN {self.size} <= ? THEN {self.value} END, edit_password, view_password, version"

    def stat_many(self, account_id: int, names: Sequence[str]) -> dict[str, FileInfo | None]:
        """Return the results of `stat` by name."""
        found: dict[str, FileInfo | None] = dict.fromkeys(names)
        for name, *row in self._of(f"{self.size}, {_INFO}", account_id, names):
            found[name] = FileInfo._make(row)
        return found

    def delete(self, account_id: int, name: str) -> bool:
        """Delete the file and its passwords; return True if it existed."""
        self._count_off(account_id, name)
        return self.count(f"DELETE {_ONE}", account_id, name) > 0

    def names(
        self,
        account_id: int,
        containing: str = "",
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """
        Return the names that contain the literal `containing`, begin with `prefix` and sort after `after`.

        Sorted by code point; at most `limit` names.
        """
        return [name for (name,) in self._select("name", account_id, containing, prefix, after, limit)]

    def scan(
        self, account_id: int, containing: str = "", *, prefix: str = "", after: str | None = None, rows: int
    ) -> tuple[list[str], str | None]:
        """
        Return part of the results of `names` in bounded time, and the `after` of the next part (None at the end).

        Scans about `rows` names; a part may be empty although more follow.
        """
        if not containing or self._is_indexed(containing):
            found = self.names(account_id, containing, prefix=prefix, after=after, limit=rows)
            return found, found[-1] if len(found) == rows else None
        bounds, parameters = self._range(account_id, prefix, after)
        contains, texts = self._containing(containing)
        query = (
            f"WITH part AS (SELECT name FROM files WHERE {bounds} ORDER BY name LIMIT ?)"  # noqa: S608 - of constants
            f" SELECT name, 0 FROM part WHERE {contains} UNION ALL SELECT max(name), count(*) FROM part"
        )
        *matches, (last, count) = self.rows(query, *parameters, rows, *texts)
        return sorted(name for name, _ in matches), last if count == rows else None

    def describe(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[tuple[str, FileInfo]]:
        """Return the results of `names`, each with the results of `stat`."""
        rows = self._select(f"name, {self.size}, {_INFO}", account_id, containing, "", after, limit)
        return [(name, FileInfo._make(info)) for name, *info in rows]

    def page(
        self,
        account_id: int,
        containing: str = "",
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int,
        max_bytes: int,
    ) -> list[Listed]:
        """Return the files selected by `names`, without the values of damaged files and of values above `max_bytes`."""
        columns = f"name, {self._small_files}"
        rows = self._select(columns, account_id, containing, prefix, after, limit, max_bytes)
        return [row if checksum_matches(row[4], row[0], row[1]) else (row[0], None, None, None, "") for row in rows]

    def _select(
        self,
        columns: str,
        account_id: int,
        containing: str,
        prefix: str,
        after: str | None,
        limit: int | None,
        *first: int,
    ) -> list[Any]:
        condition, parameters = self._range(account_id, prefix, after)
        if containing:
            contains, texts = self._containing(containing)
            condition += f" AND {contains}"
            parameters += texts
        query = f"SELECT {columns} FROM files WHERE {condition} ORDER BY name LIMIT ?"  # noqa: S608 - of constants
        return self.rows(query, *first, *parameters, ALL if limit is None else limit)

    def _range(self, account_id: int, prefix: str, after: str | None) -> tuple[str, list[int | str]]:
        """Return a condition matching names that begin with `prefix` and sort after `after`, and its parameters."""
        # An index range has a single lower bound, so both are merged into one. The first text after any text is that
        # text plus NUL.
        start = prefix if after is None else max(prefix, after + "\0")
        end = after_prefix(prefix)
        if end is None:
            return "account_id = ? AND name >= ?", [account_id, start]
        return "account_id = ? AND name >= ? AND name < ?", [account_id, start, end]

    def largest(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        """Return the names and sizes in bytes of the largest files, largest first."""
        query = f"SELECT name, {self.size} FROM files WHERE account_id = ? ORDER BY 2 DESC, name LIMIT ?"  # noqa: S608 - of constants
        return self.rows(query, account_id, limit)

    def count_files(self, account_id: int, enough: int | None = None) -> int:
        """Return the total number of data and media files, counting no further than `enough`."""
        if enough is not None:
            self._hold_account(account_id)
        most = ALL if enough is None else enough
        (count,) = self.row(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM files WHERE account_id = ? LIMIT ?) AS data)"
            " + (SELECT count(*) FROM (SELECT 1 FROM media WHERE account_id = ? LIMIT ?) AS uploads)",
            *(account_id, most) * 2,
        )
        return int(count) if enough is None else min(count, enough)

    def rename_file(self, account_id: int, old: str, new: str) -> None:
        """Rename a file to an unused name."""
        self._count_off(account_id, old)
        self.do("UPDATE files SET name = ? WHERE account_id = ? AND name = ?", new, account_id, old)
        self._count_on(account_id, new)

    def set_passwords(self, account_id: int, name: str, *, edit: str | None, view: str | None) -> bool:
        """Set the password hashes of the file; return False if there is no such file."""
        query = "UPDATE files SET edit_password = ?, view_password = ? WHERE account_id = ? AND name = ?"
        return self.count(query, edit, view, account_id, name) > 0

    def answer(self, account_id: int, request: str) -> Answer | None:
        """Idempotency: return the stored reply to a request id, or None."""
        row = self.row(ANSWER, account_id, request)
        return None if row is None else Answer(bytes(row[0]), None if row[1] is None else bytes(row[1]))

    def keep_answer(
        self, account_id: int, request: str, reply: bytes, number: float, fingerprint: bytes | None = None
    ) -> None:
        """Idempotency: store the reply to a request id, with its number and the fingerprint of its request."""
        self.do(
            "INSERT INTO answers (account_id, request, reply, fingerprint, answered_at) VALUES (?, ?, ?, ?, ?)",
            *(account_id, request, reply, fingerprint, number),
        )
        self._count_reply(account_id, len(reply), request)

    def has_old_answers(self, before: float) -> bool:
        """Return True if there are replies with a smaller number."""
        return self.row("SELECT 1 FROM answers WHERE answered_at < ? LIMIT 1", before) is not None

    def newest_answer(self) -> float:
        """Return the largest number of the stored replies of all accounts; -inf without a reply."""
        (newest,) = self.row("SELECT max(answered_at) FROM answers")
        return -math.inf if newest is None else float(newest)

    def answered_before(self, before: float, newer: int) -> float:
        """Return the number of the newest reply before `before`, but for `newer` of them; -inf without one."""
        query = "SELECT answered_at FROM answers WHERE answered_at < ? ORDER BY answered_at DESC LIMIT 1 OFFSET ?"
        row = self.row(query, before, newer)
        return -math.inf if row is None else float(row[0])

    def forget_answers(self, before: float, limit: int) -> None:
        """Delete at most `limit` replies with a smaller number, smallest first, over all accounts."""
        size = f"{self.bytes_of('request')} + {self.blob_bytes_of('reply')}"
        query = f"SELECT account_id, request, {size} FROM answers WHERE answered_at < ? ORDER BY answered_at LIMIT ?"  # noqa: S608 - of constants
        sizes = Counter[int]()
        # One statement per reply: for a list of keys SQLite would scan all replies of the account.
        for account_id, request, bytes_ in self.rows(query + self.free_held, before, limit):
            self.do("DELETE FROM answers WHERE account_id = ? AND request = ?", account_id, request)
            sizes[account_id] += bytes_
        for account_id, total in sorted(sizes.items()):
            self._count_reply(account_id, -total)

    @cached_property
    def _versions(self) -> VersionMaker:
        return VersionMaker()

    def put(self, account_id: int, name: str, value: bytes, now: float) -> str:
        """Store a value, keep the file's passwords, and return the new version."""
        version = self._versions.new_version(name, value)
        self._put(account_id, name, value, version, now)
        return version

    @abstractmethod
    def _put(self, account_id: int, name: str, value: bytes, version: str, now: float) -> None:
        """Store the value with this version."""


_INSERT: Final = (
    "INSERT INTO media (account_id, id, name, mimetype, size, digest, blob_id, edit_password, created_at, updated_at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE: Final = (
    "UPDATE media SET name = ?, mimetype = ?, size = ?, digest = ?, blob_id = ?, edit_password = ?, updated_at = ?"
    " WHERE account_id = ? AND id = ?"
)
# Only for existing files: an access may be counted after its file was deleted.
ADD_ACCESSES: Final = (
    "INSERT INTO accesses (account_id, kind, name, day, count, last_at) SELECT * FROM {} AS u WHERE"
    " EXISTS (SELECT 1 FROM accesses AS a WHERE a.account_id = u.account_id AND a.kind = u.kind AND a.name = u.name)"
    " OR EXISTS (SELECT 1 FROM files AS f WHERE u.kind = 'data' AND f.account_id = u.account_id AND f.name = u.name)"
    " OR EXISTS (SELECT 1 FROM media AS m WHERE u.kind = 'media' AND m.account_id = u.account_id AND m.id = u.name)"
    " ON CONFLICT (account_id, kind, name) DO UPDATE SET"
    " count = excluded.count + CASE WHEN accesses.day BETWEEN excluded.day AND ? THEN accesses.count ELSE 0 END,"
    " day = CASE WHEN accesses.day BETWEEN excluded.day AND ? THEN accesses.day ELSE excluded.day END,"
    " last_at = CASE WHEN accesses.last_at > excluded.last_at AND accesses.day <= ?"
    " THEN accesses.last_at ELSE excluded.last_at END"
)
_ADD_ONE: Final = ADD_ACCESSES.format(
    "(SELECT ? AS account_id, ? AS kind, ? AS name, ? AS day, ? AS count, ? AS last_at)"
)
_ADD_DAY: Final = (
    "INSERT INTO days (account_id, day, count) SELECT ?, ?, ? WHERE"
    " EXISTS (SELECT 1 FROM accounts WHERE id = ? AND NOT deleted)"
    " ON CONFLICT (account_id, day) DO UPDATE SET count = days.count + excluded.count"
)


class MediaStatements(CounterStatements):
    """Media files, by account and id, and their blobs and chunks."""

    def media(self, account_id: int, media_id: str) -> Media | None:
        """Return the media file with this id, or None."""
        return self._media("id = ?", account_id, media_id)

    def media_named(self, account_id: int, name: str) -> Media | None:
        """Return the media file with this name, or None."""
        return self._media("name = ?", account_id, name)

    def _media(self, condition: str, account_id: int, value: str) -> Media | None:
        row = self.row(f"{self._selected()} AND {condition}{self.held}", account_id, value)
        return None if row is None else Media._make(row)

    def _selected(self) -> str:
        columns = f"id, name, mimetype, size, digest, {self.blob_of_media}, edit_password, created_at, updated_at"
        return f"SELECT {columns} FROM media WHERE account_id = ?"  # noqa: S608 - of constants

    def describe_media(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[Media]:
        """Return the media files whose names contain the literal text and sort after `after`, sorted by name."""
        start = "" if after is None else after + "\0"
        contains, texts = self._containing(containing) if containing else ("TRUE", ())
        query = f"{self._selected()} AND name >= ? AND {contains} ORDER BY name LIMIT ?"
        return [Media._make(row) for row in self.rows(query, account_id, start, *texts, limit)]

    def largest_media(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        """Return the names and sizes in bytes of the largest media files, largest first."""
        return self.rows(
            "SELECT name, size FROM media WHERE account_id = ? ORDER BY size DESC, name LIMIT ?", account_id, limit
        )

    def media_bytes(self, account_id: int) -> int:
        """Return the total size of the account's media files in bytes."""
        self._hold_account(account_id)
        return int(self.row("SELECT coalesce(sum(size), 0) FROM media WHERE account_id = ?", account_id)[0])

    def put_media(self, account_id: int, media: Media) -> bool:
        """
        Add the media file, or replace the media file with its id; `sweep` deletes the blob of the old one.

        Return False, without changes, if the new blob is deleted or already belongs to a media file.
        """
        if not self._keep_blob(media.blob):
            return False
        before = self.media(account_id, media.id)
        if before is None:
            self.do(_INSERT, account_id, *media)
            self._count_media(account_id, 1)
        else:
            self._leave_blob(before.blob)
            facts = (media.name, media.mimetype, media.size, media.digest, media.blob, media.edit_password)
            self.do(_UPDATE, *facts, media.updated_at, account_id, media.id)
        return True

    def delete_media(self, account_id: int, media_id: str) -> bool:
        """Delete the media file and return True if it existed; `sweep` deletes its blob."""
        before = self.media(account_id, media_id)
        if before is None:
            return False
        self._leave_blob(before.blob)
        self.do("DELETE FROM media WHERE account_id = ? AND id = ?", account_id, media_id)
        self._count_media(account_id, -1)
        return True

    def set_media_password(self, account_id: int, media_id: str, edit: str | None) -> bool:
        """Set the edit password hash of the media file; return False if there is no such file."""
        query = "UPDATE media SET edit_password = ? WHERE account_id = ? AND id = ?"
        return self.count(query, edit, account_id, media_id) > 0

    def add_blob(self, account_id: int, now: float) -> int:
        """Create a blob and return its id; `sweep` deletes it unless a media file gets it."""
        blob = int(self.row(self.new_blob, account_id, now)[0])
        self.do("UPDATE counters SET uploads = uploads + 1 WHERE account_id = ?", account_id)
        return blob

    def add_chunk(self, blob: int, number: int, data: bytes, now: float) -> bool:
        """Add the blob's next chunk, counted from 0; return False if `sweep` has begun to delete the blob."""
        touching = (
            f"UPDATE blobs SET touched_at = ?, size = size + ? WHERE {self.is_blob} AND NOT kept AND touched_at > 0"  # noqa: S608 - of constants
        )
        if not self.count(touching, now, len(data), *self._blob(blob)):
            return False
        self._count_blob(blob, "bytes = bytes + ?", len(data))
        values = (*self._chunk(blob), number, data)
        marks = ", ".join("?" * len(values))
        self.do(f"INSERT INTO chunks ({self.chunk_key}, number, data) VALUES ({marks})", *values)  # noqa: S608 - of constants
        return True

    def chunk(self, blob: int, number: int) -> bytes | None:
        """Return a chunk of the blob; None if it is missing or deleted."""
        query = f"SELECT data FROM chunks WHERE {self.is_chunk} AND number = ?"  # noqa: S608 - of constants
        row = self.row(query, *self._blob(blob), number)
        return None if row is None else bytes(row[0])

    def drop_blob(self, blob: int) -> None:
        """Mark a blob without a media file for deletion by the next `sweep`, whatever its age."""
        dropping = f"UPDATE blobs SET touched_at = 0 WHERE {self.is_blob} AND NOT kept AND touched_at > 0"  # noqa: S608 - of constants
        if self.count(dropping, *self._blob(blob)):
            self._count_leaving(blob, "uploads = uploads - 1, ")

    def _keep_blob(self, blob: int) -> bool:
        keeping = f"UPDATE blobs SET kept = TRUE WHERE {self.is_blob} AND NOT kept AND touched_at > 0"  # noqa: S608 - of constants
        if not self.count(keeping, *self._blob(blob)):
            return False
        self._count_blob(blob, "uploads = uploads - 1")
        return True

    def _leave_blob(self, blob: int) -> None:
        self.do(f"UPDATE blobs SET kept = FALSE, touched_at = 0 WHERE {self.is_blob}", *self._blob(blob))  # noqa: S608 - of constants
        self._count_leaving(blob)

    def _count_leaving(self, blob: int, changes: str = "") -> None:
        """Move the bytes of a blob from `bytes` to `leaving` in the quota counters."""
        size = f"(SELECT size FROM blobs WHERE {self.is_blob})"  # noqa: S608 - of constants
        key = self._blob(blob)
        self._count_blob(blob, f"{changes}bytes = bytes - {size}, leaving = leaving + {size}", *key, *key)

    def sweep(self, before: float, chunks: int) -> bool:
        """
        Delete orphaned blobs with no new chunk since `before`, at most `chunks` chunks of one blob.

        Return True if there may be more to delete.
        """
        oldest = f"SELECT {self.blob} FROM blobs WHERE NOT kept AND touched_at < ? ORDER BY touched_at LIMIT 1"  # noqa: S608 - of constants
        row = self.row(oldest + self.free_held, before)
        if row is None:
            return False
        key = self._blob(row[0])
        # From now on `add_chunk` fails for this blob: a media file must not miss its last chunks.
        self.drop_blob(row[0])
        of_blob = f"FROM chunks WHERE {self.is_chunk}"
        last = f"SELECT number, {self.blob_bytes_of('data')} {of_blob} ORDER BY number DESC LIMIT ?"
        found = self.rows(last, *key, chunks)
        for number, size in found:
            self.do(f"DELETE {of_blob} AND number = ?", *key, number)
            self.do(f"UPDATE blobs SET size = size - ? WHERE {self.is_blob}", size, *key)  # noqa: S608 - of constants
            self._count_blob(row[0], "leaving = leaving - ?", size)
        if len(found) < chunks:
            self.do(f"DELETE FROM blobs WHERE {self.is_blob}", *key)  # noqa: S608 - of constants
        return True

    def has_blobs_after(self, latest: float) -> bool:
        """Return True if there are orphaned blobs with a chunk after this time."""
        return self.row("SELECT 1 FROM blobs WHERE NOT kept AND touched_at > ? LIMIT 1", latest) is not None

    def redate_blobs(self, latest: float, now: float) -> None:
        """Date the orphaned blobs `now` whose last chunks came after `latest`."""
        self.do("UPDATE blobs SET touched_at = ? WHERE NOT kept AND touched_at > ?", now, latest)

    def has_left_over(self, before: float) -> bool:
        """Return True if `sweep` would find an orphaned blob."""
        return self.row("SELECT 1 FROM blobs WHERE NOT kept AND touched_at < ? LIMIT 1", before) is not None


class AccessStatements(Dialect):
    """Access counts of files, by day."""

    def accesses(self, account_id: int, kind: Kind, name: str) -> AccessCount | None:
        """Return the access count of a file on its last day of use; None if it was never used."""
        query = "SELECT day, count, last_at FROM accesses WHERE account_id = ? AND kind = ? AND name = ?"
        row = self.row(query, account_id, kind, name)
        return None if row is None else AccessCount._make(row)

    def add_accesses(self, used: Sequence[AccessDelta], latest: int = ALL) -> None:
        """
        Add access counts to those of existing files, and to the account's days.

        A later day than the stored one starts at 0; an earlier day, after a clock was set back, counts as the stored
        day, unless that is after `latest`: then the earlier day starts at 0.
        """
        days = Counter[tuple[int, int]]()
        for each in used:
            days[each.account_id, each.day] += each.times
        self._add_accesses(sorted(used), latest)
        for (account_id, day), times in sorted(days.items()):
            self.do(_ADD_DAY, account_id, day, times, account_id)

    def _add_accesses(self, used: list[AccessDelta], latest: int) -> None:
        """Add access counts of files, sorted to avoid deadlocks between two writers."""
        for each in used:
            self.do(_ADD_ONE, *each, latest, latest, latest)

    def forget_accesses(self, account_id: int, kind: Kind, name: str) -> None:
        """Delete the access count of a deleted file."""
        self.do("DELETE FROM accesses WHERE account_id = ? AND kind = ? AND name = ?", account_id, kind, name)

    def days(self, account_id: int, since: int) -> list[tuple[int, int]]:
        """Return pairs (day, number of accesses) of the account, from the day `since` on, in order."""
        return self.rows(
            "SELECT day, count FROM days WHERE account_id = ? AND day >= ? ORDER BY day", account_id, since
        )


#: Rows deleted by one statement of a step; takes a small part of a step's time.
ROWS: Final = 32

# Tables with rows left by a deleted account, and their key columns.
_REMAINS: Final = (
    ("files", "name"),
    ("accesses", "kind, name"),
    ("answers", "request"),
    ("events", "id"),
    ("days", "day"),
    ("old_names", "name"),
)


class TidyingStatements(MediaStatements):
    """Background cleanup in time-bounded steps."""

    def tidy(self, before: float, is_over: Callable[[], bool]) -> bool:
        """
        Do background work until `is_over` returns True at the end of the step; return True if there is more.

        Deletes orphaned blobs with no new chunk since `before`, deletes rows of deleted accounts, counts files of
        accounts with new limits, and returns unused space to the disk.
        """
        steps: tuple[Callable[[], bool], ...]
        # In this order: each makes work for those after it.
        steps = (self._remove_some, partial(self.sweep, before, 1), self.count_some, self._give_back_some)
        for step in steps:
            while step():
                if is_over():
                    return True
        return False

    def is_untidy(self, before: float) -> bool:
        """Return True if `tidy` would find work."""
        return (
            self.has_left_over(before)
            or self.row("SELECT 1 FROM accounts WHERE deleted LIMIT 1") is not None
            or self.row("SELECT 1 FROM counters WHERE counted_to IS NOT NULL LIMIT 1") is not None
            or self._can_give_back()
        )

    def _remove_some(self) -> bool:
        """Delete some rows of a deleted account; return False if there is no such account."""
        row = self.row(f"SELECT id FROM accounts WHERE deleted ORDER BY id LIMIT 1{self.free_held}")  # noqa: S608 - of constants
        if row is None:
            return False
        (account_id,) = row
        media = "SELECT id FROM media WHERE account_id = ? ORDER BY id LIMIT ?"
        ids = self.rows(media, account_id, ROWS)
        for (media_id,) in ids:
            self.delete_media(account_id, media_id)
        if ids:
            return True
        for table, key in _REMAINS:
            nth = f"SELECT {key} FROM {table} WHERE account_id = ? ORDER BY {key} LIMIT 1 OFFSET ?"  # noqa: S608 - of constants
            last = self.row(nth, account_id, ROWS - 1) or ()
            some = f" AND ({key}) <= ({', '.join('?' * len(last))})" if last else ""
            if self.count(f"DELETE FROM {table} WHERE account_id = ?{some}", account_id, *last):  # noqa: S608 - of constants
                return True
        # Nobody can finish these uploads any more, even if a client still sends.
        self.do("UPDATE blobs SET touched_at = 0 WHERE NOT kept AND touched_at > 0 AND account_id = ?", account_id)
        self.do("DELETE FROM accounts WHERE id = ?", account_id)
        return True

    def count_some(self) -> bool:
        """Count some data files of an account with unfinished quota counters; return False if there is none."""
        query = "SELECT account_id, counted_to FROM counters WHERE counted_to IS NOT NULL ORDER BY account_id LIMIT 1"
        row = self.row(query + self.free_held)
        if row is None:
            return False
        self.count_files_behind(*row)
        return True

    def _can_give_back(self) -> bool:
        """Return True if unused space can be returned to the disk; some engines do so themselves."""
        return False

    def _give_back_some(self) -> bool:
        """Return some unused space to the disk; return True if there may be more."""
        return False


class Transaction(AccountStatements, FileStatements, TidyingStatements, AccessStatements):
    """
    A transaction: all queries of the storage; names are data, never paths, and times are seconds since 1970.

    Not thread-safe; valid only within the `Storage.read` or `Storage.submit` call that provided it.
    """

    def look_ahead(self, hint: LookAhead) -> None:
        """Read what is going to be asked for, where that saves round trips; in a transaction that writes, lock it."""

    def chunks(self, blob: int) -> Iterator[bytes]:
        """Yield the blob's chunks in order, up to the first missing one."""
        for number in count():
            if (chunk := self.chunk(blob, number)) is None:
                return
            yield chunk
