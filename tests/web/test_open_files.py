"""The limit of open files: connections leave room for the store, what is refused is logged, and it ends by itself."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloudstore_mapping.web.connections import LOG_INTERVAL, OpenFiles, raise_file_limit
from tests.raw_http import Connection, FakeService, body
from tests.service_fakes import ManualClock

resource = pytest.importorskip("resource", reason="Unix has limits of open files")

#: Runs the command line with a limit of so many open files.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
sys.argv[:2] = ["cloudstore"]
from cloudstore_mapping.__main__ import main
main()
"""


def test_connections_leave_room_for_the_store(tmp_path: Path) -> None:
    """A crowd past the limit is refused with 503, those with a place save, and others have one when some leave."""
    with subprocess.Popen(
        [sys.executable, "-c", LIMITED, "64", "serve", "--port", "0", "--json", "--store", str(tmp_path / "s.db")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            with Connection(facts["address"]) as first, ExitStack() as stack:
                statuses = []
                for number in range(100):
                    connection = stack.enter_context(Connection(facts["address"]))
                    connection.send(b"GET /cloudstore/health HTTP/1.1\r\nHost: x\r\n\r\n")
                    statuses.append(connection.answer().status)
                    first.post("/store/save", body(str(number), key=facts["api_key"], value="x" * 10_000))
                    assert first.answer().json["message"] == "Entry saved"
                assert statuses == [200] * 31 + [503] * 69
                stack.close()
                while True:
                    with Connection(facts["address"]) as connection:
                        connection.send(b"GET /cloudstore/health HTTP/1.1\r\nHost: x\r\n\r\n")
                        if connection.answer().status == 200:
                            break
        finally:
            process.terminate()
            _, log = process.communicate()
    assert process.returncode == 0
    (line,) = log.splitlines()
    assert "32 connections are open" in line
    assert "raise the limit of open files (ulimit -n" in line


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_too_few_files(tmp_path: Path, workers: str) -> None:
    """A limit under which no service can work is exit status 2 and a line that says how many files it needs."""
    command = [sys.executable, "-c", LIMITED, "40", "serve", "--port", "0", "--workers", workers]
    run = subprocess.run(
        [*command, "--store", str(tmp_path / "s.db")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "lets this process open 40 files, and a service needs 64; raise the limit" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_is_logged_now_and_then(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """However many connections are refused, there is one line of the log a minute."""
    files = OpenFiles(2, clock.monotonic)
    for _ in range(3):
        assert [files.has_room(count) for count in (1, 2, 3, 4)] == [True, True, False, False]
    assert len(caplog.records) == 1
    clock.advance(LOG_INTERVAL)
    assert not files.has_room(3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_what_no_connection_tells(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be opened at all, by this process or the system, it is logged too."""
    files = OpenFiles(2)
    files.check()
    assert not caplog.records

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    files.check()
    files.check()
    monkeypatch.undo()
    (record,) = caplog.records
    assert "raise the limit of open files" in record.getMessage()


def test_a_server_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that runs looks from time to time whether anything can be opened."""
    looked = threading.Event()
    monkeypatch.setattr(OpenFiles, "check", lambda _: looked.set())
    with FakeService().served():
        assert looked.wait(20)


@pytest.mark.parametrize(("limit", "connections"), [(64, 32), (256, 128), (1024, 824), (1_048_576, 1_048_376)])
def test_how_many_connections(limit: int, connections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections may have what a service doesn't need for itself, and half of a small limit."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit // 2, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda _, __: None)
    assert raise_file_limit() == connections


def test_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system sets no limit there is none."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda _, __: None)
    assert raise_file_limit() == sys.maxsize
