"""What a command asks whoever started it: secrets without echo, and whether it is meant."""

from __future__ import annotations

import getpass
import sys

from cloudstore_mapping.cli.frame import UsageError


def ask(what: str) -> str:
    """Return what is typed without echo; where stdin is no terminal, its next line."""
    if sys.stdin.isatty():
        try:
            return getpass.getpass(f"{what[0].upper()}{what[1:]}: ")
        except EOFError as error:
            raise UsageError(f"No {what} was given.") from error
    line = sys.stdin.buffer.readline()
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
    if sys.stdin.isatty() and ask(f"{what} again") != secret:
        raise UsageError("The two are not the same; nothing was changed.")
    return secret


def confirm(question: str, expected: str) -> None:
    """Ask on a terminal until it is clear whether it is meant; `UsageError` where it isn't, or nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError("Nobody can be asked whether it is meant; say --yes.")
    sys.stderr.write(f"{question} ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != expected:
        raise UsageError("Nothing was changed.")
