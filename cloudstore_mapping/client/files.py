"""The files of an account by dict key: which name each has, and which password goes with it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Raw

from cloudstore_mapping.client.client import Client
from cloudstore_mapping.client.keys import key_of, name_of
from cloudstore_mapping.client.passwords import Passwords


class Files:
    """Loads, saves, merges, deletes and lists the encoded values of a store; one request each, on any thread."""

    def __init__(self, client: Client, passwords: Passwords) -> None:
        self._client = client
        self._passwords = passwords
        # Names that other programs made and `name_of` never gives: only a listing can tell that they are there.
        self._foreign: dict[str, str] = {}

    def name(self, key: str) -> str:
        """Return the name of the key's file; `BadNameError` for a lone surrogate."""
        return self._foreign.get(key) or name_of(key)

    def keys(self) -> list[str]:
        """Return all keys, in the listing's order; a foreign name that is no key's name is listed as itself."""
        keys: dict[str, None] = {}
        foreign: dict[str, str] = {}
        for name in self._client.list():
            key = key_of(name)
            if name == name_of(key):
                foreign.pop(key, None)  # both are there: the name that is really this key's is the one that counts
            elif key not in keys:
                foreign[key] = name
            keys[key] = None
        self._foreign = foreign
        return list(keys)

    def load(self, key: str) -> Raw:
        """Return the key's value as JSON; `NoFileError` where there is none."""
        return self._client.load(self.name(key), self._passwords.for_view(key), key=key)

    def save(self, key: str, value: Raw) -> None:
        """Make this the key's value."""
        self._client.save(self.name(key), value, self._passwords.for_edit(key), key=key)

    def merge(self, key: str, values: Iterable[Raw]) -> None:
        """Merge each of the values into the key's, in their order: folded into one they could leave something else."""
        for value in values:
            self._client.merge(self.name(key), value, self._passwords.for_edit(key), key=key)

    def delete(self, key: str) -> None:
        """Remove the key; `NoFileError` where there is none."""
        self._client.delete(self.name(key), self._passwords.for_edit(key), key=key)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()
