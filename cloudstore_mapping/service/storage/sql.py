"""All statements that the engines share, put together: a transaction in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from cloudstore_mapping.service.storage.base import Transaction
from cloudstore_mapping.service.storage.sql_accounts import SQLAccounts
from cloudstore_mapping.service.storage.sql_files import SQLFiles
from cloudstore_mapping.service.storage.sql_media import SQLAccesses, SQLMedia


class SQLTransaction(SQLAccounts, SQLFiles, SQLMedia, SQLAccesses, Transaction):
    """What can be read and written as one, over the few methods that an engine has of its own."""

    def chunks(self, blob: int) -> Iterator[bytes]:
        """Yield the blob's chunks in their order, up to the first that isn't there."""
        for number in count():
            if (chunk := self.chunk(blob, number)) is None:
                return
            yield chunk
