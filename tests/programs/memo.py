"""Functions whose results outlast the program: `memo.py SHELF`, which says what it had to work out."""

import functools
import shelve
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any


def remembered(db: shelve.Shelf[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that looks results up before it works them out."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Any:
            key = f"{function.__name__}{arguments!r}"
            if key not in db:
                print("works out", key)
                db[key] = function(*arguments)
            return db[key]

        return wrapper

    return decorate


def main(filename: str) -> None:
    """Ask some functions twice."""
    with shelve.open(filename) as db:

        @remembered(db)
        def factors(number: int) -> tuple[int, ...]:
            return tuple(n for n in range(1, number + 1) if number % n == 0)

        @remembered(db)
        def letters(text: str) -> frozenset[str]:
            return frozenset(text)

        @remembered(db)
        def week(start: date) -> list[date]:
            return [start + timedelta(days) for days in range(7)]

        @remembered(db)
        def share(total: str, people: int) -> dict[int, Decimal]:
            return dict.fromkeys(range(people), Decimal(total) / people)

        @remembered(db)
        def nothing(of: object) -> None:
            return None

        for _ in range(2):
            print(factors(60), sorted(letters("shelf, of/a %2F kind")), week(date(2024, 2, 26))[3])
            print(share("10.00", 3), nothing(datetime(2024, 1, 1, tzinfo=UTC)), nothing((1, {2}, b"3")))
        print(len(db), sorted(type(value).__name__ for value in db.values()))


if __name__ == "__main__":
    main(sys.argv[1])
