"""The cloud as a Python dict: public names of the package (mapping, callback client, errors)."""

from cloudstore_mapping._version import __version__
from cloudstore_mapping.callback_client import CloudStore
from cloudstore_mapping.client.address import DEFAULT_SERVER
from cloudstore_mapping.client.files import Password
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.media import Media
from cloudstore_mapping.errors import (
    BadKeyError,
    BadMergeError,
    BadNameError,
    BadValueError,
    BulkError,
    ChangedError,
    CloudStoreError,
    DailyLimitError,
    DisabledError,
    ForbiddenError,
    IdMismatchError,
    LimitError,
    LockedError,
    NoFileError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooBigError,
    TooManyFilesError,
    TooOftenError,
    TransportError,
    UnavailableError,
    UnsupportedError,
)
from cloudstore_mapping.locations import open  # noqa: A004 - the name that shelve and dbm use too

__all__ = [
    "DEFAULT_SERVER",
    "BadKeyError",
    "BadMergeError",
    "BadNameError",
    "BadValueError",
    "BulkError",
    "ChangedError",
    "CloudStore",
    "CloudStoreError",
    "CloudStoreMapping",
    "DailyLimitError",
    "DisabledError",
    "ForbiddenError",
    "IdMismatchError",
    "LimitError",
    "LockedError",
    "Media",
    "NoFileError",
    "OutcomeUnknownError",
    "Password",
    "ProtocolError",
    "TimedOutError",
    "TooBigError",
    "TooManyFilesError",
    "TooOftenError",
    "TransportError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "open",
]
