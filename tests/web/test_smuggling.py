"""A request whose end two programs could see at different places is refused, so that none hides in another's body."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cloudstore_mapping.service.settings import Settings
from tests.raw_http import Connection, FakeService, body, chunk

HEAD = b"POST /cloudstore/store/save HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
PLAIN = body("plain", value=1)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = chunk(PLAIN) + chunk(b"")


def length(data: bytes) -> bytes:
    """Return the header that tells how long `data` is."""
    return b"Content-Length: %d\r\n" % len(data)


def post(headers: bytes, data: bytes) -> bytes:
    """Return a request of these headers and this body."""
    return HEAD + headers + b"\r\n" + data


HIDDEN = post(length(body("smuggled", value=1)), body("smuggled", value=1))
#: What follows the beginning of a request; for whoever reads it otherwise a request stands in it.
REFUSED = {
    "a length and chunks": post(length(PLAIN + HIDDEN) + CHUNKED, CHUNKS),
    "chunks and a length": post(CHUNKED + length(PLAIN), CHUNKS),
    "two lengths": post(length(PLAIN + HIDDEN) + length(PLAIN), PLAIN),
    "two equal lengths": post(length(PLAIN) * 2, PLAIN),
    "a list of lengths": post(b"Content-Length: %d, %d\r\n" % (len(PLAIN), len(PLAIN + HIDDEN)), PLAIN),
    "a length with a sign": post(b"Content-Length: +%d\r\n" % len(PLAIN), PLAIN),
    "a negative length": post(b"Content-Length: -1\r\n", PLAIN),
    "a hexadecimal length": post(b"Content-Length: 0x%x\r\n" % len(PLAIN), PLAIN),
    "a length past all numbers": post(b"Content-Length: 99999999999999999999999\r\n", PLAIN),
    "a length with a space": post(b"Content-Length: 1 0\r\n", PLAIN),
    "a length with a NUL": post(b"Content-Length\0: 3\r\n" + length(PLAIN), PLAIN),
    "a space before a colon": post(length(PLAIN) + b"Transfer-Encoding : chunked\r\n", PLAIN),
    "an unknown coding": post(b"Transfer-Encoding: xchunked\r\n", CHUNKS),
    "chunked, but not last": post(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS),
    "identity": post(b"Transfer-Encoding: identity\r\n" + length(PLAIN), PLAIN),
    "a control character": post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS),
    "two codings": post(CHUNKED + b"Transfer-Encoding: x\r\n", CHUNKS),
    "a folded header": post(b"X: y\r\n " + length(PLAIN), PLAIN),
    "line feeds alone": post(length(PLAIN), b"").replace(b"\r\n", b"\n") + PLAIN,
    "a carriage return alone": post(b"X: y\r" + length(PLAIN + HIDDEN) + length(PLAIN), PLAIN),
    "NUL in a header": post(b"X: a\0b\r\n" + length(PLAIN), PLAIN),
    "a chunk with a sign": post(CHUNKED, b"+" + CHUNKS),
    "a chunk with 0x": post(CHUNKED, b"0x" + CHUNKS),
    "a negative chunk": post(CHUNKED, b"-1\r\n" + CHUNKS),
    "a chunk past all numbers": post(CHUNKED, b"f" * 17 + b"\r\n" + PLAIN),
    "chunks between line feeds": post(CHUNKED, CHUNKS.replace(b"\r\n", b"\n")),
    "a chunk that is longer": post(CHUNKED, CHUNKS.replace(b"\r\n0", b"xx0")),
    "a line feed in an extension": post(CHUNKED, CHUNKS.replace(b"\r\n", b";a\n\r\n", 1)),
    "a tunnel": b"CONNECT other:1 HTTP/1.1\r\nHost: test\r\n\r\n",
    "no host": post(length(PLAIN), PLAIN).replace(b"Host: test\r\n", b""),
    "two hosts": post(b"Host: other\r\n" + length(PLAIN), PLAIN),
    "two equal hosts": post(b"host: test\r\n" + length(PLAIN), PLAIN),
    "two hosts in HTTP/1.0": post(b"Host: other\r\n" + length(PLAIN), PLAIN).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a list of hosts": post(length(PLAIN), PLAIN).replace(b"Host: test", b"Host: test, other"),
    "a host with a path": post(length(PLAIN), PLAIN).replace(b"Host: test", b"Host: test/cloudstore"),
    "no host, but another protocol": b"GET /cloudstore/health HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
}
#: What is taken, and has one end only.
TAKEN = {
    "a body that means nothing": b"GET /cloudstore/health HTTP/1.1\r\nHost: test\r\n" + length(HIDDEN) + b"\r\n",
    "another protocol": b"GET /cloudstore/health HTTP/1.1\r\nHost: test\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\n" + length(HIDDEN) + b"\r\n",
    "chunks in HTTP/1.0": post(CHUNKED, CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an empty host": post(length(PLAIN), PLAIN).replace(b"Host: test", b"Host:"),
    "a host in IPv6": post(length(PLAIN), PLAIN).replace(b"Host: test", b"Host: [::1]:8787"),
    "no host in HTTP/1.0": post(length(PLAIN), PLAIN).replace(b"HTTP/1.1\r\nHost: test", b"HTTP/1.0"),
    "chunked in capitals": post(b"Transfer-Encoding: Chunked\r\n", CHUNKS),
}
#: After these a connection goes on, so that what follows is a request like any other.
_GOES_ON = {"an empty host", "a host in IPv6", "chunked in capitals"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeService, str]]:
    """Yield a service, and its address."""
    service = FakeService(Settings(body_timeout=5))
    with service.served() as address:
        yield service, address


def sent(served: tuple[FakeService, str], data: bytes) -> tuple[bytes, set[str]]:
    """Send bytes to the service until they end; return what it answered, and the names of what was stored."""
    service, address = served
    service.values.clear()
    with Connection(address) as connection:
        connection.send(data)
        connection.socket.shutdown(socket.SHUT_WR)
        answer = connection.rest()
    with Connection(address) as connection:  # what is stored now was asked for after all that came before
        connection.post("/store/save", body("last", value=1))
        assert connection.answer().status == 200
    return answer, set(service.values) - {"last"}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_is_refused(served: tuple[FakeService, str], case: str) -> None:
    """It is answered 400, the connection ends, and neither it nor what may hide in it is done."""
    answer, stored = sent(served, REFUSED[case] + HIDDEN)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not stored


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity,chunked", b"gzip\r\nTransfer-Encoding: chunked"])
def test_a_coding_that_is_not_known(served: tuple[FakeService, str], coding: bytes) -> None:
    """A body in chunks with another coding within is answered 501, whatever the chunks hold, and not done."""
    answer, stored = sent(served, post(b"Transfer-Encoding: " + coding + b"\r\n", CHUNKS) + HIDDEN)
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"Only chunked is known as Transfer-Encoding; send the body without another coding." in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not stored


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("no host", b"The request has 0 Host headers; send exactly one."),
        ("two hosts", b"The request has 2 Host headers; send exactly one."),
        ("a list of hosts", b"The Host header is no host; send the name or address, and the port."),
        ("a tunnel", b"There are no tunnels here; use another method than CONNECT."),
    ],
)
def test_a_refusal_says_why(served: tuple[FakeService, str], case: str, sentence: bytes) -> None:
    """What only this service refuses is told with its reason."""
    assert sentence in sent(served, REFUSED[case])[0]


#: Pairs of headers with a single value; equal ones are no better.
TWICE = [
    (b"Idempotency-Key: a\r\n", b"Idempotency-Key: b\r\n"),
    (b"Idempotency-Key: a\r\n", b"idempotency-key: a\r\n"),
    (b"Content-Type: application/json\r\n", b""),
    (b"Content-Type: text/plain\r\n", b""),
    (b"Authorization: Bearer a\r\n", b"Authorization: Bearer b\r\n"),
    (b"Origin: https://a.example\r\n", b"Origin: https://b.example\r\n"),
    (b"Sec-Fetch-Site: none\r\n", b"Sec-Fetch-Site: cross-site\r\n"),
]


@pytest.mark.parametrize(("first", "second"), TWICE)
def test_two_values_of_a_header_with_one(served: tuple[FakeService, str], first: bytes, second: bytes) -> None:
    """Of a header with a single value two are refused with its name, for programs differ in which one they take."""
    answer, stored = sent(served, post(first + second + length(PLAIN), PLAIN) + HIDDEN)
    assert answer.startswith(b"HTTP/1.1 400 ")
    name = first.partition(b":")[0]
    assert b"The request has 2 %b headers; send only one." % name in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not stored


def test_an_upgrade_hides_no_second_value(served: tuple[FakeService, str]) -> None:
    """A request for another protocol is checked in the same way."""
    twice = b"Idempotency-Key: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nIdempotency-Key: b\r\n"
    answer, stored = sent(served, post(twice + length(PLAIN), PLAIN))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not stored


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_hides_nothing(served: tuple[FakeService, str], case: str) -> None:
    """What has one end only is answered, and what stands in its body, or after its connection's end, is not done."""
    answer, stored = sent(served, TAKEN[case] + (b"" if case in _GOES_ON else HIDDEN))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert "smuggled" not in stored


def test_requests_one_after_the_other_are_no_trick(served: tuple[FakeService, str]) -> None:
    """The same two requests with lengths that are right are both done."""
    service, address = served
    service.values.clear()
    with Connection(address) as connection:
        connection.send(post(length(PLAIN), PLAIN) + HIDDEN)
        assert [connection.answer().status for _ in range(2)] == [200, 200]
    assert {"plain", "smuggled"} == set(service.values)


def test_a_trailer_is_no_header(served: tuple[FakeService, str]) -> None:
    """The trailers of a chunked body change nothing: neither its type nor, say, the client's address."""
    data = chunk(PLAIN) + b"0\r\nContent-Type: text/plain\r\n\r\n"
    answer, saved = sent(served, post(CHUNKED, data))
    assert (answer.split()[1], saved) == (b"200", {"plain"})


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (66_000, b"400"), (100_000, b"400"), (200_000, b"400")])
def test_long_headers(served: tuple[FakeService, str], size: int, status: bytes) -> None:
    """Headers of more than 64 KiB are refused, also if they come at once."""
    answer, _ = sent(served, post(b"X: " + b"x" * size + b"\r\n" + length(PLAIN), PLAIN))
    assert answer.split()[1] == status
