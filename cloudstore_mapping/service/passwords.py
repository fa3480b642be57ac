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


#: The vendor's browser client sends this text for a password that it doesn't have.
UNDEFINED: Final = "undefined"


@dataclass(frozen=True)
class Question:
    """Whether a password for `file` fits one of the hashes beside it; a request may give more than one password."""

    file: Hashable
    attempts: tuple[tuple[str, tuple[str, ...]], ...] = field(repr=False)


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

    def require(self, file: Hashable, *given: tuple[str | None, Iterable[str | None]]) -> None:
        """
        Let a request pass if no hash is set, or if a password is known to fit one of the hashes given beside it.

        Raises `LockedError` where the password is missing, and `UnprovenError` where `prove` has to find out.
        """
        locks = [(password, tuple(hash_ for hash_ in hashes if hash_ is not None)) for password, hashes in given]
        if not any(hashes for _, hashes in locks):
            return
        attempts: dict[str, tuple[str, ...]] = {}
        for password, hashes in locks:
            if password and password != UNDEFINED:
                self.check_length(password)
                if hashes:
                    attempts[password] = tuple(dict.fromkeys((*attempts.get(password, ()), *hashes)))
        if not attempts:
            raise LockedError("The file has a password; give it with the request.")
        marks = [self._mark(hash_, password) for password, hashes in attempts.items() for hash_ in hashes]
        with self._lock:
            known = any(mark in self._right for mark in marks)
        if not known:
            raise UnprovenError(Question(file, tuple(attempts.items())))

    def prove(self, question: Question, address: str) -> Future[None]:
        """
        Find out whether a password fits, and remember it if so; those who ask the same meanwhile get the same future.

        The future, or the call itself, raises `LockedError` if none does, `TooOftenError` where too many for this
        file came from this address, and `UnavailableError` where too many wait already. Each wrong password counts.
        """
        subject = (question.file, network_of(address))
        with self._lock:
            proof = self._proofs.get((question, address))
            if proof is not None and not proof.done():  # an interrupt may have left one that is
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
        tries = [begun]
        for number, (password, hashes) in enumerate(question.attempts):
            if number:
                tries.append(self._tries.begin(subject))
            for hash_ in hashes:
                if self._hasher.fits(hash_, password):
                    with self._lock:
                        self._right[self._mark(hash_, password)] = None
                    # A wrong password beside a right one told nothing: the right one opens the file anyway.
                    for each in tries:
                        self._tries.take_back(subject, each)
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
