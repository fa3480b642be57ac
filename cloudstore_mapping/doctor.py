"""
Doctor: test a service, request by request, against every assumption that the clients make about it.

It sends its own bodies over `HTTPTransport.post` and reads the replies itself: the mapping and its messages show a
reply only as they interpret it. The transport is the mapping's, for its proxies and certificates, for errors without
secrets, and because it never follows a redirect with an API key. The doctor uses no extension of the protocol.
"""

from __future__ import annotations

import base64
import enum
import json
import platform
import re
import secrets
import shlex
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from cloudstore_mapping._version import __version__
from cloudstore_mapping.callback_client import Pacer, decode_strictly, default_interval, pacer_of
from cloudstore_mapping.client.retry import BUSY, error_of
from cloudstore_mapping.client.transport import Deadline, HTTPTransport, parse_retry_after, scope
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    BadNameError,
    CloudStoreError,
    ProtocolError,
    TimedOutError,
    TransportError,
)
from cloudstore_mapping.keys import escape_key
from cloudstore_mapping.links import media_link
from cloudstore_mapping.masking import SecretText, hide
from cloudstore_mapping.wire import (
    EXTENSIONS,
    EXTENSIONS_HEADER,
    ID_HEADER,
    LOAD_PATH,
    SAVE_PATH,
    UPLOAD_PATH,
    Reply,
    Upload,
    decode_reply,
    decode_value,
    encode_value,
    fault_of,
)

#: Requests of an examination without options, about.
REQUESTS: Final = 105
#: Size of a file on the vendor's plan BASIC, in bytes.
BASIC_FILE: Final = 3072
#: Longest name that our service takes by default, in bytes.
LONGEST_NAME: Final = 1024
#: Seconds by which two clocks may differ.
MAX_SKEW: Final = 60.0

_TRIES: Final = 4
_LONGEST_WAIT: Final = 30.0
#: Seconds until which a reply must be complete.
_LONGEST_REQUEST: Final = 60.0
_LONGEST_INTERVAL: Final = 10.0
_LIMITS: Final = frozenset({"TooManyFiles", "DailyLimit"})
_SHOWN: Final = 200
_SHOWN_REQUEST: Final = 1000
#: Run of a character that a request is shown without.
_LONG_RUN: Final = re.compile(r"(.)\1{99,}")
_WIDTH: Final = 100
_ABSENT: Final = object()

T = TypeVar("T")

#: Function of the number of requests sent so far.
Progress = Callable[[int], object]


class Outcome(enum.StrEnum):
    """Outcome of a check."""

    EXPECTED = "as expected"
    DIFFERENT = "different"
    NOT_TESTED = "not tested"


class Check(NamedTuple):
    """Assumption about a service, and the consequence for users if it is wrong."""

    assumption: str
    consequence: str


class Finding(NamedTuple):
    """Result of a check; `observed` is the reason if it was not tested, `requests` are those with the difference."""

    check: str
    assumption: str
    outcome: Outcome
    observed: str
    consequence: str | None
    requests: tuple[str, ...] = ()


class Left(NamedTuple):
    """File of the doctor that is or may be still there, and how to delete it."""

    name: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """
    Result of an examination.

    Attributes
    ----------
    server
        The service's address without the API key.
    prefix
        Beginning of all names that the doctor used.
    extensions
        The extensions that the service named, in order.
    requests
        Number of requests sent.
    findings
        One for each check, in the order of `CHECKS`.
    saved
        Number of names that requests saved to.
    left
        Files that are still there, or whose delete failed.
    is_clean
        True if, after all deletes, lists and loads showed that no data file of the doctor is there.
    new_names
        Number of names, other than the doctor's, that the list of all files has since the start: another program saved
        them, or the service keeps the doctor's files under other names.
    failure
        The error that ended the examination early, None if it was complete.
    failed_request
        The request with this error, None if it was complete.
    was_interrupted
        True if Ctrl-C or a signal ended it early.
    """

    server: str
    prefix: str
    date: datetime
    extensions: tuple[str, ...]
    requests: int
    findings: tuple[Finding, ...]
    saved: int
    left: tuple[Left, ...]
    is_clean: bool
    new_names: int = 0
    failure: CloudStoreError | None = None
    failed_request: str | None = None
    was_interrupted: bool = False

    def count(self, outcome: Outcome) -> int:
        """Return the number of findings with this outcome."""
        return sum(finding.outcome is outcome for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "package": __version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "server": self.server,
            "date": self.date.isoformat(timespec="seconds"),
            "extensions": list(self.extensions),
            "prefix": self.prefix,
            "requests": self.requests,
            "failure": None if self.failure is None else str(self.failure),
            "failed_request": self.failed_request,
            "interrupted": self.was_interrupted,
            "checks": [{**finding._asdict(), "outcome": str(finding.outcome)} for finding in self.findings],
            "left": [left._asdict() for left in self.left],
            "clean": self.is_clean,
            "new_names": self.new_names,
            "counts": {str(outcome): self.count(outcome) for outcome in Outcome},
        }

    def as_text(self) -> str:
        """Return the report as plain text for a bug report; the last line counts the outcomes."""
        head = {
            "package": f"cloudstore-mapping {__version__}",
            "Python": f"{platform.python_version()} on {platform.system()}",
            "server": self.server,
            "date": f"{self.date:%Y-%m-%d %H:%M:%S} UTC",
            "extensions": ", ".join(self.extensions) or "none",
            "requests": f"{self.requests:,}",
            "names": f"{self.prefix}…, {self._deleted}",
        }
        lines = [f"{f'{name}:':<12}{text}" for name, text in head.items()]
        for finding in self.findings:
            is_different = finding.outcome is Outcome.DIFFERENT
            lines += ["", f"{finding.check}: {finding.outcome.upper() if is_different else finding.outcome}"]
            lines += _paragraph("assumed", finding.assumption)
            lines += _paragraph("reason" if finding.outcome is Outcome.NOT_TESTED else "observed", finding.observed)
            lines += map(_request_line, finding.requests)
            if finding.consequence is not None:
                lines += _paragraph("consequence", finding.consequence)
        lines.append("")
        if self.was_interrupted:
            lines += ["Not all was tested: it was interrupted.", ""]
        elif self.failure is not None:
            lines.append(f"Not all was tested: {self.failure}")
            lines += [_request_line(self.failed_request or ""), ""]
        for left in self.left:
            lines += [f"Left behind: {left.name}", f"  {left.remedy}", ""]
        if self.new_names:
            told = "1 name" if self.new_names == 1 else f"{self.new_names:,} names"
            lines += [f"New in the list of all files: {told} other than the doctor's.", f"  {_NEW_NAMES}", ""]
        counts = (f"{self.count(outcome)} {outcome}" for outcome in Outcome)
        return "\n".join([*lines, ", ".join(counts)])

    @property
    def _deleted(self) -> str:
        if not self.saved:
            return "none saved"
        if any(not left.name.startswith("media file ") for left in self.left):
            return "not all deleted"
        if self.new_names:
            return "deleted as the service says, but see the new names below"
        return "all deleted" if self.is_clean else "deleted as the service says, but nothing shows it"


def _request_line(request: str) -> str:
    return f"  request:     {request}"  # one line, to be copied


def _paragraph(name: str, text: str) -> list[str]:
    indent = " " * 15
    # Long words stay whole, for they may be names or replies.
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {f'{name}:':<13}", subsequent_indent=indent, break_long_words=False
    )


_OTHERS: Final = "the callback client, curl and other programs can't use such keys"
_CHANGED: Final = "what a program loads isn't what it saved; keep such values as texts"

#: All checks by name, in the order of the report.
CHECKS: Final[Mapping[str, Check]] = {
    "reply": Check(
        "Each reply is a JSON object with `error` and `message`; its status is 200 for a success, and for errors that "
        "a program must tell apart.",
        "The clients report such a reply as an error of HTTP or of the protocol.",
    ),
    "extensions": Check(
        "The header CloudStore-Extensions is the same in all replies.",
        "A proxy removes or caches the header, so the mapping goes on without extensions, with more requests.",
    ),
    "clock": Check(
        "The service's clock (the header Date) differs from this machine's by a minute at most.",
        "The times that the dashboard shows, and the end of the day for daily limits, aren't this machine's.",
    ),
    "get": Check(
        "GET on a path of the protocol is refused.",
        "A browser or proxy may answer from its cache, or repeat a request.",
    ),
    "wrong-key": Check(
        "A wrong API key is an error, and none about the file.",
        "A wrong API key looks like an absent key or an unknown error, in place of BadKeyError.",
    ),
    "empty-list": Check(
        "A list without matches is a success with an empty text in `message`, or an empty array in `data`.",
        "On a store without keys, list(store), len(store) and clear() raise an error.",
    ),
    "load-missing": Check(
        "A load of a missing name is the error NoFile.",
        "An absent key isn't KeyError: get(), in, pop() and setdefault() raise another error.",
    ),
    "delete-missing": Check(
        "A delete of a missing name is the error NoFile.",
        "`del store[key]` of an absent key isn't KeyError.",
    ),
    "save": Check("A save is a success.", "Nothing can be saved."),
    "load": Check(
        "A load has the value in `message`; `data` has it, too, or is absent.",
        "The clients read `data` if there is one, otherwise `message`; the vendor's Python client reads `message`.",
    ),
    "delete": Check("A delete is a success.", "Keys can't be deleted."),
    "load-deleted": Check(
        "A load after the delete is the error NoFile, at once.",
        "A deleted key is still found.",
    ),
    "unknown-fields": Check(
        f"The header {ID_HEADER} and the field `dataPass` don't disturb a service that knows neither.",
        "The first save of a program is refused; the mapping sends the header, the vendor's newest page the field.",
    ),
    "null": Check("A saved null is loaded as null, and is not absent.", "None can't be saved as a value."),
    "zero": Check("A saved 0 is loaded as 0.", f"For 0, and perhaps false, {_CHANGED}."),
    "empty-text": Check("A saved empty text is loaded as an empty text.", f"For an empty text, {_CHANGED}."),
    "text": Check("A saved text is loaded as it is, also if it reads as JSON.", f"For a text, {_CHANGED}."),
    "integers": Check("Integers are exact, also above 2**53 and 2**64.", f"For large integers, {_CHANGED}."),
    "floats": Check("Floats are exact, and 1.0 and -0.0 stay floats.", f"For some floats, {_CHANGED}."),
    "unicode": Check(
        "Texts within values are exact: other scripts, emoji, control characters, NUL, line ends.",
        f"For such texts, {_CHANGED}.",
    ),
    "empty": Check("Empty arrays and objects, and null within them, are kept.", f"For them, {_CHANGED}."),
    "names": Check(
        "Any text may be a name in an object: empty, with dots, `$`, `__proto__`.",
        f"For objects with such names, {_CHANGED}.",
    ),
    "deep": Check("Values may be nested 60 levels deep.", "Deep values are refused or changed; flatten them."),
    "order": Check("Names in an object keep their order.", "Dictionaries come back in another order."),
    "duplicates": Check(
        "Of a name that an object has twice, the last counts.",
        "JSON by hand with duplicate names has another meaning; the clients never send any.",
    ),
    "no-value": Check(
        "A save without `value` is refused, or saves null.",
        "A program that forgets the value changes the file in an unexpected way; the clients always send one.",
    ),
    "list": Check(
        "A list has the names in `data` as an array, or in `message` joined by commas without spaces.",
        "The clients can't list: list(store), len(store), items() and clear() lack keys, or have wrong ones.",
    ),
    "filter": Check(
        "The filter of a list is a substring, not only a beginning.",
        "store.list(text) and `cloudstore ls` miss keys, and so does the question before some keys' first use.",
    ),
    "filter-case": Check(
        "The filter of a list is case-sensitive.", "Other programs' lists have more names; the mapping filters again."
    ),
    "filter-wildcards": Check(
        "No character in the filter of a list is a wildcard.",
        "Other programs' lists have more or fewer names than expected; the mapping may miss keys.",
    ),
    "filter-comma": Check(
        "A list filtered by a name with a comma has this name.",
        "The mapping doesn't find files with commas that other programs made, before a complete listing.",
    ),
    "comma": Check("Names may hold commas.", f"The mapping writes %2C in a key and is not affected; {_OTHERS}."),
    "slash": Check(
        "Names may hold slashes, and a list has them whole.",
        "Keys such as users/ann can't be saved, or are missing in list(store), len(store), items(), view() and "
        "clear(); use keys without slashes.",
    ),
    "slash-beside": Check(
        "A name and this name with a slash and more are two files.",
        "`users` and `users/ann` can't both be keys; use keys without slashes.",
    ),
    "space": Check("Names may hold spaces.", "Keys with spaces can't be used."),
    "space-end": Check("A space at the end of a name counts.", "Two keys that differ in it are one file."),
    "case": Check("Upper and lower case differ in names.", "Two keys that differ in case are one file."),
    "letters": Check("Names may hold any letters and emoji.", "Keys with such letters can't be used."),
    "normal-form": Check(
        "Names aren't normalized: an é and an e with a combining accent differ.",
        "Two keys that look the same are one file, or a key comes back in another form.",
    ),
    "percent": Check(
        "A `%` in a name is kept: a%2Cb is not a,b.",
        "The mapping's keys with commas have %2C in their names, and can't be used or clash with others.",
    ),
    "marks": Check("Names may hold ? # & and +.", "Keys with such characters can't be used."),
    "quotes": Check("Names may hold quotes, < > and backslashes.", "Keys with such characters can't be used."),
    "tab": Check("Names may hold control characters.", f"The mapping writes %09 and is not affected; {_OTHERS}."),
    "dots": Check(
        "Parts such as `..` in a name have no meaning.",
        f"The mapping writes %2E%2E and is not affected; {_OTHERS}, and write to another file.",
    ),
    "long-name": Check(
        f"Names may have {LONGEST_NAME:,} bytes.", "Long keys raise an error, or are cut; use shorter ones."
    ),
    "first-characters": Check(
        "Names may be empty, or begin with a dot or underscore.", "The mapping writes the empty key as %."
    ),
    "merge": Check(
        "A merge changes the value itself and keeps the names that it doesn't have.",
        "store |= …, merge() and the callback client's merge lose or misplace data; load, change and save instead.",
    ),
    "merge-objects": Check("Objects within objects are merged.", "A merge loses names in inner objects."),
    "merge-arrays": Check(
        "Arrays are merged position by position.", "A merge of lists has another result than the documented one."
    ),
    "merge-null": Check(
        "Null replaces a value in a merge.", "A merge of None has another result than the documented one."
    ),
    "merge-scalar": Check(
        "A value replaces an object or another value in a merge, and an object a value.",
        "A merge that changes the kind of a value has another result than the documented one.",
    ),
    "merge-top": Check(
        "A merge of a number into an object replaces the object.",
        "store.merge(key, number) has another result than the documented one.",
    ),
    "merge-missing": Check(
        "A merge into a missing name saves the value.", "store |= … and merge() fail for new keys; save them first."
    ),
    "merge-misfit": Check(
        "A merge of names into an array that has no such elements is an error, and changes nothing.",
        "Such a merge loses or changes data, with another result than BadMergeError.",
    ),
    "password-none": Check(
        "A password that is absent or empty is none.", "Programs without passwords can't use their files."
    ),
    "password-undefined": Check(
        "The password `undefined` is none.", "The vendor's page may set or need a password by mistake."
    ),
    "password-needless": Check(
        "A password for a file without one is ignored, and sets none.",
        "password= for a whole store locks files, or makes files without a password unusable.",
    ),
    "locked": Check("A wrong password for a locked file is the error Locked.", "It isn't LockedError."),
    "locked-edit": Check("The edit password allows viewing, too.", "A load needs the view password."),
    "locked-list": Check("Lists need no password.", "list(store) and `in` fail if a file is locked."),
    "locked-default": Check("A file's own password overrides the account's default.", "The wrong password is asked."),
    "size": Check(
        f"A value of {BASIC_FILE:,} bytes is saved whole, as the plan BASIC allows.", "Smaller values are refused."
    ),
    "size-over": Check(
        f"A value of {BASIC_FILE + 1:,} bytes is saved whole, or is the error TooBig.",
        "A value that is too large isn't TooBigError, or is damaged.",
    ),
    "files": Check("A file too many is the error TooManyFiles.", "It isn't TooManyFilesError."),
    "daily": Check("An access too many on a day is the error DailyLimit.", "It isn't DailyLimitError."),
    "rate": Check(
        "A request sent too early is answered, or refused with status 429 or the error TooOften.",
        "A program that sends too early gets an unknown error; give min_interval= in seconds.",
    ),
    "upload": Check(
        "An upload's reply has `data` with name, folder, id, mimetype and size.",
        "store.upload() raises an error although the file is there.",
    ),
    "media-link": Check(
        "The link files/FOLDER/ID.EXTENSION has the bytes that were uploaded.", "Links of uploads lead nowhere."
    ),
}

_BY_OWNER: Final = (
    "only the account's owner can set a password, in the dashboard, or by `cloudstore passwd` at this package's service"
)
#: Checks that the doctor never does, with the reasons.
UNTESTABLE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("locked", "locked-edit", "locked-list", "locked-default"), _BY_OWNER),
    "first-characters": "all names of the doctor begin with its prefix",
    "daily": "it would need hundreds of requests",
}
_MEDIA: Final = "a program can't delete media files; --media uploads one of one byte"
_FILES: Final = "it would need many files; --files N saves up to N"

_NEW_NAMES: Final = (
    "Another program saved them, or the service keeps the doctor's files under other names; look in the dashboard."
)

#: Names by check, made of the prefix. Each of their parts begins with it, too: a service that splits a name at a
#: special character must find no other file.
_NAMES: Final[Mapping[str, str]] = {
    "list": "{0}-a",
    "comma": "{0}-a,{0}-b",
    "slash": "{0}-folder/{0}-b",
    "slash-beside": "{0}-folder",
    "space": "{0}-a {0}-b",
    "space-end": "{0}-a {0}-b ",
    "case": "{0}-A",
    "letters": "{0}-é한😀",
    "normal-form": "{0}-e\u0301한😀",
    "percent": "{0}-a%2C{0}-b",
    "marks": "{0}-?{0}#{0}&{0}+{0}",
    "quotes": "{0}-\"'<>\\{0}",
    "tab": "{0}-\t{0}",
    "dots": "{0}-a/../{0}-dots",
}
#: Names that a service might take for the same.
_TWINS: Final = {
    "slash-beside": "slash",
    "space-end": "space",
    "case": "list",
    "normal-form": "letters",
    "percent": "comma",
}

#: Parts of a value, by check, as JSON.
_PARTS: Final[Mapping[str, str]] = {
    "integers": f"[{2**53 + 1}, {-(2**63)}, {2**64 + 1}, {10**40}]",
    "floats": "[0.1, 1.0, -0.0, 1e300, 5e-324]",
    "unicode": json.dumps('é 한 😀 \0 \x1f \n \u2028 " \\ </script>'),
    "empty": '[[], {}, [null], {"a": null}, ""]',
    "names": '{"": 1, "a.b": 2, "$c": 3, "__proto__": 4, "d e": 5}',
    "deep": "[" * 60 + "]" * 60,
    "order": '{"b": 1, "a": 2, "10": 3, "9": 4}',
    "duplicates": '{"a": 1, "a": 2}',
}

_BEFORE_MERGE: Final = {
    "kept": 1,
    "objects": {"a": 1, "b": {"c": 1}},
    "arrays": [1, 2, 3],
    "null": 1,
    "scalar": [1, {}],
}
_MERGED: Final[Mapping[str, Any]] = {
    "objects": {"b": {"d": 2}},
    "arrays": [9],
    "null": None,
    "scalar": [{"x": 1}, 2],
    "new": {"a": []},
}
_AFTER_MERGE: Final = {
    "objects": {"a": 1, "b": {"c": 1, "d": 2}},
    "arrays": [9, 2, 3],
    "null": None,
    "scalar": [{"x": 1}, 2],
}


_SENTENCES: Final = frozenset({"Entry saved", "Entry deleted", "Entry loaded", "File does not exist"})
_STATUSES: Final = frozenset({*(each.phrase for each in HTTPStatus), *(f"Status {number}" for number in range(600))})
#: Texts that a report may quote whatever the service means by them.
_KNOWN: Final = frozenset({*REPLY_ERRORS, *_LIMITS, "Http error"} | _SENTENCES | _STATUSES)
_TYPES: Final = frozenset({"application/json", "text/json", "text/html", "text/plain", "no type"})
#: The reason in a message of the transport.
_REASON: Final = re.compile(r" \(.*\)(?=[;:.,])", re.DOTALL)
#: Numbers from here on are compared exactly.
_LARGEST: Final = 1e300
#: Levels of a value that are shown.
_DEEPEST: Final = 64


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the texts, names and numbers in a value."""
    if isinstance(value, dict):
        yield from value
        value = [*value.values()]
    if isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


_VALUES: Final = [_BEFORE_MERGE, {**_MERGED}, _AFTER_MERGE, *map(json.loads, _PARTS.values()), 0, 1, 2, 3, 7]
_VALUE_LEAVES: Final = [leaf for value in _VALUES for leaf in _leaves(value)]
_NUMBERS: Final = frozenset(
    number for leaf in _VALUE_LEAVES if isinstance(leaf, int | float) for number in (leaf, float(leaf))
)


_VALUE_TEXTS: Final = ("é", "text", "list", '{"a": 1}', "x" * (BASIC_FILE - 2), "x" * (BASIC_FILE - 1))


class _Answer:
    """Response of the service: status, headers, and its JSON object, None if a client can't read one."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.reason: str = response.reason or ""
        self.content: bytes = response.content
        self.is_repeated = False
        #: The request as the report shows it.
        self.request = ""
        self.body: dict[str, Any] | None = None
        #: Reason why the clients can't read it, None if it is no JSON object by any reading.
        self.fault: str | None = None
        try:
            body = decode_strictly(self.content)  # as the callback client
            decode_value(self.content)  # as the mapping
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            if _is_object(self.content):
                self.fault = _fault_of(self.content, error)
        else:
            self.body = body if isinstance(body, dict) else None

    @property
    def error(self) -> Any:
        """The reply's `error`, `_ABSENT` without one."""
        return _ABSENT if self.body is None else self.body.get("error", _ABSENT)

    @property
    def is_success(self) -> bool:
        """True if the clients take it for a success."""
        return self.error is None and HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def value(self) -> Any:
        """The value of a load as the clients read it, `_ABSENT` without one."""
        body = self.body or {}
        return body.get("data", body.get("message", _ABSENT)) if self.is_success else _ABSENT

    @property
    def names(self) -> list[str] | None:
        """The names of a list as the clients read them; None if they can't."""
        body = self.body or {}
        data, message = body.get("data", _ABSENT), body.get("message")
        if not self.is_success:
            return None
        if data is _ABSENT:
            return None if not isinstance(message, str) else message.split(",") if message else []
        return data if isinstance(data, list) and {*map(type, data)} <= {str} else None

    @property
    def is_joined(self) -> bool:
        """True for a list with its names joined by commas."""
        return "data" not in (self.body or {})

    def has_name(self, name: str) -> bool:
        """Return True if a list has this name, also in a list that joins names with commas."""
        names = self.names or []
        return f",{name}," in f",{','.join(names)}," if self.is_joined else name in names

    def as_reply(self) -> Reply:
        """Return the reply as the mapping reads it; `ProtocolError` if it is none."""
        retry_after = parse_retry_after(self.headers)
        try:
            reply = decode_reply(self.content, status=self.status, retry_after=retry_after)
        except ProtocolError:
            if self.status == HTTPStatus.OK:
                raise
        else:
            if reply.error is not None or self.status < HTTPStatus.MULTIPLE_CHOICES:
                return reply
        message = encode_value(self.reason or f"Status {self.status}")
        return Reply(error="Http error", message=message, status=self.status, retry_after=retry_after)


def _is_object(content: bytes) -> bool:
    """Return True for a JSON object by a lenient reading: in any encoding of Unicode, with any number."""
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        with suppress(ValueError, RecursionError):
            return isinstance(json.loads(content.decode("latin-1")), dict)
        return False


def _fault_of(content: bytes, error: Exception) -> str:
    return fault_of(content, error).partition(";")[0]  # its advice is for files


def _error_in(reply: Reply) -> CloudStoreError:
    error = error_of(reply, None)
    return (
        ProtocolError("The reply has an unexpected status; report it.", status=reply.status) if error is None else error
    )


class _UnansweredError(Exception):
    """A request got no answer that tells anything about the check, for this reason."""

    def __init__(self, reason: CloudStoreError, request: str) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.request = request


@dataclass
class _Gathered:
    """Facts about all answers of an examination."""

    statuses: Counter[int] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    extensions: Counter[str] = field(default_factory=Counter)
    odd: str | None = None
    odd_request: tuple[str, ...] = ()
    #: The first request for each value of the header.
    requests: dict[str, str] = field(default_factory=dict)


class Doctor:
    """
    Examine a service, with files of its own that it deletes afterwards.

    Parameters
    ----------
    api_key, server
        The account's API key, and the service's address without it, as `address.parse_address` returns them.
    interval
        Least seconds between two requests; None: 3 for the vendor's servers, 0 for others. A service that asks for
        longer waits (``Retry-After``) gets them.
    media
        Upload a media file of one byte, which can't be deleted afterwards.
    files
        Save up to this number of files to find the account's limit; 0: none.
    transport, pacer, sleep, new_prefix, now
        The connection, and functions to wait, to choose a prefix and to read the time.
    """

    def __init__(
        self,
        api_key: str,
        server: str,
        *,
        interval: float | None = None,
        media: bool = False,
        files: int = 0,
        transport: HTTPTransport | None = None,
        pacer: Pacer | None = None,
        sleep: Callable[[float], object] = time.sleep,
        new_prefix: Callable[[], str] = lambda: f"doctor-{secrets.token_hex(4)}",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._key: SecretText = hide(api_key)
        self._server = server
        self._interval = default_interval(server) if interval is None else interval
        self._media = media
        self._files = files
        self._transport = HTTPTransport(server) if transport is None else transport
        self._pacer = pacer_of(server) if pacer is None else pacer
        self._sleep = sleep
        self._new_prefix = new_prefix
        self._now = now
        self._password = hide(secrets.token_hex(8))
        self._wrong_key = hide(secrets.token_hex(16))
        self._prefix = ""
        self._made: dict[str, None] = {}
        #: All names that requests wrote to, also after their deletes.
        self._written: dict[str, None] = {}
        #: Names that a list lacked although they were saved.
        self._unlisted: dict[str, None] = {}
        self._is_clean = False
        self._left_media: list[str] = []
        self._findings: dict[str, Finding] = {}
        self._answers = _Gathered()
        self._extensions: tuple[str, ...] = ()
        self._failure: CloudStoreError | None = None
        self._failed_request: str | None = None
        self._date = self._now()
        self._progress: Progress = lambda _: None
        self._requests = 0
        self._sent_texts = {leaf for leaf in _VALUE_LEAVES if isinstance(leaf, str)} | CHECKS.keys() | {*_VALUE_TEXTS}
        #: Names in a list of all files before the first save; None if it can't be read.
        self._before: frozenset[str] | None = None
        self._new_names = 0

    @property
    def expected_requests(self) -> int:
        """Number of requests that an examination will send, about."""
        return REQUESTS + 2 * self._media + 2 * self._files

    @property
    def expected_seconds(self) -> float:
        """Seconds that the rate limit alone makes it take."""
        return self.expected_requests * self._interval

    def examine(self, progress: Progress | None = None) -> Report:
        """
        Do all checks, delete all files made, and return the report; `progress` is called before each request.

        However it ends, by Ctrl-C, too, the files are deleted first. If this fails, the exception has a note with the
        names; a second interrupt ends the deleting. `partial_report` tells what was found before an interrupt.

        Raises
        ------
        CloudStoreError
            The first request failed: the service was not reached, doesn't know the API key, or is no CloudStore.
        """
        if progress is not None:
            self._progress = progress
        stopped: BaseException | None = None
        self._date = self._now()
        try:
            if self._choose_prefix():
                self._before = self._all_names()
                self._run()
        except BaseException as error:  # noqa: BLE001 - raised again below
            stopped = error
        try:
            self._clean_up()
        except BaseException as interrupt:
            if isinstance(stopped, KeyboardInterrupt):
                self._add_note(interrupt)
                raise
            stopped = interrupt
            try:
                self._clean_up()
            except BaseException as second:
                self._add_note(second)
                raise
        finally:
            self._transport.close()
        if stopped is not None:
            self._add_note(stopped)
            raise stopped
        return self._report()

    def partial_report(self) -> Report | None:
        """Return a report of what an interrupted examination found; None if it found nothing."""
        return self._report(was_interrupted=True) if self._findings else None

    # Requests.

    def _body(self, **fields: Any) -> dict[str, Any]:
        return {"key": self._key, "options": None, "id": "_data", "password": None, **fields}

    def _write(self, name: str, body: bytes, headers: Mapping[str, str] | None = None) -> _Answer:
        """Send a save or merge; every name that is to be deleted comes by here."""
        self._made[name] = self._written[name] = None
        return self._post(SAVE_PATH, body, headers)

    def _save(self, name: str, value: Any, headers: Mapping[str, str] | None = None, **fields: Any) -> _Answer:
        answer = self._write(name, _encoded(self._body(file=name, value=value, **fields)), headers)
        if answer.error in _LIMITS:  # it says nothing about the name or value
            raise _UnansweredError(self._error_of(answer), answer.request)
        return answer

    def _save_text(self, name: str, text: str) -> _Answer:
        """Save a value given as JSON."""
        marker = secrets.token_hex(16)
        body = _encoded(self._body(file=name, value=marker))
        return self._write(name, body.replace(_encoded(marker), text.encode()))

    def _merge(self, name: str, value: Any) -> _Answer:
        return self._save(name, value, options="merge")

    def _load(self, name: str, **fields: Any) -> _Answer:
        return self._post(LOAD_PATH, _encoded(self._body(file=name, **fields)))

    def _list(self, text: str) -> _Answer:
        body = self._body(file=text, options="list")
        del body["password"]
        return self._post(LOAD_PATH, _encoded(body))

    def _delete(self, name: str, password: str | None = None) -> _Answer:
        return self._post(SAVE_PATH, _encoded(self._body(file=name, options="delete", value=None, password=password)))

    def _post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> _Answer:
        """Return the answer to a request; `_UnansweredError` if there is none."""
        request = self._shown_request(path, body, headers)
        answer, is_repeated = self._persist(
            lambda: _Answer(self._transport.post(path, body, headers)),
            lambda answer: (answer.status, parse_retry_after(answer.headers), self._error_of),
            request,
        )
        answer.is_repeated = is_repeated
        answer.request = request
        self._gather(answer)
        return answer

    def _upload(self, upload: Upload) -> Reply:
        return self._persist(lambda: self._transport.send(upload), self._busy_facts, self._shown_upload(upload))[0]

    def _get(self, link: str, request: str) -> tuple[int, bytes]:
        """Return the status of a download, and its content unless it is refused."""

        def get() -> tuple[Reply, bytes]:
            fetched = self._transport.fetch(link)
            try:
                return fetched.refusal or Reply(), b"".join(fetched.pieces)
            finally:
                fetched.close()

        (reply, content), _ = self._persist(get, lambda got: self._busy_facts(got[0]), request)
        return reply.status, content

    def _persist(
        self,
        send: Callable[[], T],
        facts: Callable[[T], tuple[int, float | None, Callable[[T], CloudStoreError]]],
        request: str,
    ) -> tuple[T, bool]:
        """
        Send, again while the service is busy or a connection fails; return the answer.

        The second result is True if an earlier attempt may have been applied. `facts` returns an answer's status, its
        ``Retry-After``, and a function for its error. Raises `_UnansweredError` for `request` if the last attempt
        fails, too.
        """
        is_repeated = False
        timeouts = 0
        for tries_left in reversed(range(_TRIES)):
            wait = 0.5 * 2 ** (_TRIES - 1 - tries_left)
            try:
                answer = self._in_turn(send, self._interval)
            except (TransportError, TimedOutError) as error:
                has_waited = isinstance(error, TimedOutError) and timeouts > 0
                timeouts += isinstance(error, TimedOutError)
                if not tries_left or has_waited or getattr(error, "is_permanent", False):
                    raise _UnansweredError(error, request) from error
                is_repeated = is_repeated or error.sent
            except ProtocolError as error:
                raise _UnansweredError(error, request) from error
            else:
                status, retry_after, as_error = facts(answer)
                if status not in BUSY:
                    return answer, is_repeated
                if not tries_left or (retry_after or 0.0) > _LONGEST_WAIT:
                    raise _UnansweredError(as_error(answer), request)
                if status == HTTPStatus.TOO_MANY_REQUESTS:
                    self._interval = max(self._interval, min(retry_after or 0.0, _LONGEST_INTERVAL))
                else:
                    is_repeated = True
                wait = max(wait, retry_after or 0.0)
            self._sleep(wait)
        raise AssertionError

    def _in_turn(self, send: Callable[[], T], interval: float) -> T:
        """Send once, at least `interval` seconds after the request before."""
        self._pacer.wait(self._pacer.reserve(interval))
        self._progress(self._requests)
        self._requests += 1
        scope.deadline = Deadline(_LONGEST_REQUEST, time.perf_counter)  # a reply may trickle in without an end
        try:
            return send()
        finally:
            scope.deadline = None

    def _gather(self, answer: _Answer) -> None:
        """Take note of what all answers should have in common."""
        body = answer.body
        self._answers.statuses[answer.status] += 1
        self._answers.types[self._shown_type(answer)] += 1
        named = answer.headers.get(EXTENSIONS_HEADER, "")
        self._answers.extensions[named] += 1
        self._answers.requests.setdefault(named, answer.request)
        self._extensions = self._extensions or self._shown_extensions(named)
        is_reply = body is not None and "message" in body and isinstance(body.get("error", _ABSENT), str | None)
        # Of an error of another status, 200 is as good.
        must_be_ok = answer.error is None or REPLY_ERRORS.get(str(answer.error), (0,))[0] == HTTPStatus.OK
        is_odd = not is_reply or (must_be_ok and answer.status != HTTPStatus.OK)
        if is_odd and self._answers.odd is None:
            self._answers.odd = self._said(answer)
            self._answers.odd_request = (answer.request,)

    # Texts for the report: not long, and without secrets, names or values but the doctor's own.

    def _masked(self, text: str, longest: int = _SHOWN) -> str:
        """Return text of the service without secrets, and with escapes for what could steer a terminal."""
        for secret in map(str.__str__, (self._key, self._password, self._wrong_key)):
            for form in _forms(secret):
                text = re.sub(re.escape(form), "…", text, flags=re.IGNORECASE)
        text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
        return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"

    def _masked_error(self, error: CloudStoreError) -> CloudStoreError:
        cause: BaseException | None = error.__cause__
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or next((part for part in cause.args if isinstance(part, Exception)), None)
        if cause is None or "HTTPException" in {kind.__name__ for kind in type(cause).__mro__}:
            error.message = _REASON.sub("", error.message)  # it may quote the service
        error.message = self._masked(error.message)
        return error

    def _is_known(self, text: str) -> bool:
        return text in _KNOWN or text in self._sent_texts or text in self._written

    def _partly(self, text: str) -> str:
        """Return a text with `…` in place of all words that the doctor didn't send."""
        own = sorted({self._prefix, *self._written} - {""}, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, own))})" if own else r"(\b\B)", text)
        return "".join(part if number % 2 else re.sub(r"[^\W_]+", "…", part) for number, part in enumerate(parts))

    def _shown_text(self, text: str) -> str:
        if self._is_known(text):
            return json.dumps(text, ensure_ascii=False)
        if self._prefix and self._prefix in text:
            return json.dumps(self._partly(text), ensure_ascii=False)
        return f"a text of {len(text):,} characters"

    def _shown_part(self, value: Any, depth: int = 0) -> str:
        """Return a value as JSON, but with a description in place of each part that the doctor didn't send."""
        if value is None or isinstance(value, bool):
            return json.dumps(value)
        if isinstance(value, str):
            return self._shown_text(value)
        if isinstance(value, int | float):
            is_near = value in _NUMBERS or (abs(value) < _LARGEST and float(value) in _NUMBERS)
            return json.dumps(value) if is_near else f"a number of {len(json.dumps(value)):,} characters"
        if depth == _DEEPEST:
            return "…"
        if isinstance(value, list):
            return f"[{', '.join(self._shown_part(part, depth + 1) for part in value)}]"
        names = (json.dumps(name, ensure_ascii=False) if self._is_known(name) else "…" for name in value)
        parts = (self._shown_part(part, depth + 1) for part in value.values())
        pairs = map(": ".join, zip(names, parts, strict=True))
        return f"{{{', '.join(pairs)}}}"

    def _shown_type(self, answer: _Answer) -> str:
        kind = answer.headers.get("Content-Type", "no type").partition(";")[0].strip().lower()
        return kind if kind in _TYPES else f"a type of {len(kind):,} characters"

    def _shown_extensions(self, header: str) -> tuple[str, ...]:
        names = (name.strip() for name in header.split(","))
        return tuple(
            name if name in EXTENSIONS else f"an unknown one of {len(name):,} characters" for name in names if name
        )

    def _shown_request(self, path: str, body: bytes, headers: Mapping[str, str] | None) -> str:
        """Return a request for others to repeat it: the API key masked, a long run of a character shortened."""
        beside = "".join(f"{name}: {value}, " for name, value in (headers or {}).items())
        text = self._masked(f"POST {path} {beside}{body.decode()}", len(body) + _SHOWN_REQUEST)
        text = _LONG_RUN.sub(lambda run: f"{run[1] * 3}… ({len(run[0]):,} times)", text)
        return self._masked(text, _SHOWN_REQUEST)

    def _shown_upload(self, upload: Upload) -> str:
        return self._masked(f"POST {UPLOAD_PATH}, a form with the file {json.dumps(upload.name)}")

    def _shown(self, value: Any) -> str:
        """Return a value of the service, of which only parts that the doctor sent are quoted."""
        return "nothing" if value is _ABSENT else self._masked(self._shown_part(value))

    def _said(self, answer: _Answer) -> str:
        status = "" if answer.status == HTTPStatus.OK else f"status {answer.status}, "
        body = answer.body
        if body is None:
            kind = self._shown_type(answer)
            if answer.fault is not None:
                return f"status {answer.status}, and a JSON object that the clients can't read: {answer.fault} ({kind})"
            return f"status {answer.status}, and no JSON object ({kind})"
        if answer.is_success:
            return f"{status}success, message {self._shown(body.get('message', _ABSENT))}"
        error, message = body.get("error", _ABSENT), body.get("message", _ABSENT)
        return f"{status}error {self._shown(error)}, message {self._shown(message)}"

    def _said_of_list(self, answer: _Answer) -> str:
        """Return a list's reply without the user's names."""
        if not answer.is_success:
            return self._said(answer)
        if answer.names is None:
            body = answer.body or {}
            kinds = (f"{part} of type {type(body[part]).__name__}" for part in ("message", "data") if part in body)
            return f"success, {', '.join(kinds)}"
        form = "text" if answer.is_joined else "array"
        if not answer.names:
            return f"success, an empty {form}"
        own = sum(map(self._is_own, answer.names))
        others = len(answer.names) - own
        told = [f"{own:,} {'name' if own == 1 else 'names'} of the doctor"] if own else []
        told += [f"{others:,} other {'name' if others == 1 else 'names'}"] if others else []
        return f"success, {'joined text' if answer.is_joined else 'an array'} of {' and '.join(told)}"

    def _quoted_list(self, answer: _Answer) -> str:
        """Return the reply to a list as it came, with `…` in place of all words that are no names of the doctor."""
        body = answer.body or {}
        field_name = next((part for part in ("data", "message") if part in body), None)
        if field_name is None:
            return self._said(answer)
        value = body[field_name]
        text = self._partly(value) if isinstance(value, str) else value
        if isinstance(value, list):
            text = [self._partly(name) if isinstance(name, str) else "…" for name in value]
        elif not isinstance(value, str):
            return f"{field_name} {self._shown(value)}"
        return f"{field_name} {self._masked(json.dumps(text, ensure_ascii=False))}"

    def _error_of(self, answer: _Answer) -> CloudStoreError:
        """Return the error for an answer that ends the examination."""
        try:
            reply = answer.as_reply()
        except ProtocolError as error:
            return error
        return self._error_in(reply)

    def _error_in(self, reply: Reply) -> CloudStoreError:
        """Return the error of a reply, with only known words of the service."""
        if reply.error == "Http error":  # no reply of CloudStore's; the error has its status
            reply = msgspec.structs.replace(reply, message=encode_value(f"({self._shown(reply.sentence)})"))
        elif reply.error is not None and not (reply.error in _KNOWN and self._is_known(reply.sentence)):
            told = f"The service answered {self._shown(reply.error)} and {self._shown(reply.sentence)}"
            told += "; check the API key." if reply.error == "BadKey" else "."
            name = reply.error if reply.error in _KNOWN else "Unknown"
            reply = msgspec.structs.replace(reply, error=name, message=encode_value(told))
        return self._masked_error(_error_in(reply))

    def _busy_facts(self, reply: Reply) -> tuple[int, float | None, Callable[[Any], CloudStoreError]]:
        return reply.status, reply.retry_after, lambda _: self._error_in(reply)

    # Findings.

    def _find(
        self,
        check: str,
        is_expected: bool,
        observed: str,
        requests: Sequence[_Answer | str],
        consequence: str | None = None,
    ) -> bool:
        """Note a finding; `requests` are those, or the answers to those, by which others can see a difference."""
        known = CHECKS[check]
        outcome = Outcome.EXPECTED if is_expected else Outcome.DIFFERENT
        result = None if is_expected else consequence or known.consequence
        shown = [each if isinstance(each, str) else each.request for each in requests]
        self._findings[check] = Finding(
            check, known.assumption, outcome, observed, result, () if is_expected else tuple(shown)
        )
        return is_expected

    def _skip(self, checks: Iterable[str], reason: str) -> None:
        """Note that these checks were not tested, except those with a finding."""
        for check in checks:
            if check not in self._findings:
                self._findings[check] = Finding(check, CHECKS[check].assumption, Outcome.NOT_TESTED, reason, None)

    def _is_error(self, check: str, answer: _Answer, name: str, consequence: str | None = None) -> bool:
        return self._find(check, answer.error == name, self._said(answer), [answer], consequence)

    def _is_kept(self, check: str, name: str, value: Any, **fields: Any) -> bool:
        """Save a value, load it, and compare both."""
        saved = self._save(name, value, **fields)
        if not saved.is_success:
            return self._find(check, False, f"save: {self._said(saved)}", [saved])
        loaded = self._load(name, **fields)
        if not loaded.is_success:
            return self._find(check, False, f"load: {self._said(loaded)}", [saved, loaded])
        told = f"loaded {self._shown(loaded.value)}"
        return self._find(check, _same(loaded.value, value), told, [saved, loaded])

    # The checks.

    def _choose_prefix(self) -> bool:
        """Choose a prefix that no name has; return False if the clients can read no reply."""
        for _ in range(3):
            self._prefix = self._new_prefix()
            try:
                answer = self._list(self._prefix)
            except _UnansweredError as error:
                raise self._masked_error(error.reason) from None
            names = answer.names
            if answer.fault is not None:
                self._skip(CHECKS.keys() - {*UNTESTABLE, "reply"}, "the clients can't read the replies; see `reply`")
                return False
            if not answer.is_success and answer.error != "NoFile":
                raise self._error_of(answer)
            if names is None and self._prefix in answer.content.decode(errors="replace"):
                raise ProtocolError(
                    "The reply to a list can't be read, so nothing shows which names are free: "
                    f"{self._said_of_list(answer)}; report it."
                )
            if not any(map(self._is_own, names or ())):
                self._find("empty-list", names == [], self._said_of_list(answer), [answer])
                self._check_clock(answer)
                return True
        raise BadNameError("All names that the doctor chose are in use; start it again.")

    def _check_clock(self, answer: _Answer) -> None:
        text = answer.headers.get("Date", "")
        try:
            date = parsedate_to_datetime(text)
            skew = (date.replace(tzinfo=date.tzinfo or UTC) - self._now()).total_seconds()
        except (ValueError, OverflowError):
            told = f"the header Date can't be read: {self._shown(text)}" if text else "the reply has no header Date"
            self._skip(["clock"], told)
            return
        distance = f"{abs(skew):,.0f} seconds {'ahead of' if skew > 0 else 'behind'} this machine's"
        self._find("clock", abs(skew) <= MAX_SKEW, f"the service's clock is {distance}", [answer])

    def _run(self) -> None:
        """Do all checks, group by group; a service that stops answering ends it."""
        groups: list[Callable[[], object]] = [
            self._check_life,
            self._check_requests,
            self._check_values,
            self._check_names,
            self._check_merges,
            self._check_passwords,
            self._check_sizes,
            self._check_rate,
        ]
        if self._files:
            groups.append(self._check_files)
        if self._media:
            groups.append(self._check_media)
        unanswered = 0
        for group in groups:
            try:
                if group() is False:
                    break
                unanswered = 0
            except _UnansweredError as error:
                unanswered += 1
                self._failure, self._failed_request = self._masked_error(error.reason), error.request
                if unanswered > 1:
                    break

    def _check_life(self) -> bool:
        name = f"{self._prefix}-a"
        missing = self._load(name)
        effect = "take it for a saved value" if missing.is_success else "raise another error"
        self._is_error(
            "load-missing",
            missing,
            "NoFile",
            f"An absent key isn't KeyError: get(), in, pop() and setdefault() {effect}.",
        )
        self._is_error("delete-missing", self._delete(name), "NoFile")
        value = {"text": "é", "list": [1, None, True]}
        saved = self._save(name, value)
        if not self._find("save", saved.is_success, self._said(saved), [saved]):
            self._skip(CHECKS.keys() - {*UNTESTABLE, "reply", "extensions"}, "nothing could be saved; see `save`")
            return False
        loaded = self._load(name)
        body = loaded.body or {}
        parts = ", ".join(f"{part} {self._shown(body.get(part, _ABSENT))}" for part in ("message", "data"))
        is_there = loaded.is_success and _same(body.get("message"), value) and _same(body.get("data", value), value)
        self._find("load", is_there, parts if loaded.is_success else self._said(loaded), [saved, loaded])
        deleted = self._delete(name)
        was_lost = deleted.is_repeated and deleted.error == "NoFile"
        after = self._load(name)
        untrue = "The clients report that a key wasn't deleted, though it was." if after.error == "NoFile" else None
        is_deleted = deleted.is_success or was_lost
        self._find("delete", is_deleted, self._said(deleted), [saved, deleted], untrue)
        effect = (
            "A deleted key is still found." if after.is_success else "A load of a deleted key raises another error."
        )
        if self._is_error("load-deleted", after, "NoFile", effect):
            self._made.pop(name, None)
        return True

    def _check_requests(self) -> None:
        wrong = self._load(f"{self._prefix}-a", key=self._wrong_key)
        is_named = wrong.error == "BadKey" or (isinstance(wrong.error, str) and wrong.status == HTTPStatus.UNAUTHORIZED)
        self._find("wrong-key", is_named and wrong.error not in ("NoFile", "Locked"), self._said(wrong), [wrong])
        status, _ = self._get(LOAD_PATH, f"GET {LOAD_PATH}")
        self._find("get", status >= HTTPStatus.MULTIPLE_CHOICES, f"status {status}", [f"GET {LOAD_PATH}"])
        saved = self._save(
            f"{self._prefix}-value", 1, {ID_HEADER: f'"{secrets.token_hex(16)}"'}, dataPass=self._password
        )
        self._find("unknown-fields", saved.is_success, self._said(saved), [saved])

    def _check_values(self) -> None:
        name = f"{self._prefix}-value"
        for check, value in {"null": None, "zero": 0, "empty-text": "", "text": '{"a": 1}'}.items():
            self._is_kept(check, name, value)
        self._check_null()
        whole = "{" + ", ".join(f"{_text(check)}: {text}" for check, text in _PARTS.items()) + "}"
        if (saved := self._save_text(name, whole)).is_success:
            loaded = self._load(name)
            parts = loaded.value if isinstance(loaded.value, dict) else {}
            for check, text in _PARTS.items():
                self._compare(check, text, parts.get(check, _ABSENT), saved, loaded)
        else:  # one part is refused: find it
            for check, text in _PARTS.items():
                saved = self._save_text(name, text)
                if saved.is_success:
                    loaded = self._load(name)
                    self._compare(check, text, loaded.value, saved, loaded)
                else:
                    self._find(check, False, f"save: {self._said(saved)}", [saved])
        self._check_no_value(name)

    def _check_null(self) -> None:
        """Correct the finding about null: it tells nothing if a missing name is loaded as null, too."""
        missing = f"{self._prefix}-missing"
        if self._findings["null"].outcome is not Outcome.EXPECTED or self._is_missing_known():
            return
        if (loaded := self._load(missing)).is_success and loaded.value is None:
            told = "loaded null, but null comes for a missing name, too"
            self._find("null", False, told, [loaded], "None can't be told from an absent key.")

    def _is_missing_known(self) -> bool:
        """Return True unless a load of a missing name is another reply than the error NoFile."""
        found = self._findings.get("load-missing")
        return found is None or found.outcome is Outcome.EXPECTED

    def _compare(self, check: str, text: str, part: Any, saved: _Answer, loaded: _Answer) -> None:
        """Compare a part of a value with its JSON."""
        value = json.loads(text)
        # The order of names is the subject of a check of its own.
        is_same = _same(part, value) if check == "order" else _same(part, value, in_order=False)
        told = f"loaded {self._shown(part)}" if part is not _ABSENT else f"load: {self._said(loaded)}"
        self._find(check, is_same, told, [saved, loaded])

    def _check_no_value(self, name: str) -> None:
        if not (first := self._save(name, 1)).is_success:
            self._skip(["no-value"], f"a save before it was refused: {self._said(first)}")
            return
        saved = self._write(name, _encoded(self._body(file=name)))
        loaded = self._load(name)
        is_expected = loaded.is_success and _same(loaded.value, None if saved.is_success else 1)
        found = self._shown(loaded.value) if loaded.is_success else self._said(loaded)
        self._find("no-value", is_expected, f"{self._said(saved)}; loaded {found} afterwards", [first, saved, loaded])

    def _check_names(self) -> None:
        names = {check: text.format(self._prefix) for check, text in _NAMES.items()}
        names["long-name"] = f"{self._prefix}-".ljust(LONGEST_NAME, "n")
        saved: dict[str, _Answer] = {}
        for check, name in names.items():
            if check == "dots" and not saved["slash"].is_success:
                continue
            saved[check] = self._save(name, check)
        loaded = {check: self._load(names[check]) for check, answer in saved.items() if answer.is_success}
        listed = self._list(self._prefix)
        is_listed = listed.has_name(names["list"])
        told = "names joined by commas" if listed.is_joined else "an array of names"
        effect = None if listed.names is not None else "list(store), len(store), items() and clear() raise an error."
        if not is_listed:
            told = f"{self._said_of_list(listed)}, without {self._shown(names['list'])}"
            told += f": {self._quoted_list(listed)}" if listed.is_success else ""
        self._find("list", is_listed, told, [saved["list"], listed], effect)
        stored = {f"{self._prefix}-value", *(names[check] for check in loaded)}
        stored |= {piece for name in stored for piece in name.split(",")}  # of a list joined by commas
        others = [name for name in listed.names or () if self._prefix in name and name not in stored]
        for check in names:
            if check not in saved or (check == "dots" and self._findings["slash"].outcome is not Outcome.EXPECTED):
                self._skip(["dots"], "slashes are special here; see `slash`")
            elif check != "list":
                self._check_name(check, names, saved, loaded, listed if is_listed else None, others)
        self._check_filters(names, is_listed=is_listed)

    def _check_name(
        self,
        check: str,
        names: Mapping[str, str],
        saved: Mapping[str, _Answer],
        loaded: Mapping[str, _Answer],
        listed: _Answer | None,
        others: list[str],
    ) -> None:
        name = names[check]
        # The mapping escapes some names, but only if it takes the service for one with joined lists.
        is_escaped = listed is not None and listed.is_joined and escape_key(name, joined=True) != name
        consequence = None if is_escaped or check not in ("comma", "tab", "dots") else f"{_OTHERS.capitalize()}."
        find = partial(self._find, check, consequence=consequence)
        if not saved[check].is_success:
            find(False, f"save: {self._said(saved[check])}", [saved[check]])
            return
        asked = [saved[check], loaded[check]]
        if not loaded[check].is_success:
            find(False, f"saved; load: {self._said(loaded[check])}", asked)
            return
        value, twin = loaded[check].value, _TWINS.get(check)
        if isinstance(value, str) and _TWINS.get(value) == check:
            self._skip([check], f"its value was replaced; see `{value}`")
        elif value != check:
            find(False, f"saved {self._shown(check)}, but loaded {self._shown(value)}", asked)
        elif twin is not None and twin in loaded and loaded[twin].value == check:
            find(
                False, f"it replaced the value of {self._shown(names[twin])}", [saved[twin], saved[check], loaded[twin]]
            )
        elif listed is not None and not listed.has_name(name):
            has = f"; it has {', '.join(map(self._shown, others[:3]))}" if others else ""
            self._unlisted[name] = None
            find(False, f"saved and loaded, but the list lacks {self._shown(name)}{has}", [saved[check], listed])
        else:
            find(True, "saved, loaded and listed" if listed is not None else "saved and loaded", asked)

    def _check_filters(self, names: Mapping[str, str], *, is_listed: bool) -> None:
        checks = ("filter", "filter-case", "filter-wildcards", "filter-comma")
        if not is_listed:
            self._skip(checks, "the names can't be listed; see `list`")
            return
        inner = self._list(names["list"][3:])
        self._find("filter", inner.has_name(names["list"]), self._said_of_list(inner), [inner])
        upper = self._list(self._prefix.upper())
        self._find("filter-case", not self._has_own(upper), self._said_of_list(upper), [upper])
        texts = [f"{self._prefix}{wildcard}" for wildcard in ("_a", ".a", "*a")]
        matched = [self._list(text) for text in texts]
        wrong = [(text, answer) for text, answer in zip(texts, matched, strict=True) if self._has_own(answer)]
        told = f"the filter {self._shown(wrong[0][0])} matches" if wrong else "none of _ . * matches another character"
        self._find("filter-wildcards", not wrong, told, [answer for _, answer in wrong])
        if self._findings["comma"].outcome is Outcome.EXPECTED:
            comma = self._list(names["comma"])
            self._find("filter-comma", comma.has_name(names["comma"]), self._said_of_list(comma), [comma])
        else:
            self._skip(["filter-comma"], "commas are special here; see `comma`")

    def _is_own(self, name: str) -> bool:
        """Return True for a name of the doctor's: no name held the prefix before, in any case of its letters."""
        return self._prefix.lower() in name.lower()

    def _has_own(self, answer: _Answer) -> bool:
        """Return True if a list has any name of the doctor's."""
        return any(self._prefix in name for name in answer.names or ())

    def _check_merges(self) -> None:
        name = f"{self._prefix}-merge"
        checks = ["merge", "merge-objects", "merge-arrays", "merge-null", "merge-scalar"]
        if not (saved := self._save(name, _BEFORE_MERGE)).is_success:
            self._skip(checks, f"a save before it was refused: {self._said(saved)}")
            return
        merged = self._merge(name, _MERGED)
        loaded = self._load(name)
        value = loaded.value
        asked = [saved, merged, loaded]
        is_merged = isinstance(value, dict) and value.get("kept") == 1 and _same(value.get("new"), {"a": []})
        is_merged = is_merged and value.keys() <= {**_BEFORE_MERGE, **_MERGED}.keys()
        told = f"loaded {self._shown(value)}" if merged.is_success else self._said(merged)
        if self._find("merge", merged.is_success and is_merged, told, asked):
            for check in checks[1:]:
                name_of_part = check.removeprefix("merge-")
                part = value.get(name_of_part, _ABSENT)
                is_same = _same(part, _AFTER_MERGE[name_of_part])
                self._find(check, is_same, f"loaded {self._shown(part)}", asked)
        else:
            self._skip(checks, "merges are special here; see `merge`")
        self._check_merged("merge-top", name, 7, 7)
        self._check_merged("merge-missing", f"{self._prefix}-new", {"a": 1}, {"a": 1})
        if self._findings["merge"].outcome is not Outcome.EXPECTED:
            self._skip(["merge-misfit"], "merges are special here; see `merge`")
        elif (saved := self._save(name, [1, 2])).is_success:
            misfit = self._merge(name, {"x": 1})
            loaded = self._load(name)
            is_refused = misfit.error == "BadMerge" and _same(loaded.value, [1, 2])
            told = f"{self._said(misfit)}; loaded {self._shown(loaded.value)} afterwards"
            self._find("merge-misfit", is_refused, told, [saved, misfit, loaded])

    def _check_merged(self, check: str, name: str, value: Any, expected: Any) -> None:
        merged = self._merge(name, value)
        if not merged.is_success:
            self._find(check, False, f"merge: {self._said(merged)}", [merged])
            return
        loaded = self._load(name)
        told = f"loaded {self._shown(loaded.value)}" if loaded.is_success else f"load: {self._said(loaded)}"
        self._find(check, _same(loaded.value, expected), told, [merged, loaded])

    def _check_passwords(self) -> None:
        name = f"{self._prefix}-password"
        body = self._body(file=name, value=1)
        del body["password"]
        saved = self._write(name, _encoded(body))
        loaded = self._load(name, password="")
        told = f"save: {self._said(saved)}; load: {self._said(loaded)}"
        self._find("password-none", saved.is_success and _same(loaded.value, 1), told, [saved, loaded])
        self._is_kept("password-undefined", name, 2, password="undefined")  # noqa: S106 - no secret
        saved = self._save(name, 3, password=self._password)
        loaded = self._load(name)
        told = f"save with a password: {self._said(saved)}; load without: {self._said(loaded)}"
        is_ignored = saved.is_success and _same(loaded.value, 3)
        if is_ignored:
            loaded = self._load(name, password=self._password)
            told = f"load with a password: {self._said(loaded)}"
        self._find("password-needless", is_ignored and _same(loaded.value, 3), told, [saved, loaded])

    def _check_sizes(self) -> None:
        name = f"{self._prefix}-merge"
        for check, size in (("size", BASIC_FILE), ("size-over", BASIC_FILE + 1)):
            value = "x" * (size - 2)
            saved = self._save(name, value)
            if not saved.is_success:
                is_expected = check == "size-over" and saved.error == "TooBig"
                self._find(check, is_expected, f"save: {self._said(saved)}", [saved])
                continue
            loaded = self._load(name)
            is_text = isinstance(loaded.value, str)
            told = f"saved; loaded {len(loaded.value) + 2:,} bytes" if is_text else f"saved; load: {self._said(loaded)}"
            self._find(check, loaded.value == value, told, [saved, loaded])

    def _check_rate(self) -> None:
        """Send a request early, right after the one before it; twice if it fails in a way that may be chance."""
        body = _encoded(self._body(file=f"{self._prefix}-value"))
        request = self._shown_request(LOAD_PATH, body, None)
        for tries_left in (1, 0):
            self._post(LOAD_PATH, body)
            try:
                early = self._in_turn(lambda: _Answer(self._transport.post(LOAD_PATH, body)), 0.0)
            except (TransportError, TimedOutError) as error:
                if not tries_left:
                    raise _UnansweredError(error, request) from error
                continue
            early.request = request
            if early.status not in BUSY:
                self._gather(early)
            is_refused = early.status == HTTPStatus.TOO_MANY_REQUESTS or early.error == "TooOften"
            if is_refused or early.is_success or early.status not in BUSY or not tries_left:
                break
        told = f"refused: {self._said(early)}" if not early.is_success else "answered"
        self._find("rate", is_refused or early.is_success, told, [early])

    def _check_files(self) -> None:
        for number in range(self._files):
            name = f"{self._prefix}-file-{number}"
            saved = self._write(name, _encoded(self._body(file=name, value=number)))
            if not saved.is_success:
                self._is_error("files", saved, "TooManyFiles")
                return
        self._find("files", True, f"{self._files:,} files were saved, none refused", [])

    def _check_media(self) -> None:
        name = f"{self._prefix}.txt"
        self._left_media.append(name)
        upload = Upload(api_key=self._key, name=name, content_type="text/plain", data=b"x")
        asked = [self._shown_upload(upload)]
        reply = self._upload(upload)
        if reply.error is not None:
            self._left_media.clear()
            told = f"error {self._shown(reply.error)}, message {self._shown(reply.sentence)}"
            self._find("upload", False, told, asked)
            return
        data = json.loads(bytes(reply.content))
        kinds = {"name": str, "folder": str, "id": str, "mimetype": str, "size": int}
        is_described = isinstance(data, dict) and all(isinstance(data.get(part), kind) for part, kind in kinds.items())
        self._find("upload", is_described, f"data {self._shown(data)}", asked)
        if not is_described:
            return
        link = media_link(data["folder"], data["id"], data["name"], data["mimetype"])
        request = "GET /files/FOLDER/ID.EXTENSION, as in the reply"
        status, content = self._get(link, request)
        self._find("media-link", content == b"x", f"status {status}, {len(content):,} bytes", [*asked, request])

    # The end.

    def _clean_up(self) -> None:
        """Delete all files made, and see that none is there: whatever the deletes answered, a listed name is left."""
        if not self._written:
            self._is_clean = True
            return
        try:
            for _ in range(2):
                self._delete_all()
                listed = self._list(self._prefix)
                # A piece of a name with a comma is no file, and its delete harmless.
                there = self._own_names(listed)
                self._made |= dict.fromkeys(there)
                if not there:
                    break
            listed_names = dict.fromkeys(there)
            doubtful = [name for name in {**self._made, **self._unseen()} if name not in listed_names]
            found = [name for name in doubtful if not self._is_gone(name)]
            is_clean = listed.names is not None and not there and not found
            if self._before is not None:
                after = self._all_names()
                self._new_names = len(
                    [name for name in (after or frozenset()) - self._before if not self._is_own(name)]
                )
                is_clean = is_clean and after is not None and not self._new_names
            self._is_clean = is_clean
        except _UnansweredError as error:
            if self._failure is None:
                self._failure, self._failed_request = self._masked_error(error.reason), error.request

    def _all_names(self) -> frozenset[str] | None:
        """Return the names of all files, None if a list of them can't be read; names with commas may be in pieces."""
        try:
            names = self._list("").names
        except _UnansweredError:
            return None
        # The pieces of the doctor's names with commas come and go, too, and other names don't matter.
        return None if names is None else frozenset(names)

    def _own_names(self, listed: _Answer) -> list[str]:
        """Return the doctor's names in a list; a joined one is searched for its names with commas first."""
        if not listed.is_joined:
            return [name for name in listed.names or () if self._is_own(name)]
        text = f",{','.join(listed.names or ())},"
        found = []
        for name in sorted((name for name in self._written if "," in name), key=len, reverse=True):
            if f",{name}," in text:
                text = text.replace(f",{name},", ",", 1)
                found.append(name)
        return [*found, *filter(self._is_own, text.split(","))]

    def _unseen(self) -> dict[str, None]:
        """Return the names whose absence in a list tells nothing: no list had them, or all if the lists are wrong."""
        found = self._findings.get("list")
        return self._unlisted if found is None or found.outcome is Outcome.EXPECTED else self._written

    def _is_gone(self, name: str) -> bool:
        """Return True if a load says that there is no such file; note a file that it finds."""
        answer = self._load(name)
        is_gone: bool = answer.error == "NoFile"
        if is_gone:
            self._made.pop(name, None)
        elif answer.is_success and self._is_missing_known():
            self._made[name] = None
        return is_gone

    def _delete_all(self) -> None:
        for name in list(self._made):
            answer = self._delete(name)
            for password in (self._password, "undefined"):
                if answer.error == "Locked":
                    answer = self._delete(name, password)
            if answer.is_success or answer.error == "NoFile":
                del self._made[name]

    def _left(self) -> tuple[Left, ...]:
        dashboard = f"Delete it in the dashboard, {self._server}/admin.html"
        left = []
        for name in self._made:
            # A name of a list may hold more than a name of the doctor's.
            text = json.dumps(name if name in self._written else self._partly(name), ensure_ascii=False)
            shown = self._masked(text, len(name) + _SHOWN_REQUEST)
            is_exact = name.isprintable() and shown == json.dumps(name, ensure_ascii=False)
            command = f", or: cloudstore rm -- {shlex.quote(name)}" if is_exact else "."
            left.append(Left(shown, f"{dashboard}{command}"))
        left += [Left(f'media file "{name}"', f"{dashboard}.") for name in self._left_media]
        return tuple(left)

    def _add_note(self, error: BaseException) -> None:
        if left := self._left():
            names = ", ".join(name for name, _ in left)
            error.add_note(f"These files of the doctor may still be there: {names}. Delete them in the dashboard.")

    def _report(self, *, was_interrupted: bool = False) -> Report:
        answers = self._answers
        statuses = ", ".join(f"{count:,} with status {status}" for status, count in sorted(answers.statuses.items()))
        told = f"of the replies to JSON {statuses}; {', '.join(sorted(answers.types))}"
        told = told if answers.odd is None else f"{answers.odd}; {told}"
        self._find("reply", answers.odd is None, told, answers.odd_request)
        named = [
            f"{', '.join(self._shown_extensions(text)) or 'none'} in {count:,} replies"
            for text, count in answers.extensions.most_common(3)
        ]
        if "extensions" not in self._findings:
            self._find("extensions", len(answers.extensions) == 1, "; ".join(named), [*answers.requests.values()][:3])
        for check, reason in UNTESTABLE.items():
            self._skip([check], reason)
        if not self._files:
            self._skip(["files"], _FILES)
        if not self._media:
            self._skip(["upload", "media-link"], _MEDIA)
        failed = "" if self._failure is None else f": {self._failure}"
        self._skip(CHECKS, "it was interrupted before" if was_interrupted else f"a request before it failed{failed}")
        return Report(
            server=self._server,
            prefix=self._prefix,
            date=self._date,
            extensions=self._extensions,
            requests=self._requests,
            findings=tuple(self._findings[check] for check in CHECKS),
            saved=len(self._written),
            left=self._left(),
            is_clean=self._is_clean,
            new_names=self._new_names,
            failure=self._failure,
            failed_request=self._failed_request,
            was_interrupted=was_interrupted,
        )


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret and what services may make of it: JSON, %XX, base64, hexadecimal digits, backwards."""
    data = secret.encode()
    yield from (secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote(secret), secret[::-1], data.hex())
    yield from (encode(data).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode))


def _encoded(value: Any) -> bytes:
    """Return a value as JSON; a masked text is plain in it."""
    return json.dumps(value, default=str.__str__).encode()


def _text(value: Any) -> str:
    return json.dumps(value)


def _same(one: Any, other: Any, *, in_order: bool = True) -> bool:
    """Return True if two values are the same JSON: 1 and 1.0 differ, and the order of names counts if `in_order`."""
    if one is _ABSENT or other is _ABSENT:
        return False
    return json.dumps(one, sort_keys=not in_order) == json.dumps(other, sort_keys=not in_order)
