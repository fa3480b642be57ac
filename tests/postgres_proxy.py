"""A way to a PostgreSQL server that breaks where a test wants it to: before or after a commit, or altogether."""

from __future__ import annotations

import enum
import fcntl
import selectors
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Self

_PIECE: Final = 2**16
#: The message by which a client says that it waits for answers.
_SYNC: Final = b"S\0\0\0\4"


class Cut(enum.Enum):
    """When a connection is cut that sends a text: before the server gets it, at once after, or after its answer."""

    BEFORE = enum.auto()
    AT = enum.auto()
    AFTER = enum.auto()


class Proxy:
    """
    Passes connections to 127.0.0.1 on to a server's socket, and cuts each that sends the text it was told to cut at.

    While it is `closed`, those who come are cut at once; while it stands `still`, nothing passes, and nobody is told.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.cuts = 0
        self.closed = False
        self._flows = threading.Event()
        self._flows.set()
        self._cut: tuple[bytes, Cut, int] | None = None
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._start(self._accept)

    def cut(self, text: bytes, when: Cut, times: int = 1) -> None:
        """Cut the next connections that send this text."""
        self._cut = (text, when, times)

    @property
    def still(self) -> bool:
        """Whether nothing passes."""
        return not self._flows.is_set()

    @still.setter
    def still(self, still: bool) -> None:
        if still:
            self._flows.clear()
        else:
            self._flows.set()

    def cut_all(self) -> None:
        """Cut all connections that there are."""
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.still = False
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]  # any function
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                if self.closed:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                with self._lock:
                    self._sockets |= {client, server}
                ending = threading.Event()
                self._start(self._pass, client, server, ending)
                self._start(self._pass_back, server, client, ending)

    def _pass(self, client: socket.socket, server: socket.socket, ending: threading.Event) -> None:
        with suppress(OSError):
            while data := client.recv(_PIECE):
                self._flows.wait()
                when, behind = self._now(data)
                if when is Cut.BEFORE:
                    break
                if when is not None:
                    ending.set()
                server.sendall(data)
                if when is Cut.AT:
                    while _SYNC not in behind:
                        behind = client.recv(_PIECE)
                        server.sendall(behind)
                    client.shutdown(socket.SHUT_RDWR)  # the server isn't told, as where a cable is pulled
                    return
        self._end(client, server)

    def _pass_back(self, server: socket.socket, client: socket.socket, ending: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(_PIECE):
                if ending.is_set():
                    break
                client.sendall(data)
        self._end(server, client)

    def _now(self, data: bytes) -> tuple[Cut | None, bytes]:
        """Return whether to cut now and when, and what stands behind the text."""
        with self._lock:
            if self._cut is None or self._cut[0] not in data:
                return None, b""
            text, when, times = self._cut
            self._cut = (text, when, times - 1) if times > 1 else None
            self.cuts += 1
            return when, data.partition(text)[2]

    def _end(self, *sockets: socket.socket) -> None:
        with self._lock:
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
                self._sockets.discard(each)


class Fate(enum.Enum):
    """What becomes of a node whose connections are cut."""

    #: The server sees that they end, as after kill -9, and nothing passes any more.
    ENDED = enum.auto()
    #: The server hears nothing, as where a cable is pulled, until `MessageProxy.let_go`; nothing passes any more.
    PULLED = enum.auto()
    #: Both sides see that they end, and new connections pass.
    LOST = enum.auto()


class _Way:
    """One direction of a connection, and what came of a message that isn't whole yet."""

    def __init__(self, source: socket.socket, target: socket.socket, *, is_answer: bool) -> None:
        self.source = source
        self.target = target
        self.is_answer = is_answer
        #: Bytes before a message's length, which counts itself: its type, which a client's first one doesn't have.
        self._type = 1 if is_answer else 0
        self._unfinished = bytearray()

    def messages(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are whole by now."""
        self._unfinished += data
        while len(self._unfinished) >= self._type + 4:
            end = self._type + int.from_bytes(self._unfinished[self._type : self._type + 4])
            if len(self._unfinished) < end:
                return
            message = bytes(self._unfinished[:end])
            del self._unfinished[:end]
            self._type = 1
            yield message


class MessageProxy:
    """
    Passes connections to 127.0.0.1 on to a server's socket, message by message, and cuts all of them after so many.

    The messages of both directions and of all connections count, in the order in which they pass. One thread passes
    them, so that nothing happens beside a cut.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        #: Messages since `cut_after`.
        self.passed = 0
        self.is_cut = False
        #: The server's processes that served the connections.
        self.processes: list[int] = []
        self._left: int | None = None
        self._fate = Fate.ENDED
        self._at_cut: Callable[[], object] = lambda: None
        self._kept: list[socket.socket] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._waking, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut_after(self, messages: int | None, fate: Fate, at_cut: Callable[[], object] = lambda: None) -> None:
        """Cut all connections after so many more messages, or never; `at_cut` is called first, while all waits."""
        with self._lock:
            self.passed, self.is_cut = 0, False
            self._left, self._fate, self._at_cut = messages, fate, at_cut
            if messages == 0:
                self._cut()

    def let_go(self) -> None:
        """End at the server what was cut without its knowledge."""
        with self._lock:
            for server in self._kept:
                server.close()
            self._kept.clear()

    def unread(self) -> int:
        """Return how much of what passed the server has yet to read, of the connections that it takes for open."""
        with self._lock:
            counts = [fcntl.ioctl(server, termios.TIOCOUTQ, bytes(4)) for server in self._kept]
        return sum(int.from_bytes(count, sys.byteorder) for count in counts)

    def open(self) -> None:
        """Let connections pass again."""
        self.let_go()
        with self._lock:
            self._left, self.is_cut = None, False
            self.processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waking.close()
        self._thread.join()
        self._end_all()
        self.let_go()
        for each in (self._listener, self._woken, self._selector):
            each.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                with self._lock:
                    if key.data is None:
                        self._accept()
                    elif self._selector.get_map().get(key.fd) == key:  # it wasn't ended just now
                        self._pass(key.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.is_cut and self._fate is not Fate.LOST:
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each message goes at once
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server)
        self._selector.register(client, selectors.EVENT_READ, _Way(client, server, is_answer=False))
        self._selector.register(server, selectors.EVENT_READ, _Way(server, client, is_answer=True))

    def _pass(self, way: _Way) -> None:
        try:
            data = way.source.recv(_PIECE)
            for message in way.messages(data):
                way.target.sendall(message)
                if way.is_answer and message.startswith(b"K"):
                    self.processes.append(int.from_bytes(message[5:9]))
                self.passed += 1
                if self.passed == self._left and not self.is_cut:
                    self._cut()
                    return
        except OSError:
            data = b""
        if not data:
            self._end(way.source, way.target)

    def _cut(self) -> None:
        self.is_cut = True
        self._at_cut()
        self._end_all()

    def _end_all(self) -> None:
        ways = [key.data for key in self._selector.get_map().values() if isinstance(key.data, _Way)]
        for way in ways:
            if not way.is_answer:
                self._end(way.source, way.target)

    def _end(self, *sockets: socket.socket) -> None:
        for each in sockets:
            self._selector.unregister(each)
            if self.is_cut and self._fate is Fate.PULLED and each.family is socket.AF_UNIX:
                self._kept.append(each)
            else:
                each.close()
