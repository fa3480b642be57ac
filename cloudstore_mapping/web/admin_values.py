"""Values as somebody types them: JSON whose faults are named by the line and column where they stand."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw

from cloudstore_mapping.errors import BadValueError
from cloudstore_mapping.wire import SAVE_PATH, Request, decode_request, encode_request, fault_of

# What msgspec says of the place of a fault.
_BYTE: Final = re.compile(r"(.*?):? ?\(byte (\d+)\)")
#: The API key that stands in the place of one where the owner is known already.
_NO_KEY: Final = "owner"


def save_request(name: str, text: str, version: str | None, max_depth: int) -> Request:
    """
    Return the request to save what somebody typed, if `version` is still the file's, None meaning that there is none.

    Raises `BadValueError` for what is no JSON, by the line and column, and for what `decode_request` refuses.
    """
    try:
        value = msgspec.json.decode(text.encode(), type=Raw)
    except msgspec.MsgspecError as error:
        raise BadValueError(_fault(text, error)) from error
    # The same way as a program's request: one parser decides what a value may be.
    body = encode_request(Request(api_key=_NO_KEY, name=name, value=value, if_version=version))
    request = decode_request(SAVE_PATH, body, max_depth=max_depth)
    assert isinstance(request, Request)  # noqa: S101 - only the path of batches makes one
    return request


def _fault(text: str, error: Exception) -> str:
    if not text.strip():
        return 'There is no value; write one, such as {} or "text".'
    sentence = fault_of(text.encode(), error)
    if sentence not in str(error):
        return f"This is no JSON: {sentence}."
    match = _BYTE.search(sentence)
    if match is None:  # it ends too early
        before, why = text, "it ends before the value does"
    else:
        why = match[1].removeprefix("JSON is malformed: ")
        # Of these alone msgspec counts the first as seen already.
        seen = int(match[2]) - (why == "trailing characters")
        before = text.encode()[:seen].decode(errors="ignore")
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return f"This is no JSON: line {line}, column {column}: {why}."
