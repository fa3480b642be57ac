"""Where `open` opens what."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLOUDSTORE_URL", raising=False)
    monkeypatch.delenv("CLOUDSTORE_SERVER", raising=False)


def test_files(tmp_path: Path) -> None:
    """A path, as text or as a path, and an sqlite address open the same file, relative or absolute."""
    with cm.open("store.db") as store:
        store["key"] = 1
    for location in (
        Path("store.db"),
        str(tmp_path / "store.db"),
        tmp_path / "store.db",
        "sqlite:///store.db",
        f"sqlite:///{tmp_path}/store.db",
    ):
        with cm.open(location) as store:
            assert store["key"] == 1
    assert (tmp_path / "store.db").exists()


def test_memory(tmp_path: Path) -> None:
    """`memory:` is a store of its own each time, and leaves nothing."""
    with cm.open("memory:") as store, cm.open("memory:") as other:
        store["key"] = 1
        assert dict(other) == {}
    assert list(tmp_path.iterdir()) == []


def test_no_location(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a location the environment says where, else it is a file in the working directory."""
    with cm.open():
        assert (tmp_path / "cloudstore.db").exists()
    monkeypatch.setenv("CLOUDSTORE_URL", "http://SOME-API-KEY@127.0.0.1:8787/cloudstore")
    with cm.open() as store:
        assert repr(store) == "<CloudStoreMapping http://127.0.0.1:8787/cloudstore>"


def test_the_environments_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CLOUDSTORE_SERVER` takes the place of the default server, and of no other."""
    with cm.CloudStoreMapping[object]("key") as store:
        assert cm.DEFAULT_SERVER in repr(store)
    monkeypatch.setenv("CLOUDSTORE_SERVER", "http://127.0.0.1:8787/cloudstore")
    with cm.CloudStoreMapping[object]("key") as store:
        assert "127.0.0.1" in repr(store)
    with cm.CloudStoreMapping[object]("key", "https://example.org/cloudstore") as store:
        assert "example.org" in repr(store)


def test_an_explicit_address_is_never_redirected(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address given by a program or pickle is used, also if it is the text of the default address."""
    vendors = str.__str__(cm.DEFAULT_SERVER)
    monkeypatch.setenv("CLOUDSTORE_SERVER", "http://127.0.0.1:8787/cloudstore")
    monkeypatch.setenv("CLOUDSTORE_URL", vendors.replace("://", "://SOME-API-KEY@"))
    for store in (
        cm.open(vendors.replace("://", "://SOME-API-KEY@")),
        cm.open(),
        cm.CloudStoreMapping("SOME-API-KEY", "https://droidscript.cloud/cloudstore"),
        pickle.loads(pickle.dumps(cm.open())),
    ):
        with store:
            assert repr(store) == f"<CloudStoreMapping {vendors}>"
    defaults: list[Any] = [cm.CloudStoreMapping("key"), cm.CloudStoreMapping("key", None), cm.CloudStore("key", None)]
    for default in defaults:
        with default:
            assert "127.0.0.1:8787" in repr(default)
    with cm.CloudStore("key", vendors) as cloud:
        assert vendors in repr(cloud)


@pytest.mark.parametrize("opener", [cm.CloudStoreMapping, cm.CloudStore])
def test_an_address_in_the_place_of_a_key(opener: Any) -> None:
    """An address given as the API key is refused, and goes nowhere; the sentence has the line to write, and no key."""
    with pytest.raises(ValueError, match=r"The API key is an address; .* cm\.open") as caught:
        opener("http://KEY-OF-SIXTEEN-X@host/cloudstore")
    assert "KEY-OF" not in str(caught.value)
    with pytest.raises(ValueError, match="The API key is empty"):
        opener("")
    with pytest.raises(TypeError, match="The API key must be a str, not NoneType"):
        opener(None)
    with pytest.raises(TypeError, match="The server must be an address, or None for the default, not int"):
        opener("key", 5)


@pytest.mark.parametrize("location", [b"store.db", os.fsencode(Path("store.db"))])
def test_bytes(location: bytes, tmp_path: Path) -> None:
    """Bytes are a path, as for `open`; another type is an error that names it."""
    cm.open(location).close()
    assert (tmp_path / "store.db").exists()
    wrong: Any = 5
    with pytest.raises(TypeError, match="A location must be a text or a path, not int"):
        cm.open(wrong)


def test_a_name_with_an_at_sign(tmp_path: Path) -> None:
    """A file or folder may have an @ in its name."""
    folder = tmp_path / "ann@example.org"
    folder.mkdir()
    for place in (folder / "store@home.db", Path("store@home.db")):
        cm.open(place).close()
        assert place.exists()


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("https//KEY-OF-SIXTEEN-X@host/x", "begin an address with https://API_KEY@"),
        ("missing/KEY-OF-SIXTEEN@host", "begin an address with https://API_KEY@"),
        ("example.org:8787", "'example.org:' is written as http://API_KEY@host:port/path"),
        ("myserver:8787/cloudstore", "'myserver:' is written as http://API_KEY@host:port/path"),
        ("http://KEY-OF-SIXTEEN@example.org/cloudstore", "insecure"),
        ("https://example.org/cloudstore", "API key"),
        ("ftp://example.org", "can be at ftp://"),
        ("", "empty"),
        ("sqlite://", "empty"),
        ("KEY-OF-SIXTEEN-LETTERS@127.0.0.1:8787/cloudstore", "begin it with https"),
        ("https:KEY-OF-SIXTEEN", "'https:' is written as https://API_KEY@host/path"),
        ("http:/KEY-OF-SIXTEEN@localhost/", "'http:' is written as https://API_KEY@host/path"),
        ("localhost:8787", "'localhost:' is written as http://API_KEY@host:port/path"),
        ("127.0.0.1:8787/cloudstore", "'127.0.0.1:' is written as http://"),
        ("[::1]:8787", "is written as http://"),
        ("file:x.db", "'file:' is written as sqlite:///path, or the path alone"),
        ("sqlite:x.db", "'sqlite:' is written as sqlite:///path"),
        ("SQLite:x.db", "is written as sqlite:///path"),
        ("postgresql:shop", "'postgresql:' is written as postgresql://user@host/database"),
        ("memory", "'memory' is written as memory:; give a file of this name by its absolute path"),
        (":memory:", "is written as memory:"),
        ("Memory:", "is written as memory:"),
        ("memory:shop", "is written as memory:"),
    ],
)
def test_bad_locations(location: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location that can't be opened is `ValueError` with a sentence that says what to give; no file is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        cm.open(location)
    assert "KEY-OF-SIXTEEN" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["memory", ":memory:", "file:x.db"])
def test_a_file_with_the_name_of_a_slip(name: str, tmp_path: Path) -> None:
    """A file may have any name, given by its absolute path."""
    cm.open(tmp_path / name).close()
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["memory.db", "https-store", "files:x", "localhost", "C:x.db"])
def test_a_name_that_resembles_a_slip(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that only resembles a slip is one of a file."""
    monkeypatch.chdir(tmp_path)
    cm.open(name).close()
    assert (tmp_path / name).exists()


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    """What can't be a store is refused and left as it is."""
    (tmp_path / "notes.txt").write_text("my notes, which are long enough to be taken for a header of some kind\n" * 20)
    with pytest.raises(cm.UnsupportedError, match="left as it is"):
        cm.open("notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("my notes")
    with pytest.raises(OSError, match="folder"):
        cm.open(tmp_path)
    with pytest.raises(OSError, match="folder"):
        cm.open("missing/store.db")


def test_options_for_a_network_are_without_effect_on_a_file() -> None:
    """A program may give the same options wherever its store is."""
    with cm.open("memory:", timeout=(1, 2), retries=1, min_interval=0, insecure=True, password="x") as store:
        store["key"] = 1
        assert store["key"] == 1
    with pytest.raises(TypeError):
        cm.open("memory:", unknown=1)


def test_insecure() -> None:
    """Plain http to another machine opens when it is asked for."""
    with cm.open("http://SOME-API-KEY@example.org/cloudstore", insecure=True) as store:
        assert "http://example.org" in repr(store)


@pytest.mark.parametrize("length", [248, 250, 255])
def test_a_long_file_name(length: int, tmp_path: Path) -> None:
    """A file name that leaves no room for the log's name is an error with the actual limit; one below it opens."""
    with pytest.raises(OSError, match=f"has {length} bytes.* choose a name of 247 bytes at most") as caught:
        cm.open(tmp_path / ("x" * length))
    assert len(str(caught.value)) < 300
    cm.open(tmp_path / ("x" * 247)).close()
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 247]


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_renamed_folder(is_cached: bool, tmp_path: Path) -> None:
    """Renaming the folder of an open store is an error that says so at the next write, and nothing is lost."""
    (tmp_path / "before").mkdir()
    with cm.open(tmp_path / "before" / "store.db", retries=0) as store:
        store["key"] = 1
        if is_cached:
            assert store["key"] == 1
        (tmp_path / "before").rename(tmp_path / "after")
        with pytest.raises(cm.UnavailableError, match="file was moved, deleted or replaced while the store was open"):
            store["key"] = 2
        try:
            assert store["key"] == 1
        except cm.UnavailableError as error:
            assert "moved" in str(error)  # noqa: PT017 - either is right
    with cm.open(tmp_path / "after" / "store.db") as store:
        assert dict(store) == {"key": 1}
