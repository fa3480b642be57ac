"""`python -m benchmarks.timing`: whether the time of a refusal tells anything of the key, the password or the user."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from cloudstore_mapping.errors import LockedError
from cloudstore_mapping.service.accounts import new_key
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.wire import Request, encode_value

TRIES: Final = 10_000
#: Welch's t past which two series are said to differ, as is usual for leaks of time.
THRESHOLD: Final = 4.5
# The slowest tenth is left out: there the rest of the machine is seen, and not what was tried.
_KEPT: Final = 0.9


@dataclass
class Kind:
    """Tries of two sorts, in an order drawn by lot; each sort makes a new try by its number."""

    name: str
    sorts: tuple[Callable[[str], object], Callable[[str], object]]
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def measure(self, tries: int) -> None:
        """Time so many tries in all."""
        numbers = count()
        for _ in range(tries):
            which = random.getrandbits(1)
            number = f"{next(numbers):06}"
            began = time.perf_counter()
            self.sorts[which](number)
            self.seconds[which].append(time.perf_counter() - began)

    def line(self) -> str:
        """Return what came of it: the medians, their ratio, and Welch's t."""
        one, other = (sorted(each)[: max(2, round(len(each) * _KEPT))] for each in self.seconds)
        error = (statistics.variance(one) / len(one) + statistics.variance(other) / len(other)) ** 0.5
        t = (statistics.fmean(one) - statistics.fmean(other)) / error
        first, second = statistics.median(one), statistics.median(other)
        verdict = "no difference seen" if abs(t) < THRESHOLD else "**they differ**"
        return (
            f"| {self.name} | {sum(map(len, self.seconds)):,} | {first * 1e6:,.1f} | {second * 1e6:,.1f} "
            f"| {first / second:.3f} | {t:+.2f} | {verdict} |"
        )


def kinds(service: Service) -> list[Kind]:
    """Return what is tried: each sort is refused, and only what it was near to, or whether there is such, differs."""
    key, other = service.accounts.create("owner"), new_key()
    service.accounts.create("nobody")  # who has no password, and can't sign in
    service.owners.reset_password("owner")
    for name in ("one", "two"):
        service.handle(Request(api_key=key, name=name, value=encode_value(1)))
    service.set_passwords("owner", "one", view="the right password 000000")

    def load(api_key: str, password: str | None, number: str) -> object:
        return service.handle(Request(api_key=api_key, name="one", password=password), address=number)

    def sign_in(name: str, number: str) -> None:
        try:
            service.owners.sign_in(name, f"wrong {number}", number)
        except LockedError:
            return
        raise AssertionError("A wrong password was right.")

    return [
        Kind(
            "API key: 26 of its 32 characters right, or none",
            (
                lambda number: load(key[:26] + number, None, number),
                lambda number: load(other[:26] + number, None, number),
            ),
        ),
        Kind(
            "password of a file: 19 of its 25 characters right, or none",
            (
                lambda number: load(key, f"the right password {number}x", number),
                lambda number: load(key, f"so wrong in all of it{number}", number),
            ),
        ),
        Kind(
            "sign-in: a user that there is, or none",
            (lambda number: sign_in("owner", number), lambda number: sign_in("nosuch", number)),
        ),
        Kind(
            "sign-in: a user without a password, or none",
            (lambda number: sign_in("nobody", number), lambda number: sign_in("nosuch", number)),
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timing", description=__doc__)
    parser.add_argument("--tries", type=int, default=TRIES, help="tries of each kind, half of each sort")
    tries: int = parser.parse_args(arguments).tries
    print("| refused | tries | median, one sort (µs) | the other (µs) | ratio | Welch's t | |")
    print("|---|---|---|---|---|---|---|")
    with Service(SQLiteStorage(None), Settings(key_tries=10**9)) as service:
        for kind in kinds(service):
            kind.measure(tries)
            print(kind.line(), flush=True)


if __name__ == "__main__":
    main()
