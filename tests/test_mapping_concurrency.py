"""Many threads and programs on one store lose nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.locations import open as open_store
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.serve import background
from tests.mapping_fixtures import MakeStore
from tests.storages import new_storage

TIMES = 1000

PROGRAM = f"""
import sys
import cloudstore_mapping as cm
location, mine = sys.argv[1:]
with cm.open(location) as store:
    for number in range({TIMES}):
        store.merge("shared", {{mine: {{str(number): number}}, "last": mine}})
"""


def everything(*writers: str) -> dict[str, Any]:
    """Return what is there after each of the writers has merged `TIMES` times."""
    return {writer: {str(number): number for number in range(TIMES)} for writer in writers}


def together(*acts: Callable[[], object]) -> None:
    """Run the acts at once, each in a thread, and raise what any of them raises."""
    errors: list[BaseException] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_two_threads_merging_into_one_key(make_store: MakeStore) -> None:
    """Two threads that merge 1,000 times each into one key lose nothing."""
    store = make_store()

    def merge(mine: str) -> None:
        for number in range(TIMES):
            store.merge("shared", {mine: {str(number): number}})

    together(lambda: merge("a"), lambda: merge("b"))
    assert store["shared"] == everything("a", "b")


def run_programs(location: str) -> None:
    """Run two programs that merge into one key of the store at `location`, at once."""
    programs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, location, mine], stderr=subprocess.PIPE, text=True)
        for mine in ("a", "b")
    ]
    for program in programs:
        _, complaint = program.communicate()
        assert (program.returncode, complaint) == (0, "")


def check(store: CloudStoreMapping[Any]) -> None:
    """Check that the programs have lost nothing."""
    with store:
        shared = store["shared"]
        assert shared.pop("last") in ("a", "b")
        assert shared == everything("a", "b")


def test_two_processes_over_http(tmp_path: Path) -> None:
    """Two programs that merge 1,000 times each into one key of a service lose nothing."""
    with Service(new_storage(tmp_path / "s.db")) as service, background(service) as address:
        location = address.replace("://", f"://{service.accounts.create('tests')}@")
        run_programs(location)
        check(open_store(location))


def test_two_processes_on_one_file(tmp_path: Path) -> None:
    """Two programs that merge 1,000 times each into one key of a file lose nothing."""
    location = str(tmp_path / "store.db")
    run_programs(location)
    check(open_store(location))


def test_many_threads_saving(make_store: MakeStore) -> None:
    """Threads that share a store don't get in each other's way."""
    store = make_store()

    def work(mine: int) -> None:
        for number in range(50):
            store[f"{mine}/{number}"] = {"mine": mine, "number": number}
            assert store[f"{mine}/{number}"] == {"mine": mine, "number": number}

    together(*(lambda mine=mine: work(mine) for mine in range(8)))
    assert len(store) == 8 * 50
