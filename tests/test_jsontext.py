"""JSON that is looked at before it is read, and why some can't be read."""

from __future__ import annotations

import codecs
import json
import re

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudstore_mapping.wire import decode_value, fault_of, may_hold_long_number

#: What such a number has somewhere, said the slow way.
LONG = re.compile(rb"[0-9]{200}|[eE]\+?[0-9]{3}")

pieces = st.sampled_from([b"e", b"E", b"+", b"-", b".", b"1", b"12", b"123", b"9" * 199, b"9" * 200, b'"', b",", b" "])


@given(st.lists(pieces, max_size=8).map(b"".join) | st.binary(max_size=300))
@example(b"1e400")
@example(b"1E+309")
@example(b"1e-999")
@example(b"9" * 200)
def test_nothing_long_is_missed(body: bytes) -> None:
    """A body is worth a second look exactly where it has 200 digits in a row, or an exponent of three."""
    assert may_hold_long_number(body) == bool(LONG.search(body))


@pytest.mark.parametrize("body", [b"12345.678e12", b'{"text":"the 100e+99th"}', b"9" * 199])
def test_ordinary_numbers(body: bytes) -> None:
    """Ordinary numbers are not worth one."""
    assert not may_hold_long_number(body)


LONE = "it holds a lone surrogate, which JSON can't hold; remove it"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (rb'"\ud800"', LONE),
        (rb'"\uD8"', "Input data was truncated"),
        (rb'"\udc00"', LONE),
        (rb'"\uD83D\uD83D\uDE00"', LONE),
        (rb'"\ud83d\ude00\ude00"', LONE),
        (rb'"\ud83dx"', LONE),
        (rb'{"\ud800": 1}', LONE),
        (rb'"\\\ud800"', LONE),
        (rb'"\\ud800', "Input data was truncated"),
        (rb'"\ud83d\ude00', "Input data was truncated"),
        (b'"\xff"', "it is not UTF-8; convert it to UTF-8"),
        (b"[" * 10**6, "it is nested too deeply; flatten it"),
        (b"1" * 5000, "it holds an integer of more than 4,300 digits; store it as text"),
        (b"[1", "Input data was truncated"),
    ],
    ids=range(14),
)
def test_fault_of(text: bytes, fault: str) -> None:
    """Why a text is no JSON is told by its cause, a lone surrogate wherever it stands."""
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError, RecursionError)) as caught:
        decode_value(text)
    assert fault_of(text, caught.value).startswith(fault)


def test_a_byte_order_mark() -> None:
    """A byte order mark before the JSON is told as such, with the remedy."""
    text = codecs.BOM_UTF8 + b'{"a": 1}'
    with pytest.raises(msgspec.MsgspecError) as caught:
        decode_value(text)
    assert fault_of(text, caught.value) == "it begins with a byte order mark (BOM); save it as UTF-8 without BOM"


def test_pythons_own_sentence_about_digits() -> None:
    """A number of too many digits for Python is told without its advice to the programmer."""
    with pytest.raises(ValueError, match="digits") as caught:
        json.loads("1" * 5000)
    assert fault_of(b"", caught.value) == "it holds an integer of more than 4,300 digits; store it as text"
