"""A mapping that keeps the contract, and twelve that break it in one way each."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Self

from cloudstore_mapping.merge import merge


class Sound(MutableMapping[str, Any]):
    """Keeps JSON text under text, and merges with ``|=``."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.is_failing = False

    def __getitem__(self, key: str) -> Any:
        if self.is_failing:
            raise OSError("The disk can't be read.")
        return json.loads(self.texts[key])

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError("Keys are text.")
        self.texts[key] = json.dumps(value)

    def __delitem__(self, key: str) -> None:
        del self.texts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    def __ior__(self, other: Mapping[str, Any]) -> Self:
        merged = {key: merge(self[key], value) if key in self else value for key, value in other.items()}
        self.update(merged)
        return self

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Fail to read within the block."""
        self.is_failing = True
        try:
            yield
        finally:
            self.is_failing = False


class LosesEmptyObjects(Sound):
    """Takes an empty object for nothing."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if value == {}:
            del self[key]


class GetSwallowsErrors(Sound):
    """Takes whatever goes wrong for an absent key."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or the default."""
        hash(key)
        try:
            return self[key]
        except Exception:  # noqa: BLE001 - this is the fault
            return default


class SplitsKeysAtCommas(Sound):
    """Lists names as a text that is joined by commas."""

    def __iter__(self) -> Iterator[str]:
        return iter(",".join(self.texts).split(",") if self.texts else [])


class NormalisesUnicode(Sound):
    """Takes one way of writing a letter for another."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(unicodedata.normalize("NFC", key) if isinstance(key, str) else key, value)


class NumbersAreText(Sound):
    """Takes 1 for "1"."""

    def __getitem__(self, key: Any) -> Any:
        hash(key)
        return super().__getitem__(str(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        hash(key)
        super().__setitem__(str(key), value)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(str(key))


class Cached(Sound):
    """Keeps the text that was read last under a key."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        value = json.loads(self.kept[key]) if key in self.kept else super().__getitem__(key)
        self.kept[key] = json.dumps(value)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.written(key)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.deleted(key)

    def written(self, key: str) -> None:
        """Forget a key that was written."""
        self.kept.pop(key, None)

    def deleted(self, key: str) -> None:
        """Forget a key that was deleted."""
        self.kept.pop(key, None)


class StaleAfterOverwrite(Cached):
    """Goes on to give the value of before."""

    def written(self, key: str) -> None:
        """Do nothing: this is the fault."""


class StaleAfterDelete(Cached):
    """Goes on to give a value that is gone."""

    def deleted(self, key: str) -> None:
        """Do nothing: this is the fault."""


class AliasesOut(Sound):
    """Gives the same object at each read, until the key is written."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return self.given.setdefault(key, value)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.given.pop(key, None)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.given.pop(key, None)


class AliasesIn(Sound):
    """Keeps the object that it was given, and writes it down when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key in self.taken:
            super().__setitem__(key, self.taken[key])
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.taken[key] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.taken.pop(key, None)


class PopitemLeavesTheItem(Sound):
    """Gives an item, but keeps it; `clear`, which a `MutableMapping` does by it, is a right one."""

    def clear(self) -> None:
        """Delete everything."""
        self.texts.clear()

    def popitem(self) -> tuple[str, Any]:
        """Return an item."""
        for key in self:
            return key, self[key]
        raise KeyError("empty")


class OrReplaces(Sound):
    """Replaces where it should merge."""

    def __ior__(self, other: Mapping[str, Any]) -> Self:
        self.update(other)
        return self


class CountsOverwrittenTwice(Sound):
    """Counts writes, where it should count keys."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.count += 1

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.count -= 1

    def __len__(self) -> int:
        return self.count


BROKEN: list[type[Sound]] = [
    LosesEmptyObjects,
    GetSwallowsErrors,
    SplitsKeysAtCommas,
    NormalisesUnicode,
    NumbersAreText,
    StaleAfterOverwrite,
    StaleAfterDelete,
    AliasesOut,
    AliasesIn,
    PopitemLeavesTheItem,
    OrReplaces,
    CountsOverwrittenTwice,
]
