"""
File names of the keys of an open store, in the spelling that its service can keep.

An exact service keeps more texts than a service with comma-joined lists (see `cloudstore_mapping.keys`). The reply to
any list shows the kind of service; before the first use of a key with two spellings, the client sends an extra list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from cloudstore_mapping.errors import BadNameError
from cloudstore_mapping.keys import are_plain, escape_key, is_plain, literal_part, literal_prefix, unescape_name

# Filters that would list nearly everything; a service with comma-joined lists can't keep these keys as names anyway.
_TOO_COMMON: Final = frozenset({".", ","})


class FileNames:
    """
    File names of a store's keys, and back.

    Parameters
    ----------
    is_exact
        Returns True if the last list reply was an exact service's, False if another's, None before the first.
    ask
        Sends a list filtered by a text, in as few bytes as possible, and returns the names; None: a filter that
        matches nothing.
    list_all
        Lists all names.

    Notes
    -----
    Thread safe. On a service with comma-joined lists, other programs may have made files with names that the mapping
    would escape. Such a name is used literally once it was seen, in a listing or in the list before a key's first use.
    """

    def __init__(
        self,
        is_exact: Callable[[], bool | None],
        ask: Callable[[str | None], list[str]],
        list_all: Callable[[], list[str]],
    ) -> None:
        self._is_exact = is_exact
        self._ask = ask
        self._list_all = list_all
        self._literal: frozenset[str] = frozenset()
        self._asked: set[str] = set()
        self._has_listed = False

    def name(self, key: str) -> str:
        """Return the file name of `key`, after asking if needed; `BadNameError` for a lone surrogate."""
        if is_plain(key):
            return key
        exact, joined = escape_key(key), escape_key(key, joined=True)
        if exact != joined and self._must_ask(key):
            self._settle(key)
        if self._is_exact():
            return exact
        return key if key in self._literal else joined

    def names(self, keys: Sequence[str]) -> list[str]:
        """Return the file names of many keys; asks twice at most."""
        if are_plain(keys):
            return [*keys]
        self.settle(keys)
        return [self.name(key) for key in keys]

    def settle(self, keys: Sequence[str]) -> None:
        """Ask for the spelling of these keys, in two requests at most; `name` raises the error of an invalid key."""
        if are_plain(keys):
            return
        unsettled = []
        for key in keys:
            try:
                if escape_key(key) != escape_key(key, joined=True) and self._must_ask(key):
                    unsettled.append(key)
            except BadNameError:
                continue
        if unsettled:
            self._settle(unsettled[0])
            rest = [key for key in unsettled[1:] if self._must_ask(key)]
            if len(rest) > 1:
                self.keys(self._list_all(), is_complete=True)
            elif rest:
                self._settle(rest[0])

    def keys(self, names: list[str], *, is_complete: bool) -> dict[str, None]:
        """Return the keys of names just listed, in their order; `is_complete` for a listing of all names."""
        if self._is_exact():
            self._literal = frozenset()
            return dict.fromkeys(names if are_plain(names) else map(unescape_name, names))
        known = frozenset() if is_complete else self._literal
        if not are_plain(names):
            keys = {name: unescape_name(name, joined=True) for name in names}
            known |= {name for name, key in keys.items() if escape_key(key, joined=True) != name}
            # If a name's key is also another file's literal name, the name is used literally: no file hides another.
            while hidden := {name for name, key in keys.items() if key != name and key in known and name not in known}:
                known |= hidden
            names = [name if name in known else key for name, key in keys.items()]
        self._literal = known
        self._has_listed = self._has_listed or is_complete
        return dict.fromkeys(names)

    def filter(self, text: str) -> str:
        """Return the longest filter matching the name of every key that contains `text`."""
        return literal_part(text, joined=not self._is_exact())

    def prefix(self, text: str) -> str:
        """Return the longest text with which the name of every key beginning with `text` begins."""
        return literal_prefix(text, joined=not self._is_exact())

    def _must_ask(self, key: str) -> bool:
        """Return True if the service has to be asked before the key's first use."""
        exact = self._is_exact()
        return exact is None or (not exact and not self._has_listed and key not in self._asked)

    def _settle(self, key: str) -> None:
        names = self._ask(None if key in _TOO_COMMON else key)
        if not self._is_exact():
            self._asked.add(key)
            # A name with a comma is split in such a list.
            if f",{key}," in f",{','.join(names)},":
                self._literal |= {key}
