"""The traces in `docs/architecture.md` are what the client does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.service import Service
from tests.support.tracing import shown, trace

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MOST_FILES = 12
MOST_FUNCTIONS = 60

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


def test_every_file_is_described() -> None:
    """The page names each file of the client with its subject."""
    files = {path.name for path in (ROOT / "cloudstore_mapping" / "client").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)` \| ", PAGE, re.MULTILINE)) == files
