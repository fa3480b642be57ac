"""File passwords: hashed, remembered once they were right, and slowed down while they are wrong."""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cachetools import TTLCache

from cloudstore_mapping.errors import LockedError, ProtocolError
from cloudstore_mapping.service.guesses import network_of
from cloudstore_mapping.service.limits import Tries
from cloudstore_mapping.service.pool import Pool

if TYPE_CHECKING:
    from cloudstore_mapping.service.hashing import Hasher
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.settings import Settings

#: Right passwords that are remembered, and for how many seconds.
MAX_REMEMBERED: Final = 10_000
REMEMBERED_FOR: Final = 3600.0
#: Passwords that wait to be hashed, for each thread that hashes; past it the service is busy.
QUEUE_PER_THREAD: Final = 8


@dataclass(frozen=True)
class Question:
    """Whether a password for `file` fits one of `hashes`."""

    file: Hashable
    password: str = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)


class UnprovenError(Exception):
    """Passwords must be hashed to know whether they are right; never leaves the service."""

    def __init__(self, *questions: Question) -> None:
        super().__init__("A password is not yet known to be right.")
        self.questions = questions


class Passwords:
    """
    Tells whether a password fits a stored hash, without ever making other requests wait for the hashing.

    A password that was right is remembered under a keyed hash of it and of the stored hash: a changed password is
    another stored hash, so it is in force at once. Threads may share it.
    """

    def __init__(self, settings: Settings, clock: Clock, hasher: Hasher) -> None:
        self._max_bytes = settings.max_password_bytes
        self._hasher = hasher
        self._tries = Tries(settings.password_tries, settings.password_window, clock.monotonic)
        self._key = secrets.token_bytes(32)
        self._right: TTLCache[bytes, None] = TTLCache(MAX_REMEMBERED, REMEMBERED_FOR, timer=clock.monotonic)
        self._proofs: dict[Hashable, Future[None]] = {}
        self._lock = threading.Lock()
        threads = os.cpu_count() or 1
        self._pool = Pool(threads, threads * QUEUE_PER_THREAD, "cloudstore-hashing", steps_back=True)

    def hash(self, password: str | None) -> str | None:
        """Return the hash to store, on the caller's thread; None for no password, which an empty one is as well."""
        if not password:
            return None
        self.check_length(password)
        return self._hasher.hash(password)

    def require(self, password: str | None, hashes: Iterable[str | None], file: Hashable) -> None:
        """
        Let a request pass if no hash is set, or if its password is known to fit one of those that are.

        Raises `LockedError` where the password is missing, and `UnprovenError` where `prove` has to find out.
        """
        stored = tuple(hash_ for hash_ in hashes if hash_ is not None)
        if not stored:
            return
        if not password:
            raise LockedError("The file has a password; give it with the request.")
        self.check_length(password)
        marks = [self._mark(hash_, password) for hash_ in stored]
        with self._lock:
            known = any(mark in self._right for mark in marks)
        if not known:
            raise UnprovenError(Question(file, password, stored))

    def prove(self, question: Question, address: str) -> Future[None]:
        """
        Find out whether the password fits, and remember it if so; those who ask the same meanwhile get the same future.

        The future, or the call itself, raises `LockedError` for a wrong one, `TooOftenError` where too many for this
        file came from this address, and `UnavailableError` where too many wait already.
        """
        subject = (question.file, network_of(address))
        with self._lock:
            if (proof := self._proofs.get((question, address))) is not None:
                return proof
            begun = self._tries.begin(subject)
            try:
                proof = self._pool.submit(self._prove, question, subject, begun)
            except BaseException:
                self._tries.take_back(subject, begun)
                raise
            self._proofs[question, address] = proof
        proof.add_done_callback(lambda _: self._answered(question, address))
        return proof

    def _prove(self, question: Question, subject: Hashable, begun: float) -> None:
        for hash_ in question.hashes:
            if self._hasher.fits(hash_, question.password):
                with self._lock:
                    self._right[self._mark(hash_, question.password)] = None
                self._tries.take_back(subject, begun)
                return
        raise LockedError("The password is wrong.")

    def _answered(self, question: Question, address: str) -> None:
        with self._lock:
            self._proofs.pop((question, address), None)

    def _mark(self, stored: str, password: str) -> bytes:
        return hmac.digest(self._key, stored.encode() + b"\0" + password.encode(), "sha256")

    def check_length(self, password: str) -> None:
        """Refuse a password that is too long to be one, before it is hashed."""
        if len(password.encode()) > self._max_bytes:
            raise ProtocolError(
                f"The password is longer than {self._max_bytes:,} bytes; give the file's own.", error="BadRequest"
            )

    def close(self) -> None:
        """Finish the hashing that was begun, and end its threads."""
        self._pool.close()
