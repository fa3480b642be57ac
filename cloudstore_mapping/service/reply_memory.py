"""Memory of large replies under way: bounded per process, and per account."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from cloudstore_mapping.errors import UnavailableError

#: The part of the memory that one account may take.
PART_OF_ONE: Final = 2


class ReplyMemory:
    """Count the bytes of large replies from before they are read until they are sent; threads may share it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._by_account: Counter[int] = Counter()
        self.taken = 0

    def room(self) -> ReplyRoom:
        """Return the room of one reply, which is empty at first."""
        return ReplyRoom(self)

    def grow(self, room: ReplyRoom, account_id: int, size: int, *, forced: bool) -> None:
        """Let a room take so many bytes in all; see `ReplyRoom.grow_to`."""
        with self._lock:
            more = size - room.size
            if more <= 0:
                return
            of_one = self._by_account[account_id] + more
            is_full = self.taken + more > self._most or of_one > self._most // PART_OF_ONE
            if room.is_released or (is_full and not forced):
                sentence = "Too many large replies are under way; read those that were asked for, then try again."
                raise UnavailableError(sentence, retry_after=1.0)
            room.account_id, room.size = account_id, size
            self.taken += more
            self._by_account[account_id] = of_one

    def release(self, room: ReplyRoom) -> None:
        """Take back the bytes of a room, which takes no more from now on."""
        with self._lock:
            room.is_released = True
            self.taken -= room.size
            self._by_account[room.account_id] -= room.size
            room.size = 0
            if not self._by_account[room.account_id]:
                del self._by_account[room.account_id]


class ReplyRoom:
    """Memory of one reply; whoever sends the reply releases it, sent or not."""

    __slots__ = ("_memory", "account_id", "is_released", "size")

    def __init__(self, memory: ReplyMemory) -> None:
        self._memory = memory
        self.account_id = 0
        self.size = 0
        self.is_released = False

    def grow_to(self, account_id: int, size: int, *, forced: bool = False) -> None:
        """
        Take so many bytes in all.

        Raises `UnavailableError` if there is no room, unless `forced`, and if nobody waits for the reply any more.
        """
        self._memory.grow(self, account_id, size, forced=forced)

    def release(self) -> None:
        """Give the memory back; a read that still goes on for this reply is refused more."""
        if self.size or not self.is_released:
            self._memory.release(self)
