"""What a disk may hold after its power was cut: what was synced, and of what was not each sector or none of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from tests.crash.disk import Created, Event, FolderSynced, Linked, Removed, Renamed, Synced, Told, Truncated, Written

#: What a disk writes whole or not at all.
SECTOR: Final = 512
#: How of what was not synced some is kept: all, nothing, what was done first, or any part, with torn writes.
WAYS: Final = ("all", "nothing", "first", "any")


class Cut(NamedTuple):
    """A moment at which the power is cut: the files that are left, and how much somebody was told is done."""

    place: int
    way: str
    files: dict[str, bytes]
    told: int

    def leave(self, folder: Path) -> None:
        """Make the files that are left the only ones in a folder."""
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


class _Inode:
    """A file, under whatever name: its bytes on the disk, and what was done to it since it was synced."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.pending: list[Written | Truncated] = []

    def sync(self) -> None:
        for event in self.pending:
            _apply(self.content, event)
        self.pending.clear()

    def left(self, way: str, dice: random.Random) -> bytes:
        content = bytearray(self.content)
        kept = dice.randint(0, len(self.pending)) if way == "first" else len(self.pending)
        for event in self.pending[:kept] if way != "nothing" else ():
            if way != "any" or dice.random() < 1 / 3:
                _apply(content, event)
            elif isinstance(event, Written) and dice.random() < 1 / 2:
                for piece in _sectors(event):
                    if dice.random() < 1 / 2:
                        _apply(content, piece)
        return bytes(content)


#: What was done to a name, with the file that has it, None where that is a folder.
_Named: TypeAlias = Created | Removed | Linked | Renamed
_Naming: TypeAlias = tuple[_Named, _Inode | None]


def cuts(
    log: Sequence[Event],
    ways: Sequence[str] = WAYS,
    *,
    every: int = 1,
    before: Mapping[str, bytes] | None = None,
    seed: int = 0,
) -> Iterator[Cut]:
    """
    Yield what may be left if the power is cut after the last event, or before it, in each of the ways.

    That is before `every` so many events, counted from the end. `before` are the files that there were at first.
    """
    names = {name: _Inode(content) for name, content in (before or {}).items()}
    on_disk = dict(names)
    pending: list[_Naming] = []
    told = 0
    for place in range(len(log) + 1):
        for way in ways if (len(log) - place) % every == 0 else ():
            dice = random.Random(f"{seed} {place} {way}")
            yield Cut(place, way, _left(on_disk, pending, way, dice), told)
        match log[place] if place < len(log) else None:
            case Told(count):
                told = count
            case Created() | Removed() | Linked() | Renamed() as event:
                pending.append((event, _Inode() if isinstance(event, Created) else names.get(event.file)))
                _name(names, *pending[-1])
            case Synced(file):
                _there(names, file).sync()
            case FolderSynced(folder):
                done = [naming for naming in pending if _folder_of(naming) == folder]
                pending = [naming for naming in pending if _folder_of(naming) != folder]
                for event, inode in done:
                    _name(on_disk, event, inode)
                    if isinstance(event, Renamed):
                        pending = [(_moved(each, event), other) for each, other in pending]
            case Written(file) | Truncated(file) as event:
                _there(names, file).pending.append(event)


def _there(names: Mapping[str, _Inode], file: str) -> _Inode:
    assert file in names, f"{file} was removed while it was in use."
    return names[file]


def _name(names: dict[str, _Inode], event: Event, inode: _Inode | None) -> None:
    """Do to the names of files what an event does."""
    match event:
        case Created(file) | Linked(_, file) if inode is not None:
            names[file] = inode
        case Removed(file):
            names.pop(file, None)
        case Renamed(file, to) if inode is not None:
            names.pop(file, None)
            names[to] = inode
        case Renamed(folder, to):
            for name in [each for each in names if each.startswith(f"{folder}/")]:
                names[f"{to}{name.removeprefix(folder)}"] = names.pop(name)


def _moved(event: _Named, renamed: Renamed) -> _Named:
    """Return what was done to a name in a folder after the folder was renamed."""

    def moved(path: str) -> str:
        inside = path.startswith(f"{renamed.file}/")
        return f"{renamed.to}{path.removeprefix(renamed.file)}" if inside else path

    if isinstance(event, Linked | Renamed):
        return replace(event, file=moved(event.file), to=moved(event.to))
    return replace(event, file=moved(event.file))


def _folder_of(naming: _Naming) -> str:
    event, _ = naming
    return (event.to if isinstance(event, Linked | Renamed) else event.file).rpartition("/")[0]


def _left(on_disk: dict[str, _Inode], pending: Sequence[_Naming], way: str, dice: random.Random) -> dict[str, bytes]:
    found = dict(on_disk)
    kept = dice.randint(0, len(pending)) if way == "first" else len(pending)
    for naming in pending[:kept] if way != "nothing" else ():
        if way != "any" or dice.random() < 1 / 2:
            _name(found, *naming)
    return {name: inode.left(way, dice) for name, inode in found.items()}


def _apply(content: bytearray, event: Written | Truncated) -> None:
    if isinstance(event, Truncated):
        del content[event.size :]
        content.extend(bytes(event.size - len(content)))
    else:
        content.extend(bytes(max(0, event.offset - len(content))))
        content[event.offset : event.offset + len(event.data)] = event.data


def _sectors(event: Written) -> Iterator[Written]:
    """Yield a write in the pieces of which a disk may do some."""
    start = event.offset
    end = start + len(event.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield Written(event.file, start, event.data[start - event.offset : stop - event.offset])
        start = stop
