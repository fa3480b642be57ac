"""What came of a request: whether to send it again, what is known of a write, and which error an answer is."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET

from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import (
    REPLY_ERRORS,
    ChangedError,
    CloudStoreError,
    OutcomeUnknownError,
    ProtocolError,
    TimedOutError,
    TooOftenError,
    TransportError,
    UnavailableError,
)
from cloudstore_mapping.wire import Batch, Operation, Reply, Request, Upload, encode_value

#: What an attempt ends with: an answer, or why there is none.
Outcome: TypeAlias = Reply | TransportError | TimedOutError

#: The statuses of an answer after which the same request may go well.
BUSY: Final = frozenset({429, 502, 503, 504})


def operation_of(request: Sendable) -> str:
    """Return the name of what a request asks for."""
    return "upload" if isinstance(request, Upload) else request.operation.value


def is_write(request: Sendable) -> bool:
    """Whether it changes what is stored."""
    if isinstance(request, Upload):
        return True
    return request.writes if isinstance(request, Batch) else request.operation.writes


def may_be_repeated(request: Sendable, outcome: Outcome, knows_ids: bool) -> bool:
    """
    Whether the request may be sent again: it may go better, and does no harm if it was done already.

    `knows_ids` says that the service is known to do once what comes twice with one id.
    """
    has_id = knows_ids and not isinstance(request, Upload) and request.once is not UNSET
    if isinstance(outcome, Reply):
        if outcome.status not in BUSY:
            return False
    elif isinstance(outcome, TimedOutError) and outcome.sent and not has_id:
        return False
    return not may_be_done(outcome) or has_id or _bears_repeating(request)


def may_be_done(outcome: Outcome) -> bool:
    """Whether the service may have done what was asked, so far as the outcome says."""
    if isinstance(outcome, Reply):
        # A gateway's word for a service that didn't answer it; but too many requests are turned away unread. Or the
        # service's own, which lost its database.
        unread = outcome.status == HTTPStatus.TOO_MANY_REQUESTS
        return outcome.error == "OutcomeUnknown" or (outcome.error == "Http error" and not unread)
    return outcome.sent


def wait_asked(outcome: Outcome) -> float:
    """Return the seconds that the service asks to wait before the next attempt."""
    return outcome.retry_after or 0.0 if isinstance(outcome, Reply) else 0.0


def _bears_repeating(request: Sendable) -> bool:
    """Whether a second time does what the first one did: not if its condition looks at what the first one left."""
    if isinstance(request, Upload):
        return not request.only_new
    return not is_write(request) or (isinstance(request, Request) and request.if_version is UNSET)


def concluded(request: Sendable, outcome: Outcome, maybe_done: bool, key: str | None) -> Reply:
    """
    Return the answer in which an exchange ends, or raise what it means that there is none.

    `maybe_done` says that an attempt before the last one may have done what was asked.
    """
    if isinstance(outcome, Reply):
        if maybe_done and _finds_it_deleted(request, outcome):
            done = encode_value("Entry deleted")
            return msgspec.structs.replace(outcome, error=None, message=done, data=UNSET)
        # Turned away, which says nothing about the attempt before.
        is_unknown = maybe_done and outcome.status in BUSY and not may_be_done(outcome)
    else:
        is_unknown = maybe_done or outcome.sent
    if is_unknown and is_write(request):
        cause = error_of(outcome, key) if isinstance(outcome, Reply) else outcome
        raise _unknown(f"No answer came to the {_described(request, key)}") from cause
    if isinstance(outcome, Reply):
        return outcome
    raise outcome


def _unknown(what: str, **facts: Any) -> OutcomeUnknownError:
    return OutcomeUnknownError(f"{what}: it may have been done or not; load it to see, or do it again.", **facts)


def _finds_it_deleted(request: Sendable, reply: Reply) -> bool:
    if not isinstance(request, Request) or request.operation is not Operation.DELETE or reply.error != "NoFile":
        return False
    # A service that knows the request again answers what it answered first; so says one that still has `once`.
    return request.once is UNSET or "once" not in reply.extensions


def _described(request: Sendable, key: str | None) -> str:
    if isinstance(request, Batch):
        return f"batch of {len(request.requests)} requests"
    return f"{operation_of(request)} of {request.name if key is None else key!r}"


# Sentences that name the key, which the service may know under another name.
_SENTENCES: Final = {
    "NoFile": "There is nothing under {key!r}.",
    "Locked": "{key!r} is locked, and the password is missing or wrong; give the right one.",
    "Changed": "{key!r} was changed by somebody else meanwhile; load it again before writing it.",
}
# What to do about a status that comes from a proxy or a web server, not from the service.
_ADVICE: Final = {
    401: "check the API key, and whether a proxy asks for a sign-in",
    403: "check the API key, and whether a proxy or firewall is in between",
    404: "check the address, which usually ends in /cloudstore",
}
_REDIRECTED: Final = "redirects are never followed with an API key; give the address that this one points to"


def error_of(reply: Reply, key: str | None) -> CloudStoreError | None:
    """Return the error that a reply says, None where it says that all went well; `key` is the one to show."""
    error = reply.error
    if error is None:
        return None
    facts = facts_of(reply, key)
    about = "" if key is None else f"{key!r}: "
    kind: type[CloudStoreError]
    if error == "Http error":
        advice = _ADVICE.get(reply.status, _REDIRECTED if 300 <= reply.status < 400 else "try again later")
        sentence = f"{about}The answer was {reply.status} {reply.sentence}; {advice}."
        kind = UnavailableError if reply.status in BUSY else ProtocolError
        kind = TooOftenError if reply.status == HTTPStatus.TOO_MANY_REQUESTS else kind
    elif error in REPLY_ERRORS:
        kind = REPLY_ERRORS[error][1]
        sentence = about + (reply.sentence or f"The service says {error}.")
    else:
        kind = ProtocolError
        sentence = f"{about}The service says {error!r}, which this version doesn't know: {reply.sentence}"
    if key is not None and error in _SENTENCES:
        sentence = _SENTENCES[error].format(key=key)
    if issubclass(kind, TooOftenError | UnavailableError):
        return kind(sentence, retry_after=reply.retry_after, **facts)
    if issubclass(kind, ChangedError):
        return kind(sentence, version=version_of(reply), **facts)
    return kind(sentence, **facts)


def raise_for(reply: Reply, key: str | None, request: Sendable | None = None) -> None:
    """Raise the error that a reply to this request says, if it says one."""
    error = error_of(reply, key)
    if error is None:
        return
    if isinstance(error, UnavailableError) and may_be_done(reply) and request is not None and is_write(request):
        what = f"The answer to the {_described(request, key)} was {reply.status} {reply.sentence}"
        raise _unknown(what, **facts_of(reply, key)) from error
    raise error


def facts_of(reply: Reply, key: str | None) -> dict[str, Any]:
    """Return what any error about a reply tells of it."""
    return {"key": key, "error": reply.error, "status": reply.status, "response": reply.response}


def version_of(reply: Reply) -> str | None:
    """Return the version that a reply tells, None where it tells none."""
    return None if reply.version is UNSET else reply.version
