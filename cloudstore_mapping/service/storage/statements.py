"""How the statements that all engines share are run: what each engine does itself, in four methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

#: The largest limit of rows: none, for engines don't agree on how to say that.
ALL: Final = 2**63 - 1


class Statements(ABC):
    """A connection that runs SQL with ``?`` for its parameters, and the few words in which the engines differ."""

    #: What at the end of a query keeps its rows from other writers until the transaction ends; the same for rows of
    #: accounts; the same for rows that nobody else keeps just now, which are all that is then found.
    held: ClassVar[str] = ""
    account_held: ClassVar[str] = ""
    free_held: ClassVar[str] = ""
    #: The value of a data file as it was given, and how many bytes that is.
    value: ClassVar[str] = "value"
    size: ClassVar[str]
    #: The condition that a row is a blob's, and that it is one of its chunks'; the columns that say so there.
    is_blob: ClassVar[str]
    is_chunk: ClassVar[str]
    chunk_key: ClassVar[str]
    #: What a blob is known by outside, in a row of blobs and in one of media files.
    blob: ClassVar[str]
    blob_of_media: ClassVar[str]

    @abstractmethod
    def _key(self, blob: int) -> tuple[int, ...]:
        """Return the parameters of `is_blob` and `is_chunk`, by what the blob is known by outside."""

    @abstractmethod
    def _hold_account(self, account_id: int) -> None:
        """Let no other writer that asks for it have the account until the transaction ends."""

    @abstractmethod
    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Return the condition that a name contains the text as it stands, and its parameters."""

    @abstractmethod
    def _row(self, query: str, *parameters: Any) -> Any:
        """Return the first row, None where there is none."""

    @abstractmethod
    def _rows(self, query: str, *parameters: Any) -> list[Any]:
        """Return all rows."""

    @abstractmethod
    def _do(self, query: str, *parameters: Any) -> None:
        """Have the statement done, without waiting for it where that costs time."""

    @abstractmethod
    def _count(self, query: str, *parameters: Any) -> int:
        """Have the statement done, and return how many rows it changed."""
