"""Stores with many names in them, made without a service's way for each."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.work import json_of
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.sql import Transaction

ACCOUNT: Final = "bench"

_AT_ONCE: Final = 20_000


def filled(store: Path | str, names: int) -> str:
    """Make a store with so many names, `name_of` each, and return its API key."""
    with place_of(str(store)).open() as storage, Service(storage) as service:
        api_key = service.accounts.create(ACCOUNT)
        account = service.accounts.named(ACCOUNT)
        for begin in range(0, names, _AT_ONCE):

            def put(transaction: Transaction, begin: int = begin) -> None:
                for number in range(begin, min(begin + _AT_ONCE, names)):
                    transaction.put(account.id, name_of(number), json_of(number), 0.0)

            storage.submit(put).result()
    return api_key


def name_of(number: int) -> str:
    """Return the name with this number, whose order is that of the numbers."""
    return f"name {number:09d}"
