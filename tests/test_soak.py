"""At work for long, nothing grows: neither what the service holds nor what a program does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.soak import Looks, held_by, of_client, of_service

#: What there is no more of after a minute either; how much memory a heap takes is known only after many.
AT_ONCE = {"descriptors", "threads", "write-ahead log, MiB"}
MORE = AT_ONCE | {"memory, MiB"}


@pytest.mark.slow
def test_a_service_at_half_speed(tmp_path: Path, at_length: bool) -> None:
    """A service under a mix of work holds as much at the end as at the beginning, after half an hour also of memory."""
    looks = of_service(tmp_path, 30 if at_length else 0.4)
    assert looks.operations[-1] > 0
    assert not set(looks.grew()) & (MORE if at_length else AT_ONCE)


@pytest.mark.slow
def test_a_programs_operations(tmp_path: Path, at_length: bool) -> None:
    """A program holds as much after a million operations as after some thousand."""
    looks = of_client(tmp_path, 1_000_000 if at_length else 100_000)
    assert not set(looks.grew()) & (MORE if at_length else AT_ONCE)


@pytest.mark.parametrize(
    ("amounts", "grows"),
    [
        ([50.0] * 120, False),
        ([10.0] * 30 + [50.0] * 90, False),
        ([50 + number / 100 for number in range(120)], False),
        ([50 + number / 10 for number in range(120)], True),
        ([50.0, 60.0] * 60, False),
    ],
)
def test_what_growth_is(amounts: list[float], grows: bool) -> None:
    """What fills up at the beginning or goes to and fro doesn't grow; what rises all the time does."""
    looks = Looks("a program")
    for number, amount in enumerate(amounts):
        looks.add(number, number, {"memory, MiB": amount})
    assert looks.grew() == (["memory, MiB"] if grows else [])


def test_what_a_process_holds(tmp_path: Path) -> None:
    """A look sees the memory, the open files, the threads and the log of a store."""
    before = held_by(os.getpid())
    (tmp_path / "store.db-wal").write_bytes(bytes(2**20))
    with (tmp_path / "store.db-wal").open("rb"):
        held = held_by(os.getpid(), tmp_path / "store.db")
    assert held["descriptors"] == before["descriptors"] + 1
    assert held["threads"] >= 1
    assert held["memory, MiB"] > 1
    assert held["write-ahead log, MiB"] == 1
