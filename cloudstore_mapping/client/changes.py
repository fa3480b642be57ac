"""Writes that are made together with others: requests that say which file each of them changes, and how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.client.names import Names
from cloudstore_mapping.client.passwords import Passwords
from cloudstore_mapping.wire import Request


class Change(NamedTuple):
    """A write that is one of many: the key, and the request that does it."""

    key: str
    request: Request


class Changes:
    """Makes changes of files by key without the `prefix` of a view; `BadNameError` for a lone surrogate in a key."""

    def __init__(self, names: Names, passwords: Passwords, prefix: str) -> None:
        self._names = names
        self._passwords = passwords
        self._prefix = prefix

    def saving(self, pairs: Sequence[tuple[str, Raw]], if_version: UnsetType | None = UNSET) -> list[Change]:
        """Return the changes that make these the keys' values; with `if_version` of None only where there are none."""
        return self._made(None, pairs, if_version)

    def merging(self, pairs: Sequence[tuple[str, Raw]]) -> list[Change]:
        """Return the changes that merge the values into the keys'."""
        return self._made("merge", pairs)

    def deleting(self, keys: Iterable[str]) -> list[Change]:
        """Return the changes that remove the keys."""
        return self._made("delete", [(key, UNSET) for key in keys])

    def _made(
        self,
        options: Literal["merge", "delete"] | None,
        pairs: Sequence[tuple[str, Raw | UnsetType]],
        if_version: UnsetType | None = UNSET,
    ) -> list[Change]:
        names = self._names.of_all([key for key, _ in pairs])
        password = self._passwords.for_edit
        return [
            Change(
                key,
                Request(
                    name=name,
                    options=options,
                    value=value,
                    password=password(self._prefix + key),
                    if_version=if_version,
                ),
            )
            for (key, value), name in zip(pairs, names, strict=True)
        ]
