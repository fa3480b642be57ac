"""What a service can be told to do otherwise: one frozen set of settings."""

from __future__ import annotations

from dataclasses import dataclass

from cloudstore_mapping.wire import DEFAULT_MAX_DEPTH


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    The limits of a service as a whole; those of one account come on top.

    Sizes are in bytes, times in seconds.
    """

    max_name_bytes: int = 1024
    """The longest name of a file, in UTF-8."""
    max_value_bytes: int = 16 * 2**20
    """The largest value, as JSON."""
    max_body_bytes: int = 17 * 2**20
    """The largest body of a request: a value at its limit, and what stands around it."""
    max_media_bytes: int = 4 * 2**30
    """The largest media file."""
    max_batch_reply_bytes: int = 64 * 2**20
    """The values that the reply to one batch may hold together."""
    max_depth: int = DEFAULT_MAX_DEPTH
    """Brackets within brackets in a value."""
    body_timeout: float = 30.0
    """How long a body may take to arrive."""
    min_upload_rate: float = 1024.0
    """Bytes a second that an upload has to bring on the whole, once it has taken longer than a body may."""
    max_password_bytes: int = 1024
    """The longest password that is hashed."""
    count_accesses: bool = True
    """Whether it is counted how often files are used."""
    password_tries: int = 5
    """Wrong passwords for one file from one address before it has to wait."""
    password_window: float = 300.0
    """How long a wrong password counts."""
