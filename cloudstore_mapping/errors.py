"""The errors of this package: each is a `CloudStoreError`, and the built-in of its meaning where Python has one.

CloudStoreError
├── NoFileError (KeyError)
├── LockedError (PermissionError)
├── ForbiddenError (PermissionError)
├── LimitError
│   ├── TooBigError
│   ├── TooManyFilesError
│   ├── DailyLimitError
│   └── TooOftenError
├── BadKeyError
├── DisabledError
├── BadNameError (ValueError)
├── BadValueError (ValueError)
├── BadMergeError (ValueError)
├── ChangedError
├── TransportError (ConnectionError)
│   ├── OutcomeUnknownError
│   └── UnavailableError
├── TimedOutError (TimeoutError)
├── ProtocolError
├── BulkError
└── UnsupportedError
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Characters of a key in an error message.
MAX_SHOWN: Final = 100


def shorten(key: object) -> str:
    """Return a key as error messages show it: quoted, and cut at `MAX_SHOWN` characters."""
    if not isinstance(key, str):
        text = repr(key)
        return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    text = str.__str__(key)
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


class CloudStoreError(Exception):
    """
    Base of all errors of this package; never raised itself.

    Parameters
    ----------
    message
        One sentence that says what went wrong and what to do; `str(error)` is this sentence.
    key
        The dict key (at the callback client and the service: the file name) that it is about.
    error
        The error's name on the wire, such as ``"NoFile"``.
    status
        The HTTP status that the error came with, None where there was no reply.
    response
        The `requests.Response` it came with, None where there is none.
    """

    error: str | None = None

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        error: str | None = None,
        status: int | None = None,
        response: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        if error is not None:
            self.error = error
        self.status = status
        self.response = response

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A response holds sockets and the API key: it stays behind.
        return type(self), (self.message,), {**self.__dict__, "response": None, "args": self.args}


class NoFileError(CloudStoreError, KeyError):
    """There is nothing under this key. Like `dict`'s own, its `args` hold the key alone."""

    error = "NoFile"

    def __init__(self, message: str, *, key: str | None = None, **facts: Any) -> None:
        super().__init__(message, key=key, **facts)
        if key is not None:
            self.args = (key,)


class LockedError(CloudStoreError, PermissionError):
    """The file has a password, and the one that was given is missing or wrong."""

    error = "Locked"


class ForbiddenError(CloudStoreError, PermissionError):
    """The store was opened with ``readonly=True``, or the API key has no right to this; nothing was changed."""

    error = "Forbidden"


class LimitError(CloudStoreError):
    """Base of the limits that an account can run into."""


class TooBigError(LimitError):
    """The value, or the body that carried it, is larger than the service takes."""

    error = "TooBig"


class TooManyFilesError(LimitError):
    """The account holds as many files as it may."""

    error = "TooManyFiles"


class DailyLimitError(LimitError):
    """The file was used as often today as it may be; the count starts anew at midnight UTC."""

    error = "DailyLimit"


class TooOftenError(LimitError):
    """Requests come faster than the service takes them; `retry_after` seconds later it takes the next one."""

    error = "TooOften"

    def __init__(self, message: str, *, retry_after: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after


class BadKeyError(CloudStoreError):
    """The service doesn't know this API key."""

    error = "BadKey"


class DisabledError(CloudStoreError):
    """The account is switched off."""

    error = "Disabled"


class BadNameError(CloudStoreError, ValueError):
    """The text can't be a key: it is too long for the service, or no valid Unicode."""

    error = "BadName"


class BadValueError(CloudStoreError, ValueError):
    """The value has no JSON form that comes back the same: NaN, infinity, a lone surrogate, nested too deeply."""

    error = "BadValue"


class BadMergeError(CloudStoreError, ValueError):
    """An object was merged onto an array under a name that is no index of an element; nothing was written."""

    error = "BadMerge"


class ChangedError(CloudStoreError):
    """Somebody else changed the value meanwhile; `version` is the one that stands, and nothing was written."""

    error = "Changed"

    def __init__(self, message: str, *, version: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.version = version


class TransportError(CloudStoreError, ConnectionError):
    """
    The service was not reached; `sent` is False where it is certain that it never saw the request.

    `is_permanent` is True if a setting is wrong (a certificate, a proxy), so that another attempt would fail, too.
    """

    def __init__(self, message: str, *, sent: bool = False, is_permanent: bool = False, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.sent = sent
        self.is_permanent = is_permanent


class OutcomeUnknownError(TransportError):
    """A write was sent and no reply came, or one that can't tell whether it was done: it may have been, or not."""

    def __init__(self, message: str, *, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, sent=sent, **facts)


class UnavailableError(TransportError):
    """The service answered that it can't work just now; `retry_after` seconds later it may."""

    error = "Unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, sent=sent, **facts)
        self.retry_after = retry_after


class TimedOutError(CloudStoreError, TimeoutError):
    """
    The service did not answer in time; `sent` is False where it is certain that it never saw the request.

    `at_deadline` is True if the request's whole deadline was used up.
    """

    at_deadline = False

    def __init__(self, message: str, *, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.sent = sent


class ProtocolError(CloudStoreError):
    """The two sides don't understand each other: a reply that can't be read, or a request that the service can't."""


class BulkError(CloudStoreError):
    """
    A part of some bulk work failed, and the rest was done.

    `succeeded` lists the keys that were done, in order; `failed` maps each other key to its error.
    """

    def __init__(
        self,
        message: str,
        *,
        succeeded: list[str] | None = None,
        failed: Mapping[str, Exception] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.succeeded = list(succeeded or ())
        self.failed = dict(failed or {})


class UnsupportedError(CloudStoreError):
    """What was asked for is beyond this service, this file's format, or what is installed."""


#: Every error name that a service replies with: the HTTP status it travels under, and the error that a client raises.
REPLY_ERRORS: Final[Mapping[str, tuple[int, type[CloudStoreError]]]] = {
    "NoFile": (200, NoFileError),
    "Locked": (200, LockedError),
    "TooBig": (200, TooBigError),
    "TooManyFiles": (200, TooManyFilesError),
    "DailyLimit": (200, DailyLimitError),
    "Forbidden": (200, ForbiddenError),
    "BadName": (200, BadNameError),
    "BadValue": (200, BadValueError),
    "BadMerge": (200, BadMergeError),
    "Disabled": (200, DisabledError),
    "Changed": (200, ChangedError),
    "BadRequest": (400, ProtocolError),
    "BadKey": (401, BadKeyError),
    "NoPath": (404, ProtocolError),
    "BadMethod": (405, ProtocolError),
    "BodyTooBig": (413, TooBigError),
    "BadType": (415, ProtocolError),
    "TooOften": (429, TooOftenError),
    "ServerError": (500, ProtocolError),
    "Unavailable": (503, UnavailableError),
    "OutcomeUnknown": (504, OutcomeUnknownError),
}
