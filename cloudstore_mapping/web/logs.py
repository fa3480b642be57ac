"""What a service logs on stderr: a line for each thing that happened, and never a key, a password or a value."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

from cloudstore_mapping.errors import CloudStoreError

#: The logger of requests.
ACCESS: Final = "cloudstore_mapping.access"

# Whoever has the link of a media file may read it: of its two numbers only the beginning is logged.
_LINK: Final = re.compile(r"(/[0-9a-fA-F]{4})[0-9a-fA-F]{28}(?![0-9a-fA-F])")
# The sentences of these hold paths and names; another one's may hold the value that it could not take.
_TELLING: Final = (CloudStoreError, OSError, sqlite3.Error)
_Failure = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@contextmanager
def logging_as(*, as_json: bool, access: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Log warnings and errors of the whole process to `stream` (None: stderr), with `access` every request too."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JSONLines() if as_json else Lines())
    requests = logging.getLogger(ACCESS)
    root = logging.getLogger()
    root.addHandler(handler)
    before = requests.level
    requests.setLevel(logging.INFO if access else logging.WARNING)
    # It warns of each form that can't be read, which anybody can send as often as they like.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    try:
        yield
    finally:
        requests.setLevel(before)
        root.removeHandler(handler)


class Lines(logging.Formatter):
    """For people: time, level and message, a failure's places under it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        request = getattr(record, "request", None)
        if request is None:
            message = record.getMessage()
        else:
            message = "{address} {method} {path} {status} {milliseconds} ms".format_map(request)
        lines = [f"{_time(record)} {record.levelname} {_printable(_shortened(message))}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)

    def formatException(self, ei: _Failure) -> str:  # noqa: N802 - as logging has it
        """Return where an error came from, and what it says if that can't be what a user stored."""
        return "" if ei[1] is None else "\n".join(_told(ei[1]))


class JSONLines(Lines):
    """For programs: one JSON object a line, with ``time``, ``level`` and ``message``, of a request its facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        facts: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        facts |= getattr(record, "request", {})
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: _shortened(fact) if isinstance(fact, str) else fact for name, fact in facts.items()})


def _told(error: BaseException) -> list[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [] if before is None else [*_told(before), "which led to"]
    lines += [
        f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    return [*lines, f"{type(error).__name__}: {error}" if isinstance(error, _TELLING) else type(error).__name__]


def _shortened(text: str) -> str:
    return _LINK.sub(r"\1…", text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
