"""Operations on data files: load, save, merge, delete, list and stat, with password, version and quota checks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from msgspec import UNSET, Raw

from cloudstore_mapping.errors import (
    BadNameError,
    ChangedError,
    CloudStoreError,
    DailyLimitError,
    NoFileError,
    TooBigError,
    shorten,
)
from cloudstore_mapping.merge import merge
from cloudstore_mapping.service.accounts import Caller
from cloudstore_mapping.service.listings import AllNames, PageOfNames, PageOfValues
from cloudstore_mapping.service.quotas import AccessCounter, Clock, check_bytes, check_file_quota
from cloudstore_mapping.service.security import PasswordVerifier, Unproven
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.records import LARGE, File, FileInfo
from cloudstore_mapping.service.storage.sql import Transaction
from cloudstore_mapping.wire import Operation, Reply, Request, decode_value, encode_value, success

#: Maximum total bytes of a stored value and the value to merge into it, for a merge inside a transaction: 3 ms of work.
MAX_INLINE_MERGE: Final = 64 * 2**10

#: Operations able to create a file.
_SAVES: Final = frozenset({Operation.SAVE, Operation.MERGE})

_EMPTY: Final = encode_value("")
_SAVED: Final = encode_value("Entry saved")


def check_name(name: str, max_bytes: int, max_stored: int) -> None:
    """
    Raise `BadNameError` for a name with NUL, an empty or too long name; names are data, never paths.

    `max_bytes` is the setting, unless the storage takes fewer: `max_stored`.
    """
    if not name:
        raise BadNameError("The file's name is empty; give at least one character.", key=name)
    if "\0" in name:
        raise BadNameError("A file's name can't contain the character NUL; leave it out.", key=name)
    if len(name) > max_bytes or (not name.isascii() and len(name.encode()) > max_bytes):
        limit = "the most that PostgreSQL takes" if max_bytes == max_stored else "the service's max_name_bytes"
        sentence = f"A file's name can't be longer than {max_bytes:,} bytes ({limit}); shorten it."
        raise BadNameError(sentence, key=name)


class Operations:
    """
    Executes the operations on data files, with their checks in order: name, password, version, quota, value, storage.

    A failed check raises an error from `errors` before any write. For a password still to be hashed, the result is
    `Unproven`.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        passwords: PasswordVerifier,
        usage: AccessCounter,
        max_stored_name: int,
    ) -> None:
        self._settings = settings
        self._max_stored_name = max_stored_name
        self._clock = clock
        self._passwords = passwords
        self._usage = usage
        self._rules: dict[Operation, Callable[[Transaction, Caller, Request], Reply | Unproven]] = {
            Operation.SAVE: self._save,
            Operation.MERGE: self._merge,
            Operation.DELETE: self._delete,
            Operation.LOAD: self._load,
            Operation.STAT: self._stat,
            Operation.LIST: self._list,
        }

    def answer(self, transaction: Transaction, caller: Caller, request: Request) -> Reply | Unproven:
        """Execute a request of this caller, and return its reply."""
        operation = request.operation
        if operation is not Operation.LIST:
            self.check_name(request)
        return self._rules[operation](transaction, caller, request)

    def must_compute(self, transaction: Transaction, caller: Caller, request: Request) -> bool | Unproven:
        """
        Return True for a merge too large to compute inside a transaction: over `MAX_INLINE_MERGE` bytes.

        Return False if the merge will be refused anyway, or is already computed for the file's current version.
        """
        name = request.name
        if request.operation is not Operation.MERGE:
            return False
        try:
            self.check_name(request)
            file = self._stat_for_merge(transaction, caller, name)
            caller.ahead[name] = file
            if file is None or _size(file) + len(_value(request)) <= MAX_INLINE_MERGE:
                return False
            if caller.merged is not None and caller.merged.request is request and caller.merged.version == file.version:
                return False
            if (unproven := self._check_edit(caller, request, file)) is not None:
                return unproven
            self._check_quota(transaction, caller, request, file)
        except CloudStoreError:  # `answer` raises it again, and stores it under the request's id
            return False
        return True

    def stored_size(self, transaction: Transaction, caller: Caller, name: str) -> int:
        """Return the size of a file of the account in bytes, 0 for an absent file."""
        file = caller.ahead[name] = self._stat_for_merge(transaction, caller, name)
        return 0 if file is None else _size(file)

    def _stat_for_merge(self, transaction: Transaction, caller: Caller, name: str) -> File | FileInfo | None:
        """Return a small file with its value, a large file's `FileInfo`, or None for an absent file."""
        if name in caller.ahead:
            return caller.ahead[name]
        found = transaction.get(caller.account.id, name, MAX_INLINE_MERGE)
        return transaction.stat(caller.account.id, name) if found is LARGE else found

    def check_replay(self, transaction: Transaction, caller: Caller, request: Request) -> Unproven | None:
        """Check the password for an already done write again; raises the password errors of `answer`."""
        info = caller.stat(transaction, request.name)
        return self._require(caller, request, None if info is None else info.edit_password)

    def check_name(self, request: Request) -> None:
        """
        Raise `BadNameError` for an invalid file name.

        Only saves and merges check the length. Longer names may exist, from an embedded store or an earlier setting,
        and existing files can always be loaded and deleted.
        """
        saves = request.operation in _SAVES
        check_name(request.name, self._settings.max_name_bytes if saves else sys.maxsize, self._max_stored_name)

    def _no_file(self, name: str) -> NoFileError:
        check_name(name, self._settings.max_name_bytes, self._max_stored_name)
        return NoFileError(f"There is no file {shorten(name)}.", key=name)

    def _load(self, transaction: Transaction, caller: Caller, request: Request) -> Reply | Unproven:
        if request.if_not_version is not UNSET:
            info = caller.stat(transaction, request.name)  # don't read the value of an unchanged file
            if info is not None and info.version == request.if_not_version:
                if (unproven := self._check_view(caller, request, info)) is not None:
                    return unproven
                self._access(transaction, caller, request.name)
                return Reply(unchanged=True, version=info.version)
        file = caller.get(transaction, request.name)
        if file is None:
            raise self._no_file(request.name)
        if (unproven := self._check_view(caller, request, file)) is not None:
            return unproven
        self._access(transaction, caller, request.name)
        value = Raw(file.value)
        return Reply(message=_EMPTY if request.brief is True else value, data=value, version=file.version)

    def _stat(self, transaction: Transaction, caller: Caller, request: Request) -> Reply:
        info = caller.stat(transaction, request.name)
        if info is None:
            raise self._no_file(request.name)
        return success(
            "",
            encode_value(
                {
                    "size": info.size,
                    "version": info.version,
                    "created": info.created_at,
                    "updated": info.updated_at,
                    "passwords": {
                        "edit": (info.edit_password or caller.account.data_password) is not None,
                        "view": info.view_password is not None,
                    },
                }
            ),
        )

    def listing(self, request: Request) -> AllNames | PageOfNames | PageOfValues:
        """Return the listing for a request, to be run step by step."""
        if request.values is True:
            return PageOfValues(request, self._settings.max_batch_reply_bytes, self._may_use)
        if request.after is UNSET and request.limit is UNSET:
            return AllNames(request)
        return PageOfNames(request)

    def _list(self, transaction: Transaction, caller: Caller, request: Request) -> Reply:
        listing = self.listing(request)
        while not listing.step(transaction, caller):
            pass
        return listing.reply()

    def _may_use(self, transaction: Transaction, caller: Caller, name: str) -> bool:
        try:
            self._admit(transaction, caller, name)
        except DailyLimitError:
            return False
        return True

    def _save(self, transaction: Transaction, caller: Caller, request: Request) -> Reply | Unproven:
        info = caller.stat(transaction, request.name)
        if (unproven := self._check_edit(caller, request, info)) is not None:
            return unproven
        self._check_quota(transaction, caller, request, info)
        return self._put(transaction, caller, request.name, _value(request))

    def _merge(self, transaction: Transaction, caller: Caller, request: Request) -> Reply | Unproven:
        merged = caller.merged
        if merged is not None and merged.request is request:
            info = caller.stat(transaction, request.name)
            if info is not None and info.version == merged.version:
                if (unproven := self._check_edit(caller, request, info)) is not None:
                    return unproven
                self._check_quota(transaction, caller, request, info)
                if merged.error is not None:
                    raise merged.error
                return self._put(transaction, caller, request.name, merged.value)
        file = caller.get(transaction, request.name)
        if (unproven := self._check_edit(caller, request, file)) is not None:
            return unproven
        self._check_quota(transaction, caller, request, file)
        value = _value(request)
        if file is not None:
            value = bytes(encode_value(merge(decode_value(file.value), decode_value(value))))
        return self._put(transaction, caller, request.name, value)

    def _delete(self, transaction: Transaction, caller: Caller, request: Request) -> Reply | Unproven:
        account = caller.account
        info = caller.stat(transaction, request.name)
        if info is None:
            raise self._no_file(request.name)
        if (unproven := self._check_edit(caller, request, info)) is not None:
            return unproven
        transaction.delete(account.id, request.name)
        if account.limits.max_daily_accesses is None:  # else deleting and recreating a file would reset its quota
            transaction.forget_accesses(account.id, "data", request.name)
        return success("Entry deleted")

    def _check_view(self, caller: Caller, request: Request, file: File | FileInfo) -> Unproven | None:
        if file.view_password is None:
            return None
        return self._require(caller, request, file.edit_password, file.view_password)

    def _check_edit(self, caller: Caller, request: Request, file: File | FileInfo | None) -> Unproven | None:
        unproven = self._require(caller, request, None if file is None else file.edit_password)
        if unproven is not None:
            return unproven
        version = None if file is None else file.version
        if request.if_version is not UNSET and request.if_version != version:
            raise ChangedError(
                "Somebody else changed the file meanwhile; load it, and do it again on what is there.",
                version=version,
                key=request.name,
            )
        return None

    def _require(self, caller: Caller, request: Request, edit: str | None, *others: str | None) -> Unproven | None:
        if caller.is_owner:
            return None
        account = caller.account
        own = edit or account.data_password
        if own is None and others.count(None) == len(others):
            return None
        # Throttle guesses at the account's default password over all its files; else each file would allow more.
        subject = (account.id,) if edit is None and account.data_password is not None else (account.id, request.name)
        default = account.data_password if edit is None else None
        given = None if request.data_password is UNSET else request.data_password
        return self._passwords.require(subject, caller.address, (request.password, (own, *others)), (given, (default,)))

    def _check_quota(
        self, transaction: Transaction, caller: Caller, request: Request, file: File | FileInfo | None
    ) -> None:
        self._admit(transaction, caller, request.name)
        if file is None:
            check_file_quota(transaction, caller.account, request.name)

    def _admit(self, transaction: Transaction, caller: Caller, name: str) -> None:
        if caller.is_limited:
            self._usage.admit(transaction, caller.account, "data", name, caller.used.count(name))

    def _access(self, transaction: Transaction, caller: Caller, name: str) -> None:
        self._admit(transaction, caller, name)
        self._use(caller, name)

    def _use(self, caller: Caller, name: str) -> None:
        if not caller.is_owner:
            caller.used.append(name)

    def _put(self, transaction: Transaction, caller: Caller, name: str, value: bytes) -> Reply:
        account = caller.account
        limit, whose = account.limits.max_file_bytes, "the account's file-bytes"
        if limit is None or limit > self._settings.max_value_bytes:
            limit, whose = self._settings.max_value_bytes, "the service's max_value_bytes"
        if len(value) > limit:
            raise TooBigError(
                f"The value takes {len(value):,} bytes and a file at most {limit:,} ({whose}); split it.", key=name
            )
        if account.limits.max_total_bytes is not None:
            before = transaction.stat(account.id, name)
            taken = 0 if before is None else before.size + len(name.encode())
            check_bytes(transaction, account, name, len(value) + len(name.encode()) - taken)
        reply = success(_SAVED, version=transaction.put(account.id, name, value, self._clock.wall()))
        self._use(caller, name)
        return reply


def _size(file: File | FileInfo) -> int:
    return file.size if isinstance(file, FileInfo) else len(file.value)


def _value(request: Request) -> bytes:
    assert request.value is not UNSET  # noqa: S101 - `wire.decode_request` refuses a save or merge without a value
    return bytes(request.value)
