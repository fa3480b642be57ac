"""What the dashboard shows of an account: its limits, keys and files, how often they were used, and what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from cloudstore_mapping.service.quotas import DAY, day_of

if TYPE_CHECKING:
    from cloudstore_mapping.service.quotas import AccessCounter, Clock
    from cloudstore_mapping.service.storage.base import AccessCount, Account, ApiKey, Event, FileInfo, Media, Storage

T = TypeVar("T")

#: Files on one page.
PAGE_LENGTH: Final = 100
#: Days, today among them, and largest files whose use is shown.
DAYS: Final = 30
LARGEST: Final = 10
#: Events that are shown.
EVENTS: Final = 100


class Page(NamedTuple, Generic[T]):
    """Some files by name, and the name that the next page goes on after, None on the last one."""

    rows: list[T]
    next: str | None


class DataRow(NamedTuple):
    """A data file by its name."""

    name: str
    info: FileInfo


class Use(NamedTuple):
    """How often a file was used since the count was last begun anew, and when for the last time, None for never."""

    reset_at: float
    times: int
    last_at: float | None


class DataFile(NamedTuple):
    """A data file's own panel."""

    name: str
    info: FileInfo
    use: Use


class MediaFile(NamedTuple):
    """A media file's own panel."""

    media: Media
    use: Use


class UserInfo(NamedTuple):
    """The keys that open an account, and what it holds."""

    keys: list[ApiKey]
    files: int
    media_bytes: int


class Activity(NamedTuple):
    """Accesses of each of the last days, the first at `first_day`; the largest files; the latest events."""

    first_day: int
    accesses: list[int]
    data: list[tuple[str, int]]
    media: list[tuple[str, int]]
    events: list[Event]


class DashboardQueries:
    """Reads what is shown to an owner: of the account that is asked for, and of no other. Threads may share it."""

    def __init__(self, storage: Storage, clock: Clock, usage: AccessCounter) -> None:
        self._storage = storage
        self._now = clock.wall
        self._usage = usage

    def user(self, account: Account) -> UserInfo:
        """Return what is told of the account itself, beside its own record."""
        with self._storage.read() as transaction:
            return UserInfo(
                transaction.keys(account.id), transaction.count_files(account.id), transaction.media_bytes(account.id)
            )

    def data(self, account: Account, search: str = "", after: str | None = None) -> Page[DataRow]:
        """Return the data files whose names contain a text as it stands and come behind another."""
        with self._storage.read() as transaction:
            rows = transaction.describe(account.id, search, after=after, limit=PAGE_LENGTH + 1)
        page = [DataRow(*row) for row in rows[:PAGE_LENGTH]]
        return Page(page, page[-1].name if len(rows) > PAGE_LENGTH else None)

    def media(self, account: Account, search: str = "", after: str | None = None) -> Page[Media]:
        """Return the media files whose names contain a text as it stands and come behind another."""
        with self._storage.read() as transaction:
            rows = transaction.describe_media(account.id, search, after=after, limit=PAGE_LENGTH + 1)
        page = rows[:PAGE_LENGTH]
        return Page(page, page[-1].name if len(rows) > PAGE_LENGTH else None)

    def data_file(self, account: Account, name: str) -> DataFile | None:
        """Return what a data file's own panel shows, None where there is no such file."""
        with self._storage.read() as transaction:
            info = transaction.stat(account.id, name)
            used = self._usage.used(transaction, account.id, "data", name)
        return None if info is None else DataFile(name, info, self._use(used))

    def media_file(self, account: Account, media_id: str) -> MediaFile | None:
        """Return what a media file's own panel shows, None where there is no such file."""
        with self._storage.read() as transaction:
            media = transaction.media(account.id, media_id)
            used = self._usage.used(transaction, account.id, "media", media_id)
        return None if media is None else MediaFile(media, self._use(used))

    def activity(self, account: Account) -> Activity:
        """Return how the account was used lately, and what was done with it."""
        first = day_of(self._now()) - DAYS + 1
        with self._storage.read() as transaction:
            times = dict(transaction.days(account.id, first))
            return Activity(
                first,
                [times.get(day, 0) for day in range(first, first + DAYS)],
                transaction.largest(account.id, LARGEST),
                transaction.largest_media(account.id, LARGEST),
                transaction.events(account.id, EVENTS),
            )

    def _use(self, used: AccessCount | None) -> Use:
        today = day_of(self._now())
        times = used.times if used is not None and used.day >= today else 0
        return Use(float(today * DAY), times, None if used is None else used.last_at)
