"""How passwords are hashed: argon2id, behind the two calls that the service needs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cloudstore_mapping.errors import UnsupportedError

if TYPE_CHECKING:
    from argon2 import PasswordHasher


class Hasher(Protocol):
    """Hashes passwords, so slowly that guessing them from their hashes is in vain."""

    def hash(self, password: str) -> str:
        """Return a hash of the password, another one at each call."""
        ...

    def fits(self, stored: str, password: str) -> bool:
        """Whether `stored` is a hash of the password."""
        ...


class Argon2Hasher:
    """Hashes with argon2id, which takes about 20 ms and 19 MiB; `UnsupportedError` where it isn't installed."""

    def hash(self, password: str) -> str:
        """Return a hash of the password, another one at each call."""
        return _hasher().hash(password)

    def fits(self, stored: str, password: str) -> bool:
        """Whether `stored` is a hash of the password."""
        hasher = _hasher()
        from argon2.exceptions import VerifyMismatchError

        try:
            return hasher.verify(stored, password)
        except VerifyMismatchError:
            return False


def _hasher() -> PasswordHasher:
    try:
        from argon2 import PasswordHasher  # of an extra, and needed only where a file has a password
    except ImportError as error:
        raise UnsupportedError(
            "File passwords need the extra 'server': pip install 'cloudstore-mapping[server]'."
        ) from error
    # The first choice of OWASP's password storage cheat sheet: 19 MiB, two passes, one lane.
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
