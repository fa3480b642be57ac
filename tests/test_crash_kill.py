"""Killed with -9 at any moment, a service or a program loses nothing that was answered, and leaves nothing by half."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.service.storage.maintenance import check_file
from tests.cluster.nodes import Node, nodes
from tests.crash.script import contents, states
from tests.crash.workload import Workload
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.sqlite("the store is a file")]

CLIENTS: Final = 8
KEYS: Final = 24
#: Kills that one lot of keys lives through.
KILLS: Final = 5
#: Calls that are answered between two kills, at most.
CALLS: Final = 200
STEPS: Final = 80


class Service:
    """A service on a file that is killed, and started again where it was."""

    def __init__(self, folder: Path, api_key: str | None = None) -> None:
        self.file = folder / "service.db"
        self._log = folder / "service.log"
        self._port = free_port()
        self._node = self._started()
        self.location = self._node.location(str(api_key or self._node.api_key))

    def _started(self) -> Node:
        node = Node(str(self.file), self._log, self._port)
        try:
            node.wait()
        except BaseException:
            node.end(signal.SIGKILL)
            raise
        return node

    def kill(self) -> None:
        """End it at once, wherever it is, and start it again."""
        assert self._node.end(signal.SIGKILL) == -signal.SIGKILL
        self._node = self._started()

    def end(self) -> None:
        """End it as it should be."""
        assert self._node.end() == 0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service, which complained of nothing in the end."""
    service = Service(tmp_path)
    with ExitStack() as stack:
        stack.callback(service.end)
        yield service
    assert (tmp_path / "service.log").read_text() == ""


@pytest.fixture(params=["alone", "beside another"])
def locations(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> Iterator[list[str]]:
    """Return the ways to its store: itself, and perhaps another process on the same file, which is not killed."""
    with nodes(str(service.file), 1 if request.param == "beside another" else 0, tmp_path) as others:
        key = service.location.partition("://")[2].partition("@")[0]
        yield [service.location, *(other.location(key) for other in others)]
    assert all(log.read_text() == "" for log in tmp_path.glob("node-*.log"))


def test_a_killed_service(
    service: Service, locations: Sequence[str], at_length: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Clients of a service that is killed over and over, and go on when it is back, see nothing that can't be.

    What they did with each key is explained by an order of their calls, of which only those without an answer may be
    missing; a request that is repeated after the service is back is done once. Nor do those of another process on the
    same file see anything of it.
    """
    dice = random.Random(9)
    calls = unknown = kills = 0
    opens = [partial(cm.open, locations[client % len(locations)]) for client in range(CLIENTS)]
    for lot in range(20 if at_length else 2):
        workload = Workload(opens, f"lot {lot}", KEYS)
        with workload.running():
            for _ in range(KILLS):
                workload.wait_for_calls(dice.randint(1, CALLS))
                service.kill()
                assert check_file(service.file).faults == []
            workload.wait_for_calls(1)
        calls, unknown, kills = calls + workload.calls, unknown + workload.unknown, kills + KILLS
        with cm.open(service.location) as store:
            workload.check(store)
    with capsys.disabled():
        sys.stdout.write(f"\n{kills} times killed during {calls} calls, {unknown} without an answer, nothing lost\n")


def test_a_killed_program(tmp_path: Path, at_length: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A program that is killed at work with a file leaves what it had done, and perhaps what it was doing."""
    dice = random.Random(8)
    kills = 200 if at_length else 10
    for number in range(kills):
        file = tmp_path / f"{number}.db"
        command = [sys.executable, "-m", "tests.programs.diligent", str(file), str(STEPS), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as program:
            assert program.stdout is not None
            told = len(program.stdout.read(dice.randint(1, STEPS // 2)))
            program.kill()
            told += len(program.stdout.read())
        assert check_file(file).faults == []
        with cm.open(file) as store:
            assert contents(store) in states(STEPS, number)[told : told + 2]
    with capsys.disabled():
        sys.stdout.write(f"\n{kills} programs killed, nothing lost\n")
