"""The statements that every engine takes on media files, and on how often files are used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from cloudstore_mapping.service.storage.records import Accesses, Kind, Media, Used


class MediaTable(ABC):
    """Media files, by account and id, and the bytes that they are."""

    @abstractmethod
    def media(self, account_id: int, media_id: str) -> Media | None:
        """Return the media file with this id."""

    @abstractmethod
    def media_named(self, account_id: int, name: str) -> Media | None:
        """Return the media file that was uploaded under this name."""

    @abstractmethod
    def describe_media(
        self, account_id: int, containing: str = "", *, after: str | None = None, limit: int
    ) -> list[Media]:
        """Return the media files whose names contain a text as it stands and come behind another, by name."""

    @abstractmethod
    def largest_media(self, account_id: int, limit: int) -> list[tuple[str, int]]:
        """Return the names of the largest media files with their sizes, the largest first."""

    @abstractmethod
    def media_bytes(self, account_id: int) -> int:
        """Return what all media files of the account take together."""

    @abstractmethod
    def put_media(self, account_id: int, media: Media) -> bool:
        """
        Add the media file, or put it in the place of the one with its id, whose blob is left to `sweep`.

        False, with nothing done, where its own blob is there no longer or belongs to a media file already.
        """

    @abstractmethod
    def delete_media(self, account_id: int, media_id: str) -> bool:
        """Remove the media file, leaving its blob to `sweep`, and tell whether there was one."""

    @abstractmethod
    def set_media_password(self, account_id: int, media_id: str, edit: str | None) -> bool:
        """Make this hash the media file's edit password, and tell whether there is such a file."""

    @abstractmethod
    def add_blob(self, account_id: int, now: float) -> int:
        """Begin a blob, which `sweep` takes away unless a media file gets it, and return its id."""

    @abstractmethod
    def add_chunk(self, blob: int, number: int, data: bytes, now: float) -> bool:
        """Add the blob's next chunk, of which 0 is the first; False where `sweep` has begun to take the blob away."""

    @abstractmethod
    def chunk(self, blob: int, number: int) -> bytes | None:
        """Return one of the blob's chunks, None where it isn't there, or no longer."""

    @abstractmethod
    def drop_blob(self, blob: int) -> None:
        """Leave a blob that no media file has to the next `sweep`, however young it is."""

    @abstractmethod
    def sweep(self, before: float, chunks: int) -> bool:
        """
        Take away blobs that nobody has and that got no chunk since `before`, at most so many chunks of them.

        Tells whether there is more to take away.
        """

    @abstractmethod
    def has_left_over(self, before: float) -> bool:
        """Return whether `sweep` would find a blob to take away."""


class AccessesTable(ABC):
    """How often files were used."""

    @abstractmethod
    def accesses(self, account_id: int, kind: Kind, name: str) -> Accesses | None:
        """Return how often a file was used on its last day, None where it never was."""

    @abstractmethod
    def add_accesses(self, used: Sequence[Used]) -> None:
        """
        Add to what is stored of files that are there, and to the account's days.

        A later day than the stored one begins at 0; an earlier one, after a clock was set back, counts as the stored.
        """

    @abstractmethod
    def forget_accesses(self, account_id: int, kind: Kind, name: str) -> None:
        """Forget how often a file was used, which is there no longer."""

    @abstractmethod
    def days(self, account_id: int, since: int) -> list[tuple[int, int]]:
        """Return the days from this one on, in order, and how often the account's files were used on each."""
