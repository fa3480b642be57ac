"""An export or import that was interrupted goes on where it stood, and leaves nothing that looks whole and isn't."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.transport import HTTPTransport
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.errors import TransportError, UnsupportedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.faults import FaultyTransport, refused
from cloudstore_mapping.transfer import export_store, import_store
from cloudstore_mapping.transfer.journal import Journal
from cloudstore_mapping.transfer.mediafolder import MediaDraft
from cloudstore_mapping.transfer.raw_store import RawStore
from cloudstore_mapping.web.server import background
from tests.storages import new_storage
from tests.support.matrix import spread
from tests.vendor import Vendor

CONTENT = {f"key {number:04}": {"number": number} for number in range(3_500)}


@pytest.fixture
def faulty(tmp_path: Path) -> Any:
    """Return a store of many keys, and the transport that can be told to fail."""
    inner, api_key = open_service(tmp_path / "store.db")
    transport = FaultyTransport(inner)
    with CloudStoreMapping[Any](api_key, "a store", transport=transport, retries=0) as store:
        store.update(CONTENT)
        transport.requests.clear()
        yield store, transport


def break_after(transport: FaultyTransport, requests: int) -> None:
    """Let the next requests pass, and none of those that follow."""
    transport.break_with([*[FaultyTransport.pass_on] * requests, *[refused] * 100])


def test_an_export_goes_on(faulty: tuple[CloudStoreMapping[Any], FaultyTransport], tmp_path: Path) -> None:
    """The file is there only in the end; the values are read again where that is quick, for they may have changed."""
    store, transport = faulty
    file = tmp_path / "all.json"
    break_after(transport, 3)  # the listing, and two batches
    with pytest.raises(TransportError):
        export_store(store, file)
    assert not file.exists()
    assert (tmp_path / "all.json.part").exists()
    transport.break_with([])
    assert export_store(store, file) == (3_500, 0, 0, 0, (), 0.0)
    assert len(transport.requests) == 5  # the listing, and all four batches
    assert json.loads(file.read_text()) == CONTENT
    assert not (tmp_path / "all.json.part").exists()


def test_an_import_goes_on(faulty: tuple[CloudStoreMapping[Any], FaultyTransport], tmp_path: Path) -> None:
    """What was written before the connection broke is not written again."""
    store, transport = faulty
    export_store(store, tmp_path / "all.jsonl")
    store.clear()
    break_after(transport, 3)
    with pytest.raises(TransportError):
        import_store(store, tmp_path / "all.jsonl")
    transport.break_with([])
    assert len(store) == 2_000
    assert import_store(store, tmp_path / "all.jsonl")[:2] == (1_500, 2_000)
    assert store.copy() == CONTENT


@pytest.mark.parametrize(("lines", "more"), spread([[0, 1, 2, 1_500], [-2, -1, 0, 1, 30]], 4))
def test_a_journal_that_was_cut_off(
    lines: int, more: int, faulty: tuple[CloudStoreMapping[Any], FaultyTransport], tmp_path: Path
) -> None:
    """Wherever a crash cut off what was on its way to the disk, nothing is lost or doubled."""
    store, transport = faulty
    break_after(transport, 3)
    with pytest.raises(TransportError):
        export_store(store, tmp_path / "all.json")
    transport.break_with([])
    journal = tmp_path / "all.json.part"
    whole = journal.read_bytes()
    size = sum(map(len, whole.splitlines(keepends=True)[:lines]))
    journal.write_bytes(whole[: max(0, size + more)])
    export_store(store, tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == CONTENT


def test_a_journal_of_another_store(faulty: tuple[CloudStoreMapping[Any], FaultyTransport], tmp_path: Path) -> None:
    """What was read of one store never gets into the export of another, nor into that of a part of it."""
    store, transport = faulty
    break_after(transport, 3)
    with pytest.raises(TransportError):
        export_store(store, tmp_path / "all.json")
    transport.break_with([])
    with cm.open("memory:") as other:
        for another in (other, store.view("key 0")):
            with pytest.raises(UnsupportedError, match="of another store; delete it"):
                export_store(another, tmp_path / "all.json")
    assert not (tmp_path / "all.json").exists()


@pytest.mark.parametrize("content", [b"a letter", b"a letter\n", b"{}\n", b'{"unfinished'])
def test_a_file_that_is_no_journal(content: bytes, tmp_path: Path) -> None:
    """A file of the user's that happens to be called like a journal is left as it is; the beginning of one goes on."""
    (tmp_path / "all.json.part").write_bytes(content)
    with cm.open("memory:") as store:
        store["a"] = 1
        if content.startswith(b'{"'):
            export_store(store, tmp_path / "all.json")
            return
        with pytest.raises(UnsupportedError, match="is no unfinished export and was left as it is"):
            export_store(store, tmp_path / "all.json")
    assert (tmp_path / "all.json.part").read_bytes() == content


def test_a_journal_that_was_finished_long_ago(tmp_path: Path) -> None:
    """An export that ended between putting its file in place and forgetting its journal gives nothing old later."""
    with cm.open("memory:") as store:
        store.update({"a": "old", "gone": 1})
        export_store(store, tmp_path / "all.json")
        leave_a_journal(store, tmp_path / "all.json")
        store["a"] = "new"
        del store["gone"]
        assert export_store(store, tmp_path / "all.json", overwrite=True).before == 0
        assert json.loads((tmp_path / "all.json").read_text()) == {"a": "new"}


def leave_a_journal(store: CloudStoreMapping[Any], file: Path) -> None:
    """Leave what an export has beside its file just before it ends."""
    with Journal(file, RawStore(store).identity) as journal:
        journal.add([("a", b'"old"'), ("gone", b"1")])
        journal.begin_replacing()


def test_two_exports_at_once(tmp_path: Path) -> None:
    """A second export to the same file is refused while the first is under way."""
    told: list[BaseException] = []

    def again(done: int, total: int) -> None:
        if not told:
            with pytest.raises(BlockingIOError) as caught:
                export_store(store, tmp_path / "all.json")
            told.append(caught.value)

    with cm.open("memory:") as store:
        store["a"] = 1
        export_store(store, tmp_path / "all.json", progress=again)
    assert "another export writes it" in str(told[0])


def test_what_can_t_be_read(tmp_path: Path) -> None:
    """A key that is locked is an error in the end; the file holds all others."""
    with Service(new_storage()) as service, background(service) as address:
        key = service.accounts.create("owner")
        service_url = address.replace("://", f"://{key}@")
        with cm.open(service_url) as store:
            store.update({"a": 1, "b": 2, "c": 3})
            service.set_passwords("owner", "b", view="pw")
            with pytest.raises(cm.BulkError, match="1 could not be exported, all others are") as caught:
                export_store(store, tmp_path / "all.json")
            assert isinstance(caught.value.failed["b"], cm.LockedError)
            assert json.loads((tmp_path / "all.json").read_text()) == {"a": 1, "c": 3}
        with cm.open(service_url, password="pw") as store:
            export_store(store, tmp_path / "all.json", overwrite=True)
        assert json.loads((tmp_path / "all.json").read_text()) == {"a": 1, "b": 2, "c": 3}


MORTAL = Path(__file__).parent / "programs" / "mortal.py"


def mortal(requests: int, *arguments: str) -> int:
    """Run a program that is killed at its n-th request, and return how it ended."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(MORTAL), str(requests), *arguments],
        env={**os.environ, "PYTHONPATH": str(MORTAL.parent.parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    return ran.returncode


def there_and_back(count: int, folder: Path) -> None:
    """Export so many keys and some media, killed now and then; import them elsewhere, killed as well; compare."""
    batches = count // 1_000
    media = {f"picture {number}.bin": bytes([number]) * 100_000 * number for number in range(5)}
    content: dict[str, Any] = {f"users/{number}": {"number": number, "text": "é" * 40} for number in range(count)}
    with Service(new_storage(folder / "service.db")) as service, background(service) as address:
        here, there = (address.replace("://", f"://{service.accounts.create(name)}@") for name in ("here", "there"))
        with cm.open(here) as store:
            links = {name: store.upload(data, name).url for name, data in media.items()}
            content["users/1"]["pictures"] = links
            store.update(content)
        file = str(folder / "all.jsonl")
        # In the listing, in the values, and in the media.
        for requests in (1, 2, batches - 1, batches + 2, batches + 4, 3, batches + 3):
            assert mortal(requests, "export", here, file) == -signal.SIGKILL
            assert not Path(file).exists()
        assert mortal(0, "export", here, file) == 0
        for requests in (2, 3, batches - 2, 4, 2, 3):  # in the values, and in the media
            assert mortal(requests, "import", there, file) == -signal.SIGKILL
        assert mortal(0, "import", there, file) == 0
        with cm.open(there) as store:
            assert store.copy() == content
        other = service.accounts.named("there")
        for name, data in media.items():
            assert b"".join(service.media.chunks(service.media.named(other, name))) == data
    command = [sys.executable, "-m", "cloudstore_mapping", "import", file, "--at", str(folder / "embedded.db")]
    subprocess.run(command, check=True, capture_output=True)
    with cm.open(folder / "embedded.db") as store:
        assert store.copy() == content
        assert {found.name: store.download(found) for found in store.media_files()} == media


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path: Path) -> None:
    """Keys and media, exported and imported elsewhere by programs that are killed on the way, are the same."""
    there_and_back(6_000, tmp_path)


@pytest.mark.slow
def test_many_keys(tmp_path: Path, at_length: bool) -> None:
    """So are 20,000 keys, and at length 100,000."""
    there_and_back(100_000 if at_length else 20_000, tmp_path)


@pytest.mark.parametrize("age", [3600.0, -60.0])
def test_an_old_export_is_not_resumed(age: float, tmp_path: Path) -> None:
    """An export that began an hour ago, or by a clock that was ahead, is begun anew: its values are too old."""
    file = tmp_path / "all.json"
    with cm.open("memory:") as store:
        store.update({"a": "new", "b": 2})
        with Journal(file, RawStore(store).identity) as journal:
            journal.add([("a", b'"old"')])
        part = tmp_path / "all.json.part"
        head, *rest = part.read_text("utf-8").splitlines(keepends=True)
        begun = json.loads(head) | {"begun_at": time.time() - age}
        part.write_text(json.dumps(begun, separators=(",", ":")) + "\n" + "".join(rest), "utf-8")
        assert export_store(store, file).before == 0
    assert json.loads(file.read_text("utf-8")) == {"a": "new", "b": 2}


def test_a_key_that_was_deleted_since(tmp_path: Path) -> None:
    """A resumed export leaves out keys that were deleted after it had read them."""
    file = tmp_path / "all.json"
    with cm.open("memory:") as store:
        store.update({"a": 1, "b": 2})
        with Journal(file, RawStore(store).identity) as journal:
            journal.add([("a", b"1"), ("gone", b"1")])
        assert export_store(store, file).keys == 2
    assert json.loads(file.read_text("utf-8")) == {"a": 1, "b": 2}


def test_a_value_that_was_changed_since(tmp_path: Path) -> None:
    """A resumed export holds no value that the store doesn't, and no key that was deleted, of ours."""
    file = tmp_path / "all.json"
    with cm.open("memory:") as store:
        store.update({"a": "new", "b": 2})
        with Journal(file, RawStore(store).identity) as journal:
            journal.add([("a", b'"old"'), ("gone", b"1")])
        assert export_store(store, file).before == 0
    assert json.loads(file.read_text("utf-8")) == {"a": "new", "b": 2}


@pytest.fixture
def slow(vendor: Vendor) -> Any:
    """Return a store at a service without versions, and the transport that can be told to fail."""
    transport = FaultyTransport(HTTPTransport(vendor.address))
    with CloudStoreMapping[Any](
        vendor.api_key, vendor.address, transport=transport, retries=0, max_workers=1, clock=FrozenClock()
    ) as store:
        store.update({"a": 1, "b": 2, "c": 3})
        transport.requests.clear()
        yield store, transport


def interrupted(slow: tuple[CloudStoreMapping[Any], FaultyTransport], file: Path) -> None:
    """Begin an export, and end it after two of three values."""
    store, transport = slow
    break_after(transport, 3)  # the listing, and two values
    with pytest.raises(TransportError):
        export_store(store, file)
    transport.break_with([])
    transport.requests.clear()


def test_a_slow_service_is_resumed(
    slow: tuple[CloudStoreMapping[Any], FaultyTransport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of a service without versions aren't read again within the hour, and it is told how old they are."""
    store, transport = slow
    interrupted(slow, tmp_path / "all.json")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 600)
    done = export_store(store, tmp_path / "all.json")
    assert (done.keys, done.before) == (3, 2)
    assert 600 <= done.before_age < 660
    assert len(transport.requests) == 2
    assert json.loads((tmp_path / "all.json").read_text()) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_journal_that_was_changed(
    line: int, slow: tuple[CloudStoreMapping[Any], FaultyTransport], tmp_path: Path
) -> None:
    """A line of the journal that isn't what was written, or stands behind another head, ends the reuse there."""
    store, _ = slow
    interrupted(slow, tmp_path / "all.json")
    part = tmp_path / "all.json.part"
    lines = part.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace('"begun_at":1', '"begun_at": 1').replace('"value":', '"value":9')
    part.write_text("".join(lines))
    assert export_store(store, tmp_path / "all.json").before == max(0, line - 1)
    assert json.loads((tmp_path / "all.json").read_text()) == {"a": 1, "b": 2, "c": 3}


def test_a_changed_journal_still_says_that_files_are_replaced(tmp_path: Path) -> None:
    """Whatever of a journal doesn't fit, files that are only partly replaced stay known as that."""
    leave_a_journal(cm.open("memory:"), tmp_path / "all.json")
    part = tmp_path / "all.json.part"
    part.write_text(part.read_text().replace('"old"', '"odd"'))
    identity = json.loads(part.read_text().splitlines()[0])["unfinished_export_of"]
    for _ in range(2):
        with Journal(tmp_path / "all.json", identity) as journal:
            assert (journal.is_replacing, journal.keys) == (True, set())


@pytest.mark.parametrize("what", ["replaced", "deleted", "damaged", "kept"])
def test_media_files_of_an_interrupted_export(what: str, tmp_path: Path) -> None:
    """A media file is not got again if the store still has it, and not exported if not."""
    with cm.open(tmp_path / "s.db") as store:
        urls = {name: store.upload(name.encode(), name).url for name in ("one", "two", "three")}
        store["a"] = 1
        draft = MediaDraft(tmp_path / "all.json")
        for url in (urls["one"], urls["two"]):
            draft.add(url, RawStore(store).fetch)
        folder = tmp_path / "all.json.media.part"
        before = {file.name: file.stat().st_ino for file in folder.iterdir()}
        expected = {name: name.encode() for name in urls}
        if what == "replaced":
            store.upload(b"other", "one")
            expected["one"] = b"other"
        elif what == "damaged":
            (folder / "000000-one").write_bytes(b"odd")
        elif what == "deleted":
            with closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
                connection.execute("DELETE FROM media WHERE name = 'one'")
            del expected["one"]
        assert export_store(store, tmp_path / "all.json").media == len(expected)
    folder = tmp_path / "all.json.media"
    after = {file.name: file.stat().st_ino for file in folder.iterdir()}
    assert after["000001-two"] == before["000001-two"]
    assert (after.get("000000-one") == before["000000-one"]) == (what == "kept")
    with cm.open("memory:") as other:
        import_store(other, tmp_path / "all.json")
        assert {found.name: other.download(found) for found in other.media_files()} == expected


def test_media_files_of_a_service_are_not_got_again(tmp_path: Path) -> None:
    """Over HTTP a media file that a run before had got whole stays, unless another one is at its address."""
    with (
        Service(new_storage()) as service,
        background(service) as address,
        cm.open(address.replace("://", f"://{service.accounts.create('owner')}@")) as store,
    ):
        urls = [store.upload(name.encode(), name).url for name in ("one", "two")]
        urls.append(store.upload(b"", "none").url)
        store["a"] = urls
        draft = MediaDraft(tmp_path / "all.json")
        for url in urls:
            draft.add(url, RawStore(store).fetch)
        before = {file.name: file.stat().st_ino for file in (tmp_path / "all.json.media.part").iterdir()}
        store.upload(b"other", "one")
        assert export_store(store, tmp_path / "all.json").media == 3
    after = {file.name: file.stat().st_ino for file in (tmp_path / "all.json.media").iterdir()}
    kept = {name for name in after if after[name] == before.get(name)}
    assert kept == {"000001-two", "000002-none"}
