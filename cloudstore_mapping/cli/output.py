"""What a command prints: values, keys and errors, harmless to a terminal and exact for a program."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import TextIO

from cloudstore_mapping.errors import CloudStoreError, UnsupportedError
from cloudstore_mapping.oserrors import readable


def stdout() -> TextIO:
    """Return standard output; `OSError` where whoever started the command closed it."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdout


def show(text: str) -> None:
    """Print `text` and a line end at once; `typer.echo` would take colour codes out of a key."""
    stream = stdout()
    stream.write(f"{readable(text)}\n")
    stream.flush()


def show_json(value: object) -> None:
    """Print `value` as JSON on exactly one line."""
    show(_escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":")), stdout()))


def show_value(value: object) -> None:
    """Print `value` as JSON: indented on a terminal, else on one line."""
    if not stdout().isatty():
        show_json(value)
        return
    for line in json.dumps(value, ensure_ascii=False, indent=2).split("\n"):
        show(_escaped(line, sys.stdout))


def show_keys(keys: list[str]) -> None:
    """
    Print a key a line: as it is into a pipe, without control characters on a terminal.

    Raises `UnsupportedError` before anything is printed where standard output can't hold one: an escape in its place
    would be another key.
    """
    encoding = stdout().encoding or "utf-8"
    for key in keys:
        try:
            key.encode(encoding)
        except UnicodeEncodeError as error:
            raise UnsupportedError(
                f"The key {key!a} can't be printed in {encoding}; say --json, or set PYTHONIOENCODING=utf-8."
            ) from error
    _show_lines(keys)


def show_path(path: str | os.PathLike[str]) -> None:
    """Print where a file is; a byte of its name that isn't UTF-8 is an escape."""
    _show_lines([readable(os.fspath(path))])


def _show_lines(keys: list[str]) -> None:
    if keys:
        show("\n".join([_escaped(key, sys.stdout) for key in keys] if stdout().isatty() else keys))


def show_error(error: Exception, message: str, *, as_json: bool) -> None:
    """Print one line on stderr: `message`, or a JSON object with the class of `error` and the key it is about."""
    if sys.stderr is None:
        return  # the exit status says it
    if as_json:
        key = error.key if isinstance(error, CloudStoreError) else None
        line = json.dumps({"error": type(error).__name__, "message": message, "key": key})
    else:
        line = _escaped(f"cloudstore: {message}", sys.stderr)
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:  # the exit status tells it all the same
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Write no more to a stream that failed: Python would try again when it exits, and change the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _escaped(text: str, stream: TextIO) -> str:
    """Return `text` with JSON's escapes for what could steer a terminal, end a line, or not be written to `stream`."""
    speaks_unicode = (stream.encoding or "").lower() in {"utf-8", "utf8"}
    if text.isprintable() and (speaks_unicode or text.isascii()):
        return text
    return "".join(
        char if char.isprintable() and (speaks_unicode or char.isascii()) else json.dumps(char)[1:-1] for char in text
    )
