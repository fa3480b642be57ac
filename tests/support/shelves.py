"""What tests of shelves look at inside."""

from __future__ import annotations

from typing import Any


def store_of(shelf: Any) -> Any:
    """Return the store, or the view of one, that a shelf keeps its values in."""
    return vars(shelf)["_StoreShelf__store"]


def opened_by(shelf: Any) -> Any:
    """Return the store that a shelf has opened."""
    return vars(shelf)["_StoreShelf__opened"]
