"""Logs of the service on stderr, as text or JSON lines, without API keys, passwords or values."""

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

#: Name of the access log's logger.
ACCESS: Final = "cloudstore_mapping.access"

# A media link is a secret: only the first digits of its two numbers are logged.
_LINK: Final = re.compile(r"(/[0-9a-fA-F]{4})[0-9a-fA-F]{28}(?![0-9a-fA-F])")
# The messages of these errors contain paths and names only; those of others may quote a value.
_SAFE_TO_LOG: Final = (CloudStoreError, OSError, sqlite3.Error)
_Failure = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


@contextmanager
def logging_as(*, as_json: bool, access: bool, stream: TextIO | None = None) -> Iterator[None]:
    """Log warnings and errors of the process to `stream` (None: stderr), and with `access` every request."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JSONLines() if as_json else Lines())
    requests = logging.getLogger(ACCESS)
    root = logging.getLogger()
    root.addHandler(handler)
    before = requests.level
    requests.setLevel(logging.INFO if access else logging.WARNING)
    # python-multipart warns of each malformed form, so anybody could fill the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    try:
        yield
    finally:
        requests.setLevel(before)
        root.removeHandler(handler)


class Lines(logging.Formatter):
    """Format records as text: time, level and message, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        request = getattr(record, "request", None)
        if request is None:
            message = record.getMessage()
        else:
            message = "{address} {method} {path} {status} {milliseconds} ms".format_map(request)
        lines = [f"{_time(record)} {record.levelname} {_printable(_redact(message))}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)

    def formatException(self, ei: _Failure) -> str:  # noqa: N802 - as logging has it
        """Return the traceback of an error; omit its message if it may quote a stored value."""
        return "" if ei[1] is None else "\n".join(_traceback(ei[1]))


class JSONLines(Lines):
    """Format records as JSON lines: ``time``, ``level``, ``message``, and the fields of a request."""

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
        return json.dumps({name: _redact(fact) if isinstance(fact, str) else fact for name, fact in facts.items()})


def _traceback(error: BaseException) -> list[str]:
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = [] if before is None else [*_traceback(before), "which led to"]
    lines += [
        f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    return [*lines, f"{type(error).__name__}: {error}" if isinstance(error, _SAFE_TO_LOG) else type(error).__name__]


def _redact(text: str) -> str:
    return _LINK.sub(r"\1…", text)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
