"""How the statements that all engines share are run: what each engine does itself, in four methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
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
    #: The value of a data file as it was given, a mark for one that is given, and how many bytes it has.
    value: ClassVar[str] = "value"
    value_given: ClassVar[str] = "?"
    size: ClassVar[str]
    #: The condition that a row is a blob's, and that it is one of its chunks'.
    is_blob: ClassVar[str]
    is_chunk: ClassVar[str]
    #: The columns of a chunk that say of which blob it is.
    chunk_key: ClassVar[str]
    #: What a blob is known by outside, in a row of blobs and in one of media files, and what makes a new one.
    blob: ClassVar[str]
    blob_of_media: ClassVar[str]
    new_blob: ClassVar[str]

    @abstractmethod
    def _blob(self, blob: int) -> tuple[int, ...]:
        """Return the parameters of `is_blob` and `is_chunk`, by what the blob is known by outside."""

    @abstractmethod
    def _chunk(self, blob: int) -> tuple[int, ...]:
        """Return the values of `chunk_key` for a blob that is new here."""

    def end_filling(self) -> None:  # noqa: B027 - an engine may have nothing to do
        """Make what was copied in row by row a store: what is made later is numbered behind it."""

    @abstractmethod
    def _hold_account(self, account_id: int) -> None:
        """Let no other writer that asks for it have the account until the transaction ends."""

    @abstractmethod
    def _one_of(self, names: Sequence[str]) -> tuple[str, tuple[Any, ...]]:
        """Return the condition that a name is one of these, of which there is one at least, and its parameters."""

    @abstractmethod
    def _containing(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Return the condition that a name contains the text as it stands, and its parameters."""

    @abstractmethod
    def row(self, query: str, *parameters: Any) -> Any:
        """Return the first row, None where there is none."""

    @abstractmethod
    def rows(self, query: str, *parameters: Any) -> list[Any]:
        """Return all rows."""

    @abstractmethod
    def stream(self, query: str, *parameters: Any) -> Iterator[Any]:
        """Yield all rows one by one; no other statement may be run before the last of them."""

    @abstractmethod
    def do(self, query: str, *parameters: Any) -> None:
        """Have the statement done, without waiting for it where that costs time."""

    @abstractmethod
    def count(self, query: str, *parameters: Any) -> int:
        """Have the statement done, and return how many rows it changed."""
