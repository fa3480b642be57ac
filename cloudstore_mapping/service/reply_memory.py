"""Memory limit of large replies in progress, per process and per account."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final

from cloudstore_mapping.errors import UnavailableError

#: An account may take 1 / `PART_OF_ONE` of the memory.
PART_OF_ONE: Final = 2


class ReplyMemory:
    """Counts the bytes of large replies, from before reading until after sending; limit `most` bytes. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._by_account: Counter[int] = Counter()
        self.taken = 0

    def room(self) -> ReplyRoom:
        """Return a new, empty `ReplyRoom` for a reply."""
        return ReplyRoom(self)

    def grow(self, room: ReplyRoom, account_id: int, size: int, *, forced: bool) -> None:
        """Grow a room to `size` bytes in all; see `ReplyRoom.grow_to`."""
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
        """Free the bytes of a room; from now on it refuses to grow."""
        with self._lock:
            room.is_released = True
            self.taken -= room.size
            self._by_account[room.account_id] -= room.size
            room.size = 0
            if not self._by_account[room.account_id]:
                del self._by_account[room.account_id]


class ReplyRoom:
    """Memory of a reply; the sender must release it, even if sending fails."""

    __slots__ = ("_memory", "account_id", "is_released", "size")

    def __init__(self, memory: ReplyMemory) -> None:
        self._memory = memory
        self.account_id = 0
        self.size = 0
        self.is_released = False

    def grow_to(self, account_id: int, size: int, *, forced: bool = False) -> None:
        """
        Take memory up to a total of `size` bytes.

        Raises `UnavailableError` if the limit is reached, unless `forced`; and, even if `forced`, after `release`.
        """
        self._memory.grow(self, account_id, size, forced=forced)

    def release(self) -> None:
        """Free the memory; a read still running for this reply gets no more."""
        if self.size or not self.is_released:
            self._memory.release(self)
