"""List and search names, with or without values: pages and pagination, collected step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.wire import MAX_BATCH, Reply, Request, encode_value, success

if TYPE_CHECKING:
    from cloudstore_mapping.service.accounts import Caller
    from cloudstore_mapping.service.storage.records import Listed
    from cloudstore_mapping.service.storage.sql import Transaction

#: Maximum number of names in one page.
MAX_PAGE: Final = 10_000
#: Maximum size of a value in a listing, in bytes.
MAX_LISTED: Final = 64 * 2**10
#: Number of names scanned per step: half a millisecond.
STEP_NAMES: Final = 1000
#: Number of values read per step.
STEP_VALUES: Final = 250

# Fields of `Listed` after the name, for a file without its value.
_LEFT_OUT: Final = (None, None, None, "")


class _Found:
    """Cursor of a listing in an account's sorted names: continues after the last scanned name."""

    def __init__(self, request: Request) -> None:
        begins = request.match == "prefix"
        self._containing, self._prefix = ("", request.name) if begins else (request.name, "")
        self._after = None if request.after is UNSET else request.after
        #: Bytes of the reply so far.
        self.size = 0

    def _scan(self, transaction: Transaction, account_id: int, rows: int) -> tuple[list[str], bool]:
        """Return the next names, and True if they are the last."""
        names, self._after = transaction.scan(
            account_id, self._containing, prefix=self._prefix, after=self._after, rows=rows
        )
        return names, self._after is None


class AllNames(_Found):
    """
    Listing of all names, encoded step by step: encoding a million at once would block all threads (the GIL).

    It has each name present during the whole listing once, and may have names added or deleted meanwhile.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._brief = request.brief is True
        self._data: list[bytes] = []
        self._message: list[bytes] = []

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Scan the next names; return True after the last."""
        names, is_last = self._scan(transaction, caller.account.id, STEP_NAMES)
        if names:
            self._data.append(bytes(encode_value(names))[1:-1])
            if not self._brief:
                self._message.append(bytes(encode_value(",".join(names)))[1:-1])
            self.size += len(self._data[-1]) * (1 if self._brief else 2)
        return is_last

    def reply(self) -> Reply:
        """Return the reply with the results."""
        message, data = b",".join(self._message), b",".join(self._data)
        return success(Raw(b'"%b"' % message), Raw(b"[%b]" % data))


class PageOfNames(_Found):
    """Page of names; the reply's `next` is the last name of the page, or None on the last page."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._limit = MAX_PAGE if request.limit is UNSET else min(request.limit, MAX_PAGE)
        self._names: list[str] = []

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Scan the next names; return True after the last."""
        left = self._limit + 1 - len(self._names)  # one more name, to know if another page follows
        rows = STEP_NAMES if self._containing else min(STEP_NAMES, left)
        names, is_last = self._scan(transaction, caller.account.id, rows)
        self._names += names
        self.size += sum(map(len, names))
        return is_last or len(self._names) > self._limit

    def reply(self) -> Reply:
        """Return the reply with the results."""
        page = self._names[: self._limit]
        following = page[-1] if len(self._names) > self._limit else None
        return replace(success("", encode_value(page)), next=following)


class PageOfValues(_Found):
    """
    Page of names, versions and values; the reply's `next` is the last name of the page, or None on the last page.

    `max_bytes` is the maximum size of the whole page. Files are listed by name only if their value is large (over
    `MAX_LISTED` bytes, or its equal share of `max_bytes`), if they have a view password, or if they are over the
    account's daily access limit (`may_use` returns False).
    """

    def __init__(self, request: Request, max_bytes: int, may_use: Callable[[Transaction, Caller, str], bool]) -> None:
        super().__init__(request)
        self._limit = MAX_BATCH if request.limit is UNSET else min(request.limit, MAX_BATCH)
        # Limits each value so as to fit all of them into one reply.
        self._max_bytes = min(MAX_LISTED, max_bytes // self._limit)
        self._may_use = may_use
        self._names: list[str] = []
        self._shown: list[tuple[str, str, Raw]] = []

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Scan the next names and read the values of matching files; return True after the last."""
        left = self._limit + 1 - len(self._names)  # one more name, to know if another page follows
        files, is_last = self._files(transaction, caller.account.id, left)
        for name, value, _, view_password, version in files[: left - 1]:
            if value is not None and self._may_show(transaction, caller, name, view_password):
                self._shown.append((name, version, Raw(value)))
                self.size += len(value)
                if not caller.is_owner:
                    caller.used.append(name)
        self._names += [file[0] for file in files]
        return is_last or len(self._names) > self._limit

    def _files(self, transaction: Transaction, account_id: int, left: int) -> tuple[list[Listed], bool]:
        """Return the next files, and True if they are the last."""
        if not self._containing:  # an index range, read in a single query
            rows = min(STEP_VALUES, left)
            page = transaction.page(
                account_id, prefix=self._prefix, after=self._after, limit=rows, max_bytes=self._max_bytes
            )
            self._after = page[-1][0] if page else None
            return page, len(page) < rows
        names, is_last = self._scan(transaction, account_id, STEP_NAMES)
        on_page = names[: left - 1]
        found = transaction.get_many(account_id, on_page, self._max_bytes) if on_page else {}
        return [(name, *(found.get(name) or _LEFT_OUT)) for name in names], is_last

    def _may_show(self, transaction: Transaction, caller: Caller, name: str, view_password: str | None) -> bool:
        if view_password is not None and not caller.is_owner:
            return False
        return not caller.is_limited or self._may_use(transaction, caller, name)

    def reply(self) -> Reply:
        """Return the reply with the results."""
        following = self._names[self._limit - 1] if len(self._names) > self._limit else None
        return replace(success("", encode_value(self._shown)), next=following)
