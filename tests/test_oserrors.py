"""Errors of the operating system as sentences: the file, the reason, the remedy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.oserrors import naming, sentence_of, shown
from tests.crash.small_disk import small_disk
from tests.permissions import heed_permissions
from tests.support.command_line import CliRunner

COMMAND = [sys.executable, "-m", "cloudstore_mapping"]


def fail(number: int, file: str | None = None) -> OSError:
    """Return what the system raises."""
    return OSError(number, os.strerror(number), file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (fail(errno.ENOENT, "a"), "'a' can't be used: No such file or directory. Look at its name."),
        (fail(errno.ENOENT), "'b' can't be used: No such file or directory. Look at its name."),
        (
            fail(errno.ENOSPC, "a"),
            "'a' can't be used: No space left on device. Free some space on its disk, or name a file on another one.",
        ),
        (
            fail(errno.EROFS, "a"),
            "'a' can't be used: Read-only file system. Name a file on another file system, or mount this one for "
            "writing.",
        ),
        (fail(errno.ENAMETOOLONG, "a"), "'a' can't be used: File name too long. Choose a shorter name."),
        (fail(errno.EISDIR, "a"), "'a' can't be used: Is a directory. Name a file in it."),
        (fail(errno.ENOTTY, "a"), "'a' can't be used: Inappropriate ioctl for device."),
        (FileNotFoundError("There is no folder x; make it first."), "There is no folder x; make it first."),
    ],
)
def test_sentences(error: OSError, sentence: str) -> None:
    """An error is the file with the reason, then the remedy; one with a sentence of its own stays that."""
    assert sentence_of(error, "b") == sentence


def test_no_number_of_an_error_is_shown() -> None:
    """No error of the system is told by its number, whatever it is, with a name or without."""
    for number in errno.errorcode:
        for file in ("a", None):
            sentence = sentence_of(fail(number, file))
            assert "[Errno" not in sentence
            assert os.strerror(number) in sentence
            assert sentence.endswith(".")


def test_a_name_that_is_not_utf_8() -> None:
    """A byte of a name that isn't UTF-8 is shown as an escape of one byte."""
    assert shown(os.fsdecode(b"b\xff.db")) == r"'b\xff.db'"
    assert shown("é") == "'é'"


def test_naming() -> None:
    """An error of writing that names no file gets the name; one of reading, or with a name, stays as it is."""
    for number, file, named in ((errno.ENOSPC, None, "a"), (errno.EIO, None, None), (errno.ENOSPC, "b", "b")):
        with pytest.raises(OSError, match=os.strerror(number)) as caught, naming(Path("a")):
            raise fail(number, file)
        assert caught.value.filename == named


def run(*arguments: str | bytes, folder: Path) -> tuple[int, str]:
    """Run a command in a folder; return its exit status and what it says on stderr, which is one line."""
    process = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, check=False, preexec_fn=heed_permissions
    )
    text = process.stderr.decode()
    assert (process.stdout, text.count("\n")) == (b"", 1)
    return process.returncode, text


LONG = "n" * 252 + ".db"


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "k", "1", "--at", LONG],
        ["get", "k", "--at", LONG],
        ["ls", "--at", LONG],
        ["backup", LONG, "--store", "store.db"],
        ["restore", "store.db", "--store", LONG],
        ["restore", LONG, "--store", "new.db"],
        ["check", "--store", LONG],
        ["migrate", "--store", LONG],
        ["migrate-store", "store.db", LONG],
        ["serve", "--port", "0", "--store", LONG],
        ["account", "list", "--store", LONG],
        ["passwd", "k", "--edit", "--at", LONG],
        ["export", f"{LONG}.json", "--at", "store.db"],
        ["import", f"{LONG}.json", "--at", "store.db"],
        ["upload", LONG * 2, "--at", "store.db"],
        ["set", "k", f"@{LONG * 2}", "--at", "store.db"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_name_that_is_too_long(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is too long for the file system is exit status 2, and one line with the name and the remedy."""
    cm.open(tmp_path / "store.db").close()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    status, said = result.exit_code, result.stderr
    assert (result.stdout, said.count("\n")) == ("", 1)
    assert (status, "[Errno" in said) == (2, False)
    assert LONG[:90] in said
    assert "File name too long. Choose a shorter name." in said or "choose a name of 247 bytes at most." in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        pytest.param(["set", "k", "1"], marks=pytest.mark.slow),
        ["serve", "--port", "0"],
        pytest.param(["backup", "copy.db", "--store", "store.db"], marks=pytest.mark.slow),
        pytest.param(["export", "all.json", "--at", "memory:"], marks=pytest.mark.slow),
        pytest.param(["migrate-store", "a.db", "b.db"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_was_deleted(arguments: list[str], tmp_path: Path) -> None:
    """In a working directory that was deleted a relative name is exit status 2 and one line that says so."""
    gone = tmp_path / "gone"
    gone.mkdir()
    process = subprocess.run(
        ["/bin/sh", "-c", 'rmdir "$0" && exec "$@"', str(gone), *COMMAND, *arguments],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(Path(cm.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "cloudstore: The folder that you are in was deleted; change to another one.\n"


def test_a_backup_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    """A name that isn't UTF-8 is told with an escape for each byte, on stdout and on stderr."""
    cm.open(tmp_path / "store.db").close()
    command = [*COMMAND, "backup", os.fsdecode(b"b\xff.db"), "--store", "store.db"]
    runs = [subprocess.run(command, cwd=tmp_path, capture_output=True, check=False) for _ in range(2)]
    assert (runs[0].returncode, runs[0].stdout.endswith(b"store.db is copied to b\\xff.db.\n")) == (0, True)
    assert (runs[1].returncode, rb"b\xff.db already; move it away" in runs[1].stderr) == (2, True)


def test_a_secret_that_is_a_folder(tmp_path: Path) -> None:
    """A folder in the place of a shelf's secret is an error that says so."""
    (tmp_path / "shelf.db.secret").mkdir()
    with pytest.raises(IsADirectoryError, match=r"shelf\.db\.secret is a folder; move it away"):
        shelve.open(tmp_path / "shelf.db")


def test_a_folder_for_temporary_files_that_is_full(tmp_path: Path) -> None:
    """Where standard input finds no room to be held, the folder for temporary files is named, not the input."""
    with small_disk(tmp_path / "small", 64 * 1024) as disk:
        process = subprocess.run(
            [*COMMAND, "import", "-", "--format", "json", "--at", str(tmp_path / "store.db")],
            env={**os.environ, "TMPDIR": str(disk)},
            input=b'{"key": "' + b"x" * 2**20 + b'"}',
            capture_output=True,
            check=False,
        )
    assert (process.returncode, process.stdout) == (2, b"")
    assert process.stderr.startswith(f"cloudstore: '{disk}/".encode())
    assert b"No space left on device. Free some space on its disk" in process.stderr


def test_a_file_that_can_not_be_moved_into_place(tmp_path: Path) -> None:
    """An export, a download and a backup in a full disk name their own file there."""
    with cm.open(tmp_path / "store.db") as store:
        store["key"] = "x" * 2**18
        link = store.upload(b"y" * 2**18, "y.txt").url
    with small_disk(tmp_path / "small", 64 * 1024) as disk:
        for arguments in (
            ["export", str(disk / "all.json"), "--at", "store.db"],
            ["download", link, "--to", str(disk / "y.txt"), "--at", "store.db"],
        ):
            status, said = run(*arguments, folder=tmp_path)
            assert status == 2
            assert said.startswith(f"cloudstore: '{disk}/")
            assert "No space left on device. Free some space on its disk" in said
        shutil.rmtree(disk / "all.json.new.part", ignore_errors=True)
