"""Request, Batch, Upload and Reply: the messages of the protocol."""

from __future__ import annotations

import enum
from typing import IO, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.jsontext import decode_value

SAVE_PATH: Final = "/store/save"
LOAD_PATH: Final = "/store/load"
BATCH_PATH: Final = "/store/batch"
UPLOAD_PATH: Final = "/upload-2"

#: Features of our service beyond the vendor's. A client uses an extension only after the service named it in a reply.
EXTENSIONS: Final = ("version", "stat", "batch", "page", "once", "brief", "values")
#: Header of every reply that names the service's extensions, joined by commas.
EXTENSIONS_HEADER: Final = "CloudStore-Extensions"
#: Header with a write's id before the service's first reply: a service without `once` ignores it, like any unknown
#: header.
ID_HEADER: Final = "Idempotency-Key"
#: Maximum length of a write's id, in characters.
MAX_ID: Final = 64
#: Allowed values of the header: structured fields put a text in quotes, but people leave them out.
ID_PATTERN: Final = rf'"?([0-9A-Za-z_-]{{1,{MAX_ID}}})"?'

#: Maximum number of requests in a batch.
MAX_BATCH: Final = 1000

#: Default of a service's setting for the maximum nesting depth of a value.
DEFAULT_MAX_DEPTH: Final = 100


class Operation(enum.Enum):
    """Operation of a request."""

    SAVE = "save"
    MERGE = "merge"
    DELETE = "delete"
    LOAD = "load"
    LIST = "list"
    STAT = "stat"
    BATCH = "batch"

    # By identity, like comparison: the hash of `Enum` is written in Python, and every request needs it three times.
    __hash__ = object.__hash__

    @property
    def writes(self) -> bool:
        """True if it changes stored data."""
        return self in _WRITES


_WRITES: Final = frozenset({Operation.SAVE, Operation.MERGE, Operation.DELETE})
_BY_OPTIONS: Final = {
    "merge": Operation.MERGE,
    "delete": Operation.DELETE,
    "list": Operation.LIST,
    "stat": Operation.STAT,
}
_WRITING_OPTIONS: Final = frozenset(options for options, operation in _BY_OPTIONS.items() if operation.writes)


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """
    Request on a data file, with the fields of the wire in their order.

    `name` is the file's name; for a list, the text to search for. A `value` makes the request a save or a merge. In a
    batch `api_key` is empty, or the batch's. `data_password` unlocks the files that the account's default password of
    data files unlocks, whatever `password` is. The fields after it belong to the extensions:

    `if_version`: write only if the file has this version; None: only if there is no file. `if_not_version`: load the
    value only if the file has another version. `match`: list the names containing the text, or beginning with it.
    `after`, `limit`: list only names after this name, and at most this many. `once`: the write's id (idempotency key);
    the service applies writes with the same id only once. `brief`: the reply has the value or names only in `data`.
    `values`: list a page of at most `MAX_BATCH` names, with version and value of each file, except large files and
    those with a view password.
    """

    api_key: str = msgspec.field(name="key", default="")
    name: str = msgspec.field(name="file")
    options: Literal["merge", "delete", "list", "stat"] | None = None
    id: Literal["_data"] | None = "_data"
    value: Raw | UnsetType = UNSET
    password: str | None = None
    data_password: str | UnsetType | None = msgspec.field(name="dataPass", default=UNSET)
    if_version: str | UnsetType | None = UNSET
    if_not_version: str | UnsetType = UNSET
    match: Literal["substring", "prefix"] | UnsetType = UNSET
    after: str | UnsetType | None = UNSET
    limit: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET
    once: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)] | UnsetType = msgspec.field(
        name="request", default=UNSET
    )
    brief: bool | UnsetType = UNSET
    values: bool | UnsetType = UNSET

    @property
    def operation(self) -> Operation:
        """Operation of the request."""
        if self.options is not None:
            return _BY_OPTIONS[self.options]
        return Operation.LOAD if self.value is UNSET else Operation.SAVE

    @property
    def writes(self) -> bool:
        """True if it changes stored data."""
        return self.value is not UNSET if self.options is None else self.options in _WRITING_OPTIONS

    @property
    def path(self) -> str:
        """Path to post to, below the service's address."""
        return SAVE_PATH if self.writes else LOAD_PATH

    def __repr__(self) -> str:
        return f"<Request to {self.operation.value} {self.name!r}>"  # without API key, passwords and value

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name)]  # msgspec's own method shows all fields


class Batch(msgspec.Struct, kw_only=True, frozen=True):
    """Requests of one account in a single message, each with its own reply; if `atomic`, all are applied or none."""

    api_key: str = msgspec.field(name="key")
    requests: Annotated[list[Request], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    atomic: bool = False
    once: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)] | UnsetType = msgspec.field(
        name="request", default=UNSET
    )

    @property
    def operation(self) -> Operation:
        """Operation of the request."""
        return Operation.BATCH

    @property
    def path(self) -> str:
        """Path to post to, below the service's address."""
        return BATCH_PATH

    @property
    def writes(self) -> bool:
        """True if any of its requests changes stored data."""
        # Not by `Request.writes`: for a thousand requests the calls take as long as all other work on them.
        return any(
            request.value is not UNSET if request.options is None else request.options in _WRITING_OPTIONS
            for request in self.requests
        )

    def __repr__(self) -> str:
        return f"<Batch of {len(self.requests)} requests>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("requests", self.requests)]


class Upload(msgspec.Struct, kw_only=True, frozen=True):
    """
    Media file to upload as a multipart form; `data` is its bytes, or a binary file.

    `only_new`, an extension: store it only if there is no media file of this name.
    """

    api_key: str
    name: str
    content_type: str
    data: bytes | IO[bytes]
    password: str | None = None
    only_new: bool = False

    def __repr__(self) -> str:
        return f"<Upload of {self.name!r} as {self.content_type}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name), ("content_type", self.content_type)]


class Reply(msgspec.Struct, kw_only=True, frozen=True):
    """
    Reply of a service: the fields of its JSON object, and facts from the HTTP response.

    `error` is None on success, otherwise the error's name. `message` is JSON: a sentence, or after a load the value
    itself. `version` is the file's version after a load, save or merge, and its current version if an `if_version`
    failed; `next` is the `after` of the next page, None on the last page; `unchanged` is the result of an
    `if_not_version`. `retry_after` is in seconds. `extensions` are those named by the service. `response` is the
    `requests.Response`, None without HTTP.
    """

    error: str | None = None
    message: Raw = Raw(b'""')
    data: Raw | UnsetType = UNSET
    version: str | UnsetType | None = UNSET
    next: str | UnsetType | None = UNSET
    unchanged: bool | UnsetType = UNSET
    status: int = 200
    retry_after: float | None = None
    extensions: frozenset[str] = frozenset()
    response: Any = None

    @property
    def content(self) -> Raw:
        """Requested JSON: `data`, or `message` if the service sends a loaded value only there."""
        return self.message if self.data is UNSET else self.data

    @property
    def sentence(self) -> str:
        """Message as text, even if it is another JSON value."""
        try:
            message = decode_value(self.message)
        except (msgspec.MsgspecError, RecursionError):
            message = None  # JSON that Python can't hold, such as 1e400
        return message if isinstance(message, str) else bytes(self.message).decode()

    def __repr__(self) -> str:
        return f"<Reply {self.error or 'without error'}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("error", self.error)]
