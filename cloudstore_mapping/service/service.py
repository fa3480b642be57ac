"""The rules of the service, in their order: account, name, password, value, storage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Self

from msgspec import UNSET, Raw

from cloudstore_mapping.errors import (
    BadNameError,
    CloudStoreError,
    NoFileError,
    ProtocolError,
    TooBigError,
    UnavailableError,
)
from cloudstore_mapping.merge import merge
from cloudstore_mapping.service.accounts import Accounts
from cloudstore_mapping.service.hashing import Argon2Hasher, Hasher
from cloudstore_mapping.service.limits import Clock
from cloudstore_mapping.service.passwords import Passwords, UnprovenError
from cloudstore_mapping.service.pool import Pool
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.base import Account, Storage, Transaction
from cloudstore_mapping.wire import Operation, Reply, Request, decode_value, encode_value, failure, success

_log: Final = logging.getLogger(__name__)

#: Listings that are read at once, and that wait; a scan may be long, so it never runs on the caller's thread.
SCAN_THREADS: Final = 4
SCANS_WAITING: Final = 1000


class Service:
    """
    Answers requests on the accounts and files of a storage, which it closes in the end.

    Threads may share it. A small read is answered on the caller's thread; a write is answered after its commit.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings | None = None,
        clock: Clock | None = None,
        hasher: Hasher | None = None,
    ) -> None:
        self.settings = Settings() if settings is None else settings
        self._clock = Clock() if clock is None else clock
        self._storage = storage
        self.accounts = Accounts(storage, self._clock)
        self._passwords = Passwords(self.settings, self._clock, Argon2Hasher() if hasher is None else hasher)
        self._scans = Pool(SCAN_THREADS, SCANS_WAITING, "cloudstore-scan")
        self._closed = False
        self._writes: dict[Operation, Callable[[Transaction, Account, Request], Reply]] = {
            Operation.SAVE: self._save,
            Operation.MERGE: self._merge,
            Operation.DELETE: self._delete,
        }

    def handle(self, request: Request, *, address: str = "") -> Reply:
        """Return the answer to a request, whatever it is; see `submit`."""
        return self.submit(request, address=address).result()

    def submit(self, request: Request, *, address: str = "") -> Future[Reply]:
        """
        Begin to answer a request; the future holds the reply, an error's too, and never an exception.

        `address` is who asks, for counting wrong passwords. What is begun can't be cancelled any more. Callbacks of
        the future run on threads that others wait for: they should be short.
        """
        answer: Future[Reply] = Future()
        answer.set_running_or_notify_cancel()
        if self._closed:
            answer.set_result(failure(UnavailableError("The service is closed; try again later.", retry_after=1.0)))
        else:
            self._advance(request, address, answer)
        return answer

    def _advance(self, request: Request, address: str, answer: Future[Reply]) -> None:
        try:
            begun = self._begin(request)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            self._settle(error, request, address, answer)
            return
        if isinstance(begun, Reply):
            answer.set_result(begun)
        else:
            begun.add_done_callback(lambda done: self._finish(done, request, address, answer))

    def _finish(self, done: Future[Reply], request: Request, address: str, answer: Future[Reply]) -> None:
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        else:
            self._settle(error, request, address, answer)

    def _settle(self, error: BaseException, request: Request, address: str, answer: Future[Reply]) -> None:
        if isinstance(error, UnprovenError):
            self._prove(error, request, address, answer)
        elif isinstance(error, CloudStoreError):
            answer.set_result(failure(error))
        else:
            _log.error("A request to %s failed.", request.operation.value, exc_info=error)
            answer.set_result(
                failure(
                    ProtocolError("The service failed; its owner finds the reason in its log.", error="ServerError")
                )
            )

    def _prove(self, unproven: UnprovenError, request: Request, address: str, answer: Future[Reply]) -> None:
        def proved(done: Future[None]) -> None:
            error = done.exception()
            if error is None:
                # All rules again from the first: what they looked at may have changed during the hashing.
                self._advance(request, address, answer)
            else:
                self._settle(error, request, address, answer)

        assert request.password is not None  # noqa: S101 - a missing one is `LockedError`
        try:
            proof = self._passwords.prove(request.password, unproven, address)
        except Exception as error:  # noqa: BLE001 - every failure becomes a reply
            self._settle(error, request, address, answer)
        else:
            proof.add_done_callback(proved)

    def _begin(self, request: Request) -> Reply | Future[Reply]:
        operation = request.operation
        with self._storage.read() as transaction:
            account = self._admit(transaction, request)  # who is refused never stands in a queue
            if operation is Operation.LOAD:
                return self._load(transaction, account, request)
        if operation is Operation.LIST:
            return self._scans.submit(self._list, account, request)
        rule = self._writes[operation]

        def work(transaction: Transaction) -> Reply:
            return rule(transaction, self._admit(transaction, request), request)

        return self._storage.submit(work)

    def _admit(self, transaction: Transaction, request: Request) -> Account:
        account = self.accounts.find(transaction, request.api_key)
        if request.operation is not Operation.LIST:
            self._check_name(request.name)
        return account

    def _check_name(self, name: str) -> None:
        if not name:
            raise BadNameError("A file needs a name of at least one character.", key=name)
        if "\0" in name:
            raise BadNameError("A file's name can't hold the character NUL; leave it out.", key=name)
        if len(name.encode()) > self.settings.max_name_bytes:
            raise BadNameError(
                f"A file's name can't be longer than {self.settings.max_name_bytes} bytes; shorten it.", key=name
            )

    def _load(self, transaction: Transaction, account: Account, request: Request) -> Reply:
        file = transaction.get(account.id, request.name)
        if file is None:
            raise _no_file(request.name)
        if file.view_password is not None:
            self._require(request, account, file.view_password, file.edit_password)
        value = Raw(file.value)
        return success(value, value)

    def _list(self, account: Account, request: Request) -> Reply:
        with self._storage.read() as transaction:
            names = transaction.names(account.id, request.name)
        return success(",".join(names), encode_value(names))

    def _save(self, transaction: Transaction, account: Account, request: Request) -> Reply:
        file = transaction.get(account.id, request.name)
        if file is not None:
            self._require(request, account, file.edit_password)
        self._put(transaction, account, request.name, _value(request))
        return success("Entry saved")

    def _merge(self, transaction: Transaction, account: Account, request: Request) -> Reply:
        file = transaction.get(account.id, request.name)
        value = _value(request)
        if file is not None:
            self._require(request, account, file.edit_password)
            value = bytes(encode_value(merge(decode_value(file.value), decode_value(value))))
        self._put(transaction, account, request.name, value)
        return success("Entry saved")

    def _delete(self, transaction: Transaction, account: Account, request: Request) -> Reply:
        file = transaction.get(account.id, request.name)
        if file is None:
            raise _no_file(request.name)
        self._require(request, account, file.edit_password)
        transaction.delete(account.id, request.name)
        return success("Entry deleted")

    def _require(self, request: Request, account: Account, *hashes: str | None) -> None:
        self._passwords.require(request.password, hashes, (account.id, request.name))

    def _put(self, transaction: Transaction, account: Account, name: str, value: bytes) -> None:
        if len(value) > self.settings.max_value_bytes:
            raise TooBigError(
                f"The value takes {len(value):,} bytes and a file at most {self.settings.max_value_bytes:,}; split it.",
                key=name,
            )
        transaction.put(account.id, name, value, self._clock.wall())

    def set_passwords(self, account: str, name: str, *, edit: str | None = None, view: str | None = None) -> None:
        """
        Make these the passwords of an account's file, None or empty meaning none; in force when this returns.

        Raises `NoFileError` where there is no such account or file.
        """
        edit_hash = self._passwords.hash(edit)
        view_hash = self._passwords.hash(view)

        def work(transaction: Transaction) -> None:
            owner = transaction.account_named(account)
            if owner is None or not transaction.set_passwords(owner.id, name, edit=edit_hash, view=view_hash):
                raise _no_file(name)

        self._storage.submit(work).result()

    def healthy(self) -> bool:
        """Whether its storage can be read, and has not given up writing; quick, on any thread."""
        return self._storage.healthy()

    def close(self) -> None:
        """
        Answer what was submitted, then close the storage; later requests are answered `Unavailable`.

        So is a write whose password would have to be hashed only now. Not from a callback of `submit`'s future.
        """
        self._closed = True
        self._passwords.close()
        self._scans.close()
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _value(request: Request) -> bytes:
    assert request.value is not UNSET  # noqa: S101 - `wire.decode_request` lets no save or merge pass without one
    return bytes(request.value)


def _no_file(name: str) -> NoFileError:
    return NoFileError(f"There is no file {name!r}.", key=name)
