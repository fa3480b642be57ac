"""Ctrl-C ends a command soon, also one that waits for another process, and leaves nothing to be done after it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from tests.service_fakes import PATIENCE

#: Runs a command that is interrupted while another process holds its store, at the second try to begin a transaction.
PROGRAM = """
import os, signal, sys, time
from cloudstore_mapping.service.storage import sqlite
from cloudstore_mapping.__main__ import main

sqlite.CLOSING_WAIT = 0.0
tries = [0]
sleep = time.sleep

class Time:
    monotonic = time.monotonic

    def sleep(self, seconds):
        tries[0] += 1
        if tries[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)
        sleep(seconds)

sqlite.time = Time()
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "a", "5"],
        pytest.param(["merge", "a", "5"], marks=pytest.mark.slow),
        pytest.param(["rm", "a"], marks=pytest.mark.slow),
        ["import", "in.json"],
    ],
)
def test_ctrl_c_while_another_process_holds_the_store(tmp_path: Path, arguments: list[str]) -> None:
    """It is exit status 130 without a word, though the other process goes on; nothing is changed then or later."""
    path = tmp_path / "a.db"
    (tmp_path / "in.json").write_text(json.dumps({"a": 5, "b": 6}))
    with cm.open(path) as store:
        store["a"] = 1
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments, "--at", os.fspath(path)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            # Whoever runs the tests in the background may have it ignored, which a process takes from its parent.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        other.execute("ROLLBACK")
    assert (done.returncode, done.stderr.strip()) == (130, "")
    with cm.open(path) as store:
        assert dict(store) == {"a": 1}


LATE = """
import atexit, os, signal
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
from cloudstore_mapping.__main__ import main
main()
"""


def test_ctrl_c_while_python_ends() -> None:
    """A Ctrl-C that comes after the command is done, as a second one does, prints no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", LATE, "--help"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        pytest.param(["set", "a", "1"], "save", marks=pytest.mark.slow),
        (["merge", "a", "{}"], "merge"),
        pytest.param(["rm", "a"], "delete", marks=pytest.mark.slow),
        (["get", "a"], ""),
    ],
)
def test_ctrl_c_while_a_service_is_silent(arguments: list[str], what: str) -> None:
    """Ctrl-C ends a command at once with status 130, and the outcome of a write is reported as unknown."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://KEY@127.0.0.1:{server.getsockname()[1]}/cloudstore"
        command = subprocess.Popen(
            [sys.executable, "-m", "cloudstore_mapping", *arguments, "--at", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1)
            command.send_signal(signal.SIGINT)
            output, errors = command.communicate(timeout=20)  # less than the 30 s that a request waits for an answer
    assert (command.returncode, output) == (130, "")
    assert errors.startswith(f"cloudstore: The {what} of 'a' was interrupted: it may have been done or not") or not what
    assert errors.count("\n") == bool(what)


DRAFTING = """
import os, signal, sys
from cloudstore_mapping.__main__ import main

def signal_once(event, arguments):
    if event == "sqlite3.connect" and ".part" in str(arguments[0]) and sent == []:
        sent.append(os.kill(os.getpid(), getattr(signal, os.environ["NUMBER"])))

sent = []
sys.addaudithook(signal_once)
main()
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("command", [["backup", "copy.db", "--store", "a.db"], ["restore", "a.db", "--store", "c.db"]])
def test_a_signal_leaves_no_draft(tmp_path: Path, name: str, status: int, command: list[str]) -> None:
    """A command that a signal ends removes the file that it had half written, and says nothing."""
    with cm.open(tmp_path / "a.db") as store:
        store["a"] = 2
    before = {path.name for path in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", DRAFTING, *command],
        cwd=tmp_path,
        env={**os.environ, "NUMBER": name},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (status, "", "")
    assert {path.name for path in tmp_path.iterdir()} == before
    with cm.open(tmp_path / "a.db") as store:
        assert dict(store) == {"a": 2}
