"""Wire format: the messages of the protocol, their JSON, and the checks of what arrives."""

from __future__ import annotations

import codecs
import enum
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import IO, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.errors import REPLY_ERRORS, BadValueError, ChangedError, CloudStoreError, ProtocolError

_json = msgspec.json.Encoder().encode


def encode_value(value: Any) -> Raw:
    """Return the JSON of a value known to have a JSON form; for any other value use `client.codec`."""
    return Raw(_json(value))


#: Returns a new object for the JSON of a value. All decisions use this parser; of several equal names the last wins.
decode_value: Final[Callable[[Raw | bytes], Any]] = msgspec.json.Decoder().decode


# First half of a surrogate pair without the second, or the second without the first.
_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]", re.DOTALL
)


def fault_of(text: bytes | Raw, error: Exception) -> str:
    """
    Return the reason why `text` can't be read as JSON, as a part of a sentence; `error` is the parser's exception.

    Messages of the parsers are unsuitable: msgspec has several for a lone surrogate (one says that the text is
    truncated), and Python's are advice to programmers.
    """
    if _LONE_SURROGATE.search(bytes(text).replace(rb"\\", b" ")):
        return "it holds a lone surrogate, which JSON can't hold; remove it"
    if bytes(text).startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark (BOM); save it as UTF-8 without BOM"
    if isinstance(error, UnicodeDecodeError) or "Invalid UTF-8" in str(error):
        return "it is not UTF-8; convert it to UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply; flatten it"
    if "Integer value out of range" in str(error) or "integer string conversion" in str(error):
        return "it holds an integer of more than 4,300 digits; store it as text"
    return str(error).rstrip(".")


# Translation of bytes to find numbers possibly beyond a float's range or the limit of digits: only these need a full
# decode.
_NUMBERS: Final = bytes(
    ord("0") if byte in b"0123456789" else ord("e") if byte in b"eE" else ord("+") if byte in b"+" else ord(" ")
    for byte in range(256)
)
_LONG: Final = b"0" * 200
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))
# Brackets counted between two comparisons with the limit.
_BLOCK_SIZE: Final = 1024
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def may_hold_long_number(body: bytes) -> bool:
    """Return True if `body` may hold such a number: it has many digits in a row, or an exponent of many digits."""
    shape = body.translate(_NUMBERS)  # with text searches four times as fast as a regular expression
    return b"e000" in shape or b"e+000" in shape or _LONG in shape


def is_deeper(body: bytes, depth: int) -> bool:
    """Return True if `body` nests brackets deeper than `depth`; not recursive, in linear time."""
    structure = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    # Adjacent quotes are an empty string, or join two strings in invalid JSON: without them, brackets inside of strings
    # stay inside, and the others outside.
    brackets = b"".join(structure.replace(b'""', b"").split(b'"')[::2])
    reached = 0
    for start in range(0, len(brackets), _BLOCK_SIZE):  # stops early in a flood of brackets
        levels = [*accumulate(map(_STEPS.__getitem__, brackets[start : start + _BLOCK_SIZE]), initial=reached)]
        if max(levels) > depth:
            return True
        reached = levels[-1]
    return False


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
ID_PATTERN: Final = rf'("?)([0-9A-Za-z_-]{{1,{MAX_ID}}})\1'

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
    `requests.Response`, None without HTTP. `problem` is a message for the service's operator instead of clients; it is
    not sent.
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
    problem: str | None = None

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


__all__ = [
    "BATCH_PATH",
    "DEFAULT_MAX_DEPTH",
    "EXTENSIONS",
    "EXTENSIONS_HEADER",
    "ID_HEADER",
    "ID_PATTERN",
    "LOAD_PATH",
    "MAX_BATCH",
    "MAX_ID",
    "SAVE_PATH",
    "UPLOAD_PATH",
    "Batch",
    "Operation",
    "Reply",
    "ReplyBody",
    "Request",
    "Upload",
    "decode_replies",
    "decode_reply",
    "decode_request",
    "decode_value",
    "encode_replies",
    "encode_reply",
    "encode_reply_parts",
    "encode_request",
    "encode_value",
    "failure",
    "for_operator",
    "id_beside",
    "is_deeper",
    "message_for_clients",
    "success",
]


class ReplyBody(msgspec.Struct):
    """JSON object of a reply."""

    error: str | None
    message: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    version: str | UnsetType | None = UNSET
    next: str | UnsetType | None = UNSET
    unchanged: bool | UnsetType = UNSET


_EMPTY: Final = Raw(b'""')


def _plain(text: object) -> str:
    """Return the content of a subclass of `str`, such as masked text, for msgspec's encoder."""
    if isinstance(text, str):
        return str.__str__(text)
    raise TypeError(f"Encoding objects of type {type(text).__name__} is unsupported")


_id_in = re.compile(ID_PATTERN).fullmatch
_encode = msgspec.json.Encoder(enc_hook=_plain).encode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_batch = msgspec.json.Decoder(Batch).decode
_decode_reply = msgspec.json.Decoder(ReplyBody).decode
_decode_replies = msgspec.json.Decoder(list[ReplyBody]).decode


def encode_request(request: Request | Batch) -> bytes:
    """Return the body to post for a request."""
    try:
        return _encode(request)
    except UnicodeEncodeError as error:
        raise ProtocolError(
            "The API key, name or password holds a lone surrogate, which can't be sent; remove it.",
            error="BadRequest",
        ) from error


def id_beside(request: Request | Batch) -> tuple[Request | Batch, dict[str, str]]:
    """Return the request without its id, and a header with the id; unchanged if it has no id fit for a header."""
    if request.once is UNSET or not _id_in(quoted := f'"{request.once}"'):
        return request, {}
    return msgspec.structs.replace(request, once=UNSET), {ID_HEADER: quoted}


def decode_request(path: str, body: bytes, *, max_depth: int = DEFAULT_MAX_DEPTH) -> Request | Batch:
    """
    Return the request posted to `path`, after all checks that do not depend on stored data.

    Raises `ProtocolError` (``BadRequest``) with the path of the wrong field, and `BadValueError` for a value nested
    deeper than `max_depth` or an integer of more than 4,300 digits, Python's limit.
    """
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check that strings in a Raw are UTF-8
        if path == BATCH_PATH:
            batch = _decode_batch(body)
            _check_values(batch.requests, body, max_depth)
            _complete_items(batch)
            return batch
        _check_depth(body, max_depth, around=1)
        request = _decode_request(body)
        _check_numbers(request.value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if "Integer value out of range" in str(error):
            raise BadValueError("The value holds an integer of more than 4,300 digits; store it as text.") from error
        raise _bad_request(fault_of(body, error)) from error
    except RecursionError as error:
        raise _too_deep(max_depth) from error
    if not request.api_key:
        raise _bad_request("Object missing required field `key`")
    return _checked(path, request)


def _check_values(requests: Sequence[Request], body: bytes, max_depth: int) -> None:
    """Refuse values nested too deeply or with too long numbers; most bodies pass after a quick check."""
    may_be_long = may_hold_long_number(body)
    brackets = _brackets(body)
    if not may_be_long and brackets <= max_depth:
        return
    for request in requests:
        if request.value is not UNSET:
            count = _brackets(value := bytes(request.value))
            brackets -= count
            if count > max_depth:
                _check_depth(value, max_depth)
            if may_be_long:
                _check_numbers(request.value)
    if brackets - len(requests) > max_depth:  # in unknown fields, or in strings
        _check_depth(body, max_depth, around=3)


def _check_depth(text: bytes, max_depth: int, *, around: int = 0) -> None:
    """Refuse a value nested too deeply, not counting `around` levels of brackets around it."""
    if _brackets(text) > max_depth and is_deeper(text, max_depth + around):
        raise _too_deep(max_depth)


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _check_numbers(value: Raw | UnsetType) -> None:
    if value is not UNSET and may_hold_long_number(bytes(value)):
        decode_value(value)


def _complete_items(batch: Batch) -> None:
    for number, request in enumerate(batch.requests):
        if request.api_key not in ("", batch.api_key):
            raise _bad_request(f"`$.requests[{number}].key` is another account's; a batch is one account's")
        # A request without value and options is a load, so only a merge can lack its value.
        if request.options == "merge" and request.value is UNSET:
            raise _bad_request(f"`$.requests[{number}].value` is missing")
        msgspec.structs.force_setattr(request, "api_key", batch.api_key)  # nothing else refers to it yet


def _checked(path: str, request: Request) -> Request:
    if path == LOAD_PATH and request.options is None:
        if request.value is UNSET:
            return request
        return msgspec.structs.replace(request, value=UNSET)  # a load ignores a value
    if request.options is not None and path != request.path:
        raise _bad_request(f"`$.options` belongs to {request.path}")
    if request.options in (None, "merge") and request.value is UNSET:
        raise _bad_request("`$.value` is missing")
    return request


def _too_deep(max_depth: int) -> BadValueError:
    return BadValueError(f"The value is nested deeper than {max_depth} levels (the service's max_depth); flatten it.")


def _bad_request(why: str) -> ProtocolError:
    return ProtocolError(f"The body is not a request: {why}.", error="BadRequest")


def encode_reply(reply: Reply) -> bytes:
    """Return the body of a reply."""
    return _encode(_body_of(reply))


def encode_reply_parts(reply: Reply) -> list[memoryview]:
    """Return the body of a reply in parts, so that a large message or data is not copied."""
    head = _encode(ReplyBody(reply.error))[:-1]
    tail = _encode(ReplyBody(None, version=reply.version, next=reply.next, unchanged=reply.unchanged))
    parts: list[bytes | Raw] = [head, b',"message":', reply.message]
    if reply.data is not UNSET:
        parts += [b',"data":', reply.data]
    parts.append(tail.removeprefix(b'{"error":null'))
    return [memoryview(part) for part in parts]


def encode_replies(replies: Iterable[Reply]) -> Raw:
    """Return the `data` of a batch's reply, made of these replies."""
    return Raw(_encode([_body_of(reply) for reply in replies]))


def decode_replies(data: Raw) -> list[Reply]:
    """Return the replies in the `data` of a batch's reply; `ProtocolError` if it can't be read."""
    try:
        bodies = _decode_replies(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        why = fault_of(data, error)
        raise ProtocolError(f"The answer to a batch can't be read ({why}); is the address right?") from error
    if any(_lacks_message(body) for body in bodies):
        raise ProtocolError(f"The answer to a batch can't be read ({_NO_MESSAGE}); is the address right?")
    return [_reply_of(body) for body in bodies]


def decode_reply(
    body: bytes,
    *,
    status: int = 200,
    retry_after: float | None = None,
    extensions: frozenset[str] = frozenset(),
    response: Any = None,
) -> Reply:
    """Return the reply in `body`; `ProtocolError` if it is not a reply."""
    try:
        body.decode()
        fields = _decode_reply(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_ours(fault_of(body, error), status, response) from error
    if _lacks_message(fields):
        raise _not_ours(_NO_MESSAGE, status, response)
    return _reply_of(fields, status=status, retry_after=retry_after, extensions=extensions, response=response)


_NO_MESSAGE: Final = "object missing required field `message`"


def _lacks_message(body: ReplyBody) -> bool:
    return body.message is UNSET and body.unchanged is not True


def _not_ours(why: str, status: int, response: Any) -> ProtocolError:
    return ProtocolError(
        f"The answer is not CloudStore's ({why}); is the address right, and is no sign-in page in between?",
        status=status,
        response=response,
    )


def _body_of(reply: Reply) -> ReplyBody:
    return ReplyBody(reply.error, reply.message, reply.data, reply.version, reply.next, reply.unchanged)


def _reply_of(body: ReplyBody, **beside: Any) -> Reply:
    return Reply(
        error=body.error,
        message=_EMPTY if body.message is UNSET else body.message,
        data=body.data,
        version=body.version,
        next=body.next,
        unchanged=body.unchanged,
        **beside,
    )


def success(message: str | Raw, data: Raw | UnsetType = UNSET, *, version: str | UnsetType = UNSET) -> Reply:
    """Return a successful reply; a text `message` is encoded, JSON is used as it is."""
    return Reply(message=message if isinstance(message, Raw) else encode_value(message), data=data, version=version)


def failure(error: CloudStoreError) -> Reply:
    """Return the reply for an error, in the words for clients; those for the operator are its `problem`."""
    for_clients: str | None = getattr(error, "for_clients", None)
    name = error.error if error.error is not None and error.error in REPLY_ERRORS else "ServerError"
    return Reply(
        error=name,
        message=encode_value(message_for_clients(error)),
        version=error.version if isinstance(error, ChangedError) else UNSET,
        status=REPLY_ERRORS[name][0],
        retry_after=getattr(error, "retry_after", None),
        problem=None if for_clients is None else error.message,
    )


def message_for_clients(error: CloudStoreError) -> str:
    """Return an error's message for clients of a service, who can't mend its disk."""
    return getattr(error, "for_clients", None) or error.message


def for_operator(reply: Reply) -> Reply:
    """Return a reply in the words for the operator: in an embedded store, the user is the operator."""
    return reply if reply.problem is None else msgspec.structs.replace(reply, message=encode_value(reply.problem))
