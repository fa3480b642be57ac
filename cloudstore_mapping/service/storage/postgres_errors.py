"""What the errors of PostgreSQL and of its driver mean: which may pass, and which sentence is told outside."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError

#: Seconds after which somebody who was told that the store is unavailable may try again.
RETRY_AFTER: Final = 1.0

#: A lock was not had in time.
LOCK_NOT_AVAILABLE: Final = "55P03"
#: Somebody else made or holds what a piece of work meant to: it goes better when it is done again. Unique and foreign
#: keys, a lock that wasn't had in time, and a deadlock, of which the piece that lost is undone.
OVERTAKEN: Final = frozenset({"23505", "23503", LOCK_NOT_AVAILABLE, "40P01"})
#: A transaction that has to be done again from its beginning.
NOT_SERIALIZABLE: Final = "40001"
#: A server that only reads: it was the primary, or another one is by now, or its owner made it so.
READ_ONLY: Final = "25006"
#: The driver and the server disagree on statements that were prepared (psycopg 3.3 takes one for prepared that was sent
#: behind an error, or that failed while it was parsed), or a table has changed since. Another connection knows better.
STALE: Final = frozenset({"26000", "42P05", "0A000"})

READ_ONLY_SENTENCE: Final = (
    "The database can't be written to; name all its servers in the store's address, or wait for a new one."
)

_SENTENCES: Final = {
    "42501": "The store's user may not do this in the database; make it the owner of the tables.",
    "53100": "The database's disk is full; free some space, then try again.",
    LOCK_NOT_AVAILABLE: "Another process holds what is to be written; try again.",
    "40P01": "Others write the same all the time; try again.",
    "57014": "The database answers too slowly; look what holds its tables.",
    NOT_SERIALIZABLE: "Others write the same all the time; try again.",
    READ_ONLY: READ_ONLY_SENTENCE,
}
# What a server says that was reached, but takes no connection. The rest of such an error may quote the address.
_REFUSAL: Final = re.compile(r"FATAL: +(.+)")
_LOOK: Final = "look at the store's address, or try again."
_NOT_REACHED: Final = "The database is not reached; look whether it runs, and at the store's address."
_UNKNOWN: Final = (
    "The database was lost while it stored this, and is not reached again: it may be stored or not; look, or try again."
)


def outcome_unknown() -> OutcomeUnknownError:
    """Return what is told outside where the connection was lost during a commit, and not had again in time."""
    return OutcomeUnknownError(_UNKNOWN, error="OutcomeUnknown")


def unavailable(error: psycopg.Error) -> UnavailableError:
    """
    Return what an error of psycopg is called outside.

    Of the driver's sentence only what a server said is shown, for the rest may quote the address and its password.
    """
    sentence = READ_ONLY_SENTENCE if refuses_writes(error) else _SENTENCES.get(error.sqlstate or "")
    if sentence is None and is_lost(error):
        refusal = _REFUSAL.search(str(error))
        sentence = _NOT_REACHED if refusal is None else f"The database takes no connection ({refusal[1]}); {_LOOK}"
    if sentence is None:
        sentence = f"The database failed: {error.diag.message_primary or type(error).__name__}."
    return UnavailableError(sentence, retry_after=RETRY_AFTER)


def refuses_writes(error: psycopg.Error) -> bool:
    """Whether no connection was had because the server only reads, which the driver finds out itself."""
    return error.sqlstate is None and "session is read-only" in str(error)


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, or was never had, so that another one may do."""
    code = error.sqlstate
    if code is None:
        return isinstance(error, psycopg.OperationalError)
    # Of the classes of errors: connections, and what whoever runs the server did to it.
    return code.startswith(("08", "57P")) or code in ("25P03", "53300")
