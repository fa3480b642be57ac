"""The service within the user's own process: the same messages as over a network, without the socket."""

from __future__ import annotations

import os
from typing import Final

from cloudstore_mapping.errors import CloudStoreError, ProtocolError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.service.settings import Settings
from cloudstore_mapping.service.storage.sqlite import SQLiteStorage
from cloudstore_mapping.wire import (
    Reply,
    Request,
    Upload,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    failure,
)

#: The account that holds the files of a store which is opened without a service.
LOCAL_ACCOUNT: Final = "local"

#: Who opens the file owns the machine's memory anyway: keys and values may be longer than a service on a network takes.
#: Together they stay below the billion bytes that SQLite takes in a row.
LOCAL_SETTINGS: Final = Settings(max_name_bytes=2**20, max_value_bytes=900 * 2**20)


class InProcessTransport:
    """Sends requests to a service in this process, through the same bytes that a network would carry."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def send(self, request: Request | Upload) -> Reply:
        """Return the service's answer."""
        try:
            if isinstance(request, Upload):
                raise ProtocolError("This store takes no media files; upload to a service that does.", error="NoPath")
            body = encode_request(request)
            reply = self._service.handle(decode_request(request.path, body, max_depth=self._service.settings.max_depth))
        except CloudStoreError as error:
            reply = failure(error)
        return decode_reply(encode_reply(reply), status=reply.status, retry_after=reply.retry_after)

    def close(self) -> None:
        """Close the service."""
        self._service.close()


def open_service(path: str | os.PathLike[str] | None) -> tuple[InProcessTransport, str]:
    """Return a way to the store in the file at `path` (None: in memory), and an API key that opens it meanwhile."""
    service = Service(SQLiteStorage(path), LOCAL_SETTINGS)
    try:
        return InProcessTransport(service), service.accounts.grant(LOCAL_ACCOUNT)
    except BaseException:
        service.close()
        raise
