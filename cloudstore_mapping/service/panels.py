"""Dashboard queries: paginated lists of files, account info, accesses and audit events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from cloudstore_mapping.service.quotas import DAY, day_of

if TYPE_CHECKING:
    from cloudstore_mapping.service.quotas import AccessCounter, Clock
    from cloudstore_mapping.service.storage.base import Storage
    from cloudstore_mapping.service.storage.records import AccessCount, Account, ApiKey, Event, FileInfo, Media

T = TypeVar("T")

#: Files on one page.
PAGE_LENGTH: Final = 100
#: Number of days shown, including today, and of largest files.
DAYS: Final = 30
LARGEST: Final = 10
#: Number of audit events shown.
EVENTS: Final = 100


class Page(NamedTuple, Generic[T]):
    """Page of a list in order of names; the next page starts behind `next`, None on the last page."""

    rows: list[T]
    next: str | None


class DataRow(NamedTuple):
    """Row of the list of data files."""

    name: str
    info: FileInfo


class FileAccesses(NamedTuple):
    """Accesses to a file today (since `reset_at`), and the time of the last access, None for never."""

    reset_at: float
    today: int
    last_at: float | None


class DataFile(NamedTuple):
    """Details of a data file."""

    name: str
    info: FileInfo
    accesses: FileAccesses


class MediaFile(NamedTuple):
    """Details of a media file."""

    media: Media
    accesses: FileAccesses


class UserInfo(NamedTuple):
    """API keys of an account, and its totals."""

    keys: list[ApiKey]
    files: int
    media_bytes: int


class Activity(NamedTuple):
    """Accesses per day from `first_day`, the largest files, and the latest events."""

    first_day: int
    accesses: list[int]
    data: list[tuple[str, int]]
    media: list[tuple[str, int]]
    events: list[Event]


class DashboardQueries:
    """Queries about a single account, for its owner; thread-safe."""

    def __init__(self, storage: Storage, clock: Clock, usage: AccessCounter) -> None:
        self._storage = storage
        self._now = clock.wall
        self._usage = usage

    def user(self, account: Account) -> UserInfo:
        """Return the API keys and totals of an account."""
        with self._storage.read() as transaction:
            return UserInfo(
                transaction.keys(account.id), transaction.count_files(account.id), transaction.media_bytes(account.id)
            )

    def data(self, account: Account, search: str = "", after: str | None = None) -> Page[DataRow]:
        """Return a page of the data files with `search` in their names, starting behind the name `after`."""
        with self._storage.read() as transaction:
            rows = transaction.describe(account.id, search, after=after, limit=PAGE_LENGTH + 1)
        page = [DataRow(*row) for row in rows[:PAGE_LENGTH]]
        return Page(page, page[-1].name if len(rows) > PAGE_LENGTH else None)

    def media(self, account: Account, search: str = "", after: str | None = None) -> Page[Media]:
        """Return a page of the media files with `search` in their names, starting behind the name `after`."""
        with self._storage.read() as transaction:
            rows = transaction.describe_media(account.id, search, after=after, limit=PAGE_LENGTH + 1)
        page = rows[:PAGE_LENGTH]
        return Page(page, page[-1].name if len(rows) > PAGE_LENGTH else None)

    def data_file(self, account: Account, name: str) -> DataFile | None:
        """Return the details of a data file, or None."""
        with self._storage.read() as transaction:
            info = transaction.stat(account.id, name)
            used = self._usage.used(transaction, account.id, "data", name)
        return None if info is None else DataFile(name, info, self._accesses(used))

    def media_file(self, account: Account, media_id: str) -> MediaFile | None:
        """Return the details of a media file, or None."""
        with self._storage.read() as transaction:
            media = transaction.media(account.id, media_id)
            used = self._usage.used(transaction, account.id, "media", media_id)
        return None if media is None else MediaFile(media, self._accesses(used))

    def activity(self, account: Account) -> Activity:
        """Return the recent accesses, largest files and audit events of an account."""
        first = day_of(self._now()) - DAYS + 1
        with self._storage.read() as transaction:
            counts = dict(transaction.days(account.id, first))
            return Activity(
                first,
                [counts.get(day, 0) for day in range(first, first + DAYS)],
                transaction.largest(account.id, LARGEST),
                transaction.largest_media(account.id, LARGEST),
                transaction.events(account.id, EVENTS),
            )

    def _accesses(self, used: AccessCount | None) -> FileAccesses:
        today = day_of(self._now())
        count = used.times if used is not None and used.day >= today else 0
        return FileAccesses(float(today * DAY), count, None if used is None else used.last_at)
