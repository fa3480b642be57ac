"""Records of a storage: accounts, API keys, files, media files, sign-ins, events and access counts."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

#: What a file can be: JSON under a name, or media under an id.
Kind: TypeAlias = Literal["data", "media"]


class Limits(NamedTuple):
    """What an account may use, None meaning without limit: sizes in bytes, `min_interval` in seconds."""

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
    What an account with a limit on files or bytes holds.

    `files` are data and media files, `bytes` all that takes space: names, values, media, unfinished uploads, stored
    replies. `uploads` is the number of unfinished uploads, `replies` the bytes of stored replies, and `leaving` the
    bytes of deleted media that are yet to be removed, which are not in `bytes`.
    """

    files: int
    bytes: int
    uploads: int
    replies: int
    leaving: int


class Account(NamedTuple):
    """
    An owner of files.

    `folder` is the unguessable part of media addresses; the passwords are hashes, for files without their own.
    `is_counted` tells that a limit needs quota counters.
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
    """The hash of the password that an owner signs in with, None letting nobody in."""

    hash: str | None
    must_change: bool


class ApiKey(NamedTuple):
    """An API key, of which no more than its SHA-256 and its first characters are known."""

    hash: bytes
    hint: str
    created_at: float


class SignIn(NamedTuple):
    """An owner who is signed in."""

    account_id: int
    created_at: float
    used_at: float


class Event(NamedTuple):
    """Something that was done in an owner's name, to the file `subject` if it is not empty."""

    at: float
    action: str
    subject: str
    origin: str


class File(NamedTuple):
    """A data file: its value as JSON, the hashes of its passwords, None where none is set, and its version."""

    value: bytes
    edit_password: str | None
    view_password: str | None
    version: str


#: Stands for a file whose value is larger than was asked for.
LARGE: Final = File(b"", None, None, "")

#: A data file in a list: its name, value, edit and view password and version; the value is None where it is left out.
Listed: TypeAlias = tuple[str, bytes | None, str | None, str | None, str]


class FileInfo(NamedTuple):
    """What can be told of a data file without its value, of `size` bytes; its passwords as in `File`."""

    size: int
    version: str
    created_at: float
    updated_at: float
    edit_password: str | None
    view_password: str | None


class Media(NamedTuple):
    """A media file of `size` bytes, which are the chunks of a blob; `digest` is their SHA-256 in hexadecimal digits."""

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
    """How often a file was used on a day, counted since 1970, and when for the last time."""

    day: int
    times: int
    last_at: float


class AccessDelta(NamedTuple):
    """A file's accesses on a day that are to be added to those which are stored."""

    account_id: int
    kind: Kind
    name: str
    day: int
    times: int
    last_at: float
