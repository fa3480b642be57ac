"""A pickle that a shelf's own secret didn't sign for this very key is refused, and never loaded."""

from __future__ import annotations

import base64
import os
import pickle
import shelve as standard
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping import shelve, transfer
from cloudstore_mapping.client.shelf import new_secret
from cloudstore_mapping.errors import BadValueError, UnavailableError
from tests.support.shelves import store_of

SECRET = "a secret of the tests"


class Payload:
    """What, once it is loaded, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Return the file that a payload makes."""
    return tmp_path / "loaded"


@pytest.fixture
def shelf(tmp_path: Path, trap: Path) -> Path:
    """Return a shelf with a payload of its own under "own", and under "other" a set."""
    path = tmp_path / "shelf"
    with shelve.open(path, secret=SECRET) as db:
        db["own"] = Payload(trap)
        db["other"] = {1}
    return path


def test_a_payload_of_ones_own_is_loaded(shelf: Path, trap: Path) -> None:
    """What the secret signed is loaded: so the payload shows what the other tests forbid."""
    with shelve.open(shelf, secret=SECRET) as db:
        assert not trap.exists()
        db["own"]
    assert trap.exists()


def test_a_pickle_of_a_shelf(tmp_path: Path) -> None:
    """A shelf is pickled with its secrets only if the program asked for it, so that no secret leaves by accident."""
    with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
        db["a"] = {1}
        with pytest.raises(TypeError, match="pickle_secrets=True"):
            pickle.dumps(db)
        with pytest.raises(TypeError, match="pickle_secrets=True"):
            db["b"] = [db]
        assert list(db) == ["a"]
    with shelve.open(tmp_path / "shelf", secret=SECRET, pickle_secrets=True) as db:
        pickled = pickle.dumps(db)
    with pickle.loads(pickled) as again:
        assert again["a"] == {1}
        again["a"] = {2}
    with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
        assert db["a"] == {2}


def flipped(envelope: dict[str, Any]) -> dict[str, Any]:
    """Change one bit of the pickle."""
    pickled = bytearray(base64.b64decode(envelope["pickle"]))
    pickled[-2] ^= 1
    return {**envelope, "pickle": base64.b64encode(pickled).decode()}


def shortened(envelope: dict[str, Any]) -> dict[str, Any]:
    """Leave the end of the pickle out."""
    return {**envelope, "pickle": base64.b64encode(base64.b64decode(envelope["pickle"])[:-3]).decode()}


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "flipped": flipped,
    "shortened": shortened,
    "signature cut": lambda envelope: {**envelope, "hmac-sha256": envelope["hmac-sha256"][:-2]},
    "signature empty": lambda envelope: {**envelope, "hmac-sha256": ""},
    "signature of zeros": lambda envelope: {**envelope, "hmac-sha256": "00" * 32},
    "signature missing": lambda envelope: {"pickle": envelope["pickle"]},
    "signature a number": lambda envelope: {**envelope, "hmac-sha256": 1},
    "no base64": lambda envelope: {**envelope, "pickle": "?" + envelope["pickle"]},
    "text": lambda envelope: envelope["pickle"],
    "nothing": lambda _: None,
    "list": lambda envelope: [envelope],
    "json beside": lambda envelope: {"json": 1, "pickle": envelope["pickle"], "hmac-sha256": "00"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_pickle(shelf: Path, trap: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A pickle or signature that was changed in any way is `BadValueError`, and what is in it isn't run."""
    with cm.open(shelf) as store:
        store["own"] = {"__shelf__": change(store["own"]["__shelf__"])}
    with shelve.open(shelf, secret=SECRET) as db:
        with pytest.raises(BadValueError, match="not loaded") as caught:
            db["own"]
        assert caught.value.key == "own"
        assert db["other"] == {1}
    assert not trap.exists()


def test_a_pickle_under_another_key(shelf: Path, trap: Path) -> None:
    """A signature holds for the key that it was made for."""
    with cm.open(shelf) as store:
        store["other"] = store["own"]
    with shelve.open(shelf, secret=SECRET) as db, pytest.raises(BadValueError, match="not loaded"):
        db["other"]
    assert not trap.exists()


def test_a_pickle_of_another_secret(shelf: Path, trap: Path) -> None:
    """A pickle that somebody else's secret signed is refused, by views of all values too."""
    with shelve.open(shelf, secret=SECRET + "s") as db:
        for read in (lambda: db["own"], lambda: list(db.items()), lambda: list(db.values()), lambda: dict(db)):
            with pytest.raises(BadValueError, match="not signed by this shelf's secret"):
                read()
    assert not trap.exists()


def test_a_foreign_pickle(shelf: Path, trap: Path) -> None:
    """A pickle without any signature is a text like any other."""
    text = base64.b64encode(pickle.dumps(Payload(trap))).decode()
    with cm.open(shelf) as store:
        store["text"] = text
        store["bare"] = {"__shelf__": text}
    with shelve.open(shelf, secret=SECRET) as db:
        assert db["text"] == text
        with pytest.raises(BadValueError, match="not loaded"):
            db["bare"]
    assert not trap.exists()


def test_old_secrets_still_verify(shelf: Path) -> None:
    """With a list of secrets the first signs, and what the others signed is still read."""
    new = new_secret()
    with shelve.open(shelf, secret=[new, SECRET]) as db:
        assert db["other"] == {1}
        db["other"] = {2}
    with shelve.open(shelf, secret=new) as db:
        assert db["other"] == {2}
        with pytest.raises(BadValueError):
            db["own"]


def test_a_file_makes_its_own_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shelf in a file has a secret beside it, which only its owner can read, and which the next opening finds."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path = tmp_path / "shelf"
    with shelve.open(path) as db:
        db["a"] = {1}
    beside = tmp_path / "shelf.secret"
    assert stat.S_IMODE(beside.stat().st_mode) == 0o600
    before = beside.read_bytes()
    assert len(before.strip()) == 64
    with shelve.open(path) as db:
        assert db["a"] == {1}
    assert beside.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shelf", "shelf.secret"]
    beside.write_bytes(new_secret() + b"\n" + before)
    with shelve.open(path) as db:
        assert db["a"] == {1}


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_no_second_secret_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """A shelf with signed pickles and without its secret is refused, until the secret is there again or given."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path, beside, away = tmp_path / "shelf", tmp_path / "shelf.secret", tmp_path / "away"
    with shelve.open(path) as db:
        db["a"] = {1}
    beside.rename(away)
    with pytest.raises(BadValueError, match=rf"holds signed pickles.*put {beside} back") as caught:
        shelve.open(path, flag)
    assert "\n" not in str(caught.value)
    assert not beside.exists()
    with shelve.open(path, flag, secret=away.read_text().strip()) as db:
        assert db["a"] == {1}
    away.rename(beside)
    with shelve.open(path, flag) as db:
        assert db["a"] == {1}


def test_a_shelf_that_is_emptied_in_a_shared_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag `n` makes no second secret where other shelves of the file have signed pickles, and deletes nothing."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path, beside = tmp_path / "shelf", tmp_path / "shelf.secret"
    for prefix in ("users", "sessions"):
        with shelve.open(path, prefix=prefix) as db:
            db["a"] = {prefix}
    beside.rename(tmp_path / "away")
    with pytest.raises(BadValueError, match="holds signed pickles"):
        shelve.open(path, "n", prefix="sessions")
    assert not beside.exists()
    (tmp_path / "away").rename(beside)
    for prefix in ("users", "sessions"):
        with shelve.open(path, prefix=prefix) as db:
            assert db["a"] == {prefix}
    with shelve.open(path, prefix="users") as db:
        db["a"] = 1
    beside.unlink()
    with shelve.open(path, "n", prefix="sessions") as db:
        db["b"] = {1}
    with shelve.open(path) as db:
        assert dict(store_of(db)) == {"users/a": 1, "sessions/b": store_of(db)["sessions/b"]}


def test_a_shelf_that_cannot_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second secret is made, either, if the flag `n` fails to delete the signed pickles."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path, beside = tmp_path / "shelf", tmp_path / "shelf.secret"
    with shelve.open(path) as db:
        db["a"] = {1}
    beside.unlink()

    def fails(self: object) -> None:
        raise UnavailableError("The file is locked.")

    with monkeypatch.context() as patch:
        patch.setattr(cm.CloudStoreMapping, "clear", fails)
        with pytest.raises(UnavailableError):
            shelve.open(path, "n")
    assert not beside.exists()
    with pytest.raises(BadValueError, match="holds signed pickles"):
        shelve.open(path)


def test_a_secret_is_made_where_nothing_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without pickles gets a secret, and so does a shelf that is opened to be emptied."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path, beside = tmp_path / "shelf", tmp_path / "shelf.secret"
    with cm.open(path) as store:
        store["a"] = {"__shelf__": {"json": {"__shelf__": 1}}}
        store["b"] = '{"__shelf__":{"pickle":"'
    with shelve.open(path) as db:
        db["c"] = {1}
    before = beside.read_bytes()
    beside.unlink()
    with shelve.open(path, "n") as db:
        db["d"] = {2}
        assert dict(db) == {"d": {2}}
    assert beside.read_bytes() != before


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_import_makes_no_second_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool) -> None:
    """An import of a shelf into a store that lacks the secret of its pickles is refused, and so is its dry run."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path, beside = tmp_path / "shelf", tmp_path / "shelf.secret"
    with shelve.open(path) as db:
        db["a"] = {1}
    beside.unlink()
    with standard.open(str(tmp_path / "old")) as old:
        old["b"] = {2}
    with cm.open(path) as store, pytest.raises(BadValueError, match="holds signed pickles"):
        transfer.import_store(store, tmp_path / "old", format="shelve", trust=True, dry_run=dry_run)
    assert not beside.exists()


def test_the_environment_s_secret(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOUDSTORE_SECRET is used where none is given, one a line, and a file's own is then neither made nor read."""
    monkeypatch.setenv("CLOUDSTORE_SECRET", f"a new secret of the tests\n{SECRET}")
    with shelve.open(shelf) as db:
        assert db["other"] == {1}
    assert not shelf.with_name("shelf.secret").exists()


def test_a_file_s_own_secret_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file has a secret, it signs; pickles that the environment's secret signed are read as well."""
    path = tmp_path / "shelf"
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    with shelve.open(path) as db:
        db["own"] = {1}
    with shelve.open(path, secret=SECRET) as db:
        db["environment's"] = {2}
    monkeypatch.setenv("CLOUDSTORE_SECRET", SECRET)
    with shelve.open(path) as db:
        assert dict(db) == {"own": {1}, "environment's": {2}}
        db["environment's"] = {3}
    monkeypatch.delenv("CLOUDSTORE_SECRET")
    with shelve.open(path) as db:
        assert dict(db) == {"own": {1}, "environment's": {3}}


@pytest.mark.skipif(os.name != "posix", reason="needs modes of files")
@pytest.mark.parametrize("mode", [0o666, 0o644, 0o640, 0o602])
@pytest.mark.parametrize("flag", ["r", "c"])
def test_a_secret_that_others_may_read(mode: int, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret file that others may read or write is refused with the command to run, until its mode is 0600."""
    monkeypatch.delenv("CLOUDSTORE_SECRET", raising=False)
    path, beside = tmp_path / "shelf", tmp_path / "shelf.secret"
    with shelve.open(path) as db:
        db["a"] = {1}
    beside.chmod(mode)
    with pytest.raises(BadValueError, match=rf"\(mode {mode:04o}\).*chmod 600 {beside}\.") as caught:
        shelve.open(path, flag)
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["shelf", "shelf.secret"]
    beside.chmod(0o600)
    with shelve.open(path, flag) as db:
        assert db["a"] == {1}


#: A shelf's value signed by version 0.1.0 with the secret of these tests, under the key "a".
OLD: Any = {
    "__shelf__": {
        "pickle": "gASVBwAAAAAAAACPlChLAZAu",
        "hmac-sha256": "4f8d6d97e672362d2b250f935b6b31f03378d182034745c71a91a41ef2541c8e",
    }
}


def test_older_signatures_verify(tmp_path: Path) -> None:
    """A value signed by an earlier version is read."""
    with cm.open(tmp_path / "shelf") as store:
        store["a"] = OLD
    with shelve.open(tmp_path / "shelf", secret=SECRET) as db:
        assert db["a"] == {1}


@pytest.mark.parametrize("secret", ["", "short", b"x" * 15, [], ["a secret of the tests", ""]])
def test_a_secret_that_is_too_short(tmp_path: Path, secret: Any) -> None:
    """A secret that can be guessed is refused, and says how to make one."""
    with pytest.raises(BadValueError, match=r"secrets\.token_hex"):
        shelve.open(tmp_path / "shelf", secret=secret)


def test_secrets_are_not_shown(shelf: Path) -> None:
    """Neither the shelf nor its errors show the secret."""
    with shelve.open(shelf, secret=[SECRET + "s"]) as db:
        with pytest.raises(BadValueError) as caught:
            db["own"]
        assert SECRET not in f"{db!r}{vars(db)}{caught.value}{caught.value!r}"
