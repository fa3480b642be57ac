"""A transport with prepared outcomes, for what a client makes of them."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec import UNSET, Raw
from msgspec.structs import replace

from cloudstore_mapping.client.files import Client
from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.wire import EXTENSIONS, Batch, Reply, Request, encode_request, success

#: What a request gets: a reply, or an error that is raised.
Outcome: TypeAlias = Reply | CloudStoreError

ALL = frozenset(EXTENSIONS)
DONE = success("Entry saved")
UPLOADED = success(
    "File Uploaded",
    Raw(b'{"name":"a","folder":"0123456789abcdef","id":"fedcba9876543210","mimetype":"text/plain","size":4}'),
)
DESCRIBED = success(
    "", Raw(b'{"size":1,"version":"v1","created":1.5,"updated":2,"passwords":{"edit":false,"view":false}}')
)
NO_FILE = Reply(error="NoFile", message=Raw(b'"no"'))


class Script:
    """
    Gives `outcomes` in their order, in the name of a service with some `extensions`; an ``Http error`` is a proxy's.

    A reply lacks no version or `next` that such a service promises.

    `requests` is what it was sent, `slept` how long its clients waited, `closed` how often it was closed.
    """

    def __init__(self, *outcomes: Outcome, extensions: frozenset[str] = frozenset()) -> None:
        self.outcomes = list(outcomes)
        self.extensions = extensions
        self.requests: list[Sendable] = []
        self.slept: list[float] = []
        self.closed = 0

    def send(self, request: Sendable) -> Reply:
        """Return or raise the next outcome."""
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, CloudStoreError):
            raise outcome
        if outcome.error == "Http error" or not self.extensions:
            return outcome
        return replace(completed(outcome, request, self.extensions), extensions=self.extensions)

    def close(self) -> None:
        """Count."""
        self.closed += 1

    def client(self, **options: Any) -> Client:
        """Return a client that waits in no time."""
        return Client(self, "k", sleep=self.slept.append, clock=lambda: 0.0, **options)

    @property
    def sent(self) -> list[Request | Batch]:
        """The requests but for uploads."""
        return [request for request in self.requests if isinstance(request, Request | Batch)]

    @property
    def bodies(self) -> list[str]:
        """What `sent` is on the wire, with "id" for each id."""
        return [
            encode_request(request if request.once is UNSET else replace(request, once="id")).decode()
            for request in self.sent
        ]


def completed(reply: Reply, request: Sendable, extensions: frozenset[str]) -> Reply:
    """Return the reply with the fields that a service with extensions adds, unless it has them already."""
    if reply.error == "Changed" and reply.version is UNSET and "version" in extensions:
        return replace(reply, version="v0")
    if not isinstance(request, Request) or reply.error is not None:
        return reply
    if reply.version is UNSET and "version" in extensions and request.options in (None, "merge"):
        reply = replace(reply, version="v0")
    if reply.next is UNSET and request.limit is not UNSET and request.after is UNSET:
        reply = replace(reply, next=None)
    return reply


def told(extensions: frozenset[str], *outcomes: Outcome) -> tuple[Client, Script]:
    """Return a client that knows what the service can, and the transport that has these outcomes for it."""
    script = Script(DONE, *outcomes, extensions=extensions)
    client = script.client()
    client.save("first", Raw(b"1"))
    script.requests.clear()
    return client, script
