"""A value in somebody's editor, as JSON in a file that stays whenever what is in it can't be saved."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cloudstore_mapping.cli.asking import is_on_terminal, typed
from cloudstore_mapping.cli.frame import UsageError
from cloudstore_mapping.cli.values import parse
from cloudstore_mapping.errors import ChangedError, CloudStoreError
from cloudstore_mapping.oserrors import naming

#: What is tried where neither VISUAL nor EDITOR says.
_EDITORS: Final = ("sensible-editor", "nano", "vi")


class Editing:
    """A context in which a value may be changed once; what was typed outlasts an error, whose sentence names it."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._text = b""
        self._changed: Any = None
        self.has_changed = False

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="cloudstore-edit-"))  # readable by this user only
        self._file = self._folder / "value.json"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._file.is_file() or self._file.read_bytes() == self._text:
            shutil.rmtree(self._folder)
            return
        kept = f"What you typed is in {self._file}."
        if isinstance(error, CloudStoreError):
            error.message = f"{error.message} {kept}"
        elif isinstance(error, UsageError):
            error.args = (f"{error} {kept}",)
        else:  # Ctrl-C, for one
            sys.stderr.write(f"{kept}\n")

    def change(self, value: Any) -> Any:
        """Return the value as somebody edits it, once; raise `ChangedError` if it is another value the next time."""
        text = f"{json.dumps(value, ensure_ascii=False, indent=2)}\n".encode()
        if self._text:
            if text == self._text:
                return self._changed
            raise ChangedError(
                f"Somebody else changed {self._key!r} meanwhile, so nothing was saved; edit it again.", key=self._key
            )
        self._text = text
        with naming(self._file):
            self._file.write_bytes(self._text)
        while True:
            _edit(self._file)
            text = self._typed()
            try:
                changed = value if text == self._text else parse("What you typed", text)
            except UsageError as error:
                if not _is_tried_again(error):
                    raise
            else:
                self.has_changed = json.dumps(changed) != json.dumps(value)
                self._changed = changed
                return changed

    def _typed(self) -> bytes:
        try:
            return self._file.read_bytes()
        except OSError as error:
            raise UsageError(
                f"The editor left no file that can be read ({error.strerror}), so nothing was saved; edit it again and "
                "save it under the same name."
            ) from error


def _edit(file: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, _EDITORS), "")
    if not editor:
        raise UsageError("There is no editor; set EDITOR to the command of one.")
    # An interrupt is the editor's: one that goes on would lose the file under its hands. A handler isn't inherited.
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        status = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode  # noqa: S603 - the user's own
    except (OSError, ValueError) as error:
        raise UsageError(f"The editor {editor!r} can't be started; set EDITOR to the command of one.") from error
    finally:
        signal.signal(signal.SIGINT, before)
    if status == -signal.SIGINT:
        raise KeyboardInterrupt
    if status:
        raise UsageError(f"The editor ended with status {status}, so nothing was saved.")


def _is_tried_again(error: UsageError) -> bool:
    if not is_on_terminal():
        return False
    sys.stderr.write(f"{error} Enter opens it again, n leaves it: ")
    sys.stderr.flush()
    answer = typed()
    return answer.endswith("\n") and not answer.strip().lower().startswith("n")
