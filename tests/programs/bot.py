"""Chat bot that remembers people, and forgets to close its shelf: `bot.py SHELF NAME MESSAGE…`."""

import atexit
import shelve
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime

db: "shelve.Shelf[object]"


def people() -> "defaultdict[str, Counter[str]]":
    """Return the words that people used."""
    return db["people"]  # type: ignore[return-value]  # stored by this program


def main(filename: str, name: str, *messages: str) -> None:
    """Count words, and answer."""
    global db
    db = shelve.open(filename, flag="c", writeback=True)  # noqa: SIM115 - closed at the end of the program
    atexit.register(db.close)
    db.setdefault("people", defaultdict(Counter))
    db.setdefault("began", datetime(2026, 1, 1, tzinfo=UTC))
    for message in messages:
        people()[name].update(message.split())
    print(name, people()[name].most_common(2), db["began"], sorted(people()))
    if name == "nobody":
        raise LookupError(name)
    if name == "quit":
        sys.exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
