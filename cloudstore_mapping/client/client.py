"""The operations of a service, a request each, with what each of its extensions makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from cloudstore_mapping.client import codec, outcomes
from cloudstore_mapping.client.outcomes import facts_of, version_of
from cloudstore_mapping.client.sender import Sender
from cloudstore_mapping.client.transport import Sendable
from cloudstore_mapping.errors import CloudStoreError, ProtocolError, UnsupportedError
from cloudstore_mapping.wire import MAX_BATCH, Batch, Operation, Reply, Request, Upload, decode_replies

Names: TypeAlias = list[str]  # within `Client`, `list` is its method
Replies: TypeAlias = list[Reply]

_decode_page: Final = msgspec.json.Decoder(list[tuple[str, str, Raw]]).decode
_CAN_BE_BRIEF: Final = frozenset({Operation.LOAD, Operation.LIST})


class Loaded(NamedTuple):
    """What a file holds, and its version, None where the service tells none."""

    value: Raw
    version: str | None


class Client(Sender):
    """
    Asks a service for one thing at a time, and raises the error of `errors.REPLY_ERRORS` that it answers with.

    Notes
    -----
    May be used by many threads. Methods take the file's name; where that isn't the dict key, `key` is the one to show.
    An extension is used if the service's last reply named it: none of them by the first request.
    """

    error_of = staticmethod(outcomes.error_of)
    raise_for = staticmethod(outcomes.raise_for)

    def load(
        self, name: str, password: str | None = None, *, key: str | None = None, if_not_version: str | None = None
    ) -> Loaded | None:
        """Return what is stored; None where the service says that its version still is `if_not_version`."""
        known = UNSET if if_not_version is None or "version" not in self.extensions else if_not_version
        request = Request(
            api_key=self._api_key, name=name, password=password, if_not_version=known, brief=self._brief()
        )
        reply = self._ask(request, key)
        if reply.unchanged is not True:
            return Loaded(reply.content, version_of(reply))
        if known is UNSET:
            raise ProtocolError("The answer to a load holds no value; is the address right?", **facts_of(reply, key))
        return None

    def save(
        self,
        name: str,
        value: Raw,
        password: str | None = None,
        *,
        key: str | None = None,
        if_version: str | UnsetType | None = UNSET,
    ) -> str | None:
        """
        Store the JSON `value` in place of what is stored; return its version, None where the service tells none.

        With `if_version` only if that is the version that stands, None meaning that nothing does: else `ChangedError`,
        and `UnsupportedError` where the service has no versions.
        """
        request = Request(api_key=self._api_key, name=name, value=value, password=password, if_version=if_version)
        return version_of(self._ask(request, key))

    def merge(self, name: str, value: Raw, password: str | None = None, *, key: str | None = None) -> str | None:
        """Merge the JSON `value` into what is stored, as `merge.merge` does it; return the version as `save` does."""
        request = Request(api_key=self._api_key, name=name, options="merge", value=value, password=password)
        return version_of(self._ask(request, key))

    def delete(
        self,
        name: str,
        password: str | None = None,
        *,
        key: str | None = None,
        if_version: str | UnsetType | None = UNSET,
    ) -> None:
        """Remove what is stored, under the condition that `save` knows too; `NoFileError` if nothing is."""
        self._ask(
            Request(api_key=self._api_key, name=name, options="delete", password=password, if_version=if_version), key
        )

    def stat(self, name: str, *, key: str | None = None) -> dict[str, Any]:
        """Return what the service knows of a file beside its value; `UnsupportedError` where it tells nothing."""
        self._need("stat")
        return described(self._ask(Request(api_key=self._api_key, name=name, options="stat"), key))

    def upload(
        self,
        name: str,
        data: bytes | IO[bytes],
        content_type: str,
        password: str | None = None,
        *,
        only_new: bool = False,
    ) -> dict[str, Any]:
        """
        Store a media file; return its ``name``, ``folder``, ``id``, ``mimetype`` and ``size``.

        With `only_new` only if there is none of this name: else `ChangedError`, and `UnsupportedError` where the
        service has no versions.
        """
        if only_new:
            self._need("version")
        upload = Upload(
            api_key=self._api_key,
            name=name,
            content_type=content_type,
            data=data,
            password=password,
            only_new=only_new,
        )
        return described(self._ask(upload, None))

    def list(self, filter: str = "", *, prefix: bool = False) -> Names:  # noqa: A002 - the documentation's name
        """Return the names that hold the text `filter`, or begin with it, of upper and lower case as it stands."""
        request = self._listing(filter, prefix=prefix)
        names = listed(self._ask(request, None))
        return [name for name in names if name.startswith(filter)] if prefix and request.match is UNSET else names

    def pages(
        self,
        filter: str = "",  # noqa: A002 - the documentation's name
        *,
        prefix: bool = False,
        limit: int = 10_000,
    ) -> Iterator[Names]:
        """Yield what `list` returns in parts of at most `limit` names, in one where the service has no pages."""
        if "page" not in self.extensions:
            yield self.list(filter, prefix=prefix)
            return
        request = msgspec.structs.replace(self._listing(filter, prefix=prefix), limit=limit)
        while True:
            reply = self._ask(request, None)
            if request.after is not UNSET and reply.next in (request.after, UNSET):
                raise ProtocolError("The service lost its place in the listing; list again.", **facts_of(reply, None))
            yield listed(reply)
            if reply.next is UNSET or reply.next is None:
                return
            request = msgspec.structs.replace(request, after=reply.next)

    def values(
        self, names: Sequence[str], prefix: str = "", *, after: str | None = None
    ) -> Sequence[tuple[str, str, Raw]]:
        """
        Return a page of values: the name, version and value of as many files as there are `names`, if these are all.

        They are all that begin with `prefix`, or those of them behind `after`, but for large ones and such as need a
        password. Raises `UnsupportedError` where the service has no such pages.
        """
        self._need("values")
        request = Request(
            api_key=self._api_key,
            name=prefix,
            options="list",
            match="prefix",
            after=UNSET if after is None else after,
            limit=len(names),
            values=True,
        )
        reply = self._ask(request, None)
        try:
            return _decode_page(reply.content)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ProtocolError(
                "The answer to a list holds no values; is the address right?", **facts_of(reply, None)
            ) from error

    def batch(self, requests: Sequence[Request], *, atomic: bool = False) -> Replies:
        """
        Send many requests, which need no API key, as one; return the reply of each, be it an error.

        At most `wire.MAX_BATCH`; with `atomic` all are done or none. Raises `UnsupportedError` where the service takes
        no batches, else what is wrong with the whole; `error_of` gives the error of one.
        """
        if len(requests) > MAX_BATCH:
            raise ValueError(f"A batch holds at most {MAX_BATCH} requests, not {len(requests)}; send several.")
        self._need("batch")
        if not requests:
            return []
        brief = self._brief()
        items = [
            msgspec.structs.replace(request, brief=brief)
            if request.operation in _CAN_BE_BRIEF and brief is not UNSET
            else request
            for request in requests
        ]
        answer = self._ask(Batch(api_key=self._api_key, requests=items, atomic=atomic), None)
        replies = [] if answer.data is UNSET else decode_replies(answer.data)
        if len(replies) != len(items):
            raise ProtocolError(
                f"{len(items)} requests were answered with {len(replies)} replies; is the address right?",
                **facts_of(answer, None),
            )
        for item, reply in zip(items, replies, strict=True):
            _check_data(item, reply, answer)
        return replies

    def _ask(self, request: Sendable, key: str | None) -> Reply:
        shown = _shown(request, key)
        if any(each.if_version is not UNSET for each in _parts(request)):
            self._need("version")
        try:
            reply = self.exchange(request, key=shown)
        except CloudStoreError as error:
            error.key = shown
            raise
        outcomes.raise_for(reply, shown, request)
        if isinstance(request, Request):
            _check_data(request, reply, reply)
        return reply

    def _need(self, extension: str) -> None:
        if extension not in self.extensions:
            raise UnsupportedError(
                f"The service has not said that it can do this (its extension {extension!r}); do without."
            )

    def _brief(self) -> bool | UnsetType:
        return True if "brief" in self.extensions else UNSET

    def _listing(self, text: str, *, prefix: bool) -> Request:
        match: Literal["prefix"] | UnsetType = "prefix" if prefix and "page" in self.extensions else UNSET
        return Request(api_key=self._api_key, name=text, options="list", match=match, brief=self._brief())


def listed(reply: Reply) -> Names:
    """Return the names that the answer to a list says: its array where there is one, else its comma-joined text."""
    names = codec.load(reply.content)
    if isinstance(names, str):
        return names.split(",") if names else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProtocolError("The answer to a list holds no names; is the address right?", **facts_of(reply, None))
    return names


def described(reply: Reply) -> dict[str, Any]:
    """Return what the answer to an upload or a stat says of the file."""
    facts = None if reply.data is UNSET else codec.load(reply.data)
    if not isinstance(facts, dict):
        raise ProtocolError("The answer doesn't describe a file; is the address right?", **facts_of(reply, None))
    return facts


def _parts(request: Sendable) -> Sequence[Request]:
    if isinstance(request, Batch):
        return request.requests
    return () if isinstance(request, Upload) else (request,)


def _check_data(request: Request, reply: Reply, answer: Reply) -> None:
    """Refuse a reply without the data that was asked for, which would read as an empty text or list."""
    is_missing = reply.data is UNSET and reply.error is None and reply.unchanged is not True
    if is_missing and request.brief is True and "brief" in answer.extensions:
        raise ProtocolError("The answer lacks what was asked for; is the address right?", **facts_of(answer, None))


def _shown(request: Sendable, key: str | None) -> str | None:
    if isinstance(request, Batch) or (isinstance(request, Request) and request.operation is Operation.LIST):
        return None  # it is about no key
    return request.name if key is None else key
