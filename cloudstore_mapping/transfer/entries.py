"""What is carried: keys with their values as JSON, and what may be wrong with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from cloudstore_mapping.client import codec
from cloudstore_mapping.errors import (
    BadNameError,
    BadValueError,
    BulkError,
    CloudStoreError,
    DailyLimitError,
    LockedError,
    NoFileError,
    TooBigError,
    TooManyFilesError,
    shorten,
)
from cloudstore_mapping.wire import decode_value, fault_of

if TYPE_CHECKING:
    from cloudstore_mapping.transfer.raw_store import RawStore

#: Seconds that what was read of a slow service waits to be kept.
PATIENCE: Final = 2.0
# What is wrong with one key, and says nothing of the next one.
_OWN: Final = (BadNameError, BadValueError, DailyLimitError, LockedError, TooBigError, TooManyFilesError)


class Entry(NamedTuple):
    """A key and its value, JSON in UTF-8 without line ends, or what is wrong with it."""

    key: str
    value: bytes | CloudStoreError

    def size_of(self) -> int:
        """Return the bytes of the value."""
        return len(self.value) if isinstance(self.value, bytes) else 0


class Failures:
    """What went wrong with single keys; the work goes on, and `check` raises it in the end."""

    def __init__(self) -> None:
        self._failed: dict[str, CloudStoreError] = {}

    def add(self, key: str, error: CloudStoreError) -> None:
        """Note what is wrong with a key; an error that is about more than that is raised at once."""
        if not isinstance(error, _OWN):
            raise error
        self._failed.setdefault(key, error)

    def __contains__(self, key: str) -> bool:
        return key in self._failed

    def check(self, succeeded: Iterable[str], what: str) -> None:
        """Raise `BulkError` where anything went wrong."""
        if self._failed:
            first = next(iter(self._failed.values()))
            raise BulkError(
                f"{len(self._failed)} could not be {what}, all others are; see `.failed`. The first: {first}",
                succeeded=[key for key in succeeded if key not in self._failed],
                failed=self._failed,
            ) from first


def entries_of(store: RawStore, keys: Sequence[str]) -> Iterator[Entry]:
    """Yield the entries of a store under these keys, but for those that were deleted meanwhile."""
    for key, value in store.read(keys):
        if isinstance(value, bytes):
            yield Entry(key, msgspec.json.format(value, indent=-1))
        elif not isinstance(value, NoFileError):
            yield Entry(key, value)


def checked(key: str, text: bytes) -> Entry:
    """Return the entry of a value that stands somewhere as JSON, its numbers as they are written there."""
    try:
        codec.encode(decode_value(text))
        return Entry(key, msgspec.json.format(text, indent=-1))
    except BadValueError as error:
        return Entry(key, about(key, error))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Entry(key, about(key, error, fault_of(text, error)))


def about(key: str, error: Exception, why: str | None = None) -> BadValueError:
    """Return what is wrong with a value as an error of its key."""
    failed = BadValueError(f"The value of {shorten(key)} can't be stored: {why or str(error).rstrip('.')}.", key=key)
    failed.__cause__ = error
    return failed
