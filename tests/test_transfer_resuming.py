"""An export or import that was interrupted goes on where it stood, and leaves nothing that looks whole and isn't."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import cloudstore_mapping as cm
from cloudstore_mapping.client.mapping import CloudStoreMapping
from cloudstore_mapping.client.raw import RawStore
from cloudstore_mapping.embedded import open_service
from cloudstore_mapping.errors import TransportError, UnsupportedError
from cloudstore_mapping.service.service import Service
from cloudstore_mapping.testing.faults import FaultyTransport, refused
from cloudstore_mapping.transfer import export_store, import_store
from cloudstore_mapping.transfer.journal import Journal
from cloudstore_mapping.web.serve import background
from tests.storages import new_storage

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
    """What was read before the connection broke is not read again, and the file is there only in the end."""
    store, transport = faulty
    file = tmp_path / "all.json"
    break_after(transport, 3)  # the listing, and two batches
    with pytest.raises(TransportError):
        export_store(store, file)
    assert not file.exists()
    assert (tmp_path / "all.json.part").exists()
    transport.break_with([])
    assert export_store(store, file) == (3_500, 0, 2_000, 0, ())
    assert len(transport.requests) == 3  # the listing, and the two batches that were left
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


@pytest.mark.parametrize("lines", [0, 1, 2, 1_500])
@pytest.mark.parametrize("more", [-2, -1, 0, 1, 30])
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
        for requests in (1, 2, batches - 1, 3, 4, 2, 3):  # in the listing, in the values, and in the media
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
def test_a_hundred_thousand_keys(tmp_path: Path) -> None:
    """So are 100,000 keys."""
    there_and_back(100_000, tmp_path)


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
        assert export_store(store, file).before == 1
    assert json.loads(file.read_text("utf-8")) == {"a": 1, "b": 2}
