"""Listings and searches: names, or names with values, collected part by part."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.wire import MAX_BATCH, Reply, Request, encode_value, success

if TYPE_CHECKING:
    from cloudstore_mapping.service.caller import Caller
    from cloudstore_mapping.service.storage.records import Listed
    from cloudstore_mapping.service.storage.sql import Transaction

#: Maximum number of names in one page.
MAX_PAGE: Final = 10_000
#: Maximum size of a value in a listing, in bytes.
MAX_LISTED: Final = 64 * 2**10
#: Names that one step looks at: half a millisecond.
STEP_NAMES: Final = 1000
#: Values that one step reads.
STEP_VALUES: Final = 250

# A file without its value, as `Listed` has it behind the name.
_LEFT_OUT: Final = (None, None, None, "")


class _Found:
    """The place of a listing among an account's names; it goes on after the last name that was looked at."""

    def __init__(self, request: Request) -> None:
        begins = request.match == "prefix"
        self._containing, self._prefix = ("", request.name) if begins else (request.name, "")
        self._after = None if request.after is UNSET else request.after
        #: Bytes that the reply takes so far.
        self.size = 0

    def _scan(self, transaction: Transaction, account_id: int, rows: int) -> tuple[list[str], bool]:
        """Return the next names, and whether they are the last."""
        names, self._after = transaction.scan(
            account_id, self._containing, prefix=self._prefix, after=self._after, rows=rows
        )
        return names, self._after is None


class AllNames(_Found):
    """
    All names, encoded as they come: to encode a million at once would hold the interpreter.

    A name that exists during the whole listing is in it once; one that is added or deleted meanwhile may be in it.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._brief = request.brief is True
        self._data: list[bytes] = []
        self._message: list[bytes] = []

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Look at the next names, and return True at the end."""
        names, is_last = self._scan(transaction, caller.account.id, STEP_NAMES)
        if names:
            self._data.append(bytes(encode_value(names))[1:-1])
            if not self._brief:
                self._message.append(bytes(encode_value(",".join(names)))[1:-1])
            self.size += len(self._data[-1]) * (1 if self._brief else 2)
        return is_last

    def reply(self) -> Reply:
        """Return the reply with what was found."""
        message, data = b",".join(self._message), b",".join(self._data)
        return success(Raw(b'"%b"' % message), Raw(b"[%b]" % data))


class PageOfNames(_Found):
    """A page of names, and the name after which the next one begins."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._limit = MAX_PAGE if request.limit is UNSET else min(request.limit, MAX_PAGE)
        self._names: list[str] = []

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Look at the next names, and return True at the end."""
        left = self._limit + 1 - len(self._names)  # one more tells whether another page follows
        rows = STEP_NAMES if self._containing else min(STEP_NAMES, left)
        names, is_last = self._scan(transaction, caller.account.id, rows)
        self._names += names
        self.size += sum(map(len, names))
        return is_last or len(self._names) > self._limit

    def reply(self) -> Reply:
        """Return the reply with what was found."""
        page = self._names[: self._limit]
        following = page[-1] if len(self._names) > self._limit else None
        return replace(success("", encode_value(page)), next=following)


class PageOfValues(_Found):
    """
    A page of names, versions and values, and the name after which the next one begins.

    Values over `max_bytes`, with a view password, or beyond the account's daily accesses are left out; `may_use` tells
    of the latter.
    """

    def __init__(self, request: Request, max_bytes: int, may_use: Callable[[Transaction, Caller, str], bool]) -> None:
        super().__init__(request)
        self._limit = MAX_BATCH if request.limit is UNSET else min(request.limit, MAX_BATCH)
        # So small that all values together fit into one reply.
        self._max_bytes = min(MAX_LISTED, max_bytes // self._limit)
        self._may_use = may_use
        self._names: list[str] = []
        self._shown: list[tuple[str, str, Raw]] = []

    def step(self, transaction: Transaction, caller: Caller) -> bool:
        """Look at the next names, read the values of those that are found, and return True at the end."""
        left = self._limit + 1 - len(self._names)  # one more tells whether another page follows
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
        """Return the next files, and whether they are the last."""
        if not self._containing:  # a range of the index, which is read at once
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
        """Return the reply with what was found."""
        following = self._names[self._limit - 1] if len(self._names) > self._limit else None
        return replace(success("", encode_value(self._shown)), next=following)
