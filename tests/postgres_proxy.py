"""A way to a PostgreSQL server that breaks where a test wants it to: before or after a commit, or altogether."""

from __future__ import annotations

import enum
import socket
import threading
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
