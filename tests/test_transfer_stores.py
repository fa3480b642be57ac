"""What one store holds, media files too, is carried into another, whichever service is on either side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.errors import BulkError, UnsupportedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.transfer import export_store, import_store
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.mapping_fixtures import MakeStore
from tests.vendor import Vendor

CONTENT = {"a": 1, "b/c": [None, "é"], "d": {}}
PICTURES = {"one.png": b"\x89PNG\r\n\x1a\n", "../two": b"", 'three;"\n.txt': b"x" * 1_000_000}


@pytest.fixture
def url() -> Iterator[str]:
    """Return the address of a service with an empty account."""
    with Service(new_storage()) as service, background(service) as address:
        yield address.replace("://", f"://{service.accounts.create('owner')}@")


def pictures_of(store: CloudStoreMapping[Any]) -> dict[str, bytes]:
    """Return the media files of an embedded store."""
    return {media.name: store.download(media) for media in store.media_files()}


def test_from_any_store(make_store: MakeStore, tmp_path: Path) -> None:
    """Another store, open or named by its location, is imported as a file is."""
    store = make_store()
    store.update(CONTENT)
    with cm.open(tmp_path / "other.db") as other:
        other["a"] = "here already"
        assert import_store(other, store) == (2, 1, {}, 0)
        assert import_store(other, store, overwrite=True)[:2] == (1, 2)
        assert other.copy() == CONTENT
    with cm.open("memory:") as third:
        assert import_store(third, tmp_path / "other.db").written == 3
        assert third.copy() == CONTENT


def test_a_store_and_itself(make_store: MakeStore) -> None:
    """A store isn't copied into itself, where that could undo what others write; a part of it is, into another part."""
    store = make_store()
    store.update(CONTENT)
    with pytest.raises(ValueError, match="is the store itself; name another source"):
        import_store(store, store, overwrite=True)
    with pytest.raises(ValueError, match="is the store itself"):
        import_store(store.view("b/"), store.view("b/"))
    assert import_store(store.view("copy/"), store.view("b/")).written == 1
    assert store.copy() == {**CONTENT, "copy/c": [None, "é"]}


@pytest.mark.sqlite("a file has many names")
@pytest.mark.parametrize("name", ["{folder}/store.db", "sqlite:///{folder}/store.db", "{folder}/link.db", "store.db"])
def test_a_file_and_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A store isn't exported or imported into itself, by whatever name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("store.db")
    place = name.format(folder=tmp_path)
    with cm.open(tmp_path / "store.db") as store:
        store.update(CONTENT)
        for form in ("store", None):
            with pytest.raises(ValueError, match=r"^The target is the store itself; name another one\.$"):
                export_store(store, place, format=form, overwrite=True)
            with pytest.raises(
                ValueError, match=r"store\.db is the store itself; name another source, or its format\.$"
            ):
                import_store(store, place, format=form, overwrite=True)
        assert store.copy() == CONTENT


def test_into_any_store(make_store: MakeStore) -> None:
    """What is there already is left or replaced, as it was asked."""
    store = make_store()
    store["a"] = "here already"
    with cm.open("memory:") as source:
        source.update(CONTENT)
        assert import_store(store, source)[:2] == (2, 1)
        assert store["a"] == "here already"
        import_store(store, source, overwrite=True)
        assert store.copy() == CONTENT


def test_export_to_a_location(url: str, tmp_path: Path) -> None:
    """An export may go to an address, or to a file that is a store."""
    with cm.open(tmp_path / "store.db") as store:
        store.update(CONTENT)
        store.upload(b"data", "one.png")
        assert export_store(store, url) == (3, 1, 0, 0, (), 0.0)
        assert export_store(store, url) == (0, 0, 0, 3, (), 0.0)
        assert export_store(store, f"sqlite:///{tmp_path / 'other.db'}") == (3, 1, 0, 0, (), 0.0)
        store["e"] = 5
        assert export_store(store, tmp_path / "other.db", dry_run=True) == (1, 0, 0, 3, (), 0.0)
        assert export_store(store, tmp_path / "none.db", format="store", dry_run=True) == (4, 1, 0, 0, (), 0.0)
        assert not (tmp_path / "none.db").exists()
        assert export_store(store, tmp_path / "other.db") == (1, 0, 0, 3, (), 0.0)
    for location in (url, tmp_path / "other.db"):
        with cm.open(location) as other:
            assert {key: other[key] for key in CONTENT} == CONTENT


def test_a_part_of_a_store(tmp_path: Path) -> None:
    """A view is exported and imported under its own keys."""
    with cm.open("memory:") as store:
        store.update({"users/ann": 1, "users/bob": 2, "else": 3})
        export_store(store.view("users/"), tmp_path / "users.json")
        assert json.loads((tmp_path / "users.json").read_text()) == {"ann": 1, "bob": 2}
        import_store(store.view("more/"), tmp_path / "users.json")
        assert store["more/ann"] == 1


def test_media_files_beside_the_file(tmp_path: Path) -> None:
    """The media files of an embedded store lie in a folder beside its export, with an index; they come back equal."""
    with cm.open("memory:") as store:
        for name, data in PICTURES.items():
            store.upload(data, name, type="image/png")
        assert export_store(store, tmp_path / "all.json").media == 3
    folder = tmp_path / "all.json.media"
    items = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert {item["name"]: (folder / item["file"]).read_bytes() for item in items} == PICTURES
    for item in items:
        assert hashlib.sha256(PICTURES[item["name"]]).hexdigest() == item["sha256"]
    with cm.open("memory:") as other:
        imported = import_store(other, tmp_path / "all.json")
        assert {name: other.download(url) for name, url in imported.media.items()} == PICTURES
        assert [media.mimetype for media in other.media_files()] == ["image/png"] * 3
        assert import_store(other, tmp_path / "all.json") == (0, 0, {}, 3)
        assert len(import_store(other, tmp_path / "all.json", overwrite=True).media) == 3


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "é" * 150 + ".jpeg", "a" * 193, "a." + "b" * 200])
def test_media_files_of_long_names(name: str, tmp_path: Path) -> None:
    """A media file whose name is too long for a file comes back under its name."""
    with cm.open("memory:") as store, cm.open("memory:") as other:
        store.upload(b"data", name)
        export_store(store, tmp_path / "all.json")
        assert list(import_store(other, tmp_path / "all.json").media) == [name]
        assert pictures_of(other) == {name: b"data"}


def test_an_export_without_media_in_the_place_of_one_with_some(tmp_path: Path) -> None:
    """The folder of an export is replaced with it, so that no import brings what was of another."""
    with cm.open("memory:") as store:
        store.upload(b"data", "one.png")
        export_store(store, tmp_path / "all.json")
    with cm.open("memory:") as other:
        export_store(other, tmp_path / "all.json", overwrite=True)
    assert not (tmp_path / "all.json.media").exists()


def test_media_files_of_a_service(url: str, tmp_path: Path) -> None:
    """A service lists none, so those are exported whose addresses stand in the values; others are told of."""
    with cm.open(url) as store:
        known, unknown = store.upload(b"known", "known.png"), store.upload(b"unknown", "unknown.png")
        gone = known.url.replace(known.id, "0" * 32)
        store.update({"a": {"picture": known.url}, "b": [f"see {known.url}, or {gone}"]})
        with pytest.raises(UnsupportedError, match="doesn't list media files"):
            store.media_files()
        assert export_store(store, tmp_path / "dry.json", dry_run=True).media is None
        assert export_store(store, tmp_path / "all.json") == (2, 1, 0, 0, (gone,), 0.0)
        assert unknown.url not in (tmp_path / "all.json.media" / "index.jsonl").read_text()
        with cm.open("memory:") as other:
            with pytest.raises(BulkError, match="leads nowhere"):
                import_store(other, store)
            assert pictures_of(other) == {"known.png": b"known"}
    with cm.open("memory:") as other:
        import_store(other, tmp_path / "all.json")
        assert pictures_of(other) == {"known.png": b"known"}


def test_a_media_file_that_is_there_already(url: str, tmp_path: Path) -> None:
    """It is left as it is, also at a service, unless it was asked to be replaced."""
    with cm.open("memory:") as store:
        store.upload(b"new", "one.png")
        store.upload(b"new", "two.png")
        export_store(store, tmp_path / "all.json")
    with cm.open(url) as target:
        before = target.upload(b"old", "one.png")
        imported = import_store(target, tmp_path / "all.json")
        assert (set(imported.media), imported.media_skipped) == ({"two.png"}, 1)
        assert target.download(before) == b"old"
        assert set(import_store(target, tmp_path / "all.json", overwrite=True).media) == {"one.png", "two.png"}
        assert target.download(before) == b"new"


def test_a_service_that_can_t_tell(vendor: Vendor, tmp_path: Path) -> None:
    """The vendor's service can't say whether a media file is there, so that has to be asked for."""
    with cm.open("memory:") as store:
        store.upload(b"new", "one.png")
        export_store(store, tmp_path / "all.json")
    with CloudStoreMapping[Any](vendor.api_key, vendor.address) as target:
        with pytest.raises(UnsupportedError, match="say overwrite=True"):
            import_store(target, tmp_path / "all.json")
        assert set(import_store(target, tmp_path / "all.json", overwrite=True).media) == {"one.png"}


def test_media_files_that_are_damaged(tmp_path: Path) -> None:
    """A file that isn't what the index says, or not there, is an error by its name; the others are imported."""
    with cm.open("memory:") as store:
        for name in ("one.png", "two.png", "three.png"):
            store.upload(name.encode(), name)
        export_store(store, tmp_path / "all.json")
    folder = tmp_path / "all.json.media"
    index = (folder / "index.jsonl").read_text().splitlines()
    files = {item["name"]: folder / item["file"] for item in map(json.loads, index)}
    files["one.png"].write_bytes(b"other")
    files["two.png"].unlink()
    with cm.open("memory:") as other:
        with pytest.raises(BulkError) as caught:
            import_store(other, tmp_path / "all.json")
        assert set(caught.value.failed) == {"one.png", "two.png"}
        assert pictures_of(other) == {"three.png": b"three.png"}


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "..", ""])
def test_an_index_from_elsewhere(name: str, tmp_path: Path) -> None:
    """An index can name nothing outside of its folder."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "all.json").write_text("{}")
    (tmp_path / "all.json.media").mkdir()
    item = {"file": name, "link": "", "name": "a.txt", "mimetype": "text/plain", "size": 6, "sha256": "0" * 64}
    (tmp_path / "all.json.media" / "index.jsonl").write_text(json.dumps(item))
    with cm.open("memory:") as store:
        with pytest.raises(BulkError):
            import_store(store, tmp_path / "all.json")
        assert not store.media_files()


def test_an_index_that_can_t_be_read(tmp_path: Path) -> None:
    """A line of the index that is none is named by its number."""
    with cm.open("memory:") as store:
        store.upload(b"data", "one.png")
        export_store(store, tmp_path / "all.json")
        index = tmp_path / "all.json.media" / "index.jsonl"
        index.write_text(index.read_text() + "{}\n")
        with pytest.raises(cm.BadValueError, match=r"Line 2 of .*index"):
            import_store(store, tmp_path / "all.json")
