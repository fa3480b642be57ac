"""An export replaces the files of an earlier export, all of them or none, and never any other file."""

from __future__ import annotations

import dbm
import json
import os
import shelve
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve as our_shelve
from cloudstore_mapping.cli import app
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.errors import CloudStoreError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.transfer import Format, export_store, import_store
from cloudstore_mapping.transfer.export_target import RECORD
from cloudstore_mapping.web.server import background
from tests.dbm_kinds import KINDS, force, names_of, parts
from tests.storages import new_storage
from tests.support.command_line import CliRunner
from tests.support.matrix import spread

FORMATS: list[Format] = ["json", "jsonl", "dbm", "shelve"]


@pytest.fixture
def store() -> Iterator[CloudStoreMapping[Any]]:
    """Return a store of two keys."""
    with cm.open("memory:") as store:
        store.update({"a": 1, "b": {"é": [2.5]}})
        yield store


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of all files in a folder but those of a store, which only SQLite may open."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        is_live = path.name.lower().endswith((".db", "-wal", "-shm")) and path.stat().st_size > 100
        is_live = is_live or path.name in ("hard", "hard shm", "link")
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() and not is_live else None
    return found


# Recognition


def spellings(folder: Path) -> dict[str, str]:
    """Return names that lead to the store `shopping.db` in a folder, or to a file beside it."""
    (folder / "link").symlink_to("shopping.db")
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to(folder)
    os.link(folder / "shopping.db", folder / "hard")
    os.link(folder / "shopping.db", folder / "SHOPPING.DB")  # as a file system that ignores case finds it
    os.link(folder / "shopping.db-shm", folder / "hard shm")
    with closing(sqlite3.connect(folder / "another program's.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    return {
        "path": str(folder / "shopping.db"),
        "relative": "shopping.db",
        "dots": str(folder / "deep" / ".." / "shopping.db"),
        "link": "link",
        "folder's link": str(folder / "deep" / "link" / "shopping.db"),
        "hard link": "hard",
        "case": "SHOPPING.DB",
        "address": "sqlite:///shopping.db",
        "log": "shopping.db-wal",
        "index": "shopping.db-shm",
        "index's hard link": "hard shm",
        "journal": "shopping.db-journal",
        "secret": "shopping.db.secret",
        "another's journal": "other.db-journal",
        "another's secret": "other.db.secret",
        "another": "other.db",
        "another program's": "another program's.db",
        "another program's journal": "another program's.db-journal",
    }


@pytest.mark.parametrize("format_", FORMATS)
def test_a_store_is_never_replaced(format_: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever name a store or a file beside it is called, an export to it is refused, and everything stays."""
    monkeypatch.chdir(tmp_path)
    with our_shelve.open("shopping.db") as db:
        db["a"] = {1, 2}
    with cm.open("shopping.db") as store, cm.open("other.db") as other:
        store["b"] = 1
        other["c"] = 1
        names = spellings(tmp_path)
        before = content_of(tmp_path)
        for name in names.values():
            for overwrite in (True, False):
                with pytest.raises((CloudStoreError, ValueError, FileExistsError)):
                    export_store(store, name, format=format_, overwrite=overwrite)
                assert content_of(tmp_path) == before, name
        assert (len(store), dict(other)) == (2, {"c": 1})
    for name in ("hard link", "case"):  # a store with several names isn't opened
        (tmp_path / names[name]).unlink()
    with our_shelve.open("shopping.db", "r") as db:
        assert dict(db) == {"a": {1, 2}, "b": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format_", ["dbm", "shelve"])
def test_the_command_never_replaces_its_store(
    format_: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export to a dbm that would have a file of the store's name is refused with a sentence, however often."""
    force(kind, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with cm.open("shopping.db") as store:
        store["a"] = 1
    for _ in range(2):
        command = ["export", "shopping", "--format", format_, "--at", "shopping.db", "--overwrite"]
        result = CliRunner().invoke(app, command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("cloudstore: shopping.db belongs to the store itself and was left as it is;")
        assert result.stderr.count("\n") == 1
    with cm.open("shopping.db") as store:
        assert dict(store) == {"a": 1}
    assert not [name for name in names_of(tmp_path) if not name.startswith("shopping.db")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", parts("shopping"))
def test_a_stranger_s_file_beside_a_dbm(
    name: str, kind: str, store: CloudStoreMapping[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has the name of a part of the dbm, and that no export made, is refused before anything changes."""
    force(kind, monkeypatch)
    (tmp_path / name).write_text("my own notes")
    with pytest.raises(FileExistsError):
        export_store(store, tmp_path / "shopping", format="dbm")
    with pytest.raises(cm.UnsupportedError, match="was not made by an export, or was changed since, and was left"):
        export_store(store, tmp_path / "shopping", format="dbm", overwrite=True)
    assert content_of(tmp_path) == {name: b"my own notes"}


STRANGERS = {
    "another program's object": b'{\n  "name": "a program",\n  "version": 1\n}\n',
    "an object on one line": b'{"a": 1}\n',
    "an object without an end": b'{\n"a": 1,\n',
    "an object with a comma too many": b'{\n"a": 1,\n}\n',
    "an object and more": b'{\n"a": 1\n}\nmore\n',
    "an object in other spaces": b'{\n"a":1\n}\n',
    "lines with more": b'{"key":"a","value":1,"more":2}\n',
    "lines in other spaces": b'{"key":"a", "value": 1}\n',
    "a line that is none": b'{"key":"a","value":1}\nnotes\n',
    "a list": b"[1]\n",
    "text": b"notes\n",
    "bytes": bytes(range(256)) * 100,
    "a zero byte": b"\0",
}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_s_file(stranger: str, format_: Format, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A file that isn't laid out as an export is refused, in a dry run too, and stays as it is."""
    (tmp_path / "all").write_bytes(STRANGERS[stranger])
    for dry_run in (True, False):
        with pytest.raises(
            cm.UnsupportedError, match=r"all was not made by an export.*; move it away, or name another"
        ):
            export_store(store, tmp_path / "all", format=format_, overwrite=True, dry_run=dry_run)
    assert content_of(tmp_path) == {"all": STRANGERS[stranger]}


@pytest.mark.parametrize("name", ["all.json.media", "all.json.media.part", "all.json.new.part", "all.json.exported"])
@pytest.mark.parametrize("inside", ["notes.txt", "index.jsonl", "000000-picture.png.txt/deep"])
def test_a_stranger_s_folder(name: str, inside: str, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A folder of the user's with the name of one of the export's is refused, whatever is in it, and stays as it is."""
    file = tmp_path / name / inside
    file.parent.mkdir(parents=True)
    file.write_text("my own notes")
    store.upload(b"data", "one.png")
    before = content_of(tmp_path)
    with pytest.raises(cm.UnsupportedError, match=rf"{name} was not made by an export"):
        export_store(store, tmp_path / "all.json", overwrite=True)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "000007-picture.png", "index"])
def test_a_user_s_file_among_the_media(name: str, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A folder of an export's media that holds a file of the user's too is not removed."""
    store.upload(b"data", "one.png")
    export_store(store, tmp_path / "all.json")
    (tmp_path / "all.json.media" / name).write_text("my own notes")
    before = content_of(tmp_path)
    with pytest.raises(cm.UnsupportedError, match=r"all\.json\.media was not made by an export, or was changed since"):
        export_store(store, tmp_path / "all.json", overwrite=True)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("record", ["notes\n", "{}\n", '{"exported":{"../shopping.txt":"0"}}\n', "link"])
def test_a_file_that_is_no_record(record: str, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A file of the user's with a record's name is refused, and so is one that names files elsewhere, or a link."""
    (tmp_path / "shopping.txt").write_text("notes")
    if record == "link":
        (tmp_path / "out.exported").symlink_to("shopping.txt")
    else:
        (tmp_path / "out.exported").write_text(record)
    before = content_of(tmp_path)
    with pytest.raises(cm.UnsupportedError, match=r"out\.exported was not made by an export"):
        export_store(store, tmp_path / "out", format="dbm", overwrite=True)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("format_", ["dbm", "shelve"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_dbm_that_was_changed(
    kind: str, format_: Format, store: CloudStoreMapping[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dbm that was written to since its export, or that was put in its place, is not replaced."""
    force(kind, monkeypatch)
    export_store(store, tmp_path / "out", format=format_)
    if kind == "dbm.sqlite3":
        with closing(sqlite3.connect(tmp_path / "out")) as connection, connection:
            connection.execute("INSERT INTO Dict VALUES (?, ?)", (b"mine", b"1"))
    else:
        with dbm.open(str(tmp_path / "out"), "w") as opened:
            opened["mine"] = b"1"
    before = names_of(tmp_path)
    with pytest.raises(cm.UnsupportedError, match="was not made by an export, or was changed since"):
        export_store(store, tmp_path / "out", format=format_, overwrite=True)
    assert names_of(tmp_path) == before


def test_a_shelf_of_the_user_s(store: CloudStoreMapping[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shelf that a store was imported from is not replaced by an export to its name."""
    force("dbm.dumb", monkeypatch)
    with shelve.open(str(tmp_path / "todo")) as shelf:
        shelf["tasks"] = {1}
    with pytest.raises(cm.UnsupportedError, match="was not made by an export"):
        export_store(store, tmp_path / "todo", format="shelve", overwrite=True)
    with shelve.open(str(tmp_path / "todo"), "r") as shelf:
        assert dict(shelf) == {"tasks": {1}}


# Replacement


def exported_content(path: Path, format_: Format) -> dict[str, Any]:
    """Return what an import of an export brings."""
    with cm.open("memory:") as store:
        import_store(store, path, format=format_, trust=True)
        return store.copy()


@pytest.mark.parametrize(("kind", "before", "after"), spread([KINDS, FORMATS, FORMATS], 3))
def test_an_earlier_export_is_replaced(
    kind: str,
    before: Format,
    after: Format,
    store: CloudStoreMapping[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An export of any format takes the place of one of any format, of which nothing is left."""
    force(kind, monkeypatch)
    export_store(store, tmp_path / "out", format=before)
    force("dbm.dumb", monkeypatch)
    export_store(store, tmp_path / "fresh", format=after)
    store["a"] = "new"
    export_store(store, tmp_path / "out", format=after, overwrite=True)
    made = [name.removeprefix("out") for name in names_of(tmp_path) if name.startswith("out")]
    assert made == [name.removeprefix("fresh") for name in names_of(tmp_path) if name.startswith("fresh")]
    assert exported_content(tmp_path / "out", after) == store.copy()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_new_export_is_its_owner_s(store: CloudStoreMapping[Any], tmp_path: Path, kind: Format) -> None:
    """A new export has mode 0600, whatever the umask, and the folder of its media files 0700."""
    store.upload(b"photo", "photo.png")
    before = os.umask(0)
    try:
        export_store(store, tmp_path / "all", format=kind)
    finally:
        os.umask(before)
    modes = {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in tmp_path.iterdir()}
    assert modes.pop("all.media") == "0o700"
    assert {mode for name, mode in modes.items() if not name.endswith(RECORD)} == {"0o600"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{}\n", b'{\n"a": 1\n}\n', b'{\n"a": {"x":1},\n"\xc3\xa9": 2\n}\n', b'{"key":"a","value":{"x":1}}\n'],
)
def test_exports_of_earlier_versions(content: bytes, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """An export that an earlier version made, or a file that holds nothing, is replaced with its permissions kept."""
    (tmp_path / "all.json").write_bytes(content)
    (tmp_path / "all.json").chmod(0o640)
    export_store(store, tmp_path / "all.json", overwrite=True)
    assert json.loads((tmp_path / "all.json").read_text("utf-8")) == store.copy()
    assert (tmp_path / "all.json").stat().st_mode & 0o777 == 0o640
    assert names_of(tmp_path) == ["all.json"]


@pytest.mark.parametrize("format_", ["json", "jsonl"])
def test_a_line_that_was_edited(format_: Format, store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """An export of which the user changed a value by hand is still one."""
    export_store(store, tmp_path / "all", format=format_)
    (tmp_path / "all").write_text((tmp_path / "all").read_text("utf-8").replace("2.5", "[2, 5]"), "utf-8")
    export_store(store, tmp_path / "all", format=format_, overwrite=True)
    assert exported_content(tmp_path / "all", format_) == store.copy()


def test_through_a_link(store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """Of a link it is the file that is replaced, the link stays, and the media files lie beside the link."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "all.json").symlink_to("elsewhere/real.json")
    store.upload(b"data", "one.png")
    for number in range(2):
        store["a"] = number
        export_store(store, tmp_path / "all.json", overwrite=number > 0)
        assert exported_content(tmp_path / "all.json", "json") == store.copy()
    assert names_of(tmp_path) == ["all.json", "all.json.exported", "all.json.media", "elsewhere"]
    assert names_of(tmp_path / "elsewhere") == ["real.json"]
    assert (tmp_path / "all.json").is_symlink()


def test_a_dbm_s_link_is_no_file_of_an_export(store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A link with the name of a part of a dbm is refused: an export makes none."""
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "out.dat").symlink_to("elsewhere")
    with pytest.raises(cm.UnsupportedError, match="was not made by an export"):
        export_store(store, tmp_path / "out", format="dbm", overwrite=True)


@pytest.mark.parametrize("format_", ["json", "dbm"])
def test_media_of_an_export_that_was_moved_away(
    format_: Format, store: CloudStoreMapping[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `overwrite` the media folder of an earlier export isn't replaced either, though its file is gone."""
    force("dbm.dumb", monkeypatch)
    store.upload(b"old", "one.png")
    export_store(store, tmp_path / "all", format=format_)
    for name in parts("all"):
        (tmp_path / name).unlink(missing_ok=True)
    before = content_of(tmp_path)
    store.upload(b"new", "one.png")
    with pytest.raises(FileExistsError):
        export_store(store, tmp_path / "all", format=format_)
    assert content_of(tmp_path) == before


def test_a_file_that_came_meanwhile(store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """A file that somebody makes while the store is read is looked at again, and not replaced."""

    def make(done: int, total: int) -> None:
        (tmp_path / "all.json").write_text("notes")

    for overwrite, error in ((False, FileExistsError), (True, cm.UnsupportedError)):
        (tmp_path / "all.json").unlink(missing_ok=True)
        with pytest.raises(error):
            export_store(store, tmp_path / "all.json", overwrite=overwrite, progress=make)
        assert (tmp_path / "all.json").read_text() == "notes"
        assert names_of(tmp_path) == ["all.json", "all.json.part"]


# Interruption


class Crash(BaseException):
    """The end of the process: nothing is done after it, not even what a `finally` says."""


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[str]]:
    """End the process, as it were, at its n-th change of a name in a folder; give the block the changes."""
    changes: list[str] = []

    def dying(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def change(*args: Any, **options: Any) -> Any:
            changes.append(f"{name} {args}")
            if len(changes) >= at:
                raise Crash
            return real(*args, **options)

        return change

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, dying(name))
        with suppress(Crash):
            yield changes


def state_of(path: Path, format_: Format) -> Any:
    """Return the keys and media that an import of an export brings, None where it refuses it or finds none."""
    with cm.open("memory:") as store:
        try:
            import_store(store, path, format=format_, trust=True)
        except (FileNotFoundError, CloudStoreError):
            return None
        return store.copy(), {media.name: store.download(media) for media in store.media_files()}


def read_by_python(path: Path) -> dict[bytes, bytes] | None:
    """Return what Python finds under a name; None for no dbm."""
    if not dbm.whichdb(str(path)):
        return None
    with dbm.open(str(path), "r") as opened:
        return {bytes(key): opened[key] for key in opened.keys()}  # type: ignore[arg-type]  # noqa: SIM118


def interrupt(done: int, total: int) -> None:
    """End an export while it reads the store."""
    raise InterruptedError


SETS: list[tuple[Format, Format, bool]] = [
    ("dbm", "dbm", True),
    ("json", "json", True),
    ("dbm", "json", True),
    ("json", "dbm", True),
    ("json", "json", False),
    ("dbm", "dbm", False),
]


@pytest.mark.parametrize(
    ("before", "after", "overwrite"),
    [pytest.param(*each, marks=pytest.mark.slow if number else ()) for number, each in enumerate(SETS)],
)
@pytest.mark.parametrize("kind", ["dbm.dumb", pytest.param("dbm.gnu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_an_end_at_every_step(
    step: int,
    kind: str,
    before: Format,
    after: Format,
    overwrite: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Wherever an export ends, an import brings the old set or the new one, or refuses; the next run makes the new one.

    The order: the new files are made in a folder beside; the journal says that files are being replaced; the record of
    a dbm names the old and the new files; the media folder; the files; the record names the new ones; the journal ends.
    """
    force(kind, monkeypatch)
    for at in range(1, 100, step):
        folder = tmp_path / str(at)
        folder.mkdir()
        out = folder / "out"
        with cm.open("memory:") as store:
            states: list[Any] = [None]
            if overwrite:
                for number in range(3):
                    store.upload(b"old", f"{number}.png")
                store.update({"a": "old", "b": "old"})
                export_store(store, out, format=before)
                states.append(state_of(out, before))
                store.clear()
            for number in range(2):
                store.upload(b"new", f"{number}.png")
            store.update({"a": "new", "c": "new"})
            with crashing(monkeypatch, at) as changes:
                export_store(store, out, format=after, overwrite=overwrite)
            new = (store.copy(), {media.name: store.download(media) for media in store.media_files()})
            found = [state_of(out, format_) for format_ in {before, after}]
            assert all(state in [*states, new] for state in found), changes
            if before == after == "dbm":
                old_values = {b"a": b'"old"', b"b": b'"old"'} if overwrite else None
                assert read_by_python(out) in (None, old_values, {b"a": b'"new"', b"c": b'"new"'}), changes
            with suppress(FileExistsError, InterruptedError):
                export_store(store, out, format=after, overwrite=overwrite, progress=interrupt)
            assert all(state_of(out, format_) in [*states, new] for format_ in {before, after}), changes
            try:
                export_store(store, out, format=after, overwrite=overwrite)
            except FileExistsError:
                assert not overwrite
                export_store(store, out, format=after, overwrite=True)
            assert state_of(out, after) == new, changes
            expected = {"json": ["out"], "dbm": ["out.dat", "out.dir"] if kind == "dbm.dumb" else ["out"]}[after]
            expected = [*expected, "out.exported", "out.media"]
            assert names_of(folder, "out.bak") == expected, changes
        if len(changes) < at:
            assert at > 5
            return
    pytest.fail("it never ended")


def test_an_import_of_what_is_only_partly_replaced(store: CloudStoreMapping[Any], tmp_path: Path) -> None:
    """Between two exports nothing is imported, and it is said what to do."""
    export_store(store, tmp_path / "all.json")
    (tmp_path / "all.json.part").write_text('{"unfinished_export_of":"x","begun_at":1.0}\n{"finished":true}\n')
    with pytest.raises(cm.UnsupportedError, match="interrupted while it replaced an earlier one; run it again first"):
        import_store(store, tmp_path / "all.json")


def test_what_could_not_be_read_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that goes on tells of the keys that it could not read before it was interrupted."""
    with Service(new_storage()) as service, background(service) as address:
        key = service.accounts.create("owner")
        with cm.open(address.replace("://", f"://{key}@")) as store:
            store.update({"a": 1, "b": 2})
            service.set_passwords("owner", "b", view="pw")
            with crashing(monkeypatch, 2):
                export_store(store, tmp_path / "all.json")
            with pytest.raises(cm.BulkError) as caught:
                export_store(store, tmp_path / "all.json")
        assert (set(caught.value.failed), caught.value.succeeded) == ({"b"}, ["a"])
        assert json.loads((tmp_path / "all.json").read_text()) == {"a": 1}


# Others that write files


def test_a_download_never_replaces_a_store(tmp_path: Path) -> None:
    """A download in the place of a store, or of a file beside it, is refused, and everything stays."""
    with our_shelve.open(tmp_path / "shopping.db") as db:
        db["a"] = {1}
    secret = (tmp_path / "shopping.db.secret").read_bytes()
    with cm.open(tmp_path / "shopping.db") as store:
        media = store.upload(b"data", "one.png")
        for end in ("", "-wal", "-shm", "-journal", ".secret"):
            with pytest.raises(cm.UnsupportedError, match="left as it is; choose another name"):
                store.download(media, tmp_path / f"shopping.db{end}")
        assert (tmp_path / "shopping.db.secret").read_bytes() == secret
        assert store.download(media) == b"data"
