"""Scraper that fetches each page once: `scraper.py SHELF PAGE…`, where a page may refer to others, or be gone."""

import shelve
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

PAGES = {"/": "<a href=/é?x=1>", "/é?x=1": "<a href=/><b>é</b>\0", "/old": None}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Page:
    """A page that was fetched."""

    body: bytes
    at: datetime
    links: set[str] = field(default_factory=set)


def fetch(address: str, db: shelve.Shelf[Any]) -> None:
    """Fetch a page unless it was fetched before, and count it."""
    if isinstance(db.get(address), Page):
        print("has", address, sorted(db[address].links))
    elif (body := PAGES.get(address)) is None:
        print("gone", address, type(db.setdefault(address, LookupError(address))).__name__)
    else:
        links = {part.partition(">")[0] for part in body.split("href=")[1:]}
        db[address] = Page(body.encode("utf-16"), NOW + timedelta(days=len(db)), links)
        print("fetched", address)
    counts = db.get("counts", {})
    counts[address] = counts.get(address, 0) + 1
    db["counts"] = counts


def main(filename: str, *addresses: str) -> None:
    """Fetch pages."""
    with shelve.open(filename) as db:
        for address in addresses:
            fetch(address, db)
        print(sorted(db))


if __name__ == "__main__":
    main(*sys.argv[1:])
