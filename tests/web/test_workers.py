"""Several processes answer on one socket, one that dies is replaced, and all end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen, run

import pytest
import requests

import cloudstore_mapping as cm
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.places import place_of
from cloudstore_mapping.web.connections import listen
from cloudstore_mapping.web.options import Options
from cloudstore_mapping.web.workers import MAX_STILLBORN, run_workers
from tests.serving import lines, serving, told

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found as Linux shows them")


def children(process: Popen[str]) -> set[int]:
    """Return the workers of a service, by their process ids."""
    found = set()
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile has no children
            for child in (task / "children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(int(child))
    return found


def number(text: str, name: str) -> float:
    """Return the value of a metric."""
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_workers_are_one_service(tmp_path: Path) -> None:
    """Two processes answer for one store, /metrics adds up over both, and SIGTERM ends them all cleanly."""
    with serving("--workers", "2", "--json", "--store", str(tmp_path / "service.db")) as process:
        first = told(process)
        location = first["address"].replace("://", f"://{first['api_key']}@")
        workers = children(process)
        assert len(workers) == 2

        def use(key: str) -> bool:
            with cm.open(location) as store:
                store[key] = key
                return bool(store[key] == key)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(use, map(str, range(40))))
        texts = [requests.get(f"{first['address']}/metrics", timeout=20).text for _ in range(4)]
        for text in texts:
            assert number(text, 'cloudstore_requests_total{operation="save",outcome="ok"}') == 40
            assert number(text, 'cloudstore_request_seconds_count{operation="load"}') == 40
            assert number(text, "cloudstore_worker_starts_total") == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    """A process that is killed is replaced, which the log says, and the service goes on answering."""
    log: list[str] = []
    with serving("--workers", "2", "--json", "--log-json", "--store", str(tmp_path / "s.db"), log=log) as process:
        address = told(process)["address"]
        before = children(process)
        os.kill(min(before), signal.SIGKILL)
        while number(requests.get(f"{address}/metrics", timeout=20).text, "cloudstore_worker_starts_total") < 3:
            pass
        assert len(children(process) - before) == 1
    (line,) = map(json.loads, log)
    assert line["level"] == "warning"
    assert f"Process {min(before)} of the service ended (exit code -9)" in line["message"]


#: Runs the command line with no pauses between attempts to start a process.
AT_ONCE = """
from cloudstore_mapping.web import workers
workers.FIRST_PAUSE = 0.0
from cloudstore_mapping.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_worker_that_can_not_be_replaced_yet(tmp_path: Path) -> None:
    """While no process can start, as the store's file is away, the others go on; later one takes the place."""
    file, away = tmp_path / "s.db", tmp_path / "away.db"
    command = [sys.executable, "-c", AT_ONCE, "serve", "--port", "0", "--workers", "2", "--json", "--store", str(file)]
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            first = told(process)
            location = first["address"].replace("://", f"://{first['api_key']}@")
            with cm.open(location) as store:
                store["key"] = 1
            file.rename(away)
            os.kill(min(children(process)), signal.SIGKILL)
            assert process.stderr is not None
            log = [process.stderr.readline() for _ in range(2 * MAX_STILLBORN)]
            assert "(exit code -9)" in log[0]
            assert all(f"A process still uses the store whose file was at {file} before" in line for line in log[1:])
            for _ in range(4):
                with cm.open(location) as store:
                    assert store["key"] == 1
            away.rename(file)
            text = ""
            while not text or number(text, "cloudstore_worker_starts_total") < 3:
                text = requests.get(f"{first['address']}/metrics", timeout=20).text
            with cm.open(location) as store:
                store["key"] = 2
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0


def test_a_start_tells_what_workers_cost(tmp_path: Path) -> None:
    """Whoever starts several processes on a file is told that they save less than one; a single one says nothing."""
    sentence = "more loads than one process, but fewer saves"
    for workers, is_told in (("1", False), ("2", True)):
        with serving("--workers", workers, "--store", str(tmp_path / f"{workers}.db")) as process:
            assert (sentence in "".join(lines(process, 3))) is is_told


@pytest.mark.slow
def test_workers_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Where the first process is killed, the others end too: nothing answers any more."""
    command = [sys.executable, "-m", "cloudstore_mapping", "serve", "--port", "0", "--workers", "2", "--json"]
    with Popen([*command, "--store", str(tmp_path / "s.db")], stdout=PIPE, stderr=PIPE, text=True) as process:
        address = told(process)["address"]
        workers = children(process)
        process.kill()
        assert process.communicate() == ("", "")  # their standard error is closed only when they end
    assert len(workers) == 2
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}/health", timeout=20)


#: Runs the command line where multiprocessing has no shared memory and no semaphores, as without /dev/shm.
WITHOUT_SHM = """
import _multiprocessing, multiprocessing.heap, os, sys

def absent(*_, **__):
    raise FileNotFoundError(2, os.strerror(2))

multiprocessing.heap.Arena._dir_candidates = ["/absent"]
_multiprocessing.SemLock = absent
if sys.argv[1] == "files":
    os.memfd_create = absent
del sys.argv[1]
from cloudstore_mapping.__main__ import main
main()
"""


@pytest.mark.parametrize("memory", ["memory", "files"])
@pytest.mark.slow
def test_without_shared_memory(tmp_path: Path, memory: str) -> None:
    """Where the system has no /dev/shm the processes are one service all the same."""
    command = [sys.executable, "-c", WITHOUT_SHM, memory, "serve", "--port", "0", "--workers", "2", "--json"]
    with Popen([*command, "--store", str(tmp_path / "s.db")], stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            address = told(process)["address"]
            for _ in range(4):
                text = requests.get(f"{address}/metrics", timeout=20).text
                assert number(text, "cloudstore_worker_starts_total") == 2
        finally:
            process.terminate()
            assert process.communicate() == ("", "")
    assert process.returncode == 0


#: A shell that runs a command in a view of the file system of its own, whose /dev has only these devices.
BARE_DEV = """
set -e
mount -t tmpfs none "$0"
for device in null urandom; do touch "$0/$device"; mount --bind "/dev/$device" "$0/$device"; done
mount --rbind "$0" /dev
exec "$@"
"""


@pytest.mark.slow
def test_without_dev_shm(tmp_path: Path) -> None:
    """Several processes answer on a machine whose /dev has no shm."""
    (tmp_path / "dev").mkdir()
    bare = ["unshare", "--mount", "sh", "-c", BARE_DEV, str(tmp_path / "dev")]
    if shutil.which("unshare") is None or run([*bare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the program unshare, and the right to mount")
    assert run([*bare, "ls", "/dev"], capture_output=True, check=True, text=True).stdout == "null\nurandom\n"
    command = [sys.executable, "-m", "cloudstore_mapping", "serve", "--port", "0", "--workers", "2", "--json"]
    with Popen([*bare, *command, "--store", str(tmp_path / "s.db")], stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            address = told(process)["address"]
            assert requests.get(f"{address}/health", timeout=20).status_code == 200
        finally:
            process.terminate()
            assert process.communicate() == ("", "")
    assert process.returncode == 0


def test_a_store_that_can_not_be_opened_any_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What keeps the processes from starting is raised, and none of them is left."""
    with (
        listen("127.0.0.1", 0) as listener,
        pytest.raises(FileNotFoundError, match="There is no store at"),
    ):
        run_workers(listener, place_of(str(tmp_path / "absent" / "s.db")), Options(workers=2), Settings())
    assert not caplog.records
