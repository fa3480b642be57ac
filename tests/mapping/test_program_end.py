"""Stores at the end of a program: threads that outlive the main one, executors, `atexit`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloudstore_mapping.service.service import Service
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.vendor import Vendor, serve_vendor

#: Uses the store from each kind of code that runs at the end of a program, and prints what fails.
PROGRAM = """
import atexit, sys, threading

opened = []

class Stream:
    # Standard error is flushed by Python at the very end.

    def __getattr__(self, name):
        return getattr(sys.__stderr__, name)

    def flush(self):
        if sys.is_finalizing() and not self.has_acted:
            self.has_acted = True
            act("the last flush")

    has_acted = False

sys.stderr = Stream()

def act(tag):
    store = opened[0]
    try:
        store[tag] = 1
        assert store[tag] == 1
        assert tag in list(store) and len(store) > 0
        store.update({tag + "x": 1, tag + "y": 2})
        assert dict(store)[tag + "y"] == dict(store.items())[tag + "y"] == 2
        store.clear()
        assert len(store) == 0
        store["last"] = tag
    except BaseException as error:
        print(tag, repr(error), flush=True)
    else:
        print(tag, flush=True)

atexit.register(act, "before the import")
import cloudstore_mapping as cm
atexit.register(act, "before the opening")
opened.append(cm.open(sys.argv[1]))
if sys.argv[2] == "warm":
    dict(opened[0])
    opened[0].update({"a": 1, "b": 2, "c": 3})
atexit.register(act, "after the opening")

from concurrent.futures import ThreadPoolExecutor, thread

def wait_for_shutdown():
    while not thread._shutdown:
        pass

def outlive():
    threading.main_thread().join()
    act("a thread")

pool = ThreadPoolExecutor(1)
pool.submit(wait_for_shutdown)
pool.submit(act, "a job")
threading.Thread(target=outlive).start()
"""
STAGES = ["a job", "a thread", "after the opening", "before the opening", "before the import", "the last flush"]


@pytest.fixture(params=["memory", "file", "http", "vendor"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Locations of a store in memory, in a file, over HTTP, and on a service without extensions."""
    with ExitStack() as stack:
        if request.param == "memory":
            yield "memory:"
        elif request.param == "file":
            yield str(tmp_path / "store.db")
        elif request.param == "http":
            service = stack.enter_context(Service(new_storage(tmp_path / "service.db")))
            address = stack.enter_context(background(service))
            yield address.replace("://", f"://{service.accounts.create('tests')}@")
        else:
            vendor = stack.enter_context(serve_vendor())
            yield vendor.address.replace("://", f"://{vendor.api_key}@")


#: Leaves a store open that it has read in all ways, in the middle of a loop; `__del__` closes it at last.
LEFT_OPEN = """
import sys
import cloudstore_mapping as cm

class Closing:
    def __init__(self, store):
        self.store = store

    def __del__(self):
        self.store.close()
        sys.stderr.write(f"closed, finalizing: {sys.is_finalizing()}\\n")

closing = Closing(cm.open(sys.argv[1], cache_ttl=60))
store = closing.store
number = int(sys.argv[2])
store.update({str(each): each for each in range(number)})
assert len(dict(store)) == len(list(store.items())) == len([*store.values()]) == number
loop = iter(store.items())
next(loop)
closing.itself = closing
"""


def test_a_store_that_is_left_open(place: str) -> None:
    """A store that is closed at the very end of a program, when Python runs no other threads, waits for none."""
    run = [sys.executable, "-c", LEFT_OPEN, place, "50" if Vendor.api_key in place else "2500"]
    done = subprocess.run(run, timeout=30, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "closed, finalizing: True\n")


@pytest.mark.parametrize("use", ["cold", "warm"])
def test_a_program_s_last_acts(place: str, use: str, tmp_path: Path) -> None:
    """Whatever runs at the end of a program may use an open store, however early it was registered."""
    run = [sys.executable, "-c", PROGRAM, place, use]
    done = subprocess.run(run, timeout=30, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, STAGES, "")
    if place.endswith("store.db"):
        assert [file.name for file in tmp_path.iterdir()] == ["store.db"]
