"""Load on a server: requests over many connections at once, each sent as soon as the one before it was answered."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from urllib.parse import urlsplit

_LENGTH = b"content-length:"


class Load:
    """
    What is sent to a server over so many connections: `request` makes the bytes of each by its number.

    Several servers, `address` and `others`, share the connections evenly.

    Every answer has to have status 200 or 201 and hold `expected`, else it counts as no answer.
    """

    def __init__(
        self,
        address: str,
        request: Callable[[int], bytes],
        *,
        connections: int,
        times: int,
        expected: bytes,
        others: Sequence[str] = (),
    ) -> None:
        parts = [urlsplit(each) for each in (address, *others)]
        self._servers = [(part.hostname or "", part.port or 80) for part in parts]
        self._request = request
        self._connections = connections
        self._times = times
        self._expected = expected
        self._next = 0

    def turn(self) -> float:
        """Send so many requests, and return the seconds that each took of the time for all."""
        with ExitStack() as stack:
            poll = stack.enter_context(select.epoll())
            sockets = {}
            for number in range(self._connections):
                server = self._servers[number % len(self._servers)]
                connection = stack.enter_context(socket.create_connection(server))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
            started = time.perf_counter()
            self._exchange(poll, sockets)
            return (time.perf_counter() - started) / self._times

    def _exchange(self, poll: select.epoll, sockets: dict[int, socket.socket]) -> None:
        parts: dict[int, bytes] = {}
        left = self._times
        waiting = 0
        for connection in list(sockets.values())[:left]:
            connection.sendall(self._numbered())
            waiting += 1
        left -= waiting
        while waiting:
            for number, _ in poll.poll():
                connection = sockets[number]
                answer = parts.pop(number, b"") + connection.recv(2**16)
                if not self._is_whole(answer):
                    parts[number] = answer
                    continue
                waiting -= 1
                if left:
                    left -= 1
                    waiting += 1
                    connection.sendall(self._numbered())

    def _numbered(self) -> bytes:
        self._next += 1
        return self._request(self._next)

    def _is_whole(self, answer: bytes) -> bool:
        if not answer:
            raise ConnectionError("The server ended a connection.")
        head, separator, body = answer.partition(b"\r\n\r\n")
        if not separator:
            return False
        lower = head.lower()
        start = lower.find(_LENGTH)
        length = int(lower[start + len(_LENGTH) :].split(b"\r\n", 1)[0])
        if len(body) < length:
            return False
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")) or self._expected not in body:
            raise ValueError(f"The server answered {answer[:400]!r}.")
        return True


def posted(
    path: str, body: Callable[[int], bytes], *, method: str = "POST", headers: str = ""
) -> Callable[[int], bytes]:
    """Return what makes the bytes of a request by its number."""
    start = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
    head = f"{start}Content-Length: ".encode()

    def request(number: int) -> bytes:
        text = body(number)
        return b"%b%d\r\n\r\n%b" % (head, len(text), text)

    return request
