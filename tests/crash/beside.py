"""Commands that run beside others: in this process or one of their own, once or over and over, killed or not."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final

from tests.crash.commands import Command, Commands
from tests.crash.workload import PATIENCE

# A child of this process would have its locks and threads; one of a server that has opened nothing has none.
CONTEXT: Final = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.crash.loaded"])


@dataclass
class Ran:
    """
    A command that was run.

    `status` is None where it was killed, or has not ended; `called` and `returned` are moments, of whatever clock.
    """

    command: Command
    status: int | None = None
    output: str = ""
    errors: str = ""
    called: float = 0.0
    returned: float = 0.0


def run_here(command: Command) -> Ran:
    """Run a command in this process, whose standard output and errors it takes meanwhile."""
    from cloudstore_mapping.cli import app  # what loads this may be without the extra
    from tests.support.command_line import command_of

    output, errors = StringIO(), StringIO()
    status = 0
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            command_of(app)(command.arguments, prog_name="cloudstore")
        except SystemExit as end:
            status = int(end.code or 0)
        except Exception:  # noqa: BLE001 - whatever it is, it should have been a sentence
            status = 1
            traceback.print_exc()
    return Ran(command, status, output.getvalue(), errors.getvalue())


class Elsewhere:
    """A command in a process of its own."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._told, telling = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_run_and_tell, args=(command, telling))
        self._process.start()
        telling.close()

    def kill(self) -> None:
        """End it at once, wherever it is; one that has ended stays as it is."""
        self._process.kill()

    def ran(self) -> Ran:
        """Wait for its end, and return what came of it."""
        with self._told:
            try:
                ran: Ran = self._told.recv()
            except (EOFError, OSError):
                ran = Ran(self._command)
        self._process.join()
        return ran


def _run_and_tell(command: Command, told: Connection) -> None:
    told.send(run_here(command))


class Beside:
    """
    Commands that run one after another, each in a process of its own.

    Attributes
    ----------
    ran
        Those that have ended.
    """

    def __init__(self, commands: Commands, now: Callable[[], float] = time.monotonic) -> None:
        self.ran: list[Ran] = []
        self._commands = commands
        self._now = now
        self._changed = threading.Condition()
        self._begun = 0
        self._current: Elsewhere | None = None
        self._is_ending = False
        self._error: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run them while the block runs, and wait for the last one."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._is_ending = True
            thread.join()
        if self._error is not None:
            raise self._error

    def wait_for(self, more: int) -> None:
        """Wait until so many more were begun: those before have ended, the last is running."""
        with self._changed:
            enough = self._begun + more
            is_enough = self._changed.wait_for(lambda: self._begun >= enough or self._error is not None, PATIENCE)
        if self._error is not None:
            raise self._error
        if not is_enough:
            raise TimeoutError(f"Only {self._begun} commands were begun.")

    def kill(self) -> None:
        """Kill the one that is running."""
        with self._changed:
            if self._current is not None:
                self._current.kill()

    def _work(self) -> None:
        try:
            while not self._is_ending:
                command, called = self._commands.next(), self._now()
                with self._changed:
                    self._current = Elsewhere(command)
                    self._begun += 1
                    self._changed.notify_all()
                ran = self._current.ran()
                ran.called, ran.returned = called, self._now()
                self.ran.append(ran)
        except BaseException as error:  # noqa: BLE001 - raised by whoever runs them
            with self._changed:
                self._error = error
                self._changed.notify_all()
