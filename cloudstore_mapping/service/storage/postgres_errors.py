"""What the errors of PostgreSQL and of its driver mean: which may pass, and which sentence is told outside."""

from __future__ import annotations

from typing import Final

import psycopg
import psycopg_pool

from cloudstore_mapping.errors import OutcomeUnknownError, UnavailableError

#: Seconds after which somebody who was told that the store is unavailable may try again.
RETRY_AFTER: Final = 1.0

#: Somebody else made or holds what a piece of work meant to: it goes better when it is done again. Unique and foreign
#: keys, a lock that wasn't had in time, and a deadlock, of which the piece that lost is undone.
OVERTAKEN: Final = frozenset({"23505", "23503", "55P03", "40P01"})
#: A transaction that has to be done again from its beginning.
NOT_SERIALIZABLE: Final = "40001"
#: A server that only reads: it was the primary, or another one is by now.
READ_ONLY: Final = "25006"

_SENTENCES: Final = {
    "28": "The database refuses the store's user; look at the name and password in its address.",
    "3D": "There is no such database; make it, or look at the store's address.",
    "42501": "The store's user may not do this in the database; make it the owner of the tables.",
    "53100": "The database's disk is full; free some space, then try again.",
    "53300": "The database takes no more connections; try again, or raise its max_connections.",
    "55P03": "Another process holds what is to be written; try again.",
    "40P01": "Others write the same all the time; try again.",
    NOT_SERIALIZABLE: "Others write the same all the time; try again.",
    READ_ONLY: "The database can't be written to; name all its servers in the store's address, or wait for a new one.",
}
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

    The driver's own sentence is shown only of what a server said, for another may quote the address and its password.
    """
    if isinstance(error, psycopg_pool.PoolTimeout | psycopg_pool.TooManyRequests):
        return UnavailableError("The service waits for the database; try again.", retry_after=RETRY_AFTER)
    code = error.sqlstate or ""
    sentence = _SENTENCES.get(code) or _SENTENCES.get(code[:2])
    if sentence is None and is_lost(error):
        sentence = _NOT_REACHED
    if sentence is None:
        sentence = f"The database failed: {error.diag.message_primary or type(error).__name__}."
    return UnavailableError(sentence, retry_after=RETRY_AFTER)


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, or was never had, so that another one may do."""
    code = error.sqlstate
    if code is None:
        return isinstance(error, psycopg.OperationalError)
    # Of the classes of errors: connections, and what whoever runs the server did to it.
    return code.startswith(("08", "57P")) or code in ("25P03", "53300")
