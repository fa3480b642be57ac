"""One owner's heavy work over a real socket: others are answered meanwhile, and the service ends in time."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudstore_mapping.service.merging import MergePool, MergeProcess
from cloudstore_mapping.service.operations import MAX_INLINE_MERGE
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.web import server
from tests.raw_http import Answer, Connection, body
from tests.service_fakes import PATIENCE
from tests.storages import new_storage

#: A value that is too large to be merged in the writer.
LARGE = {"text": "x" * MAX_INLINE_MERGE}

#: Serves a store, and takes no writes that have not begun when a signal ends it.
ENDING = """
import sys
from cloudstore_mapping.web import server
server.LAST_WRITES = 0
sys.argv[:1] = ["cloudstore"]
from cloudstore_mapping.__main__ import main
main()
"""


class GatedMerge(MergeProcess):
    """Merges once it may."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def merge(self, stored: bytes, value: bytes) -> bytes:
        """Return what is to be merged in."""
        self.begun.set()
        assert self.go.wait(PATIENCE)
        return value

    def kill(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def service(tmp_path: Path, no_threads_left: None) -> Iterator[Service]:
    """Return a service on a disk."""
    with Service(new_storage(tmp_path / "store.db")) as service:
        yield service


def post(connection: Connection, path: str, key: str, name: str = "", **fields: Any) -> Answer:
    """Return the answer to a request."""
    connection.post(path, body(name, key=key, **fields))
    return connection.answer()


def batch(key: str, *requests: dict[str, Any], **fields: Any) -> bytes:
    """Return the body of a batch."""
    return json.dumps({"key": key, "requests": [{"id": "_data", **each} for each in requests], **fields}).encode()


def merges(count: int) -> list[dict[str, Any]]:
    """Return merges into a large value."""
    return [{"file": "large", "options": "merge", "value": {str(number): 1}} for number in range(count)]


def test_others_are_answered_while_large_merges_are_computed(service: Service) -> None:
    """An owner's save, load, listing and the health are answered before another's batch of large merges."""
    owner, other = (service.accounts.create(name) for name in ("owner", "other"))
    process = GatedMerge()
    service.dispatcher._merges = MergePool(1, start=lambda: process)
    with server.background(service) as address, Connection(address) as heavy, Connection(address) as light:
        assert post(heavy, "/store/save", owner, "large", value=LARGE).json["error"] is None
        heavy.post("/store/batch", batch(owner, *merges(50)))
        assert process.begun.wait(PATIENCE)
        assert post(light, "/store/save", other, "name", value=1).json["error"] is None
        assert post(light, "/store/load", other, "name").json["message"] == 1
        assert post(light, "/store/load", other, options="list").json["data"] == ["name"]
        light.send(f"GET {light.base}/health HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert light.answer().status == 200
        assert post(light, "/store/load", owner, "large").json["message"] == LARGE
        process.go.set()
        assert [each["error"] for each in heavy.answer().json["data"]] == [None] * 50


def test_large_merges_are_computed_by_processes(service: Service) -> None:
    """A batch of merges into a large value has the result of the same merges one by one."""
    key = service.accounts.create("owner")
    with server.background(service) as address, Connection(address) as connection:
        assert post(connection, "/store/save", key, "large", value=LARGE).json["error"] is None
        connection.post("/store/batch", batch(key, *merges(3), request="r1"))
        assert [each["error"] for each in connection.answer().json["data"]] == [None] * 3
        expected = {**LARGE, "0": 1, "1": 1, "2": 1}
        assert post(connection, "/store/load", key, "large").json["message"] == expected
    assert service.dispatcher._merges._processes or not service.dispatcher._merges._threads


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_signal_while_large_merges_wait(tmp_path: Path, workers: str) -> None:
    """A signal ends a service with a hundred large merges queued: each is answered, as done or as unavailable."""
    serve_it = ["serve", "--json", "--port", "0", "--workers", workers, "--store", str(tmp_path / "store.db")]
    with (
        subprocess.Popen([sys.executable, "-c", ENDING, *serve_it], stdout=subprocess.PIPE, text=True) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)  # if the test fails
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        key = told["api_key"]
        waiting = [stack.enter_context(Connection(told["address"])) for _ in range(100)]
        large = {f"{number:08}": "x" * 100 for number in range(20_000)}
        assert post(waiting[0], "/store/save", key, "large", value=large).json["error"] is None
        for number, connection in enumerate(waiting):
            connection.post("/store/save", body("large", key=key, options="merge", value={str(number): 1}))
        assert select.select([connection.socket for connection in waiting], [], [], PATIENCE)[0]  # the first is done
        process.send_signal(signal.SIGTERM)
        answers = [connection.answer() for connection in waiting]
        assert {answer.status for answer in answers} <= {200, 503}
        assert {answer.json["error"] for answer in answers} <= {None, "Unavailable"}
        assert all("retry-after" in answer.headers for answer in answers if answer.status == 503)
        assert process.wait() == 0
    with SQLiteStorage(tmp_path / "store.db") as storage, storage.read() as transaction:
        file = transaction.get(1, "large")
        assert file is not None
        merged = {name for name in json.loads(file.value) if len(name) < 8}
    assert merged == {str(number) for number, answer in enumerate(answers) if answer.status == 200}
