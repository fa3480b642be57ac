"""Check the place of an SQLite store before it is opened: leftover logs, hard links, other machines."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path
from typing import Final, Literal

from cloudstore_mapping.errors import UnsupportedError, shorten
from cloudstore_mapping.service.storage.sqlite_damage import is_damaged, lacks_saves
from cloudstore_mapping.service.storage.sqlite_lineage import is_of_another_file, lineage_of
from cloudstore_mapping.service.storage.sqlite_session import primary_code
from cloudstore_mapping.sqlite_forks import connected
from cloudstore_mapping.storefiles import SIDECARS, refuse_sidecar

#: Bytes in the name of a store's file: file systems take 255, and a log's name is longer.
MAX_NAME: Final = 255 - len("-journal")
#: A journal of SQLite begins with this.
JOURNAL: Final = bytes.fromhex("d9d505f920a163d7")

#: File systems on which locks reach other machines, and shared memory doesn't.
NETWORK: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
    | {"virtiofs"}
)
#: The kinds of what is no ordinary file; SQLite opens none of them as a log, and some would keep it waiting for ever.
KINDS: Final = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: Linux's tables of mounted file systems and of the locks of this machine's processes.
MOUNTS: Final = Path("/proc/self/mountinfo")
LOCKS: Final = Path("/proc/locks")
#: Seconds that another process of this machine may take to look as well.
PATIENCE: Final = 1.0


def check_place(path: Path) -> None:
    """
    Raise `UnsupportedError` or `OSError` unless a store may be opened, or made, at `path`.

    Nothing is opened where that would lose data: beside a log of another file, by one of several names of a file, or
    while another machine has it open.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise UnsupportedError(f"{path} is no ordinary file; choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent}; make it first.")
    _check_name(path)
    real = Path(os.path.realpath(path))
    refuse_sidecar(path)
    if real.name.lower().endswith(SIDECARS) and not real.exists():
        raise UnsupportedError(
            f"{path} is no name for a store: SQLite takes a file whose name ends so for another one's log; choose "
            "another name."
        )
    refuse_leftovers(path)
    _refuse_hard_links(path, real)
    if is_open_elsewhere(real):
        raise UnsupportedError(
            f"{path} is open on another machine, which shares no memory with this one; close it there, or run "
            "`cloudstore serve` there and use its address."
        )


def _check_name(path: Path) -> None:
    """Raise `OSError` for a name too long for SQLite, which adds ``-journal`` to it."""
    length = len(os.fsencode(path.name))
    if length > MAX_NAME:
        raise OSError(
            f"{shorten(path.name)} has {length} bytes, and its log's name 8 more, but a file's name has at most 255; "
            f"choose a name of {MAX_NAME} bytes at most."
        )


def refuse_leftovers(path: Path) -> None:
    """
    Raise `UnsupportedError` for a log at `path` without its file: SQLite would delete it, or replay it over another.

    The same for a log that is damaged, of which SQLite would drop what follows the damage, or that is no ordinary file.
    An empty file is as good as none. An empty log holds no data, nor does a ``-shm`` alone, and SQLite makes it anew,
    unless a process still uses it with the file that was there before.
    """
    real = Path(os.path.realpath(path))
    _refuse_odd_kinds(path, real)
    # Found before the file is looked at: SQLite makes the file first, and another process may do so now.
    logs, shm = _logs(real), _existing(Path(f"{real}-shm"))
    file = _existing(real)
    is_gone = file is None or file.st_size == 0
    if is_gone and shm is not None and _is_locked_here(shm):
        raise UnsupportedError(f"A process still uses the store whose file was at {path} before; end it first.")
    left = logs if is_gone else []
    # SQLite looks beside the file itself. What lies beside a link to it was left when the file was moved.
    if path.is_symlink():
        left += [log for log in _logs(path) if os.path.realpath(log) != f"{real}{log.name[len(path.name) :]}"]
    if left:
        raise UnsupportedError(
            f"{left[0]} was left by a store whose file is not at {path} any more; move that file back beside it, or "
            "move what was left away."
        )
    if is_gone:
        return
    _refuse_damage(real)
    if (log := _log_of_another_file(real)) is not None:
        raise UnsupportedError(
            f"{log} was written for another file than the one at {path}; move that file back beside it, or move the "
            "log away."
        )


def _refuse_odd_kinds(path: Path, real: Path) -> None:
    """Raise `UnsupportedError` for a log that is no ordinary file; beside a link to a store it may be a link itself."""
    beside = [(Path(f"{real}{end}"), os.lstat) for end in SIDECARS]
    if path.is_symlink():
        beside += [(Path(f"{path}{end}"), os.stat) for end in SIDECARS]
    for log, look in beside:
        try:
            mode = look(log).st_mode
        except OSError:  # there is none, or nothing that can be looked at
            continue
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no ordinary file")
            raise UnsupportedError(f"{log} is {kind}, and SQLite keeps a file of that name; move it away.")


def _refuse_damage(path: Path) -> None:
    """Raise `UnsupportedError` for a log of which SQLite, as the first to open it, would drop what was answered."""
    log, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    if not log.exists() or _is_in_use(path, index):
        return
    if is_damaged(log, path):
        raise UnsupportedError(
            f"{log} is damaged, and saves behind the damage would be lost; restore a backup, or move the log away to "
            "go on without its saves."
        )
    if LOCKS.exists() and lacks_saves(log, path, index) and not _is_in_use(path, index):
        raise UnsupportedError(
            f"{log} is damaged, for it lacks saves that {index} tells of; restore a backup, or move {index} away to go "
            "on without them."
        )


def _is_in_use(*files: Path) -> bool:
    return any((found := _existing(file)) is not None and _is_locked_here(found) for file in files)


def holds_data(log: Path) -> bool:
    """Return whether there is a log, or anything else, that isn't an empty file."""
    try:
        facts = log.stat()
    except FileNotFoundError:  # a link that leads nowhere, or nothing: another process may just have removed it
        return log.is_symlink()
    return not (stat.S_ISREG(facts.st_mode) and not facts.st_size)


def reading_mode(path: Path) -> Literal["ro", "rw"]:
    """
    Return the mode of a connection that reads a store, and leaves nothing beside it that wasn't there.

    SQLite makes a log for a file that has none, and only a connection that may write removes it. A log that holds data
    is left as it is by one that may not.
    """
    return "ro" if holds_data(Path(f"{os.path.realpath(path)}-wal")) else "rw"


def _log_of_another_file(path: Path) -> Path | None:
    """Return the log that would overwrite the file at `path`, which isn't the one that the log was written for."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    if holds_data(wal) and is_of_another_file(wal, path, lambda: _is_locked_here(path.stat())):
        return wal
    # A journal of a new file empties it. The file that it was written for holds nothing yet.
    if is_of_new_file(journal_head(journal)):
        lineage = lineage_of(path)
        is_new = lineage is None or (any(lineage.token) and not any(lineage.previous))
        if not is_new and is_of_new_file(journal_head(journal)):  # else another process has made it meanwhile
            return journal
    return None


def journal_head(path: Path) -> bytes:
    """Return the beginning of a journal; empty where there is none. SQLite holds no locks on it."""
    try:
        with path.open("rb") as file:
            return file.read(20)
    except FileNotFoundError:
        return b""


def is_of_new_file(head: bytes) -> bool:
    """Return whether a journal undoes all that is in its file: a crash came while the file was made."""
    return head.startswith(JOURNAL) and head[16:] == bytes(4)  # the pages that there were before


def is_open_elsewhere(path: Path) -> bool:
    """
    Return whether another machine has the store at `path` open, on a file system where locks tell so.

    Both machines would go by a ``-shm`` of their own, and write the same parts of the log. A process of this machine
    that has the store open was let in by this test, so another one may follow it.
    """
    file = _existing(path)
    if file is None or not Path(f"{path}-shm").exists() or not _is_on_network(file) or not LOCKS.exists():
        return False
    return not (_is_locked_here(file) or _is_free(path) or _is_locked_here(file))


def _existing(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _logs(path: Path) -> list[Path]:
    """Return the logs at `path`, but for a journal that isn't on disk yet, or undoes the making of a file."""
    wal, journal = Path(f"{path}-wal"), Path(f"{path}-journal")
    head = journal_head(journal)
    has_pages = head[:1] not in (b"", b"\0") and not is_of_new_file(head)  # SQLite goes by the first byte too
    return [log for log, is_log in ((wal, holds_data(wal)), (journal, has_pages)) if is_log]


def _refuse_hard_links(path: Path, real: Path) -> None:
    file = _existing(real)
    if file is None or file.st_nlink < 2:
        return
    # A copy gets its name by a link, and a crash may come before its draft's name is gone.
    drafts = [
        entry
        for entry in os.scandir(real.parent)
        if entry.name.startswith(f".{real.name}.") and entry.name.endswith(".part") and entry.inode() == file.st_ino
    ]
    if file.st_nlink > 1 + len(drafts):
        raise UnsupportedError(
            f"{path} is one of {file.st_nlink} names of a file (hard links), and a log is found by the name that made "
            "it; keep one name, and remove the others."
        )


def _is_on_network(file: os.stat_result) -> bool:
    for mount in map(str.split, _table(MOUNTS)):
        if mount[2] == f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}":
            return mount[mount.index("-") + 1] in NETWORK
    return False


def _is_locked_here(file: os.stat_result) -> bool:
    return any(
        f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}" in line.split()
        for line in _table(LOCKS)
    )


def _table(path: Path) -> list[str]:
    """Return the lines of a table of Linux; without Linux, none."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _is_free(path: Path) -> bool:
    try:
        with connected(f"{path.as_uri()}?mode=rw", uri=True, timeout=PATIENCE) as connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # which needs no shared memory
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        return primary_code(error) != sqlite3.SQLITE_BUSY  # opening the store says anything else
    return True
