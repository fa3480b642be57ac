"""Exception hierarchy of the package, and the HTTP status of each error on the wire.

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
├── IdMismatchError
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
    """Return a key for an error message: quoted, and cut at `MAX_SHOWN` characters."""
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
        The problem and its remedy, in one sentence; also the result of `str(error)`.
    key
        Key that the error is about; in the callback client and the service, the file name.
    error
        Name of the error on the wire, such as ``"NoFile"``.
    status
        HTTP status of the reply, None without a reply.
    response
        The reply's `requests.Response`, None without HTTP.
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
        # Without the response, which holds sockets and the API key.
        return type(self), (self.message,), {**self.__dict__, "response": None, "args": self.args}


class NoFileError(CloudStoreError, KeyError):
    """The key is absent. `args` holds only the key, as in a `KeyError` of `dict`."""

    error = "NoFile"

    def __init__(self, message: str, *, key: str | None = None, **facts: Any) -> None:
        super().__init__(message, key=key, **facts)
        if key is not None:
            self.args = (key,)


class LockedError(CloudStoreError, PermissionError):
    """The file is locked, and the password is missing or wrong."""

    error = "Locked"


class ForbiddenError(CloudStoreError, PermissionError):
    """The store is open with ``readonly=True``, or the API key does not permit this; nothing was changed."""

    error = "Forbidden"


class LimitError(CloudStoreError):
    """Base of the errors about the limits of an account."""


class TooBigError(LimitError):
    """The value or the request body is larger than the service accepts."""

    error = "TooBig"


class TooManyFilesError(LimitError):
    """The account has reached its maximum number of files."""

    error = "TooManyFiles"


class DailyLimitError(LimitError):
    """The file has reached its maximum number of accesses a day; the count restarts at midnight UTC."""

    error = "DailyLimit"


class TooOftenError(LimitError):
    """Requests exceed the rate limit; wait `retry_after` seconds before the next."""

    error = "TooOften"

    def __init__(self, message: str, *, retry_after: float | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.retry_after = retry_after


class BadKeyError(CloudStoreError):
    """The service doesn't know this API key."""

    error = "BadKey"


class DisabledError(CloudStoreError):
    """The account is disabled."""

    error = "Disabled"


class BadNameError(CloudStoreError, ValueError):
    """The text can't be a key: it is too long for the service, or not valid Unicode."""

    error = "BadName"


class BadValueError(CloudStoreError, ValueError):
    """The value can't be read back from JSON unchanged: NaN, infinity, a lone surrogate, nested too deeply."""

    error = "BadValue"


class BadMergeError(CloudStoreError, ValueError):
    """An object to merge into an array has a name that is not the index of an element; nothing was written."""

    error = "BadMerge"


class ChangedError(CloudStoreError):
    """Somebody else changed the value meanwhile; nothing was written. `version` is the current version."""

    error = "Changed"

    def __init__(self, message: str, *, version: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.version = version


class IdMismatchError(CloudStoreError):
    """The request id (idempotency key) was used for another request before; nothing was done."""

    error = "IdMismatch"


class TransportError(CloudStoreError, ConnectionError):
    """
    The connection failed; `sent` is False if the service certainly never saw the request.

    `is_permanent` is True if a setting is wrong (a certificate, a proxy), so another attempt would fail, too.
    """

    def __init__(self, message: str, *, sent: bool = False, is_permanent: bool = False, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.sent = sent
        self.is_permanent = is_permanent


class OutcomeUnknownError(TransportError):
    """A write was sent, but no reply tells its outcome: it may have been applied or not."""

    def __init__(self, message: str, *, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, sent=sent, **facts)


class UnavailableError(TransportError):
    """The service is temporarily unavailable; try again after `retry_after` seconds."""

    error = "Unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, sent=sent, **facts)
        self.retry_after = retry_after


class TimedOutError(CloudStoreError, TimeoutError):
    """
    The service did not answer in time; `sent` is False if the service certainly never saw the request.

    `at_deadline` is True if the request's whole deadline was used up.
    """

    at_deadline = False

    def __init__(self, message: str, *, sent: bool = True, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.sent = sent


class ProtocolError(CloudStoreError):
    """The client can't read a reply, or the service can't read a request."""


class BulkError(CloudStoreError):
    """
    Some keys of bulk work failed, and the others are done.

    `succeeded` lists the keys done, in order; `failed` maps each other key to its error.
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
    """The service, the file format or the installed packages do not support the operation."""


#: Each error name in a service's replies: the HTTP status of the reply, and the class raised by the client.
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
    "IdMismatch": (422, IdMismatchError),
    "TooOften": (429, TooOftenError),
    "ServerError": (500, ProtocolError),
    "Unavailable": (503, UnavailableError),
    "OutcomeUnknown": (504, OutcomeUnknownError),
}
