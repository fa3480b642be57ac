"""What of a media file a request gets: conditions first, then a range, as RFC 9110 has it."""

from __future__ import annotations

import pytest

from cloudstore_mapping.web.downloads import content_disposition, evaluate_conditions, may_display_inline

TAG = b'"digest"'
AT = 1_700_000_000.5  # Tue, 14 Nov 2023 22:13:20 GMT, and a half
SAME = b"Tue, 14 Nov 2023 22:13:20 GMT"
BEFORE = b"Tue, 14 Nov 2023 22:13:19 GMT"
AFTER = b"Tue, 14 Nov 2023 22:13:21 GMT"
NOW = AT + 60
LATE = b"Tue, 14 Nov 2023 22:15:00 GMT"


@pytest.mark.parametrize(
    ("range_", "status", "start", "stop"),
    [
        (b"bytes=0-", 206, 0, 100),
        (b"bytes=0-0", 206, 0, 1),
        (b"bytes=10-19", 206, 10, 20),
        (b"bytes=99-", 206, 99, 100),
        (b"bytes=90-1000000", 206, 90, 100),
        (b"bytes=-1", 206, 99, 100),
        (b"bytes=-1000", 206, 0, 100),
        (b"BYTES = 1 - 2 ", 206, 1, 3),
        (b"bytes=100-", 416, 0, 0),
        (b"bytes=100-200", 416, 0, 0),
        (b"bytes=-0", 416, 0, 0),
        # What is no range, another unit's, or several: the whole file.
        (b"bytes=20-10", 200, 0, 100),
        (b"bytes=-", 200, 0, 100),
        (b"bytes=", 200, 0, 100),
        (b"bytes=a-b", 200, 0, 100),
        (b"bytes=--1", 200, 0, 100),
        (b"bytes=+1-2", 200, 0, 100),
        (b"lines=0-1", 200, 0, 100),
        (b"bytes=0-" + b"9" * 5000, 200, 0, 100),
        (b"bytes=" + b"0-," * 10_000 + b"0-", 200, 0, 100),
        (b"bytes=0-1,5-6", 200, 0, 100),
        ("bytes=٣-٤".encode(), 200, 0, 100),
    ],
)
def test_a_range(range_: bytes, status: int, start: int, stop: int) -> None:
    """One that can be met is met, one behind the end is 416, and all else is as if it weren't there."""
    assert evaluate_conditions({b"range": range_}, TAG, AT, 100, now=NOW) == (status, start, stop)


def test_an_empty_file_has_no_parts() -> None:
    """No range of it can be met, and the whole is none."""
    assert evaluate_conditions({}, TAG, AT, 0, now=NOW) == (200, 0, 0)
    for range_ in (b"bytes=0-", b"bytes=0-0", b"bytes=-5"):
        assert evaluate_conditions({b"range": range_}, TAG, AT, 0, now=NOW).status == 416


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({b"if-none-match": TAG}, 304),
        ({b"if-none-match": b'W/"digest"'}, 304),
        ({b"if-none-match": b'"other", "digest"'}, 304),
        ({b"if-none-match": b"*"}, 304),
        ({b"if-none-match": b'"other"'}, 200),
        ({b"if-none-match": b"digest"}, 200),
        ({b"if-modified-since": SAME}, 304),
        ({b"if-modified-since": AFTER}, 304),
        ({b"if-modified-since": BEFORE}, 200),
        ({b"if-modified-since": b"yesterday"}, 200),
        ({b"if-modified-since": b"Tue, 14 Nov 99999 22:13:20 GMT"}, 200),
        ({b"if-modified-since": LATE}, 200),
        ({b"if-none-match": b'"other"', b"if-modified-since": SAME}, 200),
        ({b"if-match": TAG}, 200),
        ({b"if-match": b"*"}, 200),
        ({b"if-match": b'"other"'}, 412),
        ({b"if-match": b'W/"digest"'}, 412),
        ({b"if-unmodified-since": SAME}, 200),
        ({b"if-unmodified-since": BEFORE}, 412),
        ({b"if-unmodified-since": b"\xff"}, 200),
        ({b"if-match": TAG, b"if-unmodified-since": BEFORE}, 200),
        ({b"if-match": TAG, b"if-none-match": TAG}, 304),
        ({b"if-match": b'"other"', b"if-none-match": TAG}, 412),
    ],
)
def test_a_condition(headers: dict[bytes, bytes], status: int) -> None:
    """A tag counts more than a date, and what can't be understood is as if it weren't there."""
    assert evaluate_conditions(headers, TAG, AT, 100, now=NOW).status == status
    whole = status == 200
    assert evaluate_conditions({**headers, b"range": b"bytes=1-"}, TAG, AT, 100, now=NOW).status == (
        206 if whole else status
    )


@pytest.mark.parametrize(("now", "status"), [(AT - 5, 200), (AT, 200), (AT + 0.4, 200), (AT + 0.5, 304), (NOW, 304)])
def test_a_date_within_the_second_of_the_change(now: float, status: int) -> None:
    """A date tells two contents apart only once its second is over; a date to come is of a clock that was wrong."""
    assert evaluate_conditions({b"if-modified-since": SAME}, TAG, AT, 100, now=now).status == status


@pytest.mark.parametrize(
    ("if_range", "status"), [(TAG, 206), (b'W/"digest"', 200), (b'"other"', 200), (SAME, 200), (AFTER, 200), (b"", 200)]
)
def test_the_rest_of_the_same_file(if_range: bytes, status: int) -> None:
    """With If-Range a part comes of just the file that the client has the rest of; of any other all comes."""
    assert evaluate_conditions({b"range": b"bytes=1-", b"if-range": if_range}, TAG, AT, 100, now=NOW).status == status


@pytest.mark.parametrize(
    ("mimetype", "beginning", "shown"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n....", True),
        ("IMAGE/PNG; x=y", b"\x89PNG\r\n\x1a\n....", True),
        ("image/png", b"<html><script>..", False),
        ("image/png", b" \x89PNG\r\n\x1a\n....", False),
        ("image/png", b"", False),
        ("image/jpeg", b"\xff\xd8\xff\xe0....JFIF", True),
        ("image/jpeg", b"\x89PNG\r\n\x1a\n....", False),
        ("image/gif", b"GIF89a..........", True),
        ("image/webp", b"RIFF\n\0\0\0WEBPVP8 ", True),
        ("audio/wav", b"RIFF\n\0\0\0WAVEfmt ", True),
        ("audio/mpeg", b"ID3.............", True),
        ("video/mp4", b"\0\0\0\x20ftypisom....", True),
        ("application/pdf", b"%PDF-1.7........", True),
        ("text/html", b"<!DOCTYPE html>.", False),
        ("image/svg+xml", b"<svg onload=....", False),
        ("application/xml", b"<?xml version=..", False),
        ("text/html", b"\x89PNG\r\n\x1a\n....", False),
        ("application/javascript", b"alert(1)........", False),
        ("text/plain", b"text............", False),
        ("application/octet-stream", b"\x89PNG\r\n\x1a\n....", False),
    ],
)
def test_what_a_browser_may_show(mimetype: str, beginning: bytes, shown: bool) -> None:
    """Only types that can't run anything, and only where the bytes are what the type says."""
    assert may_display_inline(mimetype, beginning) is shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photo.png", b"attachment; filename=\"photo.png\"; filename*=UTF-8''photo.png"),
        ('a"b\\c\r\nd', b"attachment; filename=\"a_b_c__d\"; filename*=UTF-8''a%22b%5Cc%0D%0Ad"),
        ("é/\u202e", b"attachment; filename=\"___\"; filename*=UTF-8''%C3%A9%2F%E2%80%AE"),
        ("100%41", b"attachment; filename=\"100_41\"; filename*=UTF-8''100%2541"),
        ("';x=1", b"attachment; filename=\"';x=1\"; filename*=UTF-8''%27%3Bx%3D1"),
    ],
)
def test_a_name_in_a_header(name: str, expected: bytes) -> None:
    """Whatever a name holds, it ends neither its quotes nor its line; its plain form is for old programs."""
    assert content_disposition(name, shown=False) == expected
    assert content_disposition(name, shown=True) == b"inline" + expected.removeprefix(b"attachment")
