"""What a command asks whoever started it: secrets without echo, and whether it is meant."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import IO, Final

from cloudstore_mapping.cli.frame import UsageError

#: The names of standard input. A file of one is never opened: part of what it brings may be read and held already.
STDIN: Final = frozenset({"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})


def stdin() -> IO[bytes]:
    """Return standard input; `UsageError` where whoever started the command closed it."""
    if sys.stdin is None:
        raise UsageError("Standard input is closed; give it a file or a pipe.")
    return sys.stdin.buffer


def is_on_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def typed() -> str:
    """Return the next line of standard input, empty at its end."""
    return reading(stdin().readline).decode(errors="replace")


def reading(read: Callable[[], bytes]) -> bytes:
    """Return what this reads of standard input; `UsageError` where it can't."""
    try:
        return read()
    except OSError as error:
        raise UsageError(f"Standard input can't be read: {error.strerror}.") from error


def ask(what: str) -> str:
    """Return what is typed without echo; where stdin is no terminal, its next line."""
    if is_on_terminal():
        try:
            return getpass.getpass(f"{what[0].upper()}{what[1:]}: ")
        except EOFError as error:
            raise UsageError(f"No {what} was given.") from error
        except UnicodeDecodeError:
            raise UsageError(f"The {what} is not UTF-8.") from None  # Python's shows its bytes
    line = reading(stdin().readline)
    if not line:
        raise UsageError(f"Standard input ended before the {what}; it is its first line.")
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"The {what} on standard input is not UTF-8.") from None  # Python's shows its bytes


def asked(password: bool) -> str | None:
    """Return the password of a file if it is to be asked for."""
    return ask("password") if password else None


def ask_new(what: str) -> str:
    """Return a new secret: asked for twice on a terminal, where nobody sees a slip; `UsageError` for an empty one."""
    secret = ask(what)
    if not secret:
        raise UsageError(f"The {what} is empty; --clear is what takes one away.")
    if is_on_terminal() and ask(f"{what} again") != secret:
        raise UsageError("The two are not the same; nothing was changed.")
    return secret


def confirm(question: str, expected: str) -> None:
    """Ask on a terminal until it is clear whether it is meant; `UsageError` where it isn't, or nobody can be asked."""
    if not is_on_terminal():
        raise UsageError("Nobody can be asked whether it is meant; say --yes.")
    sys.stderr.write(f"{question} ")
    sys.stderr.flush()
    if typed().strip() != expected:
        raise UsageError("Nothing was changed.")
