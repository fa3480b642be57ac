"""Where a download goes on the user's disk: whole or not at all, and under a name that does no harm there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from cloudstore_mapping.client.secret import refuse_secret
from cloudstore_mapping.drafts import Draft
from cloudstore_mapping.storefiles import open_file, refuse_store, sync_folder

#: Bytes that a file's name takes at most, and of these its ending: common file systems take 255 of the whole.
LONGEST_NAME: Final = 200
LONGEST_ENDING: Final = 20

#: What a file is called that has no harmless name, and one whose name isn't known yet.
UNNAMED: Final = "download"

_SEPARATORS: Final = re.compile(r"[/\\]")
_HIDING: Final = re.compile(r"\A[\s.]+")
# Control and format characters (which can turn the order of letters around), surrogates, ends of lines.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Saving:
    """
    A new file for the block to write, which takes its place at `path` if all goes well, and leaves nothing if not.

    In a folder `path` is there once `name` said what the file is called. A device or a pipe is written to as it is.
    Raises `OSError` of what can't be written, among them `FileExistsError` without `overwrite`, and `UnsupportedError`
    for a store, which is never replaced.

    Until then it is a `drafts.Draft`; the next one to the same place removes that of a process that was killed.
    """

    def __init__(self, to: str | os.PathLike[str], *, overwrite: bool) -> None:
        self.path = Path(to)
        self._folder = self.path if self.path.is_dir() else None
        self._overwrite = overwrite
        self._draft: Draft | None = None
        if self._folder is None:
            self._check()

    def name(self, name: str) -> None:
        """Say what the file is called, before it is written; `FileExistsError` as early as that is known."""
        if self._folder is not None:
            self.path = self._folder / harmless(name)
        self._check()
        if self._folder is not None and self._draft is not None and os.name == "posix":  # Windows renames no open file
            unnamed, self._draft = self._draft, Draft(self.path)
            unnamed.path.rename(self._draft.path)
            unnamed.close()

    def __enter__(self) -> IO[bytes]:
        if self._folder is not None:
            self._file = self._new(self._folder / UNNAMED)
            return self._file
        # Of a link it is the file that is written; what lies in a folder under another's name is not followed.
        self._place = Path(os.path.realpath(self.path))
        is_special = self._place.exists() and not self._place.is_file()
        self._file = open_file(self._place, "wb") if is_special else self._new(self._place)
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if self._draft is None:
                return
            try:
                if kind is None:
                    self._put_in_place(self._draft.path)
            finally:
                self._draft.close()

    def _new(self, target: Path) -> IO[bytes]:
        self._draft = Draft(target)
        try:
            return self._draft.path.open("xb")
        except BaseException:
            self._draft.close()
            raise

    def _put_in_place(self, partial: Path) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        place = self.path if self._folder is not None else self._place
        self._check()
        if place.is_file():
            shutil.copymode(place, partial)
        partial.replace(place)
        sync_folder(place.parent)

    def _check(self) -> None:
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))
        if not self._overwrite and os.path.lexists(self.path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
        refuse_store(self.path)
        refuse_secret(self.path)


def harmless(name: str) -> str:
    """Return what of a name from elsewhere can be a file's here: visible, in no other folder, not hidden, not long."""
    base = _SEPARATORS.split(name)[-1]
    visible = "".join(char for char in base if unicodedata.category(char) not in _INVISIBLE)
    shown = Path(_HIDING.sub("", visible).rstrip())
    ending = _cut(shown.suffix, LONGEST_ENDING)
    return (_cut(shown.stem, LONGEST_NAME - len(ending.encode())) + ending) or UNNAMED


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")
