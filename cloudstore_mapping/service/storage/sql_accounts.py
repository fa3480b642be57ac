"""Accounts in SQL: the statements of `AccountsTable`."""

# ruff: noqa: D102 - what the methods do is said in `tables`
from __future__ import annotations

import secrets
from functools import lru_cache
from typing import Any, Final

from cloudstore_mapping.service.storage.records import Account, ApiKey, Event, Limits, OwnerPassword, Session
from cloudstore_mapping.service.storage.statements import Statements
from cloudstore_mapping.service.storage.tables import AccountsTable

#: Random bytes of a folder: 32 hexadecimal digits.
FOLDER_BYTES: Final = 16

_ACCOUNT: Final = (
    "SELECT id, name, disabled, plan, folder, data_password, media_password, max_files, max_file_bytes,"
    " max_daily_accesses, min_interval, max_media_bytes, max_total_bytes FROM accounts"
)
_BY_ID: Final = f"{_ACCOUNT} WHERE id = ?"
_BY_KEY: Final = f"{_ACCOUNT} WHERE id = (SELECT account_id FROM api_keys WHERE hash = ?)"  # noqa: S608 - of constants


class SQLAccounts(Statements, AccountsTable):
    """
    Accounts, the keys that open them, and who is signed in.

    What only requests ask for is read as it stands. What those ask for who change an account is held.
    """

    def account(self, account_id: int) -> Account | None:
        return self._account(_BY_ID, account_id)

    def account_of_key(self, key_hash: bytes) -> Account | None:
        return self._account(_BY_KEY, key_hash)

    def account_named(self, name: str) -> Account | None:
        return self._account(f"{_ACCOUNT} WHERE name = ?{self.account_held}", name)

    def account_of_folder(self, folder: str) -> Account | None:
        return self._account(f"{_ACCOUNT} WHERE folder = ?", folder)

    def _account(self, query: str, parameter: int | bytes | str) -> Account | None:
        row = self.row(query, parameter)
        return None if row is None else _account(row)

    def accounts(self) -> list[Account]:
        return [_account(row) for row in self.rows(f"{_ACCOUNT} ORDER BY name")]

    def has_accounts(self) -> bool:
        return self.row("SELECT 1 FROM accounts LIMIT 1") is not None

    def add_account(self, name: str, now: float) -> Account:
        folder = secrets.token_hex(FOLDER_BYTES)
        row = self.row(
            "INSERT INTO accounts (name, created_at, folder) VALUES (?, ?, ?) RETURNING id", name, now, folder
        )
        return Account(row[0], name, disabled=False, folder=folder)

    def delete_account(self, account_id: int) -> None:
        self.do("DELETE FROM accounts WHERE id = ?", account_id)
        self.do("UPDATE blobs SET kept = FALSE, touched_at = 0 WHERE account_id = ?", account_id)

    def set_disabled(self, account_id: int, disabled: bool) -> None:
        self.do("UPDATE accounts SET disabled = ? WHERE id = ?", disabled, account_id)

    def set_limits(self, account_id: int, plan: str, limits: Limits) -> None:
        self.do(
            "UPDATE accounts SET plan = ?, max_files = ?, max_file_bytes = ?, max_daily_accesses = ?,"
            " min_interval = ?, max_media_bytes = ?, max_total_bytes = ? WHERE id = ?",
            plan,
            *limits,
            account_id,
        )

    def set_default_passwords(self, account_id: int, *, data: str | None, media: str | None) -> None:
        self.do("UPDATE accounts SET data_password = ?, media_password = ? WHERE id = ?", data, media, account_id)

    def next_request_at(self, account_id: int) -> float | None:
        query = "SELECT next_request_at FROM accounts WHERE id = ?"
        row = self.row(query + self.account_held, account_id)
        return None if row is None else row[0]

    def set_next_request_at(self, account_id: int, at: float) -> None:
        self.do("UPDATE accounts SET next_request_at = ? WHERE id = ?", at, account_id)

    def add_key(self, account_id: int, key_hash: bytes, hint: str, now: float) -> None:
        self.do(
            "INSERT INTO api_keys (hash, account_id, created_at, hint) VALUES (?, ?, ?, ?)",
            key_hash,
            account_id,
            now,
            hint,
        )

    def keys(self, account_id: int) -> list[ApiKey]:
        query = "SELECT hash, hint, created_at FROM api_keys WHERE account_id = ? ORDER BY created_at, hash"
        return [ApiKey._make(row) for row in self.rows(query, account_id)]

    def remove_key(self, account_id: int, key_hash: bytes) -> None:
        self.do("DELETE FROM api_keys WHERE account_id = ? AND hash = ?", account_id, key_hash)

    def owner_password(self, account_id: int) -> OwnerPassword:
        query = "SELECT owner_password, must_change_password FROM accounts WHERE id = ?"
        hash_, must_change = self.row(query + self.account_held, account_id) or (None, False)
        return OwnerPassword(hash_, bool(must_change))

    def set_owner_password(self, account_id: int, password: OwnerPassword) -> None:
        self.do("UPDATE accounts SET owner_password = ?, must_change_password = ? WHERE id = ?", *password, account_id)

    def add_session(self, token_hash: bytes, account_id: int, now: float) -> None:
        self.do(
            "INSERT INTO sessions (hash, account_id, created_at, used_at) VALUES (?, ?, ?, ?)",
            token_hash,
            account_id,
            now,
            now,
        )

    def session(self, token_hash: bytes) -> Session | None:
        row = self.row("SELECT account_id, created_at, used_at FROM sessions WHERE hash = ?", token_hash)
        return None if row is None else Session._make(row)

    def touch_session(self, token_hash: bytes, now: float) -> None:
        self.do("UPDATE sessions SET used_at = ? WHERE hash = ?", now, token_hash)

    def end_session(self, token_hash: bytes) -> None:
        self.do("DELETE FROM sessions WHERE hash = ?", token_hash)

    def end_sessions(self, account_id: int, but: bytes | None = None) -> None:
        self.do("DELETE FROM sessions WHERE account_id = ? AND hash <> ?", account_id, b"" if but is None else but)

    def forget_sessions(self, created_before: float, used_before: float) -> None:
        self.do("DELETE FROM sessions WHERE created_at < ? OR used_at < ?", created_before, used_before)

    def add_event(self, account_id: int, event: Event, keep: int) -> None:
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
        query = "SELECT at, action, subject, origin FROM events WHERE account_id = ? ORDER BY id DESC LIMIT ?"
        return [Event._make(row) for row in self.rows(query, account_id, limit)]


@lru_cache(maxsize=1024)
def _account(row: Any) -> Account:
    number, name, disabled, plan, folder, data_password, media_password, *limits = row
    return Account(number, name, bool(disabled), plan, Limits(*limits), folder, data_password, media_password)
