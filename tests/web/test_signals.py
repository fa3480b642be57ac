"""Signals that end a service: once, twice, while it starts, and when its terminal closes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.raw_http import Connection, body
from tests.serving import serving, told
from tests.web.test_workers import children

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found as Linux shows them")

#: Runs the command line with a signal's default or ignored, as a terminal or nohup has it.
WITH = """
import signal, sys
signal.signal(signal.Signals[sys.argv[1]], {"default": signal.SIG_DFL, "ignored": signal.SIG_IGN}[sys.argv[2]])
sys.argv[:3] = ["cloudstore"]
from cloudstore_mapping.__main__ import main
main()
"""
#: A program whose write is never done, and which tells when its server answers.
STUCK = """
import threading
from cloudstore_mapping.web.logs import logging_as
from cloudstore_mapping.web.server import run
from tests.raw_http import FakeService

class Stuck(FakeService):
    def close(self):
        self.may_write.set()
        super().close()

service = Stuck()
service.may_write.clear()
with logging_as(as_json=False, access=False):
    run(service, port=0, on_ready=lambda address: print(address, flush=True))
"""


@contextmanager
def start(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a group of processes of its own, as a terminal has one for each."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # where a test failed before it had ended
                os.killpg(process.pid, signal.SIGKILL)


def check_end(process: subprocess.Popen[str]) -> None:
    """Check that a service ended as it was told to, and without a word."""
    said, log = process.communicate(timeout=60)
    assert (process.returncode, said, log) == (0, "", "")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_a_signal_to_all_processes(number: signal.Signals, workers: str, tmp_path: Path) -> None:
    """Ctrl-C twice, and a terminal that closes, reach all processes at once, and they end cleanly."""
    serve = ["serve", "--json", "--port", "0", "--workers", workers, "--store", str(tmp_path / "s.db")]
    with start("-c", WITH, number.name, "default", *serve) as process:
        told(process)
        for _ in range(1 if number == signal.SIGHUP else 2):
            os.killpg(process.pid, number)
        check_end(process)


def test_ctrl_c_twice_waits_for_no_client(tmp_path: Path) -> None:
    """The second Ctrl-C ends a service that waits for a client or a slow write, without a word."""
    with start("-c", STUCK) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with Connection(address) as waiting, Connection(address) as half, Connection(address) as idle:
            waiting.post("/store/save", body(value=1), "Connection: close\r\n")
            half.start("/store/save", "Content-Type: application/json\r\nContent-Length: 100\r\n", b"{")
            idle.post("/store/load", body())
            assert idle.answer().status == 200
            process.send_signal(signal.SIGINT)
            assert idle.rest() == b""  # it has begun to end
            process.send_signal(signal.SIGINT)
            check_end(process)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_nohup(workers: str, tmp_path: Path) -> None:
    """Under nohup a service outlives its terminal."""
    serve = ["serve", "--json", "--port", "0", "--workers", workers, "--store", str(tmp_path / "s.db")]
    with start("-c", WITH, "SIGHUP", "ignored", *serve) as process:
        address = told(process)["address"]
        for each in {process.pid} | children(process):
            (ignored,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{each}/status").read_text(), re.MULTILINE)
            assert int(ignored, 16) & 1 << (signal.SIGHUP - 1)
        os.killpg(process.pid, signal.SIGHUP)
        assert requests.get(f"{address}/health", timeout=20).status_code == 200
        process.terminate()
        check_end(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_a_signal_while_it_starts(number: signal.Signals, workers: str, tmp_path: Path) -> None:
    """A signal ends a start without a word, whenever it comes, and the next start is as good as the first."""
    file = tmp_path / "s.db"
    serve = ["serve", "--json", "--port", "0", "--workers", workers, "--store", str(file)]
    module = "cloudstore_mapping.web.workers" if workers == "2" else "uvloop"
    for awaited in ("typer", "cloudstore_mapping.service.service", module):
        program = (
            "import os, signal, sys, sysconfig\n"
            "class Finder:\n"
            "    def find_spec(self, name, *_):\n"
            f"        if name == {awaited!r}:\n"
            "            sys.meta_path.remove(self)\n"
            f"            os.killpg(0, {int(number)})\n"
            "sys.meta_path.insert(0, Finder())\n" + WITH
        )
        with start("-c", program, number.name, "default", *serve) as process:
            said, log = process.communicate(timeout=60)
        assert log == ""
        assert said == "" or '"address"' in said
        assert process.returncode in (0, 130, -number)
    with serving("--json", "--store", str(file)) as process:
        assert requests.get(f"{told(process)['address']}/health", timeout=20).status_code == 200


#: Has a worker that starts send a signal to all processes of its service.
IN_A_WORKER = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "cloudstore_mapping.web.server":
            sys.meta_path.remove(self)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # by which the first process ends it
            os.killpg(0, int(os.environ["TEST_SIGNAL"]))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

if "--multiprocessing-fork" in sys.argv:
    sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.slow
def test_a_signal_while_its_workers_start(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a worker's start ends all of them without a traceback."""
    (tmp_path / "sitecustomize.py").write_text(IN_A_WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parent.parent.parent}")
    monkeypatch.setenv("TEST_SIGNAL", str(int(number)))
    serve = ["serve", "--json", "--port", "0", "--workers", "2", "--store", str(tmp_path / "s.db")]
    with start("-c", WITH, number.name, "default", *serve) as process:
        check_end(process)
