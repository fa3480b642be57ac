"""The messages between client and service, and their JSON bytes; no input or output here."""

from __future__ import annotations

import enum
import re
from itertools import accumulate
from typing import IO, Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.errors import REPLY_ERRORS, BadValueError, CloudStoreError, ProtocolError

SAVE_PATH: Final = "/store/save"
LOAD_PATH: Final = "/store/load"
UPLOAD_PATH: Final = "/upload-2"

#: Brackets within brackets that a service takes in a value, unless its settings say otherwise.
DEFAULT_MAX_DEPTH: Final = 100


class Operation(enum.Enum):
    """What a request asks for."""

    SAVE = "save"
    MERGE = "merge"
    DELETE = "delete"
    LOAD = "load"
    LIST = "list"

    @property
    def writes(self) -> bool:
        """Whether it changes what is stored."""
        return self in _WRITES


_WRITES: Final = frozenset({Operation.SAVE, Operation.MERGE, Operation.DELETE})
_BY_OPTIONS: Final = {"merge": Operation.MERGE, "delete": Operation.DELETE, "list": Operation.LIST}


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """
    A request on a data file, in the fields and the order of the wire.

    `name` is the file's name, for a list the substring to look for. A `value` makes the request a save or a merge.
    """

    api_key: str = msgspec.field(name="key")
    name: str = msgspec.field(name="file")
    options: Literal["merge", "delete", "list"] | None = None
    id: Literal["_data"] | None = "_data"
    value: Raw | UnsetType = UNSET
    password: str | None = None

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


class Reply(msgspec.Struct, kw_only=True, frozen=True):
    """
    What a service answered: the fields of its JSON object, and what HTTP carries beside it.

    `error` is None on success, else a name. `message` is JSON: a sentence, after a load the value itself.
    `retry_after` is in seconds. `response` is the `requests.Response`, None where no HTTP was spoken.
    """

    error: str | None = None
    message: Raw
    data: Raw | UnsetType = UNSET
    status: int = 200
    retry_after: float | None = None
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
_decode_reply = msgspec.json.Decoder(_ReplyBody).decode


def encode_request(request: Request) -> bytes:
    """Return the body that `request` is posted with."""
    try:
        return _encode(request)
    except UnicodeEncodeError as error:
        raise ProtocolError(
            "The API key, name or password holds a lone surrogate, which no text on the wire can; take it out.",
            error="BadRequest",
        ) from error


def decode_request(path: str, body: bytes, *, max_depth: int = DEFAULT_MAX_DEPTH) -> Request:
    """
    Return the request that was posted to `path`, checked in all that needs no look at what is stored.

    Raises `ProtocolError` (``BadRequest``) with the path of the field that is wrong, and `BadValueError` for a value
    nested deeper than `max_depth` or an integer over Python's 4,300 digits.
    """
    try:
        if not body.isascii():
            body.decode()  # msgspec passes over the strings of a Raw without looking whether they are UTF-8
        if body.count(b"[") + body.count(b"{") > max_depth and is_deeper(body, max_depth + 1):
            raise BadValueError(f"The value is nested deeper than {max_depth} levels; flatten it.")
        request = _decode_request(body)
        if request.value is not UNSET and _LONG_NUMBER.search(request.value):
            _decode_any(request.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if "Integer value out of range" in str(error):
            raise BadValueError("The value holds an integer of more than 4,300 digits; store it as text.") from error
        raise ProtocolError(f"The body is not a request: {error}.", error="BadRequest") from error
    if path == LOAD_PATH and request.options is None:
        return msgspec.structs.replace(request, value=UNSET)  # a load is a load, whatever else it carries
    if request.options is not None and path != request.path:
        raise ProtocolError(f"The body is not a request: `$.options` belongs to {request.path}.", error="BadRequest")
    if request.operation is not Operation.DELETE and request.operation is not Operation.LIST and request.value is UNSET:
        raise ProtocolError("The body is not a request: `$.value` is missing.", error="BadRequest")
    return request


def encode_reply(reply: Reply) -> bytes:
    """Return the body that `reply` is sent with."""
    return _encode(_ReplyBody(reply.error, reply.message, reply.data))


def decode_reply(body: bytes, *, status: int = 200, retry_after: float | None = None, response: Any = None) -> Reply:
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
    return Reply(
        error=fields.error,
        message=fields.message,
        data=fields.data,
        status=status,
        retry_after=retry_after,
        response=response,
    )


def success(message: str | Raw, data: Raw | UnsetType = UNSET) -> Reply:
    """Return the reply that all went well; a text is encoded, JSON is taken as it is."""
    return Reply(message=message if isinstance(message, Raw) else encode_value(message), data=data)


def failure(error: CloudStoreError) -> Reply:
    """Return the reply that says `error`."""
    name = error.error if error.error is not None and error.error in REPLY_ERRORS else "ServerError"
    return Reply(
        error=name,
        message=encode_value(error.message),
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
