"""
Shelf: the contract of the standard library's `shelve` over a store, with signed pickles.

A value is stored as JSON if it comes back equal and of the same types, otherwise as a pickle with an HMAC-SHA256
signature; a pickle without a valid signature is never loaded.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import gc
import hmac
import io
import math
import os
import pickle
import secrets
import shelve
import stat
import sys
import weakref
from collections.abc import Callable, ItemsView, Iterable, Iterator, MutableMapping, Sequence, ValuesView
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, TypeAlias

from cloudstore_mapping.client import codec
from cloudstore_mapping.client.sameness import are_same
from cloudstore_mapping.errors import BadValueError, BulkError, CloudStoreError, UnsupportedError, shorten
from cloudstore_mapping.masking import hide
from cloudstore_mapping.storefiles import is_store, read_file

#: Only name of a JSON object that stands for another value: a pickle, or an object with only this name.
MARK: Final = "__shelf__"
_JSON: Final = "json"
_PICKLE: Final = "pickle"
_BYTES: Final = "bytes"
_SIGNATURE: Final = "hmac-sha256"

#: Nesting depth stored as JSON: every service takes it.
MAX_DEPTH: Final = 60
# Python's limit for parsing is a little longer.
_MAX_INT: Final = 10**4000
#: Beginning of the signed bytes, so that a signature of one kind holds for no other.
_PURPOSES: Final = {_PICKLE: b"cloudstore-mapping shelf\0", _BYTES: b"cloudstore-mapping shelf, serializer\0"}

#: Return the bytes of an object for a pickle protocol, and the object of bytes.
Serializer: TypeAlias = Callable[[Any, int], bytes]
Deserializer: TypeAlias = Callable[[bytes], Any]

#: A secret, or the signing secret followed by older secrets still accepted.
Secret: TypeAlias = str | bytes | Sequence[str | bytes]

#: Environment variable with secrets, one per line.
VARIABLE: Final = "CLOUDSTORE_SECRET"
#: Minimum size of a secret in bytes, and random bytes of a new secret.
MIN_BYTES: Final = 16
_NEW_BYTES: Final = 32
_SUFFIX: Final = ".secret"
#: Permissions of a file for its group and for everybody.
_OTHERS: Final = 0o077


_READ_ONLY: Final = "The shelf is open for reading only; open it with the flag 'w' or 'c'."
#: Default of an argument that was not given.
_ABSENT: Final = object()


class StoreShelf(shelve.DbfilenameShelf[Any]):
    """
    A dictionary of any picklable values, kept in a store.

    Parameters
    ----------
    store
        The store, closed by `close`; or a view of it, whose prefix `envelopes` has, too.
    envelopes
        Encoder of the values.
    writeback
        Keep values read, and write changed ones in `sync`, in `close` and at the end of the program.
    readonly
        Refuse every change.
    opened
        The store itself, if `store` is a view, whose `close` does nothing.
    compact
        Function that gives the unused space of the store itself back to the disk; by default nothing does.

    Notes
    -----
    Attributes of its own have two underscores or begin with ``shelf_``: a subclass may have others of any name. Unlike
    the standard library's shelf, it never serves a value after its write failed, a failed `sync` has written all
    other values and can be repeated, and a `close` with a failed `sync` leaves the shelf open.
    """

    keyencoding = "utf-8"
    #: True if the shelf could not be written back when it was dropped, or was ended with the program: no further try
    #: is made, which might overwrite later changes.
    shelf_is_given_up = False
    __kept: dict[str, Kept]  # each value in the write-back cache as it was when it was read or saved
    __reported: frozenset[str] = frozenset()  # keys whose values can't be stored, as was printed at the program's end

    def __init__(
        self,
        store: MutableMapping[str, Any],
        envelopes: Envelopes,
        *,
        writeback: bool = False,
        readonly: bool = False,
        opened: Any = None,
        compact: Callable[[Any], object] | None = None,
    ) -> None:
        self.__store: Any = store
        self.writeback = writeback
        self.cache: Any = {}
        self.__kept = {}
        self.__envelopes = envelopes
        self._protocol = envelopes.protocol
        self.__readonly = readonly
        self.__opened: Any = store if opened is None else opened
        self.__compact = compact
        self.__bytes = StoredBytes(
            store, self.__opened, envelopes, compact, self.__kept, encoding=self.keyencoding, readonly=readonly
        )
        self.dict: Any = self.__bytes
        self.__closed = False
        if not readonly or self.shelf_ends_itself:  # also without `writeback`, which a program may set later
            _register(self, self.__opened)

    def __repr__(self) -> str:
        if "_StoreShelf__store" not in vars(self):
            return f"<{type(self).__name__}, not opened>"  # in a traceback of `__init__`
        return f"<{type(self).__name__} over {self.__store!r}>"

    def __iter__(self) -> Iterator[str]:
        return iter(self.__open)

    def __len__(self) -> int:
        return len(self.__open)

    def __contains__(self, key: object) -> bool:
        return key in self.cache or key in self.__open

    def __getitem__(self, key: str) -> Any:
        store = self.__open
        if key in self.cache:
            return self.cache[key]
        return self.__load(key, store[key])

    def get(self, key: str, default: Any = None) -> Any:
        """Return the key's value, or `default` if absent; an error in loading the value is raised."""
        try:
            return self[key]
        except KeyError as error:
            if _is_of_loading(error):
                raise
            return default

    def pop(self, key: str, default: Any = _ABSENT) -> Any:
        """Delete the key and return its value, or `default` if absent; an error in loading the value is raised."""
        try:
            value = self[key]
        except KeyError as error:
            if default is _ABSENT or _is_of_loading(error):
                raise
            return default
        del self[key]
        return value

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the key's value, or save `default` if absent; an error in loading the value is raised."""
        try:
            return self[key]
        except KeyError as error:
            if _is_of_loading(error):
                raise
        self[key] = default
        return default

    def __setitem__(self, key: str, value: Any) -> None:
        store = self.__writable
        stored, packed = self.__encode(_require_text(key), value)
        with self.__keeping_changes([key]):
            store[key] = stored
            self.__keep(key, value, stored, packed)

    def __delitem__(self, key: str) -> None:
        store = self.__writable
        with self.__keeping_changes([key]):
            del store[key]
            self.__forget(key)

    def items(self) -> ItemsView[str, Any]:
        """Return a view of keys and values, with bulk reads."""
        return ItemsView(self) if self.__has_own("__iter__", "__getitem__") else _ShelfItems(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values, with bulk reads."""
        return ValuesView(self) if self.__has_own("__iter__", "__getitem__") else _ShelfValues(self)

    def shelf_pairs(self) -> Iterator[tuple[str, Any]]:
        """Yield each key with its value, with bulk reads."""
        for key, stored in self.__open.items():
            yield key, self.cache[key] if key in self.cache else self.__load(key, stored)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Save many values, with bulk writes."""
        store = self.__writable
        values: dict[str, Any] = {}
        values.update(other, **more)
        if self.__has_own("__setitem__"):
            for key, value in values.items():
                self[key] = value
            return
        encoded = {key: self.__encode(_require_text(key), value) for key, value in values.items()}
        stored = {key: each for key, (each, _) in encoded.items()}
        try:
            with self.__keeping_changes(stored):
                store.update(stored)
                for key in stored:
                    self.__keep(key, values[key], *encoded[key])
        except BulkError as error:
            for key in error.succeeded:
                self.__keep(key, values[key], *encoded[key])
            raise

    def clear(self) -> None:
        """Delete all keys."""
        store = self.__writable
        if self.__has_own("__iter__", "__delitem__"):
            for key in [*self]:
                del self[key]
            return
        with self.__keeping_changes([*self.cache]):
            store.clear()
            self.cache.clear()
            self.__kept.clear()

    def sync(self) -> None:
        """
        Write the changed values in the write-back cache, and empty it.

        If some can't be written the others are, and all stay in the cache for another `sync`; raises `BulkError`, or
        the error of a single key.
        """
        self.__write_changes()
        self.cache.clear()
        self.__kept.clear()

    def shelf_write_at_end(self, *, is_last: bool) -> None:
        """
        Write the changed values in the write-back cache at the end of the program, and keep the cache.

        Later functions of the program may change the values again, unless it `is_last`: then a subclass's own `close`
        or `sync` is called. A value that can't be stored is an error only once.
        """
        if is_last and self.shelf_ends_itself:
            self.shelf_is_given_up = True
            self.close()
        else:
            self.__write_changes(is_end=True)

    @property
    def shelf_ends_itself(self) -> bool:
        """True for a shelf of a subclass that has its own `close` or `sync`."""
        return self.__has_own("close", "sync")

    def __has_own(self, *methods: str) -> bool:
        """Return True for a shelf of a subclass with some of the methods, which are called then as in `shelve`."""
        return any(getattr(type(self), name) is not getattr(StoreShelf, name) for name in methods)

    def __write_changes(self, *, is_end: bool = False) -> None:
        store = self.__open
        if not self.cache or self.__readonly:
            return
        changed, failed, spent = self.__find_changes(is_end=is_end)
        known = self.__reported
        if is_end:
            self.__reported |= failed.keys()
        failed = {key: error for key, error in failed.items() if key not in known}
        try:
            if changed:
                self.__write(store, changed)
        except CloudStoreError as error:
            self.shelf_is_given_up = is_end
            succeeded = error.succeeded if isinstance(error, BulkError) else []
            self.__kept.update((key, changed[key]) for key in succeeded)
            if not failed:
                raise
            unsaved = error.failed if isinstance(error, BulkError) else dict.fromkeys(changed, error)
            _raise_failures({**failed, **unsaved}, succeeded)
        self.__kept.update(changed)
        for key in spent:
            self.__forget(key)
        if failed:
            _raise_failures(failed, [*changed])

    def __write(self, store: Any, changed: dict[str, Kept]) -> None:
        """Store changed values, by the `__setitem__` of a subclass that has its own."""
        if not self.__has_own("__setitem__"):
            store.update({key: kept.stored for key, kept in changed.items()})
            return
        writeback, self.writeback = self.writeback, False  # as `shelve` does, so that the cache stays as it is
        failed: dict[str, Exception] = {}
        try:
            for key in changed:
                try:
                    self[key] = self.cache[key]
                except Exception as error:  # noqa: BLE001 - a subclass raises whatever it likes
                    failed[key] = error
        finally:
            self.writeback = writeback
        if failed:
            _raise_failures(failed, [key for key in changed if key not in failed])

    def __find_changes(self, *, is_end: bool = False) -> tuple[dict[str, Kept], dict[str, Exception], list[str]]:
        """Return the changed values, the errors of those without a pickle, and at an end the keys of spent ones."""
        changed: dict[str, Kept] = {}
        failed: dict[str, Exception] = {}
        spent: list[str] = []
        for key, value in list(self.cache.items()):
            try:
                packed = self.__envelopes.pack(value)
                if self.__is_changed(key, value, packed):
                    changed[key] = Kept(self.__envelopes.seal(key, value, packed), packed)
                if is_end and self.__is_spent(key, value, packed):
                    spent.append(key)
            except Exception as error:  # noqa: BLE001 - whatever makes a pickle raises whatever it likes
                failed[key] = error
        return changed, failed, spent

    def __is_spent(self, key: str, value: Any, packed: Packed) -> bool:
        """Return True for a value changed by its pickle, such as a used iterator: the next pickle isn't right."""
        if packed.kind == _JSON:
            return False
        try:
            if self.__envelopes.pack(value) == packed:
                return False
            return not are_same(value, self.__envelopes.load(key, self.__envelopes.seal(key, value, packed)))
        except Exception:  # noqa: BLE001 - whatever loads or makes a pickle raises whatever it likes
            return True

    def reorganize(self) -> None:
        """
        Call `sync`, and give the unused space of a file back to the disk; at a service that is the service's business.

        Other programs that use the file go on reading meanwhile, and their writes wait. Raises `UnavailableError`, with
        the file as it was, if the disk lacks room for two more copies of the data, or another program's write lasts.
        """
        self.__check_writable()
        self.sync()
        if self.__compact is not None:
            self.__compact(self.__opened)

    @property
    def shelf_is_closed(self) -> bool:
        """True once the shelf is closed."""
        return self.__closed

    def close(self) -> None:
        """Call `sync` and close the store; any further use is `ValueError`."""
        if self.__closed:
            return
        self.sync()
        self.__closed = True
        self.__opened.close()

    def __del__(self) -> None:
        # A forgotten shelf writes back, like the standard library's, unless its `__init__` failed.
        if vars(self).get("_StoreShelf__closed") is not False or self.shelf_is_given_up:
            return
        if self.cache and not self.__is_finalizing() and _is_collecting():
            _postponed.append(self)
            return
        try:
            if self.__is_finalizing() and not self.shelf_ends_itself:
                self.__close_last()
            else:
                self.close()
        except BaseException:  # Python prints it
            self.shelf_is_given_up = True
            _failed.append(repr(self))
            raise

    #: Names of modules may be gone by then.
    __is_finalizing = staticmethod(sys.is_finalizing)

    def __close_last(self) -> None:
        """
        Close the shelf while Python deletes its modules, so that only what was changed since the last flush is written.

        Closing may fail by then, and so may what makes the pickle of a value that was not changed.
        """
        changed, _, _ = self.__find_changes()
        if changed:
            self.__write(self.__target, changed)
        self.__closed = True
        with suppress(Exception):
            self.__opened.close()

    @property
    def __open(self) -> Any:
        if _postponed:
            write_postponed()
        if self.__closed:
            raise ValueError("invalid operation on closed shelf")
        return self.__target

    @property
    def __target(self) -> Any:
        """The store, or what a subclass has put in place of `dict`."""
        if self.dict is self.__bytes:
            return self.__store
        return _Wrapped(self.dict, self.__envelopes, self.keyencoding)

    @property
    def __writable(self) -> Any:
        store = self.__open
        self.__check_writable()
        return store

    def __check_writable(self) -> None:
        if self.__readonly:
            raise io.UnsupportedOperation(_READ_ONLY)

    def __load(self, key: str, stored: Any) -> Any:
        try:
            value = self.__envelopes.load(key, stored)
        except KeyError as error:
            setattr(error, _OF_LOADING, True)
            raise
        if self.writeback:
            packed = None
            if not _is_sealed(stored):
                with suppress(Exception):  # `sync` raises it again
                    packed = self.__pack(value)
            self.__keep(key, value, stored, packed)
        return value

    def __encode(self, key: str, value: Any) -> tuple[Any, Packed | None]:
        """Return the JSON value to store, and the packed value."""
        packed = self.__pack(value)
        if packed is None:
            return self.__envelopes.dump(key, value), None
        return self.__envelopes.seal(key, value, packed), packed

    def __pack(self, value: Any) -> Packed | None:
        """
        Return a value as `sync` compares it; None without a write-back cache.

        Only the same object has the same pickle later: the order in a set depends on its history.
        """
        return self.__envelopes.pack(value) if self.writeback and not self.__readonly else None

    def __keep(self, key: str, value: Any, stored: Any, packed: Packed | None) -> None:
        if self.writeback:
            self.cache[key] = value
            self.__kept[key] = Kept(stored, packed)
        else:
            self.__kept.pop(key, None)  # what the cache still holds is written again

    def __forget(self, key: str) -> None:
        self.cache.pop(key, None)
        self.__kept.pop(key, None)

    @contextmanager
    def __keeping_changes(self, keys: Iterable[str]) -> Iterator[None]:
        """
        Keep the changed values of keys in the write-back cache if the block fails to replace or delete them.

        The other values are read again, as the store may have what failed, also after Ctrl-C.
        """
        try:
            yield
        except BaseException as error:
            done = error.succeeded if isinstance(error, BulkError) else ()
            for key in [*keys]:
                if key in done or isinstance(error, KeyError) or not self.__has_changes(key):
                    self.__forget(key)
            raise

    def __has_changes(self, key: str) -> bool:
        """Return True if the program changed the value in the write-back cache, or it can't be packed."""
        if key not in self.cache:
            return False
        try:
            return self.__is_changed(key, self.cache[key], self.__envelopes.pack(self.cache[key]))
        except Exception:  # noqa: BLE001 - whatever makes a pickle raises whatever it likes
            return True

    def __is_changed(self, key: str, value: Any, packed: Packed) -> bool:
        """
        Return True if the program changed a value in the write-back cache.

        Its pickle is compared with the stored pickle, and with that of a new copy. If they differ, which may be due to
        time or addresses, the value's attributes are compared with those of the copy. A pickle of the user's object is
        made only when it is written, as it may change the object.
        """
        kept = self.__kept.get(key)
        if kept is None:
            return True
        if packed == kept.packed:
            return False
        if not _is_sealed(kept.stored):
            return True
        try:
            before = self.__envelopes.unseal(key, kept.stored)
            if packed == before:
                return False
            copy = self.__envelopes.load(key, kept.stored)
            if copy is value or (
                isinstance(value, list | tuple | dict | set) and self.__envelopes.pack(value) == before
            ):
                # Its class keeps one object for each name, and loading has set the old state in it.
                self.__envelopes.load(key, self.__envelopes.seal(key, value, packed))
                return True
            again = self.__envelopes.pack(copy)
            if again == packed:
                return False
            if self.__envelopes.is_custom() and again == self.__envelopes.pack(self.__envelopes.load(key, kept.stored)):
                return True  # what it stores may not be in attributes
            copy = self.__envelopes.load(key, kept.stored)  # a pickle may have changed the other ones
        except Exception:  # noqa: BLE001 - whatever loads or makes a pickle raises whatever it likes
            return True
        return not are_same(value, copy)


class StoredBytes(MutableMapping[bytes, bytes]):
    """
    Attribute `dict` of a shelf: the pickles of its values by encoded key, as a dbm file has them.

    Bytes that a program assigns are stored, signed, as they are; the shelf takes them for a pickle.
    """

    def __init__(
        self,
        store: MutableMapping[str, Any],
        opened: Any,
        envelopes: Envelopes,
        compact: Callable[[Any], object] | None,
        kept: dict[str, Kept],
        *,
        encoding: str,
        readonly: bool,
    ) -> None:
        self._store = store
        self._opened = opened
        self._envelopes = envelopes
        self._compact = compact
        self._kept = kept
        self._encoding = encoding
        self._readonly = readonly

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._store!r}>"

    def __getitem__(self, key: bytes | str) -> bytes:
        text = self._text(key)
        try:
            stored = self._store[text]
        except KeyError:
            raise KeyError(key) from None
        if _is_sealed(stored):
            return self._envelopes.unseal(text, stored).data
        return pickle.dumps(self._envelopes.load(text, stored), self._envelopes.protocol)

    def __setitem__(self, key: bytes | str, data: bytes | str) -> None:
        self._check_writable()
        if not isinstance(data, bytes | bytearray | memoryview | str):
            raise TypeError(f"Values of a shelf's dict are bytes, not {type(data).__name__}; assign to the shelf.")
        text = self._text(key)
        packed = self._envelopes.packed(data.encode() if isinstance(data, str) else bytes(data))
        self._kept.pop(text, None)  # so a value in the write-back cache is written again
        self._store[text] = self._envelopes.seal(text, data, packed)

    def __delitem__(self, key: bytes | str) -> None:
        self._check_writable()
        self._kept.pop(self._text(key), None)
        try:
            del self._store[self._text(key)]
        except KeyError:
            raise KeyError(key) from None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes | str) and self._text(key) in self._store

    def __iter__(self) -> Iterator[bytes]:
        return (key.encode(self._encoding) for key in self._store)

    def __len__(self) -> int:
        return len(self._store)

    def sync(self) -> None:
        """Do nothing: each value is stored when it is assigned."""

    def reorganize(self) -> None:
        """Give the unused space of a file back to the disk; at a service that is the service's business."""
        self._check_writable()
        if self._compact is not None:
            self._compact(self._opened)

    def close(self) -> None:
        """Close the store."""
        self._opened.close()

    def _text(self, key: bytes | str) -> str:
        return key if isinstance(key, str) else bytes(key).decode(self._encoding)

    def _check_writable(self) -> None:
        if self._readonly:
            raise io.UnsupportedOperation(_READ_ONLY)


class _Wrapped(MutableMapping[str, Any]):
    """Stored JSON values by key, in a dictionary from bytes to bytes that a subclass has put in place of `dict`."""

    def __init__(self, content: Any, envelopes: Envelopes, encoding: str) -> None:
        self._content = content
        self._envelopes = envelopes
        self._encoding = encoding

    def __getitem__(self, key: str) -> Any:
        try:
            data = self._content[key.encode(self._encoding)]
        except KeyError:
            raise KeyError(key) from None
        return self._envelopes.seal(key, data, self._envelopes.packed(bytes(data)))

    def __setitem__(self, key: str, stored: Any) -> None:
        if _is_sealed(stored):
            data = self._envelopes.unseal(key, stored).data
        else:
            data = pickle.dumps(self._envelopes.load(key, stored), self._envelopes.protocol)
        self._content[key.encode(self._encoding)] = data

    def __delitem__(self, key: str) -> None:
        del self._content[key.encode(self._encoding)]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.encode(self._encoding) in self._content

    def __iter__(self) -> Iterator[str]:
        return (bytes(key).decode(self._encoding) for key in self._content.keys())  # noqa: SIM118 - as of a dbm file

    def __len__(self) -> int:
        return len(self._content)


class _ShelfItems(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        shelf: Any = self._mapping  # type: ignore[attr-defined]  # set by collections.abc
        return shelf.shelf_pairs()  # type: ignore[no-any-return]  # of a shelf


class _ShelfValues(ValuesView[Any]):
    def __iter__(self) -> Iterator[Any]:
        shelf: Any = self._mapping  # type: ignore[attr-defined]  # set by collections.abc
        return (value for _, value in shelf.shelf_pairs())


def _require_text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"Keys are str, not {type(key).__name__}; convert {shorten(key)} first.")
    return key


#: Attribute of a `KeyError` that was raised in loading a value, not for an absent key.
_OF_LOADING: Final = "_is_of_loading"


def _is_of_loading(error: KeyError) -> bool:
    return hasattr(error, _OF_LOADING)


def _raise_failures(failed: dict[str, Exception], succeeded: list[str]) -> NoReturn:
    """Raise the error of a single key with a note that names it, or the `BulkError` of several."""
    key, first = next(iter(failed.items()))
    if len(failed) == 1:
        first.add_note(f"So the value under {shorten(key)} was not saved.")
        raise first
    others = ", the others are" if succeeded else ""
    raise BulkError(
        f"{len(failed)} values were not saved{others}; see `.failed`. The first, under {shorten(key)}: {first}",
        succeeded=succeeded,
        failed=failed,
    ) from first


# End of the program

#: Open shelves with write-back, by id, as a shelf has no hash; each with its store. Otherwise the garbage collector
#: would end the store of a shelf in a cycle before it calls the shelf's `__del__`.
_written_at_exit: Final[dict[int, tuple[weakref.ref[StoreShelf], Any]]] = {}
#: Shelves dropped by the garbage collector with changes to write back. It may have run within a transaction of the same
#: thread, for which a write would wait forever; so they are closed at the next use of any shelf.
_postponed: Final[list[StoreShelf]] = []
#: The last phases of the garbage collector, ``start`` and ``stop``, the latest at the end.
_phases: Final[dict[str, Any]] = {}
#: Not empty once `_end` leaves to the last flush what an interrupt keeps from being written.
_has_ended: Final[list[bool]] = []
#: Shelves whose changes were lost.
_failed: Final[list[str]] = []


def _register(shelf: StoreShelf, store: Any) -> None:
    """Have a shelf written back at the end of the program, if it still exists then."""
    if _phases.pop not in gc.callbacks:
        # No function of Python's: Ctrl-C in such a function, while the collector runs, would be ignored.
        gc.callbacks += [_phases.pop, _phases.__setitem__]
    number, shelves = id(shelf), _written_at_exit  # at the end of Python, this module has no names any more
    shelves[number] = weakref.ref(shelf, lambda _: shelves.pop(number, None)), store


def _is_collecting() -> bool:
    return next(reversed(_phases), "stop") == "start"


def write_postponed() -> None:
    """Close the shelves dropped by the garbage collector."""
    while _postponed:
        shelf = _postponed.pop()
        try:
            _reporting(shelf, shelf.close)
        except BaseException:  # Ctrl-C: the next use of a shelf tries again
            _postponed.append(shelf)
            raise
        shelf.shelf_is_given_up = True


def _reporting(shelf: StoreShelf, write: Callable[[], object]) -> None:
    """Write a shelf's changes; report a failure, after which other shelves are still written."""
    try:
        write()
    except Exception as error:  # noqa: BLE001 - there is no caller to raise it to
        error.add_note(f"So changes in {shelf!r} were not saved.")
        _failed.append(repr(shelf))  # first, as the program's hook may end it
        sys.excepthook(type(error), error, error.__traceback__)


@atexit.register
@atexit.register  # called again if Ctrl-C comes as it begins
def _end() -> None:
    """
    Write back the shelves that the program left open, while connections and imports still work.

    Python calls `__del__` much later, or, of a shelf in a cycle or a global of a module, never. The shelves stay open,
    as older functions of `atexit` may use them. Ctrl-C ends the write of one shelf, repeated with the last flush.
    """
    if (_failed or _postponed or any(map(_may_have_changes, _registered()))) and not _has_ended:
        _await_last_flush()
        _has_ended.append(True)
        _write_back(is_last=False)


def _registered() -> list[StoreShelf]:
    return [shelf for reference, _ in list(_written_at_exit.values()) if (shelf := reference()) is not None]


def _may_have_changes(shelf: StoreShelf) -> bool:
    return shelf.writeback or bool(shelf.cache) or shelf.shelf_ends_itself


def _write_back(*, is_last: bool) -> None:
    interrupt: BaseException | None = None
    works: list[Callable[[], object]] = [write_postponed]
    works += [
        partial(_reporting, shelf, partial(shelf.shelf_write_at_end, is_last=is_last))
        for shelf in _registered()
        if not shelf.shelf_is_closed and not shelf.shelf_is_given_up
    ]
    for work in works:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised after the other shelves
            interrupt = error
    if interrupt is not None:
        if is_last:
            _failed.append(repr(interrupt))
        raise interrupt


def _await_last_flush() -> None:
    """Put a `_LastFlush` into all standard streams, as a later function may put back another one, or close one."""
    if sys.stdout is None and sys.stderr is None:
        sys.stderr = io.StringIO()
    streams = {id(stream): stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}
    for stream in streams.values():
        if stream is not None:
            with suppress(AttributeError, TypeError):
                stream.flush = _LastFlush(stream.flush)  # type: ignore[method-assign]
    if sys.stderr is not None and not isinstance(sys.stderr.flush, _LastFlush):
        sys.stderr = _Stream(sys.stderr)


class _LastFlush:
    """
    Method `flush` of a standard stream that writes back shelves when Python calls it after all functions of `atexit`.

    Functions registered before this module was imported run after `_end`, and may change values. If a shelf could not
    be written back the flush fails, so that the exit status is 120: Python has no other way to change it so late.
    """

    states: ClassVar[list[str]] = []  # "begun" and "done", once for all streams

    def __init__(self, flush: Callable[[], object]) -> None:
        self._flush = flush
        self._is_done = False
        self._sys = sys  # at the end of Python, this module has no names any more

    def __call__(self) -> None:
        """Flush the stream."""
        try:
            self._flush()
        finally:
            # A stream may be flushed by the report of a failure, and by its own deletion.
            if not self._is_done and self._sys.is_finalizing() and self._sys.meta_path is not None:
                self._end()

    def _end(self) -> None:
        if not self.states:
            self.states.append("begun")
            try:
                _write_back(is_last=True)
            finally:
                self.states.append("done")
        if "done" not in self.states:
            return
        self._is_done = True
        # Python flushes the error stream last, and prints no error of it.
        last = getattr(sys.stderr, "flush", None)
        is_last = last is self or not isinstance(last, _LastFlush) or getattr(sys.stderr, "closed", False)
        if _failed and is_last:
            raise OSError("A shelf could not be written back.")


class _Stream:
    """Stream with a `_LastFlush`, for a stream that takes no attributes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.flush = _LastFlush(stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Packed(NamedTuple):
    """A value to be stored: its JSON, a pickle, or bytes of a serializer."""

    kind: str
    data: bytes


class Kept(NamedTuple):
    """
    A value in the write-back cache when it was read or saved: as stored, and as packed by this process.

    A pickle or bytes that were read are not packed again, as this might change the object.
    """

    stored: Any
    packed: Packed | None


class Envelopes:
    """
    Encode the values of a shelf as JSON or signed pickles, and decode them.

    Parameters
    ----------
    secrets
        The first secret signs pickles, all of them verify. Without secrets only JSON values can be stored.
    protocol
        Pickle protocol, as in `pickle`.
    prefix
        Prefix of the shelf's keys in the store.
    dumps, loads
        Functions to make and load pickles; by default those of `pickle`.
    serializer, deserializer
        Functions of a program that replace both JSON and pickles, as those of `shelve.open`.
    is_custom
        Return True if `dumps` makes other pickles than `pickle`; by default for another function than `pickle.dumps`.
    pickle_secrets
        Let a pickle of the shelf hold the secrets; otherwise a pickle with secrets is `TypeError`.

    Notes
    -----
    A signature covers the whole key in the store, so a pickle moved to another key or shelf is refused, too.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        protocol: int | None = None,
        *,
        prefix: str = "",
        dumps: Serializer = pickle.dumps,
        loads: Deserializer = pickle.loads,
        serializer: Serializer | None = None,
        deserializer: Deserializer | None = None,
        is_custom: Callable[[], bool] | None = None,
        pickle_secrets: bool = False,
    ) -> None:
        self._pickle_secrets = pickle_secrets
        self._is_custom = is_custom
        self._secrets = tuple(secrets)
        self.protocol = pickle.DEFAULT_PROTOCOL if protocol is None else protocol
        self._prefix = prefix
        self._dumps = dumps
        self._loads = loads
        self._serializer = serializer
        self._deserializer = deserializer

    def __getstate__(self) -> dict[str, Any]:
        if self._secrets and not self._pickle_secrets:
            raise TypeError(
                "A shelf with a secret can't be pickled; open it with pickle_secrets=True, or in the other process."
            )
        return vars(self)

    def is_custom(self) -> bool:
        """Return True if a serializer or pickler of the program decides what is stored of an object."""
        is_custom = self._dumps is not pickle.dumps if self._is_custom is None else self._is_custom()
        return self._serializer is not None or is_custom

    def pack(self, value: Any) -> Packed:
        """Return a value as JSON, if it comes back equal and of the same types; otherwise as a pickle."""
        if self._serializer is not None:
            data: Any = self._serializer(value, self.protocol)
            if not isinstance(data, bytes | bytearray | memoryview | str):
                raise TypeError(f"The serializer must return bytes, not {type(data).__name__}.")
            return Packed(_BYTES, data.encode() if isinstance(data, str) else bytes(data))
        if is_exact(value):
            return Packed(_JSON, bytes(codec.encode(value)))
        return Packed(_PICKLE, self._dumps(value, self.protocol))

    def packed(self, data: bytes) -> Packed:
        """Return the packed value for bytes of a serializer, or else a pickle."""
        return Packed(_PICKLE if self._serializer is None else _BYTES, data)

    def seal(self, key: str, value: Any, packed: Packed) -> Any:
        """Return the JSON value to store for a packed value; `BadValueError` if it can't be signed without a secret."""
        kind, data = packed
        if kind == _JSON:
            return {MARK: {_JSON: value}} if _is_marked(value) else value
        if not self._secrets:
            raise BadValueError(
                f"The value under {shorten(key)} is not plain JSON, or holds a list or dictionary twice, so it must be "
                "pickled and signed; give the shelf a secret=…, or set CLOUDSTORE_SECRET.",
                key=key,
            )
        signature = self._sign(self._secrets[0], key, kind, data).hex()
        return {MARK: {kind: base64.b64encode(data).decode("ascii"), _SIGNATURE: signature}}

    def dump(self, key: str, value: Any) -> Any:
        """
        Return the JSON value to store for `value`: itself, if it comes back equal and of the same types.

        Raises `BadValueError` for a value to be pickled without a secret, and the errors of `pickle`.
        """
        if self._serializer is None and is_exact(value):
            return {MARK: {_JSON: value}} if _is_marked(value) else value
        return self.seal(key, value, self.pack(value))

    def unseal(self, key: str, stored: Any) -> Packed:
        """Return the packed value of a stored pickle or bytes; `BadValueError` without a valid signature."""
        kind = _BYTES if _BYTES in stored[MARK] else _PICKLE
        return Packed(kind, self._verified(key, stored[MARK], kind))

    def load(self, key: str, stored: Any) -> Any:
        """
        Return the value for a stored JSON value.

        Raises `BadValueError`, without loading it, for a pickle not signed for this key by any of the secrets.
        """
        if not _is_marked(stored):
            return stored
        content = stored[MARK]
        if isinstance(content, dict) and content.keys() == {_JSON}:
            return content[_JSON]
        if isinstance(content, dict) and _BYTES in content:
            data = self._verified(key, content, _BYTES)
            if self._deserializer is None:
                raise BadValueError(
                    f"The value under {shorten(key)} was stored with a serializer; give the shelf its deserializer.",
                    key=key,
                )
            return self._deserializer(data)
        return self._loads(self._verified(key, content, _PICKLE))

    def _verified(self, key: str, content: Any, kind: str) -> bytes:
        try:
            data = base64.b64decode(content[kind], validate=True)
            signature = bytes.fromhex(content[_SIGNATURE])
        except (TypeError, KeyError, ValueError, binascii.Error) as error:
            raise BadValueError(
                f"The value under {shorten(key)} was not stored by a shelf, so it was not loaded.", key=key
            ) from error
        if not any(hmac.compare_digest(self._sign(secret, key, kind, data), signature) for secret in self._secrets):
            raise BadValueError(
                f"The pickle under {shorten(key)} is not signed by this shelf's secret for this key, so it was not "
                "loaded; give the secret, and the prefix, that it was written with.",
                key=key,
            )
        return data

    def _sign(self, secret: bytes, key: str, kind: str, data: bytes) -> bytes:
        name = (self._prefix + key).encode("utf-8", "surrogatepass")
        return hmac.digest(secret, _PURPOSES[kind] + len(name).to_bytes(8, "big") + name + data, "sha256")


def is_exact(value: Any) -> bool:
    """
    Return True if `value` comes back from JSON equal and with the same types.

    It does not if it holds a list or dictionary twice, as JSON has two copies of it.
    """
    parts = [(value, 0)]
    containers: set[int] = set()
    while parts:
        part, depth = parts.pop()
        kind = type(part)
        if part is None or kind is bool:
            continue
        if kind is str:
            if not part.isascii() and not _is_unicode(part):
                return False
        elif kind is int:
            if not -_MAX_INT < part < _MAX_INT:
                return False
        elif kind is float:
            if not math.isfinite(part):
                return False
        elif kind in (list, dict):
            if depth == MAX_DEPTH or id(part) in containers:
                return False
            containers.add(id(part))
            inner = part if kind is list else part.values()
            if kind is dict and not all(type(name) is str and _is_unicode(name) for name in part):
                return False
            parts.extend((each, depth + 1) for each in inner)
        else:
            return False
    return True


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_marked(value: Any) -> bool:
    return type(value) is dict and value.keys() == {MARK}


def _is_sealed(stored: Any) -> bool:
    """Return True for a stored pickle or bytes; a value stored as JSON may be the very object of the program."""
    return _is_marked(stored) and stored[MARK].keys() != {_JSON}


# Secrets


def secrets_of(given: Secret | None, file: Path | None, *, makes: bool = True) -> list[bytes]:
    """
    Return the secrets of a shelf, the signing secret first: those given; or the file's own, then the environment's.

    A file's own secret is beside the store's `file`, readable by its owner only. If there is neither, and `makes` is
    true, it is created; a store without a file has none. Raises `BadValueError` for a secret that is too short, or in a
    file that others may read or write.
    """
    if given is not None:
        return _checked([given] if isinstance(given, str | bytes) else given)
    others = _checked(os.environ[VARIABLE].splitlines()) if VARIABLE in os.environ else []
    if file is None:
        return others
    own = [secret for path in secret_files(file) for secret in _checked(_read_secret(path).splitlines())]
    if own or others or not makes:
        return own + others
    return _checked(_make_secret(place_of_secret(file)).splitlines())


def refuse_secret(path: Path) -> None:
    """Raise `UnsupportedError` for the secret file of a store, as its pickles can't be loaded without it."""
    name = os.path.realpath(path)
    if name.lower().endswith(_SUFFIX) and is_store(Path(name[: -len(_SUFFIX)])):
        raise UnsupportedError(f"{path} holds the secret of a store and was left as it is; choose another name.")


def new_secret() -> bytes:
    """Return a random secret."""
    return secrets.token_hex(_NEW_BYTES).encode("ascii")


def place_of_secret(file: Path) -> Path:
    """Return the path of the secret file beside a store's file; beside the file itself, if `file` is a link."""
    real = Path(os.path.realpath(file))
    return real.with_name(real.name + _SUFFIX)


def secret_files(file: Path) -> list[Path]:
    """Return the existing secret files of a store: the one beside its file, then one that is beside a link to it."""
    beside = {place_of_secret(file): None, file.absolute().with_name(file.name + _SUFFIX): None}
    return [path for path in beside if path.exists()]


def _checked(given: Sequence[str | bytes]) -> list[bytes]:
    found: list[bytes] = [hide(secret.encode() if isinstance(secret, str) else bytes(secret)) for secret in given]
    if not found or any(len(secret.strip()) < MIN_BYTES for secret in found):
        raise BadValueError(f"A shelf's secret has at least {MIN_BYTES} bytes; make one with secrets.token_hex().")
    return found


def _read_secret(path: Path) -> bytes:
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; move it away, because the shelf's secret is kept in a file of this name."
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & _OTHERS and _keeps_modes(path.parent):
        raise BadValueError(
            f"Others may read or write {path} (mode {mode:04o}), and so sign pickles; make a new secret if they could "
            f"have, or run chmod 600 {quote(str(path))}."
        )
    return read_file(path)


def _keeps_modes(folder: Path) -> bool:
    """Return False on a file system that has the same mode for all files, such as a USB stick's."""
    probe = folder / f".{secrets.token_hex(8)}{_SUFFIX}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return True
    try:
        return not os.fstat(descriptor).st_mode & _OTHERS
    finally:
        os.close(descriptor)
        probe.unlink()


def _make_secret(path: Path) -> bytes:
    # Written under another name first, as other processes may read it at any moment.
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(new_secret() + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)  # never replaces an existing file
    finally:
        draft.unlink()
    return read_file(path)
