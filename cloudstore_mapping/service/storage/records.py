"""Records of a storage: accounts, API keys, files, media files, sign-ins, events and access counts."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

#: Kind of a file: a data file (JSON under a name) or a media file (under an id).
Kind: TypeAlias = Literal["data", "media"]


class Limits(NamedTuple):
    """Limits of an account, None for unlimited: sizes in bytes, `min_interval` (rate limit) in seconds."""

    max_files: int | None = None
    max_file_bytes: int | None = None
    max_daily_accesses: int | None = None
    min_interval: float | None = None
    max_media_bytes: int | None = None
    max_total_bytes: int | None = None


class Answer(NamedTuple):
    """Stored reply to a request id, and the fingerprint of its request; None if an earlier version stored it."""

    reply: bytes
    fingerprint: bytes | None


class Counters(NamedTuple):
    """
    Quota counters of an account with a limit on files or bytes.

    `files` counts data and media files. `bytes` counts everything stored: names, values, media, unfinished uploads,
    stored replies. `uploads` is the number of unfinished uploads, `replies` the bytes of stored replies, and `leaving`
    the bytes of deleted media not yet removed, not included in `bytes`.
    """

    files: int
    bytes: int
    uploads: int
    replies: int
    leaving: int


class Account(NamedTuple):
    """
    An account, the owner of files.

    `folder` is the unguessable part of media URLs; the passwords are hashes, the defaults of files without a password.
    `is_counted` is True if a limit needs quota counters.
    """

    id: int
    name: str
    disabled: bool
    plan: str = "unlimited"
    limits: Limits = Limits()
    folder: str = ""
    data_password: str | None = None
    media_password: str | None = None
    is_counted: bool = False


class OwnerPassword(NamedTuple):
    """Hash of an owner's sign-in password; None disables sign-in."""

    hash: str | None
    must_change: bool


class ApiKey(NamedTuple):
    """An API key, stored as its SHA-256 and its first characters (`hint`)."""

    hash: bytes
    hint: str
    created_at: float


class SignIn(NamedTuple):
    """Dashboard session of a signed-in owner."""

    account_id: int
    created_at: float
    used_at: float


class Event(NamedTuple):
    """Audit event of an account; `subject` is the file concerned, or empty."""

    at: float
    action: str
    subject: str
    origin: str


class File(NamedTuple):
    """A data file: its JSON value, password hashes (None without a password) and version."""

    value: bytes
    edit_password: str | None
    view_password: str | None
    version: str


#: Stands for a file with a value above the requested maximum size.
LARGE: Final = File(b"", None, None, "")

#: A data file in a list: name, value (None if left out), edit and view password, version.
Listed: TypeAlias = tuple[str, bytes | None, str | None, str | None, str]


class FileInfo(NamedTuple):
    """A data file without its value: `size` in bytes, version, times, and passwords as in `File`."""

    size: int
    version: str
    created_at: float
    updated_at: float
    edit_password: str | None
    view_password: str | None


class Media(NamedTuple):
    """A media file of `size` bytes, stored as the chunks of a blob; `digest` is its SHA-256 in hexadecimal digits."""

    id: str
    name: str
    mimetype: str
    size: int
    digest: str
    blob: int
    edit_password: str | None
    created_at: float
    updated_at: float


class AccessCount(NamedTuple):
    """Access count of a file on a day (days since 1970), and the time of its last access."""

    day: int
    times: int
    last_at: float


class AccessDelta(NamedTuple):
    """Accesses of a file on a day, to be added to the stored count."""

    account_id: int
    kind: Kind
    name: str
    day: int
    times: int
    last_at: float
