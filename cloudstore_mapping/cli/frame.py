"""Around every command: what ends it becomes an exit status, and at most one line on stderr."""

from __future__ import annotations

import enum
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final, cast

import typer
from typer.core import TyperGroup

from cloudstore_mapping.cli.output import drop, show_error, stdout
from cloudstore_mapping.errors import (
    CloudStoreError,
    OutcomeUnknownError,
    TimedOutError,
    TransportError,
    UnsupportedError,
)
from cloudstore_mapping.oserrors import readable, sentence_of


class Status(enum.IntEnum):
    """The exit statuses other than 0."""

    REFUSED = 1
    MISUSED = 2
    NOT_REACHED = 3
    PIPE_CLOSED = 141  # as a shell reports a program that SIGPIPE ended


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does: it removes what is half written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = _SIGNALED + number


class UsageError(Exception):
    """What was asked for can't be done as it was written; `str` is one sentence that says what to do."""


def status_of(error: CloudStoreError | UsageError) -> Status:
    """Return the exit status of a command that `error` ends."""
    if isinstance(error, UsageError | UnsupportedError):
        return Status.MISUSED
    return Status.NOT_REACHED if isinstance(error, TransportError | TimedOutError) else Status.REFUSED


# typer exports no other of its usage errors; this is what all of them derive from.
_TyperUsageError: Final = cast("type[typer.BadParameter]", typer.BadParameter.__base__)
_STDERR: Final = 2
#: Exit status of a program that a signal ended, less the signal's number, as a shell reports it.
_SIGNALED: Final = 128
_KEY_IN_ADDRESS: Final = re.compile(r"(?<=://)[^/\s]*@")


class Commands(TyperGroup):
    """The group of all commands."""

    _as_json = False
    _is_service = False

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Run the command that `args` name, and exit with its status."""
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        self._as_json = "--json" in arguments
        self._is_service = arguments[0] == "serve"
        _reserve_streams()
        _buffer_output()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a key or path that it can't hold is no reason to fail
        try:
            if "--help" in arguments:
                stdout()  # typer prints nothing to a closed one, and reports success
            sys.exit(super().main(arguments, *others, **{**options, "standalone_mode": False}))
        except _TyperUsageError as error:
            failure: CloudStoreError | UsageError = UsageError(_sentence(error, arguments))
        except (CloudStoreError, UsageError) as error:
            failure = error
        except OSError as error:  # of a help that can't be printed
            failure = _lost(error)
        report(failure, as_json=self._as_json)
        sys.exit(status_of(failure))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a reader that leaves (``| head``) ends it without a word."""
        try:
            with nullcontext() if self._is_service else _terminable():  # a service has its own handlers
                return super().invoke(ctx)
        except CloudStoreError:
            raise
        except KeyboardInterrupt as interrupt:
            for note in getattr(interrupt, "__notes__", ()):  # a write of unknown outcome
                report(OutcomeUnknownError(note), as_json=self._as_json)
            if isinstance(interrupt, TerminatedError):
                raise typer.Exit(interrupt.status) from None
            raise
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(Status.PIPE_CLOSED) from None
        except OSError as error:
            if error.filename is not None:  # of a file, not of a stream
                raise UsageError(sentence_of(error)) from error
            raise _lost(error) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `TerminatedError` in the block when SIGTERM or SIGHUP comes."""

    def end(number: int, _: object) -> None:
        raise TerminatedError(number)

    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def report(error: CloudStoreError | UsageError, *, as_json: bool) -> None:
    """Print `error` as one line on stderr, without the API key of any address that it quotes."""
    show_error(error, readable(_KEY_IN_ADDRESS.sub("…@", str(error))), as_json=as_json)


def _sentence(error: typer.BadParameter, arguments: list[str]) -> str:
    message = " ".join(error.format_message().split())
    if "extra argument" in message and "--password" in arguments:
        message = "--password takes no value; it asks for it."  # typer's own sentence shows what was typed after it
    if not message.endswith((".", "?")):
        message += "."
    return f"{message} See '{error.ctx.command_path} --help'." if error.ctx else message


def _lost(error: OSError) -> UsageError:
    """Return the error of a command whose input can't be read, or its output not be written."""
    _drop_output()
    if error.errno is None:
        return UsageError(str(error))
    return UsageError(f"Standard input or output failed ({error.strerror}); send it elsewhere.")


def _drop_output() -> None:
    if sys.stdout is not None:
        drop(sys.stdout)


def _buffer_output() -> None:
    """
    Give standard output a buffer where Python runs without one (`python -u`, PYTHONUNBUFFERED).

    A file may take a part of what is written, as on a nearly full disk, and `sys.stdout.write` doesn't report that.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(stream.buffer, io.RawIOBase):
        return
    encoding, errors = stream.encoding, stream.errors
    raw = cast("io.RawIOBase", stream.detach())
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True)  # type: ignore[misc]


def _reserve_streams() -> None:
    """Give the numbers of closed standard streams to no other file, whose output they would then take."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)
