"""Security: hash and verify passwords (Argon2), throttle wrong passwords and API key guesses."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from cachetools import LRUCache, TTLCache

from cloudstore_mapping.errors import BadKeyError, LockedError, ProtocolError, UnavailableError, UnsupportedError
from cloudstore_mapping.service.common_passwords import check_uncommon
from cloudstore_mapping.service.quotas import MAX_WATCHED, AttemptLimiter
from cloudstore_mapping.service.storage.base import RolledBack
from cloudstore_mapping.service.threads import BoundedThreadPool, PlainFuture

if TYPE_CHECKING:
    from argon2 import PasswordHasher

    from cloudstore_mapping.service.quotas import Clock
    from cloudstore_mapping.service.settings import Settings


class Hasher(Protocol):
    """Password hash function, slow to compute: guessing a password from a stolen hash takes too long."""

    def hash(self, password: str) -> str:
        """Return a salted hash of the password."""
        ...

    def fits(self, stored: str, password: str) -> bool:
        """Return True if `stored` is a hash of the password."""
        ...


class Argon2Hasher:
    """Argon2id, about 20 ms and 19 MiB per hash; raise `UnsupportedError` if argon2-cffi isn't installed."""

    def hash(self, password: str) -> str:
        """Return a salted hash of the password."""
        return _hasher().hash(password)

    def fits(self, stored: str, password: str) -> bool:
        """Return True if `stored` is a hash of the password."""
        hasher = _hasher()
        from argon2.exceptions import VerifyMismatchError

        try:
            return hasher.verify(stored, password)
        except VerifyMismatchError:
            return False


def _hasher() -> PasswordHasher:
    try:
        from argon2 import PasswordHasher  # optional: of the extra `server`, needed for passwords only
    except ImportError as error:
        raise UnsupportedError(
            "File passwords need the extra 'server': pip install 'cloudstore-mapping[server]'."
        ) from error
    # OWASP's recommended minimum for argon2id: 19 MiB, two passes, one lane.
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


#: Cache of verified passwords: maximum number of entries, and seconds until an entry expires.
MAX_REMEMBERED: Final = 10_000
REMEMBERED_FOR: Final = 3600.0
#: Passwords queued, and for each thread those of one account from one network; more are refused.
WAITING: Final = 1000
QUEUE_PER_THREAD: Final = 8


#: The vendor's browser client sends this text instead of a missing password.
UNDEFINED: Final = "undefined"


@dataclass(frozen=True)
class PasswordCheck:
    """Passwords of a request to verify for `file`, each with its accepted hashes; a single match is enough."""

    file: tuple[Hashable, ...]
    attempts: tuple[tuple[str, tuple[str, ...]], ...] = field(repr=False)


def _queue_of(question: PasswordCheck, address: str) -> tuple[Hashable, str]:
    """Return whose turn it is: an account's, or that of all sign-ins, from one network."""
    return question.file[0], network_of(address)


@dataclass(frozen=True)
class Unproven(RolledBack):
    """Result of work that stopped at passwords not verified yet: verify these, then do the work again."""

    checks: tuple[PasswordCheck, ...]


class PasswordVerifier:
    """
    Verifies passwords against stored hashes on its own threads, so that hashing never delays other requests.

    Verified passwords are cached under a keyed hash of the password and the stored hash. A changed password has a new
    stored hash, so it takes effect at once. A cached password is not hashed again; only for the addresses that gave it,
    it is exempt from the limit of wrong passwords. Thread-safe.
    """

    def __init__(self, settings: Settings, clock: Clock, hasher: Hasher) -> None:
        self._max_bytes = settings.max_password_bytes
        self._hasher = hasher
        self._tries = AttemptLimiter(
            settings.password_tries,
            settings.password_window,
            clock.monotonic,
            "passwords (the service's password_tries)",
        )
        self._key = secrets.token_bytes(32)
        self._right: TTLCache[bytes, None] = TTLCache(MAX_REMEMBERED, REMEMBERED_FOR, timer=clock.monotonic)
        self._right_from: TTLCache[tuple[bytes, str], None] = TTLCache(
            MAX_REMEMBERED, REMEMBERED_FOR, timer=clock.monotonic
        )
        self._proofs: dict[tuple[PasswordCheck, str], Future[None]] = {}
        self._lock = threading.Lock()
        threads = os.cpu_count() or 1
        self._pool = BoundedThreadPool(threads, WAITING, "cloudstore-hashing", steps_back=True)
        self._most_of_one = threads * (1 + QUEUE_PER_THREAD)

    def hash(self, password: str | None) -> str | None:
        """
        Return the hash to store, computed on the caller's thread; None for no password or an empty one.

        Raises `BadValueError` for a common password, and `ProtocolError` for one of too many bytes.
        """
        if not password:
            return None
        self.check_length(password)
        check_uncommon(password)
        return self._hasher.hash(password)

    def require(
        self, file: tuple[Hashable, ...], address: str, *given: tuple[str | None, Iterable[str | None]]
    ) -> Unproven | None:
        """
        Require a verified password; `given` holds pairs of a password and the hashes accepted for it.

        Returns None if no hash is set or the cache holds a match of this address, and `Unproven` if `prove` must verify
        it first. Raises `LockedError` if the password is missing, and `ProtocolError` if it has too many bytes.
        """
        locks = [(password, tuple(hash_ for hash_ in hashes if hash_ is not None)) for password, hashes in given]
        if not any(hashes for _, hashes in locks):
            return None
        attempts: dict[str, tuple[str, ...]] = {}
        for password, hashes in locks:
            if password and password != UNDEFINED:
                self.check_length(password)
                if hashes:
                    attempts[password] = tuple(dict.fromkeys((*attempts.get(password, ()), *hashes)))
        if not attempts:
            raise LockedError("The file has a password; give it with the request.")
        marks = [self._mark(hash_, password) for password, hashes in attempts.items() for hash_ in hashes]
        network = network_of(address)
        with self._lock:
            known = any((mark, network) in self._right_from for mark in marks)
        return None if known else Unproven((PasswordCheck(file, tuple(attempts.items())),))

    def prove(self, question: PasswordCheck, address: str) -> Future[None]:
        """
        Verify passwords on a hashing thread, and cache a match; concurrent calls for the same share a future.

        The future, or the call itself, raises `LockedError` if no password matches, `TooOftenError` after too many
        wrong passwords for this file from this address, and `UnavailableError` if the queue is full. Each wrong
        password counts.
        """
        subject = (question.file, network_of(address))
        with self._lock:
            proof = self._proofs.get((question, address))
            if proof is not None and not proof.done():  # an interrupt may have left a finished future
                return proof
            begun = self._tries.begin(subject)
            if (mark := self._remembered(question)) is not None:
                self._accept(mark, subject, [begun])
                accepted: Future[None] = PlainFuture()
                accepted.set_result(None)
                return accepted
            queue = _queue_of(question, address)
            try:
                self._check_room(queue)
                proof = self._pool.submit_for(queue, self._prove, question, subject, begun)
            except BaseException:
                self._tries.take_back(subject, begun)
                raise
            self._proofs[question, address] = proof
        proof.add_done_callback(lambda _: self._answered(question, address))
        return proof

    def _check_room(self, queue: tuple[Hashable, str]) -> None:
        waiting = [key for key, proof in self._proofs.items() if _queue_of(*key) == queue and not proof.done()]
        if len(waiting) >= self._most_of_one:
            raise UnavailableError("Too many passwords wait to be verified; try again.", retry_after=1.0)

    def _prove(self, question: PasswordCheck, subject: tuple[Hashable, str], begun: float) -> None:
        tries = [begun]
        for number, (password, hashes) in enumerate(question.attempts):
            if number:
                tries.append(self._tries.begin(subject))
            for hash_ in hashes:
                if self._hasher.fits(hash_, password):
                    with self._lock:
                        self._accept(self._mark(hash_, password), subject, tries)
                    return
        raise LockedError("The password is wrong.")

    def _remembered(self, question: PasswordCheck) -> bytes | None:
        marks = (self._mark(hash_, password) for password, hashes in question.attempts for hash_ in hashes)
        return next((mark for mark in marks if mark in self._right), None)

    def _accept(self, mark: bytes, subject: tuple[Hashable, str], tries: Sequence[float]) -> None:
        """Cache a match for its address, and count none of its tries; called under the lock."""
        self._right[mark] = self._right_from[mark, subject[1]] = None
        # A wrong password beside a right one doesn't count: the caller learns nothing by it.
        for each in tries:
            self._tries.take_back(subject, each)

    def _answered(self, question: PasswordCheck, address: str) -> None:
        with self._lock:
            self._proofs.pop((question, address), None)

    def _mark(self, stored: str, password: str) -> bytes:
        return hmac.digest(self._key, stored.encode() + b"\0" + password.encode(), "sha256")

    def check_length(self, password: str) -> None:
        """Raise `ProtocolError` for a password over `Settings.max_password_bytes`, to save hashing it."""
        if len(password.encode()) > self._max_bytes:
            raise ProtocolError(
                f"The password is longer than {self._max_bytes:,} bytes (the service's max_password_bytes); give a"
                " shorter one.",
                error="BadRequest",
            )

    def close(self) -> None:
        """Finish queued hashing, then end the threads."""
        self._pool.close()


#: Maximum number of remembered right short keys, each with its client address.
MAX_KNOWN: Final = 65_536
# Prefix length of the IPv6 network of a single client: it can use every address of the network.
_IPV6_PREFIX: Final = 64


class ApiKeyThrottle:
    """
    Throttles API key guessing: counts the different wrong keys of each client address. Thread-safe.

    A wrong key counts once, however often it is sent. After too many wrong keys, an address gets `TooOftenError` for
    further wrong ones. A right random key is always accepted, even if others guess at the same address (behind the same
    proxy): random keys can't be guessed. A short key, chosen by an owner, can be; after too many wrong short keys it is
    throttled too, unless it was accepted from this address before.
    """

    def __init__(self, tries: int, window: float, monotonic: Callable[[], float]) -> None:
        what = "API keys (the service's key_tries)"
        self._tries = {short: AttemptLimiter(tries, window, monotonic, what) for short in (True, False)}
        self._counted: LRUCache[tuple[str, bytes], float] = LRUCache(MAX_WATCHED)
        self._known: set[tuple[str, bytes]] = set()
        self._window = window
        self._now = monotonic
        self._lock = threading.Lock()

    def right(self, key_hash: bytes, address: str, *, is_short: bool) -> None:
        """Accept a right key; raise `TooOftenError` for a short key from an address with too many wrong short keys."""
        if not is_short or not address:
            return
        network = network_of(address)
        if (network, key_hash) in self._known:
            return
        self._tries[True].check(network)
        with self._lock:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known.add((network, key_hash))

    def wrong(self, key_hash: bytes, address: str, *, is_short: bool) -> NoReturn:
        """Count a wrong key and raise `BadKeyError`; after too many of them, raise `TooOftenError`."""
        if address:
            guess = network_of(address), key_hash
            with self._lock:
                self._known.discard(guess)
                now = self._now()
                if self._counted.get(guess, now - self._window) <= now - self._window:
                    self._tries[is_short].begin(guess[0])
                    self._counted[guess] = now
        raise BadKeyError("The service doesn't know this API key; check it, or make a new one in the dashboard.")


def network_of(address: str) -> str:
    """Return the subject throttled for a client address: the address itself, for IPv6 its network (/64)."""
    if ":" not in address:
        return address
    try:
        number = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address  # a trusted proxy sent it, and need not send an IP address
    if number.ipv4_mapped is not None:
        return str(number.ipv4_mapped)
    return str(ipaddress.IPv6Network((number, _IPV6_PREFIX), strict=False))
