"""Names of files and the keys that they are: which name a key has, which keys a listing shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cloudstore_mapping.client.cache import Cache, Found
from cloudstore_mapping.client.client import Client
from cloudstore_mapping.client.keys import are_ordinary, key_of, name_of

#: Under what a cache of listings keeps the whole one.
ALL: Final = ""
# Parts of a key that stand in its name as they are, wherever they are in it.
_LITERAL: Final = re.compile(r"[^\x00-\x1f\x7f,/\\% .\ud800-\udfff]+")


class Names:
    """
    The names of a store's files, by key without the `prefix` of a view.

    `listing` keeps listings, None meaning that none is kept. `foreign` are the names, by key, that other programs made
    and `name_of` never gives: only a listing can tell that they are there, so views of one store share it.
    """

    def __init__(
        self, client: Client, listing: Cache[dict[str, None]] | None, prefix: str, foreign: dict[str, str]
    ) -> None:
        self._client = client
        self._listing = listing
        self._prefix = prefix
        self.foreign = foreign

    def of(self, key: str) -> str:
        """Return the name of the key's file; `BadNameError` for a lone surrogate."""
        full = self._prefix + key
        return self.foreign.get(full) or name_of(full)

    def of_all(self, keys: Sequence[str]) -> list[str]:
        """Return the names of all these keys' files."""
        full = [self._prefix + key for key in keys] if self._prefix else [*keys]
        if not self.foreign and are_ordinary(full):
            return full
        return [self.of(key) for key in keys]

    @property
    def beginning(self) -> str | None:
        """How all names of these keys begin and no others, None where that can't be said."""
        return self._prefix if not self._prefix or _LITERAL.fullmatch(self._prefix) else None

    def keys(self) -> list[str]:
        """Return all keys, in the listing's order; a foreign name that is no key's name is listed as itself."""
        if self._listing is None:
            return self._matching(self._prefix, prefix=True)
        kept = self._listing.peek(ALL) if self._prefix else self._listing.read(ALL, self._fetch_all)
        if kept is None or kept.value is None:
            return self._matching(self._prefix, prefix=True)
        return [key[len(self._prefix) :] for key in kept.value if key.startswith(self._prefix)]

    def containing(self, text: str) -> list[str]:
        """Return the keys that contain this text, as the service's own search finds them."""
        if self._prefix:
            return [key for key in self._matching(self._prefix, prefix=True) if text in key]
        return self._matching(text, prefix=False)

    def _matching(self, text: str, *, prefix: bool) -> list[str]:
        """Ask for the part of the text that names hold as it is, and choose among what comes."""
        if prefix and not text:
            return list(self._known(self._client.list(), whole=True))
        pieces = _LITERAL.findall(text)
        if prefix:
            beginning = _LITERAL.match(text)
            names = self._client.list(beginning[0], prefix=True) if beginning else self._client.list()
            return [key[len(text) :] for key in self._known(names, whole=False) if key.startswith(text)]
        names = self._client.list(max(pieces, key=len, default=""))
        return [key for key in self._known(names, whole=not pieces) if text in key]

    def _fetch_all(self, _: object) -> Found[dict[str, None]]:
        return Found(self._known(self._client.list(), whole=True))

    def _known(self, names: list[str], *, whole: bool) -> dict[str, None]:
        """Return the keys of these names, and remember which of them are foreign."""
        keys: dict[str, None] = {}
        foreign: dict[str, str] = {}
        if are_ordinary(names):
            keys, names = dict.fromkeys(names), []
        for name in names:
            key = key_of(name)
            if name == name_of(key):
                foreign.pop(key, None)  # both are there: the name that is really this key's is the one that counts
            elif key not in keys:
                foreign[key] = name
            keys[key] = None
        self.foreign.update(foreign)
        if whole:  # in this order, so that no other thread misses one that is still there
            for key in self.foreign.keys() - foreign.keys():
                self.foreign.pop(key, None)
        return keys
