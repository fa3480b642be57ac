"""A program that does something of each kind with an embedded store, and remembers what is there after each step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import cloudstore_mapping as cm

#: Values from a few bytes to some pages.
SIZES: Final = (1, 200, 3000, 30_000)
KEYS: Final = tuple(f"key {number}" for number in range(12))
MEDIA: Final = 3

Contents = dict[str, Any]


def contents(store: cm.CloudStoreMapping[Any]) -> Contents:
    """Return all that a store holds: its values, and its media files by ``media/`` and their names."""
    media = {f"media/{each.name}": store.download(each.url) for each in store.media_files()}
    return {**store, **media}


def states(count: int, seed: int) -> list[Contents]:
    """Return what a store holds at first and after each of the steps, of which nothing goes wrong in memory."""
    with cm.open("memory:") as store:
        found = [contents(store)]
        for step in steps(store, count, seed):
            step()
            found.append(contents(store))
    return found


def steps(store: cm.CloudStoreMapping[Any], count: int, seed: int) -> Iterator[Callable[[], object]]:
    """Yield what to do next: saves, merges, deletes, batches, transforms and uploads of all sizes."""
    dice = random.Random(seed)
    len(store)  # with the first answer it learns that there are batches, which are done as one

    def value() -> dict[str, Any]:
        return {"step": dice.random(), "text": dice.choice("abcdef") * dice.choice(SIZES)}

    def keys(count: int) -> list[str]:
        return dice.sample(KEYS, count)

    def key() -> str:
        return keys(1)[0]

    def transform(key: str, new: dict[str, Any]) -> object:
        return store.transform(key, lambda old: {**old, **new}, default={})

    def delete_many(keys: list[str]) -> None:
        store.delete_many([key for key in keys if key in store])

    for _ in range(count):
        match dice.choice(("save", "save", "merge", "merge", "transform", "delete", "batch", "deletes", "upload")):
            case "save":
                yield partial(store.__setitem__, key(), value())
            case "merge":
                yield partial(store.merge, key(), value())
            case "transform":
                yield partial(transform, key(), value())
            case "delete":
                yield partial(store.discard, key())
            case "batch":
                yield partial(store.update, {key: value() for key in keys(4)})
            case "deletes":
                yield partial(delete_many, keys(2))
            case "upload":
                data = dice.randbytes(dice.choice((1000, 100_000)))
                yield partial(store.upload, data, f"{dice.randrange(MEDIA)}.bin")
