"""Encode and decode requests and replies as JSON bytes; no input or output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.errors import REPLY_ERRORS, BadValueError, ChangedError, CloudStoreError, ProtocolError
from cloudstore_mapping.jsontext import decode_value, encode_value, fault_of, is_deeper, may_hold_long_number
from cloudstore_mapping.messages import (
    BATCH_PATH,
    DEFAULT_MAX_DEPTH,
    EXTENSIONS,
    EXTENSIONS_HEADER,
    ID_HEADER,
    ID_PATTERN,
    LOAD_PATH,
    MAX_BATCH,
    MAX_ID,
    SAVE_PATH,
    UPLOAD_PATH,
    Batch,
    Operation,
    Reply,
    Request,
    Upload,
)

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
    "encode_request",
    "encode_value",
    "failure",
    "id_beside",
    "is_deeper",
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
    return BadValueError(f"The value is nested deeper than {max_depth} levels; flatten it.")


def _bad_request(why: str) -> ProtocolError:
    return ProtocolError(f"The body is not a request: {why}.", error="BadRequest")


def encode_reply(reply: Reply) -> bytes:
    """Return the body of a reply."""
    return _encode(_body_of(reply))


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
    """Return the reply for an error."""
    name = error.error if error.error is not None and error.error in REPLY_ERRORS else "ServerError"
    return Reply(
        error=name,
        message=encode_value(error.message),
        version=error.version if isinstance(error, ChangedError) else UNSET,
        status=REPLY_ERRORS[name][0],
        retry_after=getattr(error, "retry_after", None),
    )
