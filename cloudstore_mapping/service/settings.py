"""Settings of the service and their defaults: size limits, memory limits, timeouts and throttling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from cloudstore_mapping.service.configuration import BYTES
from cloudstore_mapping.wire import DEFAULT_MAX_DEPTH

Size: TypeAlias = Annotated[int, Meta(gt=0, le=2**60, extra=BYTES)]
Count: TypeAlias = Annotated[int, Meta(gt=0, le=10**9)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=365 * 86_400)]  # longer timers overflow

#: Bytes of a request body beside its value, name and password: the API key and the field names.
AROUND: Final = 1024
#: Memory of a request beside its body, in bytes: its headers, and further bytes received behind it.
BODY_OVERHEAD: Final = 512 * 2**10


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    Settings of a whole service; the limits of an account apply in addition.

    Sizes are in bytes, times in seconds. `configuration.load` reads them from the environment and a TOML file.
    """

    max_name_bytes: Size = 1024
    """The longest name of a file, in UTF-8."""
    max_value_bytes: Size = 16 * 2**20
    """The largest value, as JSON."""
    max_body_bytes: Size = 17 * 2**20
    """The largest body of a request: a value at its limit, and what stands around it."""
    max_media_bytes: Size = 4 * 2**30
    """The largest media file."""
    max_batch_reply_bytes: Size = 64 * 2**20
    """The values that the reply to one batch may hold together."""
    max_atomic_bytes: Size = 32 * 2**20
    """The values that an atomic batch may read and write together, those of merges counted ten times: nothing else is
    written meanwhile."""
    max_reply_bytes: Size = 256 * 2**20
    """Memory of one process for large replies that are read or sent; one account takes half of it at most."""
    max_depth: Annotated[int, Meta(gt=0, le=500)] = DEFAULT_MAX_DEPTH
    """Brackets within brackets in a value."""
    body_timeout: Seconds = 30.0
    """How long a body may take to arrive."""
    min_upload_rate: Annotated[float, Meta(gt=0, le=10**12)] = 1024.0
    """Minimum average rate in bytes a second of uploads, enforced after `body_timeout`, and of reading a reply."""
    max_spool_bytes: Size = 8 * 2**30
    """All files together that wait in temporary files for an API key or password that comes after them."""
    max_address_spool_bytes: Size = 4 * 2**30
    """The files of one address among them."""
    spool_timeout: Seconds = 1800.0
    """How long such a file may take to arrive, however fast it comes."""
    max_connections: Count = 16_384
    """Connections that one process may have at a time; the limit of open files may allow fewer."""
    max_connections_per_address: Count = 500
    """Connections that one address may have at a time, but for this machine's own and those of trusted proxies."""
    max_request_memory: Size = 96 * 2**20
    """Memory of one process for requests that arrive or wait; at least two bodies of `max_body_bytes`."""
    max_address_request_memory: Size = 48 * 2**20
    """The memory of one API key among it, or of one address without a known key; at least one body."""
    max_unread_memory: Size = 128 * 2**20
    """Memory of one process for replies that clients don't read; past it those that wait longest are cut off."""
    max_password_bytes: Size = 1024
    """The longest password that is hashed."""
    count_accesses: bool = True
    """Whether it is counted how often files are used."""
    password_tries: Count = 5
    """Wrong passwords for one file from one address before it has to wait."""
    password_window: Seconds = 300.0
    """How long a wrong password or API key counts."""
    key_tries: Count = 50
    """Different wrong API keys from one address before further wrong ones are refused."""

    @property
    def request_memory(self) -> int:
        """Return the memory for requests in bytes: the setting, but at least two bodies with their overhead."""
        return max(self.max_request_memory, 2 * self._body_memory)

    @property
    def address_request_memory(self) -> int:
        """Return the memory for requests of one API key or address in bytes: the setting, but at least one body."""
        return max(self.max_address_request_memory, self._body_memory)

    @property
    def _body_memory(self) -> int:
        return self.max_body_bytes + BODY_OVERHEAD


def check_together(settings: Settings) -> None:
    """Raise `ValueError`, naming both, if a setting leaves another without effect."""
    # JSON may escape a character of a name or password as six bytes.
    needed = settings.max_value_bytes + 6 * (settings.max_name_bytes + settings.max_password_bytes) + AROUND
    if settings.max_body_bytes < needed:
        raise ValueError(
            f"max_body_bytes ({settings.max_body_bytes:,}) lets no request with a value of max_value_bytes "
            f"({settings.max_value_bytes:,}) through; raise max_body_bytes to {needed:,}, or lower max_value_bytes."
        )
    # Building a batch's reply holds its values twice, and an account may use half of the memory.
    needed = 4 * max(settings.max_batch_reply_bytes, settings.max_value_bytes)
    if settings.max_reply_bytes < needed:
        raise ValueError(
            f"max_reply_bytes ({settings.max_reply_bytes:,}) has no room for a reply of max_batch_reply_bytes "
            f"({settings.max_batch_reply_bytes:,}) and max_value_bytes ({settings.max_value_bytes:,}); raise "
            f"max_reply_bytes to {needed:,}, or lower the others."
        )
    if settings.max_spool_bytes < settings.max_address_spool_bytes:
        raise ValueError(
            f"max_spool_bytes ({settings.max_spool_bytes:,}) is below max_address_spool_bytes "
            f"({settings.max_address_spool_bytes:,}), a part of it; raise the one, or lower the other."
        )
