"""JSON that is looked at before it is read: which may hold a number that Python can't."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloudstore_mapping.jsontext import may_hold_long_number

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
