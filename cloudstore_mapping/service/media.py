"""Media files: found by their address, read piece by piece, locked and deleted by their owner."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cloudstore_mapping.errors import NoFileError, UnavailableError, shorten
from cloudstore_mapping.links import media_link
from cloudstore_mapping.service.accounts import COMMAND_LINE, Accounts
from cloudstore_mapping.service.limits import DAY, day_of
from cloudstore_mapping.service.media_types import BEGINNING, real_type
from cloudstore_mapping.service.sweeping import Sweeper
from cloudstore_mapping.service.uploads import CHUNK_BYTES, Sender, Upload, Uploads, check_type

if TYPE_CHECKING:
    from cloudstore_mapping.service.limits import Clock
    from cloudstore_mapping.service.passwords import Passwords
    from cloudstore_mapping.service.settings import Settings
    from cloudstore_mapping.service.storage.base import Storage, Transaction
    from cloudstore_mapping.service.storage.records import Account, Media
    from cloudstore_mapping.service.usage import Usage

_IN_ADDRESS: Final = re.compile(r"[0-9a-f]{32}")


class MediaFiles:
    """The media files of all accounts; threads may share it. It closes nothing that was handed to it."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        clock: Clock,
        accounts: Accounts,
        passwords: Passwords,
        usage: Usage,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._accounts = accounts
        self._passwords = passwords
        self._usage = usage
        self._using = threading.Lock()
        self._sweeper = Sweeper(storage, clock)
        self._sweeper.begin_if_needed()  # what a crash may have left
        self._uploads = Uploads(storage, settings, clock, accounts, passwords, self._sweeper)

    def begin(
        self,
        *,
        name: str,
        content_type: str,
        api_key: str = "",
        password: str | None = None,
        media_password: str | None = None,
        address: str = "",
        owner: Account | None = None,
        only_new: bool = False,
    ) -> Upload:
        """Begin an upload, by an API key or by the account's owner, who is signed in; see `Uploads.begin`."""
        sender = Sender(name, check_type(content_type), api_key, password, media_password, address, owner, only_new)
        return self._uploads.begin(sender)

    def find(self, folder: str, media_id: str) -> tuple[Account, Media] | None:
        """Return what is at an address, and whose it is; None where nothing is, or its account is switched off."""
        if not (_IN_ADDRESS.fullmatch(folder) and _IN_ADDRESS.fullmatch(media_id)):
            return None
        with self._storage.read() as transaction:
            account = transaction.account_of_folder(folder)
            media = None if account is None or account.disabled else transaction.media(account.id, media_id)
            return None if account is None or media is None else (account, media)

    def use(self, account: Account, media: Media) -> None:
        """Count an access; `DailyLimitError` where the file was used as often today as its account allows."""
        if account.limits.max_daily_accesses is None:
            self._usage.count(account.id, "media", media.id)
            return
        with self._using, self._storage.read() as transaction:  # as one: threads at once must not pass the limit
            self._usage.admit(transaction, account, "media", media.id)
            self._usage.count(account.id, "media", media.id)

    def rest_of_day(self) -> float:
        """Return the seconds until accesses are counted anew, at midnight UTC."""
        now = self._clock.wall()
        return (day_of(now) + 1) * DAY - now

    def chunks(self, media: Media, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """
        Yield the file's bytes from `start` on to before `stop`, each piece read when it is asked for.

        Raises `UnavailableError` where the file was replaced or deleted meanwhile.
        """
        stop = media.size if stop is None else min(stop, media.size)
        while start < stop:
            number, offset = divmod(start, CHUNK_BYTES)
            with self._storage.read() as transaction:
                chunk = transaction.chunk(media.blob, number)
            if chunk is None:
                raise UnavailableError(
                    f"{shorten(media.name)} was replaced while it was read; begin again.", retry_after=1.0
                )
            piece = chunk[offset : offset + stop - start]
            start += len(piece)
            yield piece

    def typed(self, media: Media) -> tuple[str, bytes]:
        """Return the file's real type, which one stored by an older version may not say, and its first bytes."""
        beginning = next(self.chunks(media, 0, BEGINNING), b"")
        return real_type(media.mimetype, media.name, beginning), beginning

    def delete(self, account: Account, media_id: str, *, origin: str = COMMAND_LINE) -> None:
        """Delete the account's media file, whose link then leads nowhere; `NoFileError` where there is none."""

        def work(transaction: Transaction) -> None:
            media = _found(transaction, account, media_id)
            transaction.delete_media(account.id, media_id)
            transaction.forget_accesses(account.id, "media", media_id)  # no other file ever gets its id
            self._accounts.record(transaction, account, "media file deleted", media.name, origin)

        self._storage.submit(work).result()
        self._sweeper.begin()

    def set_password(self, account: Account, media_id: str, edit: str | None, *, origin: str = COMMAND_LINE) -> None:
        """Make this the password that is asked to replace the file, None or empty meaning none; or `NoFileError`."""
        hash_ = self._passwords.hash(edit)

        def work(transaction: Transaction) -> None:
            media = _found(transaction, account, media_id)
            transaction.set_media_password(account.id, media_id, hash_)
            action = f"edit password of a media file {'cleared' if hash_ is None else 'set'}"
            self._accounts.record(transaction, account, action, media.name, origin)

        self._storage.submit(work).result()

    def named(self, account: Account, name: str) -> Media:
        """Return the account's media file that was uploaded under this name; `NoFileError` where there is none."""
        with self._storage.read() as transaction:
            media = transaction.media_named(account.id, name)
        if media is None:
            raise _no_media(name)
        return media

    def hurry(self) -> None:
        """Sweep no more; what is left is swept later."""
        self._sweeper.close()

    def close(self) -> None:
        """Take no more uploads; what was begun and not finished is swept later."""
        self._uploads.close()
        self.hurry()


def link(account: Account, media: Media) -> str:
    """Return where a media file is, behind the service's address."""
    return media_link(account.folder, media.id, media.name, media.mimetype)


def _found(transaction: Transaction, account: Account, media_id: str) -> Media:
    media = transaction.media(account.id, media_id)
    if media is None:
        raise _no_media(media_id)
    return media


def _no_media(name: str) -> NoFileError:
    return NoFileError(f"There is no media file {shorten(name)}.", key=name)
