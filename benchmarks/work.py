"""The work that all sides do: values of 200 bytes that are never written twice, and requests for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

#: Keys that are read and written, in turn.
KEYS: Final = 1000

SYNCED: Final = "on disk when it is answered (SQLite, `synchronous=FULL`)"

_TEXT: Final = "x" * 165


def key_of(number: int) -> str:
    """Return the key of an operation."""
    return f"key {number % KEYS}"


def value_of(number: int) -> dict[str, Any]:
    """Return a value of 200 bytes that no other number has."""
    return {"number": f"{number:012d}", "text": _TEXT}


def json_of(number: int) -> bytes:
    """Return the JSON of the number's value."""
    return json.dumps(value_of(number), separators=(",", ":")).encode()


def load_body(api_key: str, key: str) -> dict[str, Any]:
    """Return the body of a load, as the vendor's client posts it."""
    return {"key": api_key, "file": key, "options": None, "id": "_data", "password": None}


def brief_loads(api_key: str) -> Callable[[int], bytes]:
    """Return what makes the bodies of loads by number, as our client posts them."""
    bodies = [json.dumps({**load_body(api_key, key_of(number)), "brief": True}).encode() for number in range(KEYS)]
    return lambda number: bodies[number % KEYS]


def saves(api_key: str) -> Callable[[int], bytes]:
    """Return what makes the bodies of saves by number."""
    body = b'{"key":"%b","file":"key %d","options":null,"id":"_data","value":%b,"password":null}'
    key = api_key.encode()
    return lambda number: body % (key, number % KEYS, json_of(number))


def saver(store: Any) -> Callable[[int], object]:
    """Return the operation that saves in a dictionary of any kind."""

    def save(number: int) -> None:
        store[key_of(number)] = value_of(number)

    return save


def loader(store: Any) -> Callable[[int], object]:
    """Return the operation that loads from a dictionary in which all keys are made, at once."""
    with getattr(store, "transact", nullcontext)():
        store.update({key_of(number): value_of(number) for number in range(KEYS)})
    return lambda number: store[key_of(number)]
