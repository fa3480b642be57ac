"""What the exceptions of `requests` and `urllib3` mean, told by their names so that neither has to be loaded."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cloudstore_mapping.errors import CloudStoreError, ProtocolError, TimedOutError, TransportError


class _Row(NamedTuple):
    """What foreign exceptions mean: whether the service may have seen the request, and a sentence."""

    classes: str
    error: Callable[..., CloudStoreError]
    sentence: str


def _unsent(error: type[TransportError | TimedOutError]) -> Callable[..., CloudStoreError]:
    return functools.partial(error, sent=False)


_sent = functools.partial(TransportError, sent=True)

#: The first row that names a class of any exception in the chain holds; `sent` is False only where that is certain.
FAILURES: Final = (
    _Row("urllib3.NewConnectionError", _unsent(TransportError), "{server} was not reached{why}; check the address."),
    _Row(
        "requests.InvalidProxyURL requests.ProxyError urllib3.ProxyError urllib3.ProxySchemeUnknown",
        _unsent(TransportError),
        "The proxy on the way to {server} was not reached{why}; check the proxy's settings.",
    ),
    _Row(
        "requests.ConnectTimeout urllib3.ConnectTimeoutError",
        _unsent(TimedOutError),
        "{server} did not take the connection in time; try again later, or give a longer timeout.",
    ),
    _Row(
        "requests.ReadTimeout requests.Timeout urllib3.TimeoutError builtins.TimeoutError",
        TimedOutError,
        "{server} did not answer in time; try again later, or give a longer timeout.",
    ),
    _Row(
        "ssl.SSLCertVerificationError",
        _sent,
        "TLS with {server} failed{why}; check its certificate, or name a private one's file by REQUESTS_CA_BUNDLE.",
    ),
    _Row(
        "requests.SSLError ssl.SSLError urllib3.SSLError",
        _sent,
        "TLS with {server} failed{why}; check its certificate.",
    ),
    _Row(
        "requests.MissingSchema requests.InvalidSchema requests.InvalidURL requests.URLRequired requests.InvalidHeader "
        "requests.UnrewindableBodyError urllib3.LocationValueError urllib3.InvalidHeader",
        ProtocolError,
        "The request to {server} can't be sent{why}; check the address, and the proxy's if there is one.",
    ),
    _Row(
        "requests.ContentDecodingError requests.InvalidJSONError requests.JSONDecodeError requests.HTTPError "
        "requests.TooManyRedirects requests.StreamConsumedError urllib3.DecodeError",
        ProtocolError,
        "The answer of {server} can't be read{why}; is the address right?",
    ),
    _Row(
        "requests.ConnectionError requests.ChunkedEncodingError requests.RetryError requests.RequestException "
        "urllib3.HTTPError",
        _sent,
        "The connection to {server} broke{why}; try again.",
    ),
)


_PLAIN: Final = _Row(
    "ssl.SSLError", _sent, "TLS with {server} failed{why}; it may speak http there, so check the address and its port."
)


def translated(error: Exception, server: str) -> CloudStoreError:
    """Return the error of ours that an exception of `requests` or `urllib3` means."""
    chain = list(_chain(error))
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for link in chain for kind in type(link).__mro__}
    row = next(row for row in FAILURES if not names.isdisjoint(row.classes.split()))
    # Of foreign sentences only the system's own are shown: those of `requests` may hold URLs with passwords.
    system = [link for link in chain if type(link).__module__.partition(".")[0] not in ("requests", "urllib3")]
    cause = system[-1] if system else chain[-1]
    reason = getattr(cause, "strerror", None) or str(cause)[:200] if system else type(cause).__name__
    response = getattr(error, "response", None)
    if "WRONG_VERSION_NUMBER" in str(reason) or "HTTP_REQUEST" in str(reason):
        row = _PLAIN
    raised = row.error(row.sentence.format(server=server, why=f" ({reason})"), response=response)
    if isinstance(raised, TransportError | TimedOutError) and any(map(_in_handshake, chain)):
        raised.sent = False
    return raised


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and all that it was made of, the cause of a thing after it."""
    yield error
    for part in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(part, BaseException):
            yield from _chain(part)


def _in_handshake(error: BaseException) -> bool:
    # The same classes come from TLS before, during and after a request; only the traceback tells which.
    return any(frame.f_code.co_name == "do_handshake" for frame, _ in traceback.walk_tb(error.__traceback__))
