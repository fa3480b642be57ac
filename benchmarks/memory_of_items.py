"""How much memory an iteration over all items takes, for stores of 1,000 to 100,000 keys over HTTP."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import cloudstore_mapping as cm
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web.server import background

SIZES = (1_000, 10_000, 100_000)
VALUE_BYTES = 1_000


def peak_of_items(store: cm.CloudStoreMapping[object]) -> tuple[int, int]:
    """Return how many items an iteration gives, and the most bytes that Python holds for it beyond the keys."""
    keys = sum(sys.getsizeof(key) + 8 for key in store)
    tracemalloc.start()
    count = sum(1 for _ in store.items())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return count, peak - keys


def main() -> None:
    """Print a line for each size."""
    print(f"{'keys':>8} {'values, MiB':>12} {'peak beyond the keys, MiB':>26}")
    with (
        TemporaryDirectory() as folder,
        Service(SQLiteStorage(Path(folder) / "service.db")) as service,
        background(service) as address,
    ):
        for size in SIZES:
            location = address.replace("://", f"://{service.accounts.create(f'size {size}')}@")
            with cm.open(location, timeout=(5, 300)) as store:
                store.update({f"key {number}": {"text": "x" * VALUE_BYTES} for number in range(size)})
                count, peak = peak_of_items(store)
            print(f"{count:>8,} {size * VALUE_BYTES / 2**20:>12.1f} {peak / 2**20:>26.1f}")


if __name__ == "__main__":
    main()
