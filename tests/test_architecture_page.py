"""The traces in `docs/architecture.md` are what the client does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service import dispatcher, merging, security
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web import api, downloads, metrics, uploads
from cloudstore_mapping.web.admin import routes
from cloudstore_mapping.web.server import background
from tests.support.tracing import files_entered, shown, trace

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MOST_FILES = 12
MOST_FUNCTIONS = 60
#: Files that a save enters, client and service together.
MOST_FILES_OF_A_SAVE = 20

Store = cm.CloudStoreMapping[Any]


def save(store: Store) -> None:
    """Save a value."""
    store["k"] = {"Apples": 8}


def load(store: Store) -> None:
    """Load a value."""
    store["k"]


def merge(store: Store) -> None:
    """Merge a value."""
    store |= {"k": {"Apples": 10}}


def delete(store: Store) -> None:
    """Delete an absent key."""
    del store["missing"]


OPERATIONS: dict[str, Callable[[Store], None]] = {
    "store[k] = v": save,
    "store[k]": load,
    "store |= m": merge,
    "del store[missing]": delete,
}


@pytest.fixture
def warm(request: pytest.FixtureRequest, http_service: tuple[Service, str]) -> Iterator[Store]:
    """Return a store over HTTP that has already sent requests."""
    service, address = http_service
    key = service.accounts.create(request.node.name)
    with cm.open(address.replace("://", f"://{key}@")) as store:
        for _ in range(2):
            store["k"] = {"Apples": 1}
            store["k"]
        yield store


@pytest.mark.parametrize("operation", OPERATIONS)
def test_figures(operation: str, warm: Store) -> None:
    """An operation over HTTP enters the files, functions and depth in the table, which are few."""
    row = re.search(rf"^\| `{re.escape(operation)}` \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert row is not None
    steps = trace(lambda: OPERATIONS[operation](warm))
    files = len({step.file for step in steps})
    functions = len({step[1:] for step in steps})
    assert (files, functions, max(step.depth for step in steps)) == tuple(map(int, row.groups()))
    assert files <= MOST_FILES
    assert functions <= MOST_FUNCTIONS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_trace(operation: str, warm: Store) -> None:
    """The page has the trace of each operation."""
    block = re.search(rf"^### `{re.escape(operation)}`\n\n```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert shown(trace(lambda: OPERATIONS[operation](warm))) == block[1]


def files_on_page(title: str) -> list[str]:
    """Return the files of a section's numbered list."""
    section = re.search(rf"^### {re.escape(title)}$(.*?)^##", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    return re.findall(r"^\d+\. `([\w/]+\.py)`: ", section[1], re.MULTILINE)


def save_twice(store: Store) -> None:
    """Save twice: once the second save is answered, the service has also counted and logged the first one."""
    save(store)
    save(store)


def check_files_of_a_save(found: set[str], title: str) -> None:
    """Compare the files that a save has entered with a section of the page."""
    described = files_on_page(title)
    assert found == set(described)
    assert len(described) == len(found) <= MOST_FILES_OF_A_SAVE


def test_files_of_a_save_in_a_file(tmp_path: Path) -> None:
    """The page lists the files that a save in a file enters, at most 20."""
    with files_entered() as entered, cm.open(tmp_path / "store.db") as store:
        save_twice(store)
        check_files_of_a_save(entered.record(lambda: save_twice(store)), "Files of a save in a file")


def test_files_of_a_save_over_http(tmp_path: Path) -> None:
    """The page lists the files that a save over HTTP enters in the client and in the service, at most 20 together."""
    with (
        files_entered() as entered,
        Service(SQLiteStorage(tmp_path / "service.db")) as service,
        background(service) as address,
    ):
        key = service.accounts.create("owner")
        with cm.open(address.replace("://", f"://{key}@")) as store:
            save_twice(store)
            check_files_of_a_save(entered.record(lambda: save_twice(store)), "Files of a save over HTTP")


def test_every_file_is_described() -> None:
    """The page names each file of the client with its subject."""
    files = {path.name for path in (ROOT / "cloudstore_mapping" / "client").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)` \| ", PAGE, re.MULTILINE)) == files


#: Bounds of queues and threads, as the page gives them.
BOUNDS: dict[str, tuple[int, ...]] = {
    "cloudstore-scan": (dispatcher.SCAN_THREADS, dispatcher.SCANS_WAITING, dispatcher.SCANS_WAITING_OF_ONE),
    "cloudstore-read": (dispatcher.READ_THREADS, dispatcher.READS_WAITING, dispatcher.READS_WAITING_OF_ONE),
    "cloudstore-hashing": (security.QUEUE_PER_THREAD,),
    "cloudstore-merge": (merging.MAX_PROCESSES, merging.MAX_WAITING, merging.MAX_WAITING_OF_ONE),
    "cloudstore-decode": (api.DECODERS, api.STRANGERS_DECODERS, api.DECODES_WAITING, api.STRANGERS_DECODES_WAITING),
    "cloudstore-uploads": (uploads.AT_ONCE, uploads.OF_ONE, uploads.WAITING),
    "cloudstore-spool": (uploads.SPOOLS_AT_ONCE,),
    "cloudstore-download": (downloads.AT_ONCE, downloads.WAITING),
    "cloudstore-pages": (
        routes.PAGES_AT_ONCE,
        routes.CHANGES_AT_ONCE,
        routes.SIGN_INS_AT_ONCE,
        routes.OF_ONE,
        routes.WAITING,
    ),
    "cloudstore-metrics": (metrics.WAITING,),
}


@pytest.mark.parametrize("thread", BOUNDS)
def test_bounds_of_threads(thread: str) -> None:
    """The page gives the number of each kind of thread, and of the requests that wait for it."""
    row = re.search(rf"^\| `{thread}`[^|]*\|.*$", PAGE, re.MULTILINE)
    assert row is not None
    for bound in BOUNDS[thread]:
        assert re.search(rf"\b{bound:,}\b", row[0]), bound


def test_every_thread_is_described() -> None:
    """The page names each thread that a service starts."""
    package = ROOT / "cloudstore_mapping"
    sources = [*(package / "service").rglob("*.py"), *(package / "web").rglob("*.py")]
    names = {name for source in sources for name in re.findall(r'"(cloudstore-[a-z-]+)"', source.read_text("utf-8"))}
    described = set(re.findall(r"`(cloudstore-[a-z-]+)`", PAGE)) | {"cloudstore-changes", "cloudstore-sign-ins"}
    assert names - {"cloudstore-worker", "cloudstore-parent", "cloudstore-server", "cloudstore-upload-"} <= described
