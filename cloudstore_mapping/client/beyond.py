"""What a store can do beyond a dictionary: merge, search, read and delete many, edit without losing others' changes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.bulk import read_many
from cloudstore_mapping.client.media import MediaStore
from cloudstore_mapping.errors import BadValueError, BulkError, ChangedError, CloudStoreError, NoFileError

T = TypeVar("T")
V = TypeVar("V")


class NotGiven:
    """The type of `NOT_GIVEN`, for None is a value like any other."""


NOT_GIVEN: Final = NotGiven()

#: Seconds that a transform waits at most before it tries again, at first and after many collisions.
FIRST_BACKOFF: Final = 0.001
LONGEST_BACKOFF: Final = 0.05


class Stats(NamedTuple):
    """What a store has done so far: attempts by operation and repetitions among them, bytes of bodies, cache."""

    requests: Mapping[str, int]
    retries: int
    bytes_sent: int
    bytes_received: int
    hits: int
    misses: int
    evictions: int


class BeyondDict(MediaStore[V]):
    """The part of `CloudStoreMapping` that no dictionary has."""

    @property
    def stats(self) -> Stats:
        """What was done so far."""
        client = self._client.stats
        cache = self._cache
        return Stats(
            requests=client.requests,
            retries=client.retries,
            bytes_sent=client.bytes_sent,
            bytes_received=client.bytes_received,
            hits=0 if cache is None else cache.hits,
            misses=0 if cache is None else cache.misses,
            evictions=0 if cache is None else cache.evictions,
        )

    def cache_clear(self) -> None:
        """Drop all that is kept: what is read next comes from the service."""
        self._files.forget()

    def cache_invalidate(self, key: str) -> None:
        """Drop what is kept of the key."""
        self._files.forget(self._writable(key))

    def list(self, filter: str = "") -> list[str]:  # noqa: A002 - the service's own word for it
        """Return the keys that contain the text `filter`, upper and lower case told apart."""
        self._check_open()
        return self._files.containing(filter)

    def stat(self, key: str) -> dict[str, Any]:
        """
        Return what the service knows of the key beside its value, which may be locked.

        ``size`` in bytes, ``version``, the times ``created`` and ``updated`` in seconds since 1970, and ``passwords``:
        whether ``edit`` and ``view`` are asked for. `UnsupportedError` where the service tells nothing.
        """
        return self._files.stat(self._text(key))

    def get_as(self, key: str, type: type[T]) -> T:  # noqa: A002 - what it is
        """
        Return the key's value as a `type` that msgspec knows: a dataclass, a `msgspec.Struct`, ``list[int]``, a date.

        Raises `BadValueError` with the path of the part that doesn't fit.
        """
        found = self._files.load(self._text(key))
        try:
            return msgspec.json.decode(found.value or b"", type=type)
        except msgspec.ValidationError as error:
            raise BadValueError(f"{key!r} is no {type.__name__}: {error}.", key=key) from error

    def get_many(self, keys: Iterable[str]) -> dict[str, V]:
        """Return the values of those of the keys that are there; `BulkError` where some can't be read."""
        wanted = [text for key in keys if (text := self._readable(key)) is not None]
        found: dict[str, V] = {}
        failed: dict[str, CloudStoreError] = {}
        for key, outcome in read_many(self._files, self._workers, list(dict.fromkeys(wanted)), self._progress):
            if not isinstance(outcome, CloudStoreError):
                found[key] = self._decoded(outcome)
            elif not isinstance(outcome, NoFileError):
                failed[key] = outcome
        if failed:
            first = next(iter(failed.values()))
            raise BulkError(
                f"{len(failed)} of {len(wanted)} keys can't be read; see `.failed`. The first: {first}",
                succeeded=list(found),
                failed=failed,
            ) from first
        return found

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete the keys; `BulkError` where some can't be, or aren't there."""
        wanted = dict.fromkeys(self._text(key) for key in keys)
        self._change_many(self._files.changes.deleting(wanted))

    def merge(self, key: str, value: V) -> None:
        """Merge `value` into what is stored under the key, at the service; where nothing is, save it."""
        text = self._writable(key)
        new = codec.dump(value)
        self._hint.forget()
        self._files.merge(text, new)

    def discard(self, key: str) -> bool:
        """Delete the key if it is there, and tell whether it was."""
        try:
            self._delete(self._text(key))
        except KeyError:
            return False
        return True

    @contextmanager
    def edit(self, key: str, default: Any = NOT_GIVEN) -> Iterator[Any]:
        """
        Load a value to change in place, and save it at the end of the block if it was changed.

        Where nothing is stored the block gets a copy of `default`; without one it is `KeyError`. An exception in the
        block saves nothing. Where the service has versions, a change by somebody else meanwhile is `ChangedError` and
        nothing is saved; elsewhere the last one wins.
        """
        text = self._writable(key)
        value, before, version = self._begin_edit(text, default)
        yield value
        after = codec.dump(value)
        if bytes(after) != before:
            self._save(text, after, version)

    def transform(self, key: str, function: Callable[[Any], Any], default: Any = NOT_GIVEN) -> Any:
        """
        Save what `function` makes of the key's value, and return it; again if somebody else changed it meanwhile.

        `function` may be called more than once, and gets a value of its own each time. Where nothing is stored it gets
        a copy of `default`; without one it is `KeyError`. Atomic where the service has versions, elsewhere the last one
        wins.
        """
        text = self._writable(key)
        backoff = FIRST_BACKOFF
        while True:
            value, before, version = self._begin_edit(text, default)
            after = codec.dump(function(value))
            if bytes(after) == before:
                return codec.load(after)
            try:
                self._save(text, after, version)
            except ChangedError:
                time.sleep(random.uniform(0, backoff))  # noqa: S311 - so that those who collide don't do so again
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            else:
                return codec.load(after)

    def _begin_edit(self, key: str, default: Any) -> tuple[Any, bytes, Any]:
        """Return a value of one's own, its JSON as `codec` writes it, and the version to save it on."""
        try:
            found = self._files.fresh(key)
        except NoFileError:
            if default is NOT_GIVEN:
                raise
            raw = codec.dump(default)
            version: str | msgspec.UnsetType | None = None
        else:
            raw = codec.dump(self._decoded(found))
            version = UNSET if found.version is None else found.version
        if not self._files.supports("version"):
            version = UNSET
        return codec.load(raw), bytes(raw), version
