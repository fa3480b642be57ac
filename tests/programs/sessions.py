"""The sessions of a web shop, objects of classes, which expire: `sessions.py SHELF`."""

import shelve
import sys
from enum import Enum
from typing import Any, Literal


class Role(Enum):
    """What somebody may do."""

    GUEST = 1
    MEMBER = 2


class Cart:
    """What somebody is about to buy."""

    def __init__(self) -> None:
        self.items: list[tuple[str, int]] = []

    def add(self, name: str, amount: int = 1) -> None:
        """Put something in."""
        self.items.append((name, amount))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cart) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]  # it changes


class Session:
    """Somebody at the shop."""

    def __init__(self, user: str, role: Role, expires: int) -> None:
        self.user = user
        self.role = role
        self.expires = expires
        self.cart = Cart()
        self.me = self  # sessions are kept in graphs, and a graph may have a cycle

    def __repr__(self) -> str:
        return f"<{self.user} {self.role.name} {self.cart.items} {self.me is self}>"


class Store:
    """Sessions by their ids, on a shelf."""

    def __init__(self, filename: str, flag: Literal["n", "w", "r"]) -> None:
        self.db: shelve.Shelf[Any] = shelve.open(filename, flag, protocol=4, writeback=flag != "r")  # noqa: SIM115

    def begin(self, number: int, session: Session) -> None:
        """Add a session."""
        self.db[f"session/{number}"] = session

    def purge(self, now: int) -> list[str]:
        """Take out those that have expired."""
        old = [key for key in self.db if self.db[key].expires < now]
        for key in old:
            del self.db[key]
        return sorted(old)

    def close(self) -> None:
        """Write all back."""
        self.db.sync()
        self.db.close()


def main(filename: str) -> None:
    """Live through a few sessions, over two openings."""
    store = Store(filename, "n")
    for number, role in enumerate([Role.GUEST, Role.MEMBER, Role.GUEST]):
        store.begin(number, Session(f"user {number}", role, expires=10 * number))
    store.db["session/1"].cart.add("apples", 3)
    store.close()
    store = Store(filename, "w")
    store.db["session/1"].cart.add("pears")
    print(sorted(store.db), store.purge(now=5), len(store.db), "session/0" in store.db)
    print([session for _, session in sorted(store.db.items())])
    store.close()
    store = Store(filename, "r")
    first = store.db["session/1"]
    print(first, first.cart.items == [("apples", 3), ("pears", 1)], store.db.get("session/0", "gone"))
    store.db.close()
    try:
        store.db["session/1"]
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main(sys.argv[1])
