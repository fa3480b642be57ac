"""A way to a PostgreSQL server that counts what passes: statements, round trips, bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from psycopg.conninfo import conninfo_to_dict, make_conninfo

#: Messages of PostgreSQL's protocol that have a statement done, and those after which its answer is waited for.
STATEMENTS: Final = frozenset(b"QE")
ROUND_TRIPS: Final = frozenset(b"QSH")


class Counts(NamedTuple):
    """What passed: statements that were done, answers that were waited for, bytes to the server and back."""

    statements: float = 0
    round_trips: float = 0
    bytes_to: float = 0
    bytes_back: float = 0

    def plus(self, other: Counts, times: float = 1) -> Counts:
        """Return this and so many times the other."""
        return Counts(*(one + times * another for one, another in zip(self, other, strict=True)))


class Way:
    """What leads to a server; `counts` is of all connections together, since the beginning."""

    def __init__(self, host: str, port: str) -> None:
        self.counts = Counts()
        self._host = host
        self._port = port
        self._ends: dict[asyncio.Future[Any], asyncio.StreamWriter] = {}

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on to the server, until one of the two ends it."""
        if self._host.startswith("/"):
            opening = asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            opening = asyncio.open_connection(self._host, self._port)
        answers, server = await opening
        passing = asyncio.gather(self._pass(reader, server), self._pass_back(answers, writer), return_exceptions=True)
        self._ends[passing] = server
        await passing

    async def close(self) -> None:
        """End all connections."""
        for server in self._ends.values():
            server.close()
        await asyncio.gather(*self._ends)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = b""  # the first message, which says who connects, has none
        try:
            while True:
                length = await reader.readexactly(4)
                message = kind + length + await reader.readexactly(int.from_bytes(length) - 4)
                code = kind[0] if kind else 0
                self.counts = self.counts.plus(Counts(code in STATEMENTS, code in ROUND_TRIPS, len(message)))
                writer.write(message)
                await writer.drain()
                kind = await reader.readexactly(1)
        finally:
            writer.close()

    async def _pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(2**16):
                self.counts = self.counts.plus(Counts(bytes_back=len(data)))
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@contextmanager
def counted(address: str) -> Iterator[tuple[str, Way]]:
    """Return the address of the same database over a way that counts, and the way, which is there within the block."""
    given = conninfo_to_dict(address)
    way = Way(str(given["host"]), str(given["port"]))
    begun: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        ending = asyncio.Event()
        async with await asyncio.start_server(way.take, "127.0.0.1", 0) as server:
            begun.set_result((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), ending))
            await ending.wait()
            server.close()
            await way.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="counting-way")
    thread.start()
    port, loop, ending = begun.result()
    try:
        # In the clear, for else nothing could be counted.
        yield make_conninfo(address, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"), way
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
