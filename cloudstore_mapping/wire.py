"""The messages between client and service, and their JSON bytes; no input or output here."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from itertools import accumulate
from typing import IO, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.errors import REPLY_ERRORS, BadValueError, ChangedError, CloudStoreError, ProtocolError

SAVE_PATH: Final = "/store/save"
LOAD_PATH: Final = "/store/load"
BATCH_PATH: Final = "/store/batch"
UPLOAD_PATH: Final = "/upload-2"

#: What our services can do beyond the vendor's; one that can says so, and only then a client asks for it.
EXTENSIONS: Final = ("version", "stat", "batch", "page", "once", "brief")
#: The header of every reply in which a service says so, the names joined by commas.
EXTENSIONS_HEADER: Final = "CloudStore-Extensions"

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


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """
    A request on a data file, in the fields and the order of the wire.

    `name` is the file's name, for a list the text to look for. A `value` makes the request a save or a merge. Within a
    batch `api_key` is empty, or the batch's. What stands behind `password` belongs to the extensions:

    `if_version`: write only if this is the file's version, None meaning that there is no file. `if_not_version`: load
    the value only if this is no longer its version. `match`, `after`, `limit`: of a list, the names that begin with the
    text, those behind this one, and so many of them. `once`: an id under which the write is done once, however often
    it comes. `brief`: the reply holds the value or names in `data` only.
    """

    api_key: str = msgspec.field(name="key", default="")
    name: str = msgspec.field(name="file")
    options: Literal["merge", "delete", "list", "stat"] | None = None
    id: Literal["_data"] | None = "_data"
    value: Raw | UnsetType = UNSET
    password: str | None = None
    if_version: str | UnsetType | None = UNSET
    if_not_version: str | UnsetType = UNSET
    match: Literal["substring", "prefix"] | UnsetType = UNSET
    after: str | UnsetType | None = UNSET
    limit: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET
    once: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | UnsetType = msgspec.field(
        name="request", default=UNSET
    )
    brief: bool | UnsetType = UNSET

    @property
    def operation(self) -> Operation:
        """What it asks for."""
        if self.options is not None:
            return _BY_OPTIONS[self.options]
        return Operation.LOAD if self.value is UNSET else Operation.SAVE

    @property
    def path(self) -> str:
        """Where under the service's address it is posted to."""
        return SAVE_PATH if self.operation.writes else LOAD_PATH

    def __repr__(self) -> str:
        return f"<Request to {self.operation.value} {self.name!r}>"  # neither API key, password nor value


class Batch(msgspec.Struct, kw_only=True, frozen=True):
    """Requests of one account, sent as one: each is answered for itself; if it is `atomic`, all are done or none."""

    api_key: str = msgspec.field(name="key")
    requests: Annotated[list[Request], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    atomic: bool = False
    once: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | UnsetType = msgspec.field(
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
        """Whether any of its requests changes what is stored."""
        return any(request.operation.writes for request in self.requests)

    def __repr__(self) -> str:
        return f"<Batch of {len(self.requests)} requests>"


class Upload(msgspec.Struct, kw_only=True, frozen=True):
    """A media file on its way to the service, sent as a multipart form: `data` is its bytes, or a binary file."""

    api_key: str
    name: str
    content_type: str
    data: bytes | IO[bytes]
    password: str | None = None

    def __repr__(self) -> str:
        return f"<Upload of {self.name!r} as {self.content_type}>"


class _ReplyBody(msgspec.Struct):
    error: str | None
    message: Raw = Raw(b'""')
    data: Raw | UnsetType = UNSET
    version: str | UnsetType | None = UNSET
    next: str | UnsetType | None = UNSET
    unchanged: bool | UnsetType = UNSET


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


_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_batch = msgspec.json.Decoder(Batch).decode
_decode_reply = msgspec.json.Decoder(_ReplyBody).decode
_decode_replies = msgspec.json.Decoder(list[_ReplyBody]).decode


def encode_request(request: Request | Batch) -> bytes:
    """Return the body that `request` is posted with."""
    try:
        return _encode(request)
    except UnicodeEncodeError as error:
        raise ProtocolError(
            "The API key, name or password holds a lone surrogate, which no text on the wire can; take it out.",
            error="BadRequest",
        ) from error


def decode_request(path: str, body: bytes, *, max_depth: int = DEFAULT_MAX_DEPTH) -> Request | Batch:
    """
    Return the request that was posted to `path`, checked in all that needs no look at what is stored.

    Raises `ProtocolError` (``BadRequest``) with the path of the field that is wrong, and `BadValueError` for a value
    nested deeper than `max_depth` or an integer over Python's 4,300 digits.
    """
    around = 3 if path == BATCH_PATH else 1  # the brackets that a value stands in
    try:
        if not body.isascii():
            body.decode()  # msgspec passes over the strings of a Raw without looking whether they are UTF-8
        if body.count(b"[") + body.count(b"{") > max_depth and is_deeper(body, max_depth + around):
            raise BadValueError(f"The value is nested deeper than {max_depth} levels; flatten it.")
        batch = _decode_batch(body) if path == BATCH_PATH else None
        requests = [_decode_request(body)] if batch is None else batch.requests
        for request in requests:
            if request.value is not UNSET and _LONG_NUMBER.search(request.value):
                _decode_any(request.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if "Integer value out of range" in str(error):
            raise BadValueError("The value holds an integer of more than 4,300 digits; store it as text.") from error
        raise _bad_request(str(error)) from error
    if batch is not None:
        return msgspec.structs.replace(batch, requests=[_checked_item(batch, *item) for item in enumerate(requests)])
    if not requests[0].api_key:
        raise _bad_request("Object missing required field `key`")
    return _checked(path, requests[0], "$")


def _checked_item(batch: Batch, number: int, request: Request) -> Request:
    place = f"$.requests[{number}]"
    if request.api_key not in ("", batch.api_key):
        raise _bad_request(f"`{place}.key` is another account's; a batch is one account's")
    # Which path it would have been posted to follows from what it holds, save for a save without a value.
    return _checked(request.path, msgspec.structs.replace(request, api_key=batch.api_key), place)


def _checked(path: str, request: Request, place: str) -> Request:
    if path == LOAD_PATH and request.options is None:
        return msgspec.structs.replace(request, value=UNSET)  # a load is a load, whatever else it carries
    if request.options is not None and path != request.path:
        raise _bad_request(f"`{place}.options` belongs to {request.path}")
    if request.options in (None, "merge") and request.value is UNSET:
        raise _bad_request(f"`{place}.value` is missing")
    return request


def _bad_request(why: str) -> ProtocolError:
    return ProtocolError(f"The body is not a request: {why}.", error="BadRequest")


def encode_reply(reply: Reply) -> bytes:
    """Return the body that `reply` is sent with."""
    return _encode(_body_of(reply))


def encode_replies(replies: Iterable[Reply]) -> Raw:
    """Return the `data` of the reply to a batch."""
    return Raw(_encode([_body_of(reply) for reply in replies]))


def decode_replies(data: Raw) -> list[Reply]:
    """Return the replies that the `data` of the reply to a batch holds, raising `ProtocolError` where it holds none."""
    try:
        return [_reply_of(body) for body in _decode_replies(data)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"The answer to a batch can't be read ({error}); is the address right?") from error


def decode_reply(
    body: bytes,
    *,
    status: int = 200,
    retry_after: float | None = None,
    extensions: frozenset[str] = frozenset(),
    response: Any = None,
) -> Reply:
    """Return the reply that `body` is, raising `ProtocolError` for anything that is none."""
    try:
        body.decode()
        fields = _decode_reply(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            f"The answer is not CloudStore's ({error}); is the address right, and is no sign-in page in between?",
            status=status,
            response=response,
        ) from error
    return _reply_of(fields, status=status, retry_after=retry_after, extensions=extensions, response=response)


def _body_of(reply: Reply) -> _ReplyBody:
    return _ReplyBody(reply.error, reply.message, reply.data, reply.version, reply.next, reply.unchanged)


def _reply_of(body: _ReplyBody, **beside: Any) -> Reply:
    return Reply(
        error=body.error,
        message=body.message,
        data=body.data,
        version=body.version,
        next=body.next,
        unchanged=body.unchanged,
        **beside,
    )


def success(message: str | Raw, data: Raw | UnsetType = UNSET, *, version: str | UnsetType = UNSET) -> Reply:
    """Return the reply that all went well; a text is encoded, JSON is taken as it is."""
    return Reply(message=message if isinstance(message, Raw) else encode_value(message), data=data, version=version)


def failure(error: CloudStoreError) -> Reply:
    """Return the reply that says `error`."""
    name = error.error if error.error is not None and error.error in REPLY_ERRORS else "ServerError"
    return Reply(
        error=name,
        message=encode_value(error.message),
        version=error.version if isinstance(error, ChangedError) else UNSET,
        status=REPLY_ERRORS[name][0],
        retry_after=getattr(error, "retry_after", None),
    )


def encode_value(value: Any) -> Raw:
    """Return the JSON of a value that is known to have one (`client.codec` is for values that may not)."""
    return Raw(_encode(value))


def decode_value(value: Raw | bytes) -> Any:
    """Return what the JSON `value` says, made anew: the one parser for every decision, last of equal names wins."""
    return _decode_any(value)


# Numbers that may be out of a float's range or over the digits limit: only these are worth a full decode.
_LONG_NUMBER: Final = re.compile(rb"[0-9]{200}|[eE]\+?[0-9]{3}")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def is_deeper(body: bytes, depth: int) -> bool:
    """Whether `body` nests brackets deeper than `depth`; never recursive, linear in its length."""
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    # Two quotes side by side are an empty string, or join two strings: without them no bracket changes sides.
    brackets = b"".join(structure.replace(b'""', b"").split(b'"')[::2])
    return any(level > depth for level in accumulate(map(_STEPS.__getitem__, brackets)))
