"""Ten thousand connections on which nothing happens keep nobody from being answered."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.serving import memory
from tests.raw_http import Connection, body
from tests.serving import serving, told

CROWD = 10_000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process have the crowd's sockets open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CROWD + 500:
        pytest.skip(f"needs {CROWD + 500:,} open files, and the system allows {hard:,}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_idle_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many_files: None) -> None:
    """A crowd that is silent, has sent half a header or has its answers costs a few KiB each, and others are served."""
    monkeypatch.setenv("CLOUDSTORE_SERVICE_BODY_TIMEOUT", "600")
    with serving("--json", "--store", str(tmp_path / "service.db")) as process, ExitStack() as stack:
        facts = told(process)
        address = facts["address"]
        other = stack.enter_context(Connection(address))
        other.post("/store/save", body("name", key=facts["api_key"], value=1))
        assert other.answer().json["error"] is None
        before = memory(process.pid, "VmRSS")
        for number in range(CROWD):
            connection = stack.enter_context(Connection(address))
            if number % 3 == 1:
                connection.send(b"POST /cloudstore/store/save HTTP/1.1\r\nHost: te")
            elif number % 3 == 2:
                connection.send(b"GET /cloudstore/health HTTP/1.1\r\nHost: test\r\n\r\n")
                assert connection.answer().status == 200
        other = stack.enter_context(Connection(address))  # on a busy machine, the first was idle for too long
        for _ in range(100):
            other.post("/store/load", body("name", key=facts["api_key"]))
            assert other.answer().json["data"] == 1
        assert (memory(process.pid, "VmRSS") - before) / CROWD < 20_000
