"""
How evenly accounts can be spread over shards at a billion files, and how much moves when a shard is added.

An account is never divided: its id leads every key, so all that is its lies together.
"""

from __future__ import annotations

import math
import operator
import random
from bisect import bisect, bisect_left
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple, TypeAlias

FILES: Final = 10**9
ACCOUNTS: Final = 10**6
SHARDS: Final = 64
#: Points of each shard on the ring of consistent hashing.
POINTS: Final = 128
#: How much more than the mean a shard may hold, and what is not worth moving.
SLACK: Final = 0.05

#: The shard of each account.
Placement: TypeAlias = list[int]


def log_normal(accounts: int, sigma: float) -> list[float]:
    """Return how much each account has, the largest first, where the logarithms are spread normally."""
    spread = NormalDist(sigma=sigma)
    return [math.exp(spread.inv_cdf(1 - (rank + 0.5) / accounts)) for rank in range(accounts)]


def zipf(accounts: int, exponent: float) -> list[float]:
    """Return how much each account has, where the n-th largest has n to the power of -`exponent` of the largest."""
    return [rank**-exponent for rank in range(1, accounts + 1)]


#: How differently large accounts are.
SKEWS: Final[dict[str, Callable[[int], list[float]]]] = {
    "log-normal, sigma 2": lambda accounts: log_normal(accounts, 2.0),
    "Zipf, exponent 0.8": lambda accounts: zipf(accounts, 0.8),
    "Zipf, exponent 1": lambda accounts: zipf(accounts, 1.0),
}


class Accounts:
    """Accounts with their sizes in files, the largest first, and the hashes of their ids, from 0 to 1."""

    def __init__(self, sizes: Sequence[float], files: int) -> None:
        factor = files / math.fsum(sizes)
        self.sizes = [size * factor for size in sizes]
        self.hashes = _hashes("ids of accounts", len(sizes))

    def loads(self, placement: Placement, shards: int) -> list[float]:
        """Return how many files are on each shard."""
        loads = [0.0] * shards
        for size, shard in zip(self.sizes, placement, strict=True):
            loads[shard] += size
        return loads


def _hashes(of: str, count: int) -> list[float]:
    dice = random.Random(of)
    return [dice.random() for _ in range(count)]


def modulo(accounts: Accounts, shards: int, _before: Placement) -> Placement:
    """Place each account by its hash modulo the number of shards."""
    return [int(hash_ * 2**53) % shards for hash_ in accounts.hashes]


def ring(accounts: Accounts, shards: int, _before: Placement) -> Placement:
    """Place each account on the shard of the next point on a ring, on which each shard has many."""
    points, owners = _ring(shards)
    return [owners[bisect(points, hash_) % len(owners)] for hash_ in accounts.hashes]


def _ring(shards: int) -> tuple[list[float], list[int]]:
    # A shard's points are the same however many others there are.
    found = sorted((point, shard) for shard in range(shards) for point in _hashes(f"shard {shard}", POINTS))
    return [point for point, _ in found], [shard for _, shard in found]


def bounded(accounts: Accounts, shards: int, _before: Placement) -> Placement:
    """Place each as on the ring, but past shards that would then hold too much."""
    points, owners = _ring(shards)
    most = (1 + SLACK) * math.fsum(accounts.sizes) / shards
    loads = [0.0] * shards
    placement = []
    for size, hash_ in zip(accounts.sizes, accounts.hashes, strict=True):
        start = bisect(points, hash_)
        passed = (owners[(start + step) % len(owners)] for step in range(len(owners)))
        shard = next(shard for shard in passed if loads[shard] + size <= most or loads[shard] == 0)
        loads[shard] += size
        placement.append(shard)
    return placement


def moved(accounts: Accounts, shards: int, before: Placement) -> Placement:
    """Leave accounts where they are, at first on the ring, and move the largest that make shards more even."""
    placement = list(before or ring(accounts, shards, before))
    sizes = accounts.sizes
    loads = accounts.loads(placement, shards)
    slack = SLACK * math.fsum(sizes) / shards
    held: list[list[int]] = [[] for _ in range(shards)]  # the largest first, as the accounts are
    for account, shard in enumerate(placement):
        held[shard].append(account)
    while True:
        able = [shard for shard in range(shards) if held[shard] and loads[shard] - sizes[held[shard][0]] > slack]
        fullest = max(able, key=loads.__getitem__)
        emptiest = min(range(shards), key=loads.__getitem__)
        gap = loads[fullest] - loads[emptiest]
        if gap <= slack:
            return placement
        which = bisect_left(held[fullest], -gap / 2, key=lambda account: -sizes[account])
        account = held[fullest].pop(which)
        placement[account] = emptiest
        held[emptiest].insert(bisect_left(held[emptiest], account), account)
        loads[fullest] -= sizes[account]
        loads[emptiest] += sizes[account]


#: How accounts are placed on so many shards, given where they were on fewer, or nothing.
WAYS: Final[dict[str, Callable[[Accounts, int, Placement], Placement]]] = {
    "hash modulo": modulo,
    "consistent hashing": ring,
    "the same, bounded": bounded,
    "the largest moved": moved,
}
#: The ways of which a directory has to say where accounts are that aren't where the ring has them.
WITH_DIRECTORY: Final = ("the same, bounded", "the largest moved")


class Row(NamedTuple):
    """
    What came of a way to place accounts.

    `fullest` is the largest shard over the mean; shares of all accounts are those which a directory has to name, and
    those which were moved to make use of one more shard; of all files those which were moved with them.
    """

    way: str
    fullest: float
    named: float
    moved_accounts: float
    moved_files: float


def rows(accounts: Accounts, shards: int) -> Iterator[Row]:
    """Yield what comes of each way: first on so many shards, then on one more."""
    count = len(accounts.sizes)
    mean = math.fsum(accounts.sizes) / shards
    on_ring = ring(accounts, shards, [])
    for name, way in WAYS.items():
        before = way(accounts, shards, [])
        after = way(accounts, shards + 1, before)
        moves = [number for number, shard in enumerate(before) if after[number] != shard]
        files = math.fsum(accounts.sizes[number] for number in moves)
        named = sum(map(operator.ne, before, on_ring)) if name in WITH_DIRECTORY else 0
        fullest = max(accounts.loads(before, shards)) / mean
        yield Row(name, fullest, named / count, len(moves) / count, files / (mean * shards))


def table(accounts: int, files: int, shards: int) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield "| sizes of accounts | largest one | placed by | fullest shard | directory | accounts moved | files moved |"
    yield "|---|---|---|---|---|---|---|"
    for name, skew in SKEWS.items():
        made = Accounts(skew(accounts), files)
        largest = made.sizes[0] * shards / files
        for row in rows(made, shards):
            named = f"{row.named:.2%}" if row.way in WITH_DIRECTORY else "none"
            shares = f"{named} | {row.moved_accounts:.2%} | {row.moved_files:.1%}"
            yield f"| {name} | {largest:.2f} | {row.way} | {row.fullest:.2f} | {shares} |"


if __name__ == "__main__":
    for line in table(ACCOUNTS, FILES, SHARDS):
        print(line)
