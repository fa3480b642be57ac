"""A program with an embedded store, which does steps and runs commands in its own process as it is told."""

from __future__ import annotations

import random
import threading
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import cloudstore_mapping as cm
from tests.crash.beside import CONTEXT, Ran, run_here
from tests.crash.commands import Commands
from tests.crash.script import KEYS, steps
from tests.crash.workload import PATIENCE

#: Steps that a program can do, at most.
STEPS: Final = 120


class Program:
    """
    A program in a process of its own.

    Attributes
    ----------
    ran
        The commands that it was told to run, of which those that haven't ended have no status.
    """

    def __init__(self, file: Path, seed: int) -> None:
        self.ran: dict[int, Ran] = {}
        self._done = 0
        self._has_ended = False
        self._lock = threading.Lock()
        self._told, telling = CONTEXT.Pipe(duplex=False)
        asked, self._asking = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_work, args=(file, seed, asked, telling))
        self._process.start()
        telling.close()
        asked.close()

    def ask(self, *, steps: int, commands: int) -> None:
        """Tell it to do so many steps, and meanwhile run so many commands."""
        for what in ["command"] * commands + ["step"] * steps:
            self._asking.send(what)

    def wait_for(self, steps: int, commands: int = 0) -> None:
        """Wait until it has done so many steps in all, and run so many commands."""
        while self.done() < steps or sum(ran.status is not None for ran in self.ran.values()) < commands:
            if self._has_ended or not self._told.poll(PATIENCE):
                raise RuntimeError(f"The program did {self._done} steps, and no more.")

    def done(self) -> int:
        """Return how many steps it has told that it has done."""
        with self._lock:
            while not self._has_ended and self._told.poll():
                try:
                    told = self._told.recv()
                except (EOFError, OSError):
                    self._has_ended = True
                    break
                if told == "step":
                    self._done += 1
                else:
                    number, ran = told
                    self.ran[number] = ran
            return self._done

    def kill(self) -> int:
        """End it at once, wherever it is, and return how many steps it has told that it has done."""
        self._process.kill()
        self._process.join()
        return self.done()


def _work(file: Path, seed: int, asked: Connection, telling: Connection) -> None:
    lock = threading.Lock()
    done = 0
    asks: SimpleQueue[None] = SimpleQueue()

    def tell(what: object) -> None:
        with lock:
            telling.send(what)

    def run_commands() -> None:
        commands = Commands(file, "inside", random.Random(f"inside {seed}"), KEYS)
        for number in count():
            asks.get()
            # Whoever closes a file loses the locks that its process has on it: so begins what the others have to bear.
            command = commands.next() if number else commands.misread()
            called = float(done)
            tell((number, Ran(command, called=called)))
            ran = run_here(command)
            ran.called = called
            tell((number, ran))

    threading.Thread(target=run_commands, daemon=True).start()
    with cm.open(file) as store:
        todo = steps(store, STEPS, seed)
        while True:
            if asked.recv() == "command":
                asks.put(None)
                continue
            next(todo)()
            done += 1
            tell("step")
