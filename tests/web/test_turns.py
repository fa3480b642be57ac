"""Turns of large replies and of media files on the event loop, between which small requests run."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from cloudstore_mapping.web.http import LARGE_REPLY, PIECE, Client, send_pieces, send_reply
from cloudstore_mapping.wire import encode_value, success

LARGE = success("", encode_value("x" * 2 * LARGE_REPLY))


class Passes:
    """Counts the passes of the event loop, and in each the pieces that are sent."""

    def __init__(self) -> None:
        self.number = 0
        self.sent: Counter[int] = Counter()
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.number += 1
        asyncio.get_running_loop().call_soon(self._next)

    async def send(self, message: Any) -> None:
        """Take a message of a reply."""
        if message.get("body"):
            self.sent[self.number] += 1


@pytest.mark.parametrize("clients", [1, 8])
def test_a_pass_of_the_event_loop_sends_one_piece(clients: int) -> None:
    """However many clients read large replies and files, each pass of the event loop sends one piece."""

    async def run() -> Counter[int]:
        passes = Passes()
        replies = [send_reply(passes.send, LARGE) for _ in range(clients)]
        files = [send_pieces(passes.send, bytes(5 * PIECE)) for _ in range(clients)]
        await asyncio.gather(*replies, *files)
        return passes.sent

    sent = asyncio.run(run())
    assert set(sent.values()) == {1}
    assert len(sent) >= clients * (2 * LARGE_REPLY + 5 * PIECE) // PIECE


def test_pieces_are_at_most_64_kib_and_complete() -> None:
    """Data goes out in order, in pieces of 64 KiB at most."""
    data = bytes(range(256)) * 777

    async def run() -> list[bytes]:
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            assert message["more_body"]
            sent.append(message["body"])

        await send_pieces(send, data)
        return sent

    sent = asyncio.run(run())
    assert b"".join(sent) == data
    assert max(map(len, sent)) == 64 * 2**10


def test_a_client_that_leaves_keeps_nobodys_turn() -> None:
    """The turns of clients that leave are given to the others."""

    async def run() -> int:
        passes = Passes()
        tasks = [asyncio.ensure_future(send_pieces(passes.send, bytes(PIECE))) for _ in range(6)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await send_pieces(passes.send, bytes(PIECE))
        return passes.sent.total()

    assert asyncio.run(run()) == 4


def test_who_has_left_waits_for_no_turn() -> None:
    """Replies and files for clients that have left end in the next pass, whoever else waits for a turn."""

    async def run() -> tuple[int, bool]:
        passes = Passes()
        gone = [Client() for _ in range(100)]
        staying = [asyncio.ensure_future(send_pieces(passes.send, bytes(9 * PIECE))) for _ in range(4)]
        left = [asyncio.ensure_future(send_pieces(send_nothing, bytes(9 * PIECE), client)) for client in gone[::2]]
        left += [asyncio.ensure_future(send_reply(send_nothing, LARGE, client=client)) for client in gone[1::2]]
        await asyncio.sleep(0)
        for client in gone:
            client.leave()
        before_leaving = passes.number
        await asyncio.gather(*left)
        later = passes.number - before_leaving
        before = not any(task.done() for task in staying)
        await asyncio.gather(*staying, send_pieces(send_nothing, bytes(PIECE), gone[0]))
        return later, before

    async def send_nothing(message: Any) -> None:
        assert not message.get("body")

    later, before = asyncio.run(run())
    assert before
    assert later <= 3
