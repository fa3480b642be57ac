"""Damaged files: refused with a sentence, or what is read is right; a bit that flips is told, and not served."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.media import Media
from cloudstore_mapping.service.storage.maintenance import check_file
from cloudstore_mapping.service.storage.sql import VersionMaker, checksum_matches
from tests.crash.memory import tmp_path
from tests.crash.script import Contents, contents, steps

__all__ = ["tmp_path"]  # a fixture: a folder in memory

pytestmark = pytest.mark.sqlite("the store is a file")

Store = cm.CloudStoreMapping[Any]

#: The share of flipped bits that a name may have: SQLite looks names up in an index, which has no checksum.
MISNAMED: Final = 0.05


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the file of a store with small values, large ones and media files."""
    file = tmp_path / "store.db"
    with cm.open(file) as store:
        for step in steps(store, 40, 3):
            step()
        store.update({f"small {number}": {"number": number, "text": f"{number}" * 50} for number in range(300)})
    return file


def kept(file: Path) -> Contents:
    """Return what a store holds."""
    with cm.open(file) as store:
        return contents(store)


def look(file: Path, expected: Contents) -> str:
    """
    Read all that has to be in a store, and return what came of it; a wrong value is an error.

    ``misnamed`` is a store where something that is there isn't found by its name, or is listed by another.
    """
    found = set()
    try:
        with cm.open(file, retries=0) as store:
            for name, value in expected.items():
                if not name.startswith("media/"):
                    found.add(_loaded(store, name, value))
            found.add(_listed(store, expected))
            for media in store.media_files():
                found.add(_downloaded(store, media, expected))
    except cm.UnsupportedError as error:
        assert str(error).endswith((" restore a backup of it.", " or move it away.", " upgrade, then open it."))  # noqa: PT017 - one of many
        return "refused"
    except cm.CloudStoreError:
        found.add("told")
    return next(each for each in ("misnamed", "told", "right") if each in found)


def _loaded(store: Store, key: str, value: Any) -> str:
    try:
        assert store[key] == value
    except KeyError:
        return "misnamed"
    except cm.CloudStoreError:
        return "told"
    return "right"


def _listed(store: Store, expected: Contents) -> str:
    names = {*store, *(f"media/{media.name}" for media in store.media_files())}
    return "right" if names == expected.keys() else "misnamed"


def _downloaded(store: Store, media: Media, expected: Contents) -> str:
    try:
        assert store.download(media.url) in expected.values()
    except (cm.CloudStoreError, ValueError):
        return "told"
    return "right"


def flipped(file: Path, dice: random.Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def try_flips(file: Path, count: int, seed: int) -> Counter[str]:
    """Flip a bit, each time in the whole file, and return how often what came of it."""
    expected = kept(file)
    whole = file.read_bytes()
    dice = random.Random(seed)
    found: Counter[str] = Counter()
    for _ in range(count):
        file.write_bytes(whole)
        flipped(file, dice)
        damaged = file.read_bytes()
        said = look(file, expected)
        found[said] += 1
        for end in ("-wal", "-shm"):
            Path(f"{file}{end}").unlink(missing_ok=True)
        if said == "misnamed":
            file.write_bytes(damaged)
            assert is_found(file)
    return found


def is_found(file: Path) -> bool:
    """Whether a check of a damaged store says so."""
    try:
        return bool(check_file(file).faults)
    except cm.UnsupportedError:
        return True


def test_flipped_bits(file: Path) -> None:
    """After any one bit of a file has flipped no wrong value is read: it is refused, told, or does no harm."""
    found = try_flips(file, 50, 0)
    assert found["misnamed"] < 10
    assert found["told"] + found["refused"] > 10


@pytest.mark.slow
def test_many_flipped_bits(file: Path, at_length: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The same holds for hundreds of bits."""
    count = 5000 if at_length else 400
    found = try_flips(file, count, 1)
    assert found["misnamed"] <= count * MISNAMED
    with capsys.disabled():
        sys.stdout.write(f"\n{count} flipped bits: {dict(found)}\n")


def test_a_damaged_value_is_saved_again(file: Path) -> None:
    """A value that is damaged is told by a load and by a check, and all is well once it is saved again."""
    content = file.read_bytes()
    place = content.index(b'"number":7,"text":"777') + 22
    file.write_bytes(content[:place] + b"8" + content[place + 1 :])
    (fault,) = check_file(file).faults
    assert fault == "The file 'small 7' of 'local' doesn't match its checksum; save it again."
    with cm.open(file, retries=0) as store:
        with pytest.raises(cm.UnavailableError, match=r"'small 7' is damaged; save it again, or restore a backup\.$"):
            _ = store["small 7"]
        with pytest.raises(cm.BulkError, match="'small 7' is damaged"):
            store.get_many(["small 6", "small 7"])
        with pytest.raises(cm.UnavailableError, match="damaged"):
            store.merge("small 7", {"a": 1})
        store["small 7"] = "anew"
        assert store["small 7"] == "anew"
    assert check_file(file).faults == []


@pytest.mark.parametrize("column", ["value", "version"])
@pytest.mark.parametrize("found", [None, 7, 0.5, "text", b"bytes"])
def test_what_a_damaged_row_may_hold(found: object, column: str) -> None:
    """A value or version of another type, as a bit in a row's header can make it, is one that isn't what was stored."""
    row: dict[str, object] = {"value": b"1", "version": VersionMaker().new_version("name", b"1")}
    assert checksum_matches(row["version"], "name", row["value"])
    row[column] = found
    assert checksum_matches(row["version"], "name", row["value"]) is (column == "version" and found == "text")


def test_a_damaged_media_file_is_not_taken_for_whole(tmp_path: Path) -> None:
    """A download whose bytes are not those that were uploaded is an error, and leaves no file."""
    file, target = tmp_path / "store.db", tmp_path / "picture.gif"
    with cm.open(file) as store:
        store.upload(b"GIF89a" * 1000, "picture.gif")
    content = file.read_bytes()
    file.write_bytes(content.replace(b"GIF89a", b"GIF87a", 1))
    with cm.open(file) as store:
        assert len(store) == 0
        (media,) = store.media_files()
        with pytest.raises(cm.ProtocolError, match="differs from the uploaded file"):
            store.download(media, target)
    assert not target.exists()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(file: Path, part: float) -> None:
    """A file that lost its end is refused, and left as it is."""
    content = file.read_bytes()[: int(file.stat().st_size * part)]
    file.write_bytes(content)
    with pytest.raises(cm.UnsupportedError, match="is damaged and was left as it is; restore a backup of it"):
        cm.open(file)
    assert file.read_bytes() == content
