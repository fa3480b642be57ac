"""What client and service say to each other."""

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

#: What our services can do beyond the vendor's; one that can says so, and only then a client's message asks for it.
EXTENSIONS: Final = ("version", "stat", "batch", "page", "once", "brief", "values")
#: The header of every reply in which a service says so, the names joined by commas.
EXTENSIONS_HEADER: Final = "CloudStore-Extensions"
#: The header for a write's id where the client has heard nothing from the service yet: one without `once` never looks
#: at it, as at no header that it doesn't know.
ID_HEADER: Final = "Idempotency-Key"
#: Characters of a write's id.
MAX_ID: Final = 64
#: What the header may hold; structured fields have quotes around a text, people leave them out.
ID_PATTERN: Final = rf'"?([0-9A-Za-z_-]{{1,{MAX_ID}}})"?'

#: Requests that one batch may hold.
MAX_BATCH: Final = 1000

#: Brackets within brackets that a service takes in a value, unless its settings say otherwise.
DEFAULT_MAX_DEPTH: Final = 100


class Operation(enum.Enum):
    """What a request asks for."""

    SAVE = "save"
    MERGE = "merge"
    DELETE = "delete"
    LOAD = "load"
    LIST = "list"
    STAT = "stat"
    BATCH = "batch"

    # By identity, as they are compared: that of `Enum` is written in Python, and every request asks for it thrice.
    __hash__ = object.__hash__

    @property
    def writes(self) -> bool:
        """Whether it changes what is stored."""
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
    A request on a data file, in the fields and the order of the wire.

    `name` is the file's name, for a list the text to look for. A `value` makes the request a save or a merge. Within a
    batch `api_key` is empty, or the batch's. `data_password` opens what the account's default password of data files
    opens, whatever `password` is. What stands behind it belongs to the extensions:

    `if_version`: write only if this is the file's version, None meaning that there is no file. `if_not_version`: load
    the value only if this is no longer its version. `match`, `after`, `limit`: of a list, the names that begin with the
    text, those behind this one, and so many of them. `once`: an id under which the write is done once, however often
    it comes. `brief`: the reply holds the value or names in `data` only. `values`: of a list, a page of at most
    `MAX_BATCH` names, with version and value for each that needs no password to be viewed and isn't large.
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
        """What it asks for."""
        if self.options is not None:
            return _BY_OPTIONS[self.options]
        return Operation.LOAD if self.value is UNSET else Operation.SAVE

    @property
    def writes(self) -> bool:
        """True if it changes stored data."""
        return self.value is not UNSET if self.options is None else self.options in _WRITING_OPTIONS

    @property
    def path(self) -> str:
        """Path under the service's address, to which it is posted."""
        return SAVE_PATH if self.writes else LOAD_PATH

    def __repr__(self) -> str:
        return f"<Request to {self.operation.value} {self.name!r}>"  # neither API key, passwords nor value

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name)]  # that of msgspec shows all fields


class Batch(msgspec.Struct, kw_only=True, frozen=True):
    """Requests of one account, sent as one: each is answered for itself; if it is `atomic`, all are done or none."""

    api_key: str = msgspec.field(name="key")
    requests: Annotated[list[Request], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    atomic: bool = False
    once: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)] | UnsetType = msgspec.field(
        name="request", default=UNSET
    )

    @property
    def operation(self) -> Operation:
        """What it asks for."""
        return Operation.BATCH

    @property
    def path(self) -> str:
        """Where under the service's address it is posted to."""
        return BATCH_PATH

    @property
    def writes(self) -> bool:
        """True if any of its requests changes stored data."""
        # Not by `Request.writes`: for a thousand requests the calls take as long as all the rest.
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
    A media file on its way to the service, sent as a multipart form: `data` is its bytes, or a binary file.

    `only_new`: store it only if there is no media file of this name, which belongs to the extensions.
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
    What a service answered: the fields of its JSON object, and what HTTP carries beside it.

    `error` is None on success, else a name. `message` is JSON: a sentence, after a load the value itself.
    `version` is the file's after a load, save or merge, and the one that stands where an `if_version` doesn't; `next`
    is the name that the next page goes on after, None on the last one; `unchanged` answers an `if_not_version`.
    `retry_after` is in seconds. `extensions` is what the service says that it can. `response` is the
    `requests.Response`, None where no HTTP was spoken.
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
        """The JSON that was asked for: `data`, or `message` from a service that sends a load's value only there."""
        return self.message if self.data is UNSET else self.data

    @property
    def sentence(self) -> str:
        """The message as text, whatever it is."""
        try:
            message = decode_value(self.message)
        except (msgspec.MsgspecError, RecursionError):
            message = None  # JSON that Python can't hold, such as 1e400
        return message if isinstance(message, str) else bytes(self.message).decode()

    def __repr__(self) -> str:
        return f"<Reply {self.error or 'without error'}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("error", self.error)]
