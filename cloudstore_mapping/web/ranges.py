"""What of a file a request wants: conditions and ranges, as RFC 9110 has them in its sections 13 and 14."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

_RANGE: Final = re.compile(rb"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE)
_TAG: Final = re.compile(rb'(?:W/)?"[^"]*"')


class Wanted(NamedTuple):
    """The status of the answer, and of the file's bytes those from `start` on to before `stop`."""

    status: int
    start: int
    stop: int


def wanted(headers: Mapping[bytes, bytes], tag: bytes, modified_at: float, size: int) -> Wanted:
    """
    Return what a GET or HEAD with these headers gets of a file: 200, 206, 304, 412 or 416.

    `tag` is the file's strong entity tag with its quotes, `modified_at` in seconds since 1970. Of several ranges none
    is looked at: the whole file is an answer to them too, and one that nobody can make large. Nor does a date in
    ``If-Range`` make a part: the file may have been replaced twice in its second.
    """
    whole = Wanted(200, 0, size)
    modified = int(modified_at)
    if b"if-match" in headers:
        if not _matches(headers[b"if-match"], tag, weakly=False):
            return whole._replace(status=412)
    elif (since := _seconds(headers.get(b"if-unmodified-since"))) is not None and modified > since:
        return whole._replace(status=412)
    if b"if-none-match" in headers:
        if _matches(headers[b"if-none-match"], tag, weakly=True):
            return whole._replace(status=304)
    elif (since := _seconds(headers.get(b"if-modified-since"))) is not None and modified <= since:
        return whole._replace(status=304)
    match = _RANGE.fullmatch(headers.get(b"range", b""))
    if match is None or not any(match.groups()) or headers.get(b"if-range", tag).strip() != tag:
        return whole
    return _part(match[1], match[2], size)


def _part(first: bytes, last: bytes, size: int) -> Wanted:
    if not first:  # so many bytes at the end
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), size if not last else min(int(last) + 1, size)
        if last and int(last) < start:
            return Wanted(200, 0, size)  # no range at all
    return Wanted(206, start, stop) if start < stop else Wanted(416, 0, 0)


def _matches(header: bytes, tag: bytes, *, weakly: bool) -> bool:
    if header.strip() == b"*":
        return True
    return any(each.removeprefix(b"W/") == tag if weakly else each == tag for each in _TAG.findall(header))


def _seconds(date: bytes | None) -> int | None:
    try:
        return None if date is None else int(parsedate_to_datetime(date.decode("latin-1")).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None
